"""What every program of this project does first: accept the shell, container or supervisor that started it as it is."""

from __future__ import annotations

from shared.process.proxies import reach_loopback_directly
from shared.process.standard_streams import prepare_streams
from shared.process.user_cache import ensure_home


def prepare_process() -> None:
    """Mend closed or narrow standard streams, proxies before loopback addresses and a missing home. Call it before
    heavy imports.
    """
    prepare_streams()
    reach_loopback_directly()
    ensure_home()

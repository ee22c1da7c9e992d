"""The first step of every program of this project: adapt to the shell, container or supervisor that started it."""

from __future__ import annotations

from shared.process.proxies import reach_loopback_directly
from shared.process.standard_streams import prepare_streams
from shared.process.user_cache import ensure_home


def prepare_process() -> None:
    """Repair standard streams, proxies of loopback addresses and a missing HOME. Call it before heavy imports."""
    prepare_streams()
    reach_loopback_directly()
    ensure_home()

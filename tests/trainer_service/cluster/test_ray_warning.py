"""Ray's advice about signals, which the service handles itself, is not in the log; what it raises has a clear error."""

from __future__ import annotations

import logging
from importlib.util import find_spec
from pathlib import Path

import pytest

from shared.errors import Unavailable
from trainer_service.cluster.ray_cluster import RayCluster, without_signal_warning

WARNING = "SIGTERM handler is not set because current thread is not the main thread."


def test_only_the_warning_about_signals_is_dropped(caplog: pytest.LogCaptureFixture) -> None:
    logger = logging.getLogger("ray._private.worker")
    with without_signal_warning():
        logger.warning(WARNING)
        logger.warning("another one")
    assert [record.message for record in caplog.records] == ["another one"]
    logger.warning(WARNING)
    assert caplog.records[-1].message == WARNING, "elsewhere nothing is dropped"


async def test_a_ray_that_starts_too_slowly_is_unavailable(monkeypatch: pytest.MonkeyPatch) -> None:
    def init(**options: object) -> None:
        raise Exception("The current node timed out during startup.")

    monkeypatch.setattr("ray.init", init)
    with pytest.raises(Unavailable, match="can't be reached"):
        await RayCluster("192.0.2.1:6379").start()


def test_the_installed_ray_still_says_it_so() -> None:
    spec = find_spec("ray")  # an import at this module's top would come before the environment that Ray reads then
    assert spec is not None
    assert spec.origin is not None
    source = (Path(spec.origin).parent / "_private" / "worker.py").read_text()
    assert WARNING.split(" because")[0] in source

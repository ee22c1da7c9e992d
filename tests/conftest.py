"""Fixtures that every part shares: tiny models that are real models, and the real base model where it is there."""

from __future__ import annotations

import gc
import os
import signal
from collections.abc import Generator
from pathlib import Path
from typing import Any

import hypothesis
import pytest

from shared.kernels.settings import set_native_defaults
from shared.process.garbage import paused_collector

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # tests never reach for a hub
# Tests and the processes that they start share the processors. With two threads each, the tests of training took nine
# times the processor time beside other busy processes, because a thread spins while it waits for the other.
os.environ.setdefault("OMP_NUM_THREADS", "1")
set_native_defaults()

from tests.slow import has_only_slow_tests, is_slow, leaves_out_slow_tests  # noqa: E402

TOGETHER = ("tests/trainer_service/cluster/", "tests/packaging/", "tests/k8s/test_alerts")
"""Beginnings of the paths of tests that share what takes long to make (a Ray; a wheel and its environments) or note the
alerts that fired. The longest is first.
"""


hypothesis.settings.register_profile(  # its limits of time would make tests depend on the machine's speed
    "any-machine",
    parent=hypothesis.settings.default,
    deadline=None,
    suppress_health_check=[hypothesis.HealthCheck.too_slow],
)
hypothesis.settings.load_profile("any-machine")


def pytest_configure() -> None:
    # A job in the background begins with Ctrl-C ignored, and the processes that tests start and interrupt would inherit
    # that.
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Of several processes (`pytest -n`) one has all tests of each entry of `TOGETHER`; elsewhere a file's tests stay
    together, with their fixtures.
    """
    from xdist.scheduler import LoadScopeScheduling

    class Scheduling(LoadScopeScheduling):  # type: ignore[misc]
        def _split_scope(self, nodeid: str) -> str:
            shared = [start for start in TOGETHER if nodeid.startswith(start)]
            return shared[0] if shared else nodeid.partition("::")[0]

    return Scheduling(config, log)


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, object, object]:
    """The garbage collector doesn't look through modules and tests, which stay until the process ends."""
    with paused_collector():
        collected = yield
    gc.collect()
    gc.freeze()
    return collected


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Without slow tests, files that have no others are not imported: it would take most of the time of collection."""
    without_slow = leaves_out_slow_tests(config.getoption("markexpr"))
    return True if without_slow and has_only_slow_tests(collection_path) else None


@pytest.hookimpl(tryfirst=True)  # before `-m` deselects by markers
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    for item in items:
        if is_slow(item):
            item.add_marker(pytest.mark.slow)
    if hasattr(config, "workerinput"):  # what takes longest begins first
        items.sort(key=lambda item: [not item.nodeid.startswith(start) for start in TOGETHER])


@pytest.fixture
def one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    """Trainers that the test starts have workers of one thread. Beside other busy processes, two threads take several
    times the processor time.
    """
    monkeypatch.setenv("SOFTPROMPT_TRAINER_CPUS_PER_WORKER", "1")


@pytest.fixture(scope="session")
def tiny_model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random Llama of 2 layers (hidden size 64, grouped-query attention), with a byte tokenizer and chat template."""
    from tests.tiny_models import save_tiny_llama  # imports torch, which a process that distributes tests doesn't need

    return save_tiny_llama(tmp_path_factory.mktemp("models") / "tiny-llama")


@pytest.fixture(scope="session")
def real_model_dir() -> Path:
    """SmolLM2-135M-Instruct. `make test` pulls it first; a plain `pytest -m "not model"` goes without."""
    from softprompt.models import models_dir

    path = models_dir() / "smollm2-135m-instruct"
    assert (path / "config.json").is_file(), (
        "run `softprompt models pull smollm2-135m-instruct` first, or deselect with -m 'not model'"
    )
    return path

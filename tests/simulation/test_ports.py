"""The decision code reaches clocks, random numbers and threads only where the simulation can replace them."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from tests.simulation.machine import WITH_DATETIME

ROOT = Path(__file__).parents[2]
DECIDING = (
    "trainer_service/dispatch",
    "trainer_service/jobs",
    "trainer_service/maintenance",
    "trainer_service/publish",
    "trainer_service/webhooks",
    "inference_service/prompts",
    "softprompt/router",
    "softprompt/routing",
    "shared/store",
)
REPLACED = frozenset({"time", "random", "secrets", "uuid", "threading"})
"""Modules whose functions the simulation replaces: the decision code must look them up at each call."""
FORBIDDEN = {
    "threading.Thread": "use a CallPool",
    "threading.Timer": "use asyncio",
    "random.SystemRandom": "use the functions of random",
    "time.perf_counter": "use time.monotonic",
    "time.time_ns": "use time.time",
    "time.monotonic_ns": "use time.monotonic",
    "os._exit": "raise",
    "datetime.utcnow": "use datetime.now(UTC)",
}
SLEEPS = frozenset({"shared/store/store.py"})
"""Files that may call `time.sleep`: a writer of the prompt store pauses in the thread of its pool."""
TIMERS = frozenset({"trainer_service/webhooks/sender.py"})
"""Files that may start a `threading.Timer`: it ends a real connection, which the simulation does not make."""
OWN_DATETIME = frozenset({"shared/store/object.py"})
"""Files that call `datetime.now` and are not simulated: the client of a real object store."""


def _files() -> list[Path]:
    return [path for folder in DECIDING for path in sorted((ROOT / folder).rglob("*.py"))]


def problems(path: str, text: str) -> list[str]:
    """What in a file of the decision code the simulation could not replace."""
    found = []
    module = path.removesuffix(".py").replace("/", ".")
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.ImportFrom) and node.module in REPLACED:
            found.append(f"{path}:{node.lineno}: import {node.module} itself, not names from it")
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            name = f"{node.value.id}.{node.attr}"
            if name in FORBIDDEN and not (name == "threading.Timer" and path in TIMERS):
                found.append(f"{path}:{node.lineno}: {name}: {FORBIDDEN[name]}")
            if name == "time.sleep" and path not in SLEEPS:
                found.append(f"{path}:{node.lineno}: time.sleep: use asyncio.sleep")
            if name == "datetime.now" and module not in WITH_DATETIME and path not in OWN_DATETIME:
                found.append(f"{path}:{node.lineno}: datetime.now: add the module to tests.simulation.machine")
    return found


def test_the_decision_code_uses_only_what_the_simulation_replaces() -> None:
    files = _files()
    assert len(files) > 80
    found = [problem for path in files for problem in problems(str(path.relative_to(ROOT)), path.read_text())]
    assert not found, "\n".join(found)


@pytest.mark.parametrize(
    "line", ["from time import monotonic", "threading.Thread(target=run)", "time.sleep(1)", "datetime.now(UTC)"]
)
def test_each_rule_finds_what_it_forbids(line: str) -> None:
    assert problems("trainer_service/dispatch/new.py", line)

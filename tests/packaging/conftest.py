"""The wheel and its environments, built once."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.packaging.environments import Environment, build


@pytest.fixture(scope="session")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build("wheel", tmp_path_factory.mktemp("wheel"))


@pytest.fixture(scope="session")
def light(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Environment:
    return Environment.light(tmp_path_factory.mktemp("light") / "env", wheel)


@pytest.fixture(scope="session")
def full(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Environment:
    return Environment.full(tmp_path_factory.mktemp("full") / "env", wheel)

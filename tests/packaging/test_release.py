"""`make release`: what it builds passes its own checks, and they find what is wrong."""

from __future__ import annotations

import shutil
import zipfile
from pathlib import Path

import pytest

from tests.packaging.check_release import check
from tests.packaging.environments import build


@pytest.fixture(scope="module")
def sdist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build("sdist", tmp_path_factory.mktemp("sdist"))


@pytest.fixture
def dist(wheel: Path, sdist: Path, tmp_path: Path) -> Path:
    (tmp_path / sdist.name).symlink_to(sdist)
    shutil.copy(wheel, tmp_path)
    return tmp_path


def test_wheel_and_sdist_can_be_published(dist: Path) -> None:
    assert check(dist) == []


def test_what_does_not_belong_is_found(dist: Path) -> None:
    (wheel,) = dist.glob("*.whl")
    with zipfile.ZipFile(wheel, "a") as archive:
        archive.writestr("shared/__init__.py", "")
    assert check(dist) == [
        "the wheel holds shared/__init__.py",
        "the wheel from the sdist has another shared/__init__.py",
    ]

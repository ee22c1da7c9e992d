"""A real control group for a process of a test. It needs root and a writable /sys/fs/cgroup; without these the test is
skipped.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

_BASE = Path("/sys/fs/cgroup")


@contextmanager
def control_group(*, quota: str, memory_bytes: int) -> Iterator[list[Path]]:
    """Files that a process writes its id into to join a group whose parent has these limits. `quota`: microseconds in
    each 100 ms.

    Removed at the end, when the process must be gone.
    """
    made: list[Path] = []
    try:
        try:
            joined = _make(f"softprompt-test-{uuid.uuid4().hex[:8]}", quota, memory_bytes, made)
        except OSError as error:
            pytest.skip(f"no control group can be made here: {error}")
        yield joined
    finally:
        for group in reversed(made):
            group.rmdir()


def _make(name: str, quota: str, memory_bytes: int, made: list[Path]) -> list[Path]:
    def make(parent: Path, limits: dict[str, str]) -> Path:
        outer = parent / name
        for group in (outer, outer / "inner"):
            group.mkdir()
            made.append(group)
        for file, value in limits.items():
            (outer / file).write_text(value)
        return outer / "inner" / "cgroup.procs"

    if (_BASE / "cgroup.controllers").exists():
        if not {"cpu", "memory"} <= set((_BASE / "cgroup.subtree_control").read_text().split()):
            raise OSError("controllers are not handed to child groups")
        return [make(_BASE, {"cpu.max": f"{quota} 100000", "memory.max": str(memory_bytes)})]
    cpu = make(_BASE / "cpu", {"cpu.cfs_period_us": "100000", "cpu.cfs_quota_us": quota})
    return [cpu, make(_BASE / "memory", {"memory.limit_in_bytes": str(memory_bytes)})]

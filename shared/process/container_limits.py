"""Limits on processors and memory from the control groups of this process (Linux, cgroup v1, v2 and hybrid).

The limits of all ancestors apply too, so each value is the smallest one from the process's group up to the root of the
mounted hierarchy. /proc/self/mountinfo shows where the hierarchy is mounted and which group is its root (a container
sees only a part of the host's hierarchy); see cgroups(7) and cgroup_namespaces(7). Files that can't be read count as
no limit.
"""

from __future__ import annotations

import contextlib
import math
import os
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TypeVar

ROOT = Path("/")
Number = TypeVar("Number", int, float)

_NO_LIMIT_BYTES = 1 << 60
"""Larger values mean no limit: cgroup v1 then reports the largest number of whole pages."""


@dataclass(frozen=True)
class Group:
    """The directory of this process's control group or of one of its ancestors."""

    directory: Path
    is_v2: bool

    def text(self, name: str) -> str:
        """Content of a control file. Raises OSError or ValueError."""
        return (self.directory / name).read_text().strip()

    def statistics(self, name: str) -> dict[str, int]:
        """Content of a control file that has a name and a number in each line. Raises OSError or ValueError."""
        return {key: int(value) for key, value in (line.split() for line in self.text(name).splitlines())}


def cpu_quota(root: Path = ROOT) -> float | None:
    """Number of processors that this process may use on average, for example 1.5; None: no quota."""
    return min(_values(_cpu_quota, "cpu", root), default=None)


def usable_cpus(root: Path = ROOT) -> int:
    """Number of threads that can compute at the same time.

    The CPU quota rounded down, at least 1, at most the processors of the process's affinity (which a cpuset limits).
    """
    visible = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota = cpu_quota(root)
    return visible if quota is None else min(visible, max(1, math.floor(quota)))


def memory_left_bytes(root: Path = ROOT) -> int | None:
    """Memory left until the first group reaches its limit; None: no limit. Inactive page cache counts as free."""
    return min(_values(_memory_left, "memory", root), default=None)


def out_of_memory_counts(root: Path = ROOT) -> Path | None:
    """The file with the counter `oom_kill`: processes of this group that the kernel killed when memory ran out."""
    for group in _groups("memory", root):
        return group.directory / ("memory.events" if group.is_v2 else "memory.oom_control")
    return None


def _values(read: Callable[[Group], Number | None], controller: str, root: Path) -> Iterator[Number]:
    for group in _groups(controller, root):
        try:
            value = read(group)
        except (OSError, ValueError, ZeroDivisionError):
            continue
        if value is not None:
            yield value


def _cpu_quota(group: Group) -> float | None:
    if group.is_v2:
        quota, period = group.text("cpu.max").split()
    else:
        quota, period = group.text("cpu.cfs_quota_us"), group.text("cpu.cfs_period_us")
    if quota in ("max", "-1"):
        return None
    return int(quota) / int(period)


def _memory_limit(group: Group) -> int | None:
    if group.is_v2:
        limit = group.text("memory.max")
        return None if limit == "max" else int(limit)
    limits = [int(group.text("memory.limit_in_bytes"))]
    with contextlib.suppress(OSError, ValueError, KeyError):
        # Includes the limits of ancestors that are not mounted here.
        limits.append(group.statistics("memory.stat")["hierarchical_memory_limit"])
    return min(limits) if min(limits) < _NO_LIMIT_BYTES else None


def _memory_left(group: Group) -> int | None:
    limit = _memory_limit(group)
    if limit is None:
        return None
    used = int(group.text("memory.current" if group.is_v2 else "memory.usage_in_bytes"))
    with contextlib.suppress(OSError, ValueError):
        used -= group.statistics("memory.stat").get("inactive_file" if group.is_v2 else "total_inactive_file", 0)
    return max(0, limit - used)


def _groups(controller: str, root: Path) -> Iterator[Group]:
    """The process's group, then its mounted ancestors. In a hybrid setup a controller belongs to one version."""
    try:
        memberships = [line.split(":", 2) for line in (root / "proc/self/cgroup").read_text().splitlines()]
        mounts = list(_mounts((root / "proc/self/mountinfo").read_text()))
    except OSError:
        return
    for _, controllers, path in (membership for membership in memberships if len(membership) == 3):
        is_v2 = not controllers
        if not is_v2 and controller not in controllers.split(","):
            continue
        for mount in mounts:
            if mount.is_v2 == is_v2 and (is_v2 or controller in mount.controllers):
                top = root / mount.point.lstrip("/")
                own = _below(mount.root, path)
                yield from (Group(top / part, is_v2) for part in (own, *own.parents))
                break


@dataclass(frozen=True)
class _Mount:
    root: str
    """Path of the mounted group in the hierarchy."""
    point: str
    """Directory where it is mounted."""
    is_v2: bool
    controllers: tuple[str, ...]


def _mounts(mountinfo: str) -> Iterator[_Mount]:
    for line in mountinfo.splitlines():
        before, separator, after = line.partition(" - ")
        fields, kind = before.split(), after.split()
        if separator and len(fields) >= 5 and len(kind) >= 3 and kind[0] in ("cgroup", "cgroup2"):
            yield _Mount(_unescaped(fields[3]), _unescaped(fields[4]), kind[0] == "cgroup2", tuple(kind[2].split(",")))


def _unescaped(text: str) -> str:
    return re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), text)


def _below(mounted: str, path: str) -> PurePosixPath:
    """The group's path relative to the mounted group. A group outside the mounted part counts as the mounted group."""
    try:
        own = PurePosixPath(path).relative_to(mounted)
    except ValueError:
        return PurePosixPath()
    return PurePosixPath() if ".." in own.parts else own

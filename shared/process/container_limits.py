"""What the control groups of this process leave it: processors and memory. Linux, cgroup v1, v2 and both at once.

A limit of an ancestor binds as much as one of the process's own group, so each value is the smallest on the way from
the process's group up to the root of the mounted hierarchy. Where the hierarchy is mounted, and which group is its root
(a container sees only its own part of the host's), is in /proc/self/mountinfo; cgroups(7) and cgroup_namespaces(7)
describe both files. What can't be read is no limit.
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
"""cgroup v1 writes the largest number of whole pages for no limit."""


@dataclass(frozen=True)
class Group:
    """The directory of one control group that this process is in, or of an ancestor."""

    directory: Path
    is_v2: bool

    def text(self, name: str) -> str:
        """A control file's content. Raises OSError or ValueError."""
        return (self.directory / name).read_text().strip()

    def statistics(self, name: str) -> dict[str, int]:
        """A file with a name and a number in each line. Raises OSError or ValueError."""
        return {key: int(value) for key, value in (line.split() for line in self.text(name).splitlines())}


def cpu_quota(root: Path = ROOT) -> float | None:
    """Processors that this process may use on average, for example 1.5; None: no quota."""
    return min(_values(_cpu_quota, "cpu", root), default=None)


def usable_cpus(root: Path = ROOT) -> int:
    """Threads that can compute at the same time: the quota rounded down, at least 1, and at most the processors that
    the process may run on (its affinity, which a cpuset limits).
    """
    visible = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota = cpu_quota(root)
    return visible if quota is None else min(visible, max(1, math.floor(quota)))


def memory_limit_bytes(root: Path = ROOT) -> int | None:
    """None: no limit."""
    return min(_values(_memory_limit, "memory", root), default=None)


def memory_left_bytes(root: Path = ROOT) -> int | None:
    """Until the limit of the group that is nearest to its own. Page cache that can be dropped counts as free. None: no
    limit.
    """
    return min(_values(_memory_left, "memory", root), default=None)


def out_of_memory_counts(root: Path = ROOT) -> Path | None:
    """The file in which the kernel counts, as `oom_kill`, the processes of this group that it killed for want of
    memory.
    """
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
        limits.append(
            group.statistics("memory.stat")["hierarchical_memory_limit"]
        )  # of ancestors that are not mounted here, too
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
    """The process's own group first, then its ancestors, as far as they are mounted. With both versions a controller is
    in one of them.
    """
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
    """Group that is mounted."""
    point: str
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
    """The group as a path below the mounted one. One outside of what is mounted has the mounted one's limits, as far as
    can be seen.
    """
    try:
        own = PurePosixPath(path).relative_to(mounted)
    except ValueError:
        return PurePosixPath()
    return PurePosixPath() if ".." in own.parts else own

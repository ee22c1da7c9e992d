"""The limits that control groups set: file trees of several kernel versions, and one real group if the machine allows
one.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from shared.process.container_limits import (
    cpu_quota,
    memory_left_bytes,
    out_of_memory_counts,
    usable_cpus,
)
from tests.control_groups import control_group

UNLIMITED_V1 = "9223372036854771712"
V2 = {"/sys/fs/cgroup": ("/", "cgroup2", "rw")}
V1 = {
    "/sys/fs/cgroup/cpu,cpuacct": ("/", "cgroup", "rw,cpu,cpuacct"),
    "/sys/fs/cgroup/memory": ("/", "cgroup", "rw,memory"),
}
HYBRID = V1 | {"/sys/fs/cgroup/unified": ("/", "cgroup2", "rw")}


def tree(root: Path, membership: str, mounts: dict[str, tuple[str, str, str]], files: dict[str, str]) -> Path:
    """`mounts`: by mount point the mounted group, the file system and its options. `files`: by path."""
    lines = [
        f"{number} 23 0:{number} {group} {point} rw,nosuid - {kind} {kind} {options}"
        for number, (point, (group, kind, options)) in enumerate({"/": ("/", "ext4", "rw"), **mounts}.items(), 30)
    ]
    everything = {"/proc/self/cgroup": membership, "/proc/self/mountinfo": "\n".join(lines), **files}
    for path, content in everything.items():
        file = root / path.lstrip("/")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(f"{content}\n")
    return root


def limits(root: Path) -> tuple[float | None, int | None]:
    return cpu_quota(root), memory_left_bytes(root)


def test_v2_in_a_container_that_sees_its_own_group_as_the_root(tmp_path: Path) -> None:
    files = {
        "/sys/fs/cgroup/cpu.max": "150000 100000",
        "/sys/fs/cgroup/memory.max": "1000",
        "/sys/fs/cgroup/memory.current": "700",
        "/sys/fs/cgroup/memory.stat": "anon 500\ninactive_file 200",
    }
    assert limits(tree(tmp_path, "0::/", V2, files)) == (1.5, 500)
    assert usable_cpus(tmp_path) == 1
    assert out_of_memory_counts(tmp_path) == tmp_path / "sys/fs/cgroup/memory.events"


def test_v2_nested_the_smallest_limit_of_all_ancestors_binds(tmp_path: Path) -> None:
    base = "/sys/fs/cgroup"
    files = {
        f"{base}/kube/pod/box/cpu.max": "400000 100000",
        f"{base}/kube/pod/cpu.max": "50000 25000",
        f"{base}/kube/cpu.max": "max 100000",
        f"{base}/kube/pod/box/memory.max": "max",
        f"{base}/kube/pod/box/memory.current": "10",
        f"{base}/kube/pod/memory.max": "5000",
        f"{base}/kube/pod/memory.current": "1000",
        f"{base}/kube/memory.max": "9000",
        f"{base}/kube/memory.current": "8000",
    }
    assert limits(tree(tmp_path, "0::/kube/pod/box", V2, files)) == (2.0, 1000)


def v1(group: str, quota: str, period: str, limit: str, usage: str, stat: str = "") -> dict[str, str]:
    return {
        f"/sys/fs/cgroup/cpu,cpuacct{group}/cpu.cfs_quota_us": quota,
        f"/sys/fs/cgroup/cpu,cpuacct{group}/cpu.cfs_period_us": period,
        f"/sys/fs/cgroup/memory{group}/memory.limit_in_bytes": limit,
        f"/sys/fs/cgroup/memory{group}/memory.usage_in_bytes": usage,
        f"/sys/fs/cgroup/memory{group}/memory.stat": stat or "cache 1",
    }


@pytest.mark.parametrize("mounts", [V1, HYBRID], ids=["v1", "hybrid"])
def test_v1_nested(tmp_path: Path, mounts: dict[str, tuple[str, str, str]]) -> None:
    files = {
        **v1("/box/inner", "-1", "100000", UNLIMITED_V1, "10"),
        **v1("/box", "300000", "100000", "5000", "4500", "total_inactive_file 400"),
        **v1("", "-1", "100000", UNLIMITED_V1, "100000"),
    }
    membership = "5:memory:/box/inner\n4:cpu,cpuacct:/box/inner\n1:name=systemd:/\n0::/"
    assert limits(tree(tmp_path, membership, mounts, files)) == (3.0, 900)
    assert out_of_memory_counts(tmp_path) == tmp_path / "sys/fs/cgroup/memory/box/inner/memory.oom_control"


def test_v1_in_a_container_whose_group_is_mounted_as_the_root(tmp_path: Path) -> None:
    """/proc names the group by its path on the host; the mount shows only the container's subtree."""
    mounts = {point: ("/docker/abc", kind, options) for point, (_, kind, options) in V1.items()}
    files = {**v1("", "100000", "100000", "6000", "1000"), **v1("/child", "-1", "100000", "3000", "2500")}
    outside = "5:memory:/docker/abc\n4:cpu,cpuacct:/docker/abc"
    assert limits(tree(tmp_path / "own", outside, mounts, files)) == (1.0, 5000)
    nested = "5:memory:/docker/abc/child\n4:cpu,cpuacct:/docker/abc/child"
    assert limits(tree(tmp_path / "nested", nested, mounts, files)) == (1.0, 500)
    elsewhere = "5:memory:/docker/other\n4:cpu,cpuacct:/../other"
    assert limits(tree(tmp_path / "elsewhere", elsewhere, mounts, files)) == (1.0, 5000)


def test_v1_a_limit_of_an_ancestor_that_is_not_mounted(tmp_path: Path) -> None:
    files = v1("", "-1", "100000", UNLIMITED_V1, "100", "hierarchical_memory_limit 4000\ntotal_inactive_file 0")
    assert limits(tree(tmp_path, "5:memory:/\n4:cpu,cpuacct:/", V1, files)) == (None, 3900)


@pytest.mark.parametrize(("quota", "threads"), [("50000", 1), ("100000", 1), ("199999", 1), ("100000000", None)])
def test_threads_are_the_quota_rounded_down_and_at_least_one(tmp_path: Path, quota: str, threads: int | None) -> None:
    visible = len(os.sched_getaffinity(0))
    assert usable_cpus(tree(tmp_path, "0::/", V2, {"/sys/fs/cgroup/cpu.max": f"{quota} 100000"})) == (
        threads or visible
    )


@pytest.mark.parametrize(
    "files",
    [
        {},
        {
            "/sys/fs/cgroup/cpu.max": "max 100000",
            "/sys/fs/cgroup/memory.max": "max",
            "/sys/fs/cgroup/memory.current": "5",
        },
        {"/sys/fs/cgroup/cpu.max": "", "/sys/fs/cgroup/memory.max": "much"},
        {"/sys/fs/cgroup/cpu.max": "100000 0", "/sys/fs/cgroup/memory.current": "5"},
    ],
)
def test_what_can_not_be_read_is_no_limit(tmp_path: Path, files: dict[str, str]) -> None:
    assert limits(tree(tmp_path, "0::/", V2, files)) == (None, None)


def test_a_machine_without_control_groups(tmp_path: Path) -> None:
    assert limits(tmp_path) == (None, None)
    assert out_of_memory_counts(tmp_path) is None
    assert usable_cpus(tmp_path) == len(os.sched_getaffinity(0))
    assert limits(tree(tmp_path, "nonsense\n\n0::/", {}, {})) == (None, None)


def test_more_used_than_allowed_leaves_nothing(tmp_path: Path) -> None:
    files = {"/sys/fs/cgroup/memory.max": "1000", "/sys/fs/cgroup/memory.current": "1200"}
    assert limits(tree(tmp_path, "0::/", V2, files)) == (None, 0)


JOIN_AND_TELL = """
import os, sys
for file in sys.argv[1:]:
    open(file, "w").write(str(os.getpid()))
from shared.process.threads import limit_threads, set_torch_threads
from shared.process.container_limits import cpu_quota, memory_left_bytes
os.environ.pop("OMP_NUM_THREADS", None)
os.environ.pop("MKL_NUM_THREADS", None)
limit_threads()
import torch
set_torch_threads()
print(cpu_quota(), 0 < memory_left_bytes() < 4 << 30, os.environ["OMP_NUM_THREADS"],
      torch.get_num_threads(), torch.get_num_interop_threads())
"""


def test_a_real_group_with_a_quota_of_one_and_a_half_processors() -> None:
    """Runs in a child group of the group with the limits; torch then has one thread."""
    with control_group(quota="150000", memory_bytes=4 << 30) as joined:
        command = [sys.executable, "-c", JOIN_AND_TELL, *map(str, joined)]
        done = subprocess.run(command, capture_output=True, text=True)
    assert (done.stdout.split(), done.returncode) == (["1.5", "True", "1", "1", "1"], 0), done.stderr

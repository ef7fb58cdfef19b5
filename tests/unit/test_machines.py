"""Machines and quotas: which cores ranks have is told by machine and by control group, and threads follow."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch

from mpisparse.comm import Communicator, run_ranks
from mpisparse.runtime.machines import Limited, Machine, find_machines, machine_of
from mpisparse.runtime.quota import Quota, read_quota
from mpisparse.runtime.startup import start
from mpisparse.runtime.threads import share_cores

CORES = len(os.sched_getaffinity(0))

V2 = "30 23 0:27 / /sys/fs/cgroup rw,nosuid - cgroup2 cgroup2 rw,nsdelegate"
V1 = "33 23 0:29 / /sys/fs/cgroup/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct"
OTHER = "34 23 0:30 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory"


def tree(root: Path, groups: str, mounts: str, **limits: str) -> Path:
    """Write a file system: /proc as a process sees it, and the files of limits below /sys/fs/cgroup."""
    (root / "proc/self").mkdir(parents=True)
    (root / "proc/self/cgroup").write_text(groups + "\n")
    (root / "proc/self/mountinfo").write_text(mounts + "\n")
    for name, text in limits.items():
        path = root / "sys/fs/cgroup" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text + "\n")
    return root


def test_a_container_has_the_quota_of_its_own_group(tmp_path: Path) -> None:
    found = read_quota(tree(tmp_path, "0::/", V2, **{"cpu.max": "250000 100000"}))
    status = (tmp_path / "sys/fs/cgroup").stat()
    assert found == Quota(2.5, f"{status.st_dev}:{status.st_ino}")


def test_the_strictest_of_the_groups_above_counts(tmp_path: Path) -> None:
    limits = {"job/cpu.max": "50000 100000", "job/step/cpu.max": "max 100000", "job/step/task/cpu.max": "90000 100000"}
    found = read_quota(tree(tmp_path, "0::/job/step/task", V2, **limits))
    assert found is not None
    assert found.cores == 0.5
    assert found.group.endswith(f":{(tmp_path / 'sys/fs/cgroup/job').stat().st_ino}")


def test_control_groups_of_version_1(tmp_path: Path) -> None:
    place = "cpu,cpuacct/slice"
    limits = {f"{place}/cpu.cfs_quota_us": "1000", f"{place}/cpu.cfs_period_us": "5000", "memory/x/cpu.max": "1 100"}
    mounts = f"{OTHER}\n{V1}"
    found = read_quota(tree(tmp_path, "9:memory:/x\n4:cpu,cpuacct:/slice\n0::/", mounts, **limits))
    assert found is not None
    assert found.cores == 0.2


def test_a_mount_that_shows_a_part_and_one_that_is_hidden(tmp_path: Path) -> None:
    mounts = "\n".join([V1, V1.replace(" / /sys/fs/cgroup/cpu,cpuacct", " /docker/a1 /sys/fs/cgroup/own")])
    limits = {"own/cpu.cfs_quota_us": "300000", "own/cpu.cfs_period_us": "100000"}
    found = read_quota(tree(tmp_path, "4:cpu,cpuacct:/docker/a1", mounts, **limits))
    assert found is not None
    assert found.cores == 3.0


@pytest.mark.parametrize(
    ("groups", "mounts", "limits"),
    [
        ("0::/", V2, {}),
        ("0::/", V2, {"cpu.max": "max 100000"}),
        ("4:cpu:/", V1, {"cpu,cpuacct/cpu.cfs_quota_us": "-1", "cpu,cpuacct/cpu.cfs_period_us": "100000"}),
        ("0::/../other", V2, {"x/cpu.max": "1000 100000"}),
        ("what is this", "nor this", {}),
        ("0::/", V2, {"cpu.max": "much 100000"}),
        ("0::/", V2, {"cpu.max": ""}),
    ],
)
def test_no_quota_or_none_that_can_be_read(tmp_path: Path, groups: str, mounts: str, limits: dict[str, str]) -> None:
    assert read_quota(tree(tmp_path, groups, mounts, **limits)) is None


def test_a_system_without_control_groups_has_no_quota(tmp_path: Path) -> None:
    assert read_quota(tmp_path) is None


def by_rank(run: Callable[[Communicator, Quota | None], object], quotas: Sequence[Quota | None]) -> list[object]:
    """Return what each rank makes of its quota."""
    return run_ranks(len(quotas), lambda comm: run(comm, quotas[comm.rank]))


def test_ranks_are_counted_by_machine() -> None:
    found = run_ranks(3, lambda comm: find_machines(comm, "aba"[comm.rank], None))
    assert found == [(Machine(2, CORES), Machine(1, CORES))] * 3


def test_hosts_of_one_machine_are_told_by_its_kernel() -> None:
    assert machine_of("host 1") == machine_of("host 2")
    surroundings = run_ranks(3, lambda comm: start(comm, banner=False)[1])
    assert surroundings[0] == surroundings[2]
    assert [(machine.ranks, machine.cores) for machine in surroundings[0].machines] == [(3, CORES)]


def test_quotas_are_told_by_group() -> None:
    quotas = [Quota(0.5, "a"), None, Quota(2.0, "b"), Quota(0.5, "a")]
    found = by_rank(lambda comm, quota: find_machines(comm, "machine", quota), quotas)
    assert found == [(Machine(4, CORES, (Limited(2, 0.5), Limited(1, 2.0))),)] * 4


@pytest.mark.parametrize(
    ("quota", "threads", "reason"),
    [(None, 16, "64 cores for 4 ranks"), (2.5, 2, "2.5 cores by quota"), (0.2, 1, "0.2 cores by quota"),
     (100.0, 16, "64 cores for 4 ranks")],
)  # fmt: skip
def test_threads_follow_a_quota(
    monkeypatch: pytest.MonkeyPatch, quota: float | None, threads: int, reason: str
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(64)))
    before = torch.get_num_threads()
    try:
        quotas = [Quota(quota, str(rank)) if quota else None for rank in range(4)]
        found = by_rank(lambda comm, own: share_cores(comm, "machine", own, {}), quotas)
        assert found == [(threads, reason)] * 4
        assert share_alone(Quota(2.0, "all"), {"OMP_NUM_THREADS": "3"}) == [(3, "OMP_NUM_THREADS")] * 4
        assert share_alone(Quota(10.0, "all"), {}) == [(2, "10 cores by quota for 4 ranks")] * 4
    finally:
        torch.set_num_threads(before)


def share_alone(quota: Quota, environ: dict[str, str]) -> list[object]:
    """Return the threads of 4 ranks that share one quota."""
    return by_rank(lambda comm, own: share_cores(comm, "machine", own, environ), [quota] * 4)

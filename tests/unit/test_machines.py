"""Machines and quotas: which cores ranks have is told by machine and by control group, and threads follow."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest
import torch

from mpisparse.comm import Communicator, run_ranks
from mpisparse.runtime import machines
from mpisparse.runtime.machines import Limited, Machine, Place, gather_places, machine_of, machines_among
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


def places(*quotas: Quota | None, machines: str = "aaaa", cores: int = 64) -> list[Place]:
    """Return where ranks run, each with its quota."""
    return [Place(machines[rank], tuple(range(cores)), quota) for rank, quota in enumerate(quotas)]


def test_ranks_are_counted_by_machine() -> None:
    found = machines_among(places(None, None, None, machines="aba"))
    assert found == (Machine(2, 64), Machine(1, 64))


def test_cores_that_ranks_are_bound_to_add_up() -> None:
    bound = [Place("a", (0, 1)), Place("a", (2, 3)), Place("a", (2, 3))]
    assert machines_among(bound) == (Machine(3, 4),)
    before = torch.get_num_threads()
    try:
        assert share_cores(bound, 0, {}) == (2, "2 cores")
        assert share_cores(bound, 1, {}) == (1, "2 cores for 2 ranks")
    finally:
        torch.set_num_threads(before)


def test_hosts_of_one_machine_are_told_by_its_kernel() -> None:
    assert machine_of("host 1") == machine_of("host 2")
    surroundings = run_ranks(3, lambda comm: start(comm, banner=False)[1])
    assert surroundings[0] == surroundings[2]
    assert [(machine.ranks, machine.cores) for machine in surroundings[0].machines] == [(3, CORES)]


def test_each_rank_knows_where_all_run(monkeypatch: pytest.MonkeyPatch) -> None:
    cores = tuple(sorted(os.sched_getaffinity(0)))
    here = threading.local()
    quotas = [Quota(0.5, "x"), None, Quota(2.0, "y")]
    monkeypatch.setattr(machines, "read_quota", lambda: quotas[here.rank])
    monkeypatch.setattr(machines, "machine_of", lambda node: node[-1])

    def gather(comm: Communicator) -> list[Place]:
        here.rank = comm.rank
        return gather_places(comm, f"host {'aba'[comm.rank]}")

    expected = [Place("a", cores, quotas[0]), Place("b", cores), Place("a", cores, quotas[2])]
    assert run_ranks(3, gather) == [expected] * 3


def test_quotas_are_told_by_group() -> None:
    found = machines_among(places(Quota(0.5, "x"), None, Quota(2.0, "y"), Quota(0.5, "x")))
    assert found == (Machine(4, 64, (Limited(2, 0.5), Limited(1, 2.0))),)
    # The same name on two machines is two groups.
    found = machines_among(places(Quota(0.5, "x"), Quota(0.5, "x"), machines="ab"))
    assert found == (Machine(1, 64, (Limited(1, 0.5),)), Machine(1, 64, (Limited(1, 0.5),)))


@pytest.mark.parametrize(
    ("where", "environ", "threads", "reason"),
    [
        (places(None, None, None, None), {}, 16, "64 cores for 4 ranks"),
        (places(None, None, machines="ab"), {}, 64, "64 cores"),
        (places(Quota(2.5, "x"), Quota(2.5, "y")), {}, 2, "2.5 cores by quota"),
        (places(Quota(2.5, "x"), Quota(2.5, "x")), {}, 1, "2.5 cores by quota for 2 ranks"),
        (places(Quota(2.5, "x"), Quota(2.5, "x"), machines="ab"), {}, 2, "2.5 cores by quota"),
        (places(Quota(0.2, "x"), Quota(0.2, "y")), {}, 1, "0.2 cores by quota"),
        (places(Quota(100.0, "x"), None), {}, 32, "64 cores for 2 ranks"),
        (places(Quota(2.0, "x"), None), {"OMP_NUM_THREADS": "3"}, 3, "OMP_NUM_THREADS"),
        (places(None, None), {"OMP_NUM_THREADS": "many"}, 32, "64 cores for 2 ranks"),
    ],
)
def test_threads_follow_cores_and_quotas(
    where: list[Place], environ: dict[str, str], threads: int, reason: str
) -> None:
    before = torch.get_num_threads()
    try:
        assert share_cores(where, 0, environ) == (threads, reason)
        assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(before)

"""Saving behind training: what was started is what is restored, byte for byte, whatever happens to the state since."""

from __future__ import annotations

import contextlib
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mpisparse.checkpoint import Checkpointer, FaultyDisk, FileEntry
from mpisparse.checkpoint.disk import Disk
from mpisparse.checkpoint.manifest import STATE, rank_file
from mpisparse.checkpoint.report import Report
from mpisparse.checkpoint.snapshot import Buffers
from mpisparse.comm import Communicator
from mpisparse.comm.local import run_ranks
from mpisparse.errors import CheckpointError, MpiSparseError, alike
from mpisparse.faults import DiskFault
from tests.launch import run
from tests.unit.disks import BrokenDisk, GatedDisk
from tests.unit.test_checkpoint_checkpointer import names
from tests.unit.test_checkpoint_tree import same

SIZES = [1, 2, 3, 4]


def states(rank: int, step: int) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return states whose arrays have every kind of memory: dense, strided, empty, and shared with another."""
    model = torch.nn.Linear(31, 17)
    with torch.no_grad():
        model.weight.copy_(torch.arange(31.0 * 17).reshape(17, 31) + step)
        model.bias.fill_(step)
    replicated = {"model": dict(model.state_dict()), "transposed": torch.arange(12.0).reshape(3, 4).t() + step}
    residual = torch.full((1000 * rank,), step + rank / 8)
    own = {
        "residual": residual,
        "again": residual,
        "numbers": np.arange(7) + step,
        "rank": rank,
        "deep": [residual[:1]],
    }
    return replicated, own


def spoil(*trees: Any) -> None:
    """Overwrite every array of trees with other values, in place."""
    for tree in trees:
        if isinstance(tree, torch.Tensor):
            tree.fill_(-1)
        elif isinstance(tree, np.ndarray):
            tree[...] = -1
        elif isinstance(tree, dict | list):
            spoil(*(tree.values() if isinstance(tree, dict) else tree))


def read_all(path: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in path.iterdir()}


def assert_no_threads() -> None:
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("checkpoint")]


@pytest.mark.parametrize("size", SIZES)
def test_what_was_started_is_restored_although_the_state_changed_at_once(size: int, tmp_path: Path) -> None:
    def rank(comm: Communicator) -> None:
        with Checkpointer(tmp_path / "behind", comm=comm) as checkpointer:
            for step in (3, 4):
                state = states(comm.rank, step)
                checkpointer.start(step, *state)
                spoil(*state)
            outcome = checkpointer.finish()
            assert outcome is not None
            assert outcome.expect() == tmp_path / "behind" / "step-00000004"
            restored = checkpointer.restore()
            assert restored is not None
            assert same((restored.replicated, restored.per_rank), states(comm.rank, 4))

    run_ranks(size, rank)
    assert_no_threads()


@pytest.mark.usefixtures("one_save")
@pytest.mark.parametrize("size", SIZES)
def test_both_ways_of_saving_write_the_same_bytes(size: int, tmp_path: Path) -> None:
    def rank(comm: Communicator) -> None:
        Checkpointer(tmp_path / "once", comm=comm).save(7, *states(comm.rank, 7))
        with Checkpointer(tmp_path / "behind", comm=comm) as checkpointer:
            checkpointer.start(7, *states(comm.rank, 7))

    run_ranks(size, rank)
    once, behind = (read_all(tmp_path / name / "step-00000007") for name in ("once", "behind"))
    assert len(once) == size + 2
    assert once == behind


@pytest.mark.parametrize("size", SIZES)
def test_no_rank_waits_while_another_still_writes(size: int, tmp_path: Path) -> None:
    slow = size - 1
    disks = [GatedDisk() if rank == slow else Disk() for rank in range(size)]

    def rank(comm: Communicator) -> None:
        checkpointer = Checkpointer(tmp_path, comm=comm, disk=disks[comm.rank])
        assert checkpointer.start(1, *states(comm.rank, 1)) is None
        for _ in range(5):  # Steps, in which ranks meet.
            comm.allgather([0])
            assert checkpointer.poll() is None
        assert not (tmp_path / "step-00000001").exists()
        comm.barrier()
        disk = disks[comm.rank]
        if isinstance(disk, GatedDisk):
            disk.gate.set()
        known = 0
        while not known:
            known = int(comm.allgather([checkpointer.poll() is not None])[:, 0].sum())
        assert (tmp_path / "step-00000001").exists()
        told = checkpointer.poll()
        assert (told is not None) == (comm.rank == 0)
        outcome = checkpointer.finish()
        assert outcome is not None
        assert told is None or told is outcome
        assert checkpointer.finish() is None

    run_ranks(size, rank)


def test_the_next_save_waits_for_the_one_that_is_going_and_tells_of_it(tmp_path: Path) -> None:
    disk = GatedDisk()
    checkpointer = Checkpointer(tmp_path, disk=disk)
    checkpointer.start(1, {"take": 1})
    threading.Timer(0.3, disk.gate.set).start()
    earlier = checkpointer.start(2, {"take": 2})
    assert earlier is not None
    assert (earlier.step, earlier.failure) == (1, None)
    assert earlier.waited > 0.2
    outcome = checkpointer.finish()
    assert outcome is not None
    assert outcome.pause < 0.2
    assert outcome.bytes == sum(len(content) for name, content in read_all(outcome.expect()).items() if "h5" in name)


def test_saves_of_other_sizes_follow_each_other(tmp_path: Path) -> None:
    with Checkpointer(tmp_path) as checkpointer:
        for step, numel in enumerate([10, 1000, 10, 0, 500]):
            tensors = [torch.full((numel + place,), float(step)) for place in range(step + 1)]
            checkpointer.start(step, tensors)
            restored = checkpointer.restore()
            assert restored is not None
            assert same(restored.replicated, tensors)


def test_memory_of_copies_is_used_again() -> None:
    buffers = Buffers()
    first = buffers.copy([np.arange(9.0), np.arange(3)])
    second = buffers.copy([np.arange(9.0) + 1, np.arange(4)])
    assert np.shares_memory(first[0], second[0])
    assert second[0].tolist() == (np.arange(9.0) + 1).tolist()
    assert second[1].tolist() == [0, 1, 2, 3]
    assert buffers.copy([]) == []


# Failures -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("failing", [0, 1, 2])
def test_a_failed_save_is_told_to_all_and_the_next_one_works(failing: int, tmp_path: Path) -> None:
    def rank(comm: Communicator) -> str:
        faults = [DiskFault(failing, 5, "ENOSPC", save=2)] if comm.rank == failing else []
        checkpointer = Checkpointer(tmp_path, comm=comm, disk=FaultyDisk(faults))
        assert checkpointer.start(1, *states(comm.rank, 1)) is None
        earlier = checkpointer.start(2, *states(comm.rank, 2))
        assert earlier is not None
        assert earlier.expect() == tmp_path / "step-00000001"
        failed = checkpointer.start(3, *states(comm.rank, 3))
        assert failed is not None
        assert failed.path is None
        assert not (tmp_path / "step-00000002.tmp").exists()
        restored = checkpointer.restore()
        assert restored is not None
        assert restored.step == 3
        return str(failed.failure)

    (message,) = set(run_ranks(3, rank))
    assert message.startswith(f"rank {failing} of 3: ")
    assert message.endswith("No space left on device")
    assert names(tmp_path) == ["latest", "step-00000001", "step-00000003"]


def test_a_restore_tells_of_the_save_that_failed_before_it(tmp_path: Path) -> None:
    checkpointer = Checkpointer(tmp_path, disk=FaultyDisk([DiskFault(0, 5, "EIO", save=2)]))
    checkpointer.save(1, {"take": 1})
    checkpointer.start(2, {"take": 2})
    restored = checkpointer.restore()
    assert restored is not None
    assert restored.step == 1
    assert [line.endswith("Input/output error") for line in restored.skipped] == [True]


@pytest.mark.parametrize("failing", [0, 1])
def test_a_state_that_cannot_be_saved_is_refused_when_the_save_is_started(failing: int, tmp_path: Path) -> None:
    def rank(comm: Communicator) -> None:
        with Checkpointer(tmp_path, comm=comm) as checkpointer:
            with pytest.raises(CheckpointError, match=f"rank {failing} of 2: .*seen is a set") as caught:
                checkpointer.start(1, {}, {"seen": {1} if comm.rank == failing else 1})
            assert caught.value.on_all_ranks
            assert checkpointer.finish() is None

    run_ranks(2, rank)
    assert list(tmp_path.iterdir()) == []


def test_a_bug_in_the_thread_comes_out_where_the_save_is_looked_after(tmp_path: Path) -> None:
    for look in (Checkpointer.finish, poll_until_done):
        checkpointer = Checkpointer(tmp_path, disk=BrokenDisk())
        checkpointer.start(1, {})
        with pytest.raises(KeyError, match="a bug"):
            look(checkpointer)
        checkpointer.abandon()
    assert_no_threads()


def poll_until_done(checkpointer: Checkpointer) -> None:
    while checkpointer.poll() is None:
        pass


def leave(error: BaseException) -> Callable[[Checkpointer], None]:
    def attempt(checkpointer: Checkpointer) -> None:
        with contextlib.suppress(type(error)), checkpointer:
            checkpointer.start(2, torch.zeros(10**6))
            raise error

    return attempt


def test_an_error_of_this_rank_abandons_a_save_and_harms_nothing(tmp_path: Path) -> None:
    for error in (RuntimeError("here"), KeyboardInterrupt(), CheckpointError("of this rank")):
        disk = GatedDisk()
        disk.gate.set()
        checkpointer = Checkpointer(tmp_path, disk=disk)
        checkpointer.save(1, {"take": 1})
        disk.gate.clear()
        threading.Timer(0.1, disk.gate.set).start()
        leave(error)(checkpointer)
        assert_no_threads()
        restored = Checkpointer(tmp_path).restore()
        assert restored is not None
        assert (restored.step, restored.replicated, restored.skipped) == (1, {"take": 1}, [])
    assert checkpointer.save(2, {"take": 2}).name == "step-00000002"
    assert names(tmp_path) == ["latest", "step-00000001", "step-00000002"]


def test_an_error_of_all_ranks_lets_a_save_end(tmp_path: Path) -> None:
    run_ranks(2, lambda comm: leave(alike(MpiSparseError("everywhere")))(Checkpointer(tmp_path, comm=comm)))
    restored = run_ranks(2, lambda comm: Checkpointer(tmp_path, comm=comm).restore())
    assert [found.step for found in restored if found is not None] == [2, 2]
    assert_no_threads()


PROGRAM = """
import sys, torch
from mpisparse.checkpoint import Checkpointer
checkpointer = Checkpointer(sys.argv[1])
checkpointer.save(1, {"take": 1})
checkpointer.start(2, torch.zeros(10**7))
if sys.argv[2] == "poll":
    checkpointer.poll()
if sys.argv[2] == "raise":
    raise KeyError("the end")
print("end", flush=True)
"""


@pytest.mark.parametrize(("way", "code"), [("leave", 0), ("poll", 0), ("raise", 1)])
def test_a_program_may_end_while_a_save_is_going(way: str, code: int, tmp_path: Path) -> None:
    outcome = run([sys.executable, "-c", PROGRAM, str(tmp_path), way], timeout=60)
    assert outcome.code == code, outcome.text
    assert ("KeyError: 'the end'" in outcome.stderr) == (way == "raise")
    restored = Checkpointer(tmp_path).restore()
    assert restored is not None
    assert (restored.replicated, restored.skipped) == ({"take": 1}, [])
    assert Checkpointer(tmp_path).save(2, {"take": 2}).name == "step-00000002"
    assert not list(tmp_path.glob("*.tmp"))


# Reports --------------------------------------------------------------------------------------------------------------

digests = st.binary(min_size=16, max_size=16).map(bytes.hex)
lengths = st.integers(0, 2**63 - 1)


@given(st.integers(0, 5), st.lists(st.tuples(lengths, digests), min_size=2, max_size=2), st.floats(0, 1e9))
def test_a_report_comes_back(rank: int, files: list[tuple[int, str]], seconds: float) -> None:
    names = [STATE, rank_file(0)] if rank == 0 else [rank_file(rank)]
    report = Report(tuple(FileEntry(name, *file) for name, file in zip(names, files, strict=False)), seconds)
    assert Report.from_words(report.to_words(), rank) == report


@given(st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=2000))
def test_the_words_of_a_failure_come_back_as_far_as_there_is_room(words: str) -> None:
    report = Report.from_words(Report((), 1.0, words).to_words(), 1)
    assert report.failure is not None
    assert words.startswith(report.failure)
    assert report.failure == words or len(report.failure.encode()) > 1020

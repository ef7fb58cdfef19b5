"""Disks that tell what was done to them, and the states and saves that tests try them with."""

from __future__ import annotations

import os
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from mpisparse.checkpoint import Checkpointer, FaultyDisk, Outcome, list_checkpoints, verify
from mpisparse.checkpoint.disk import Disk
from mpisparse.comm import Communicator
from mpisparse.comm.local import run_ranks
from mpisparse.faults import DiskFault
from tests.unit.test_checkpoint_tree import same

#: What a save can meet: the steps there are before it, the step that it saves, and how many stay.
CASES = {"first": ([], 3, 3), "next": ([2], 3, 3), "again": ([2, 3], 3, 3), "prunes": ([1, 2], 3, 1)}
#: How it is made: while all wait, with a file a rank or one for all, or behind what they do.
WAYS = ["at once", "behind", "shared"]


class RecordingDisk(Disk):
    """A disk that keeps a list of its operations: each with the path, as the save calls it."""

    def __init__(self) -> None:
        super().__init__()
        self.operations: list[tuple[str, Path]] = []
        self._paths: dict[int, Path] = {}

    def create(self, path: Path) -> int:
        file = super().create(path)
        self._paths[file] = path
        return file

    def open(self, path: Path) -> int:
        file = super().open(path)
        self._paths[file] = path
        return file

    def _before(self, operation: str, target: Path | int) -> None:
        super()._before(operation, target)
        self.operations.append((operation, self._paths[target] if isinstance(target, int) else target))


def replicated(step: int, take: int) -> dict[str, Any]:
    return {"weight": torch.full((300,), step + take / 8), "step": step, "take": take}


def own(step: int, rank: int) -> dict[str, Any]:
    return {"residual": torch.full((rank + 2,), step + rank / 8, dtype=torch.bfloat16), "rank": rank}


def save(
    comm: Communicator, directory: Path, step: int, *, take: int, keep: int, disk: Disk | None = None, way: str
) -> Outcome:
    """Return what came of a save. One that goes on behind is polled until rank 0 knows, and by a rank that does not."""
    behind = way == "behind"
    with Checkpointer(directory, keep, comm, disk, shared=way == "shared") as checkpointer:
        assert checkpointer.start(step, replicated(step, take), own(step, comm.rank), behind=behind) is None
        if behind and comm.rank == 0:
            while checkpointer.poll() is None:
                time.sleep(0)
        checkpointer.poll()
        outcome = checkpointer.finish()
    assert outcome is not None
    return outcome


def save_all(
    size: int,
    directory: Path,
    step: int,
    *,
    take: int = 0,
    keep: int = 3,
    disks: Sequence[Disk] = (),
    way: str = "at once",
) -> Outcome:
    """Return what came of a save by `size` ranks, after asserting that all were told the same."""
    outcomes = run_ranks(
        size,
        lambda comm: save(
            comm, directory, step, take=take, keep=keep, disk=disks[comm.rank] if disks else None, way=way
        ),
    )
    assert len({(outcome.step, outcome.path, outcome.failure, outcome.bytes) for outcome in outcomes}) == 1
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("checkpoint")]
    return outcomes[0]


def faulty(size: int, rank: int, fault: DiskFault) -> list[FaultyDisk]:
    """Return the disks of all ranks, of which one has a fault."""
    return [FaultyDisk([fault] if number == rank else []) for number in range(size)]


def prepare(size: int, directory: Path, case: str) -> None:
    """Save what is there before the save of a case."""
    for earlier in CASES[case][0]:
        save_all(size, directory, earlier)


def count_operations(size: int, directory: Path, case: str, way: str) -> list[int]:
    """Return how many operations each rank makes in the save of a case."""
    _, step, keep = CASES[case]
    prepare(size, directory, case)
    disks = [FaultyDisk() for _ in range(size)]
    save_all(size, directory, step, take=1, keep=keep, disks=disks, way=way)
    return [disk.operations for disk in disks]


def places(size: int, directory: Path, case: str, way: str) -> list[tuple[int, int]]:
    """Return every place in the save of a case where something can happen: a rank, and the number of its operation."""
    counts = count_operations(size, directory, case, way)
    return [(rank, operation) for rank, count in enumerate(counts) for operation in range(1, count + 1)]


def assert_whole(size: int, directory: Path, case: str) -> int | None:
    """Return which take of the step is found, or None if it is not there: whatever is there is whole and right.

    What a save of this case began with is there as it was, or the new checkpoint is.
    """
    before, step, _ = CASES[case]
    found = [
        restored
        for restored in run_ranks(size, lambda comm: Checkpointer(directory, comm=comm).restore())
        if restored is not None
    ]
    if not found:
        assert not before
        return None
    ((found_step, take),) = {(restored.step, restored.replicated["take"]) for restored in found}
    assert (found_step, take) in {(step, 1), *((earlier, 0) for earlier in before[-1:])}
    for rank, restored in zip(range(size), found, strict=True):
        assert restored.skipped == []
        assert same(restored.per_rank, own(found_step, rank))
        assert same(restored.replicated, replicated(found_step, take))
    for path in list_checkpoints(directory):
        assert verify(path).ranks == size
    return int(take) if found_step == step else None


def assert_recovers(size: int, directory: Path, case: str) -> None:
    """Assert that the next save works, and leaves what there would be if nothing had happened before it."""
    before, step, keep = CASES[case]
    after = save_all(size, directory, step + 1, take=2, keep=keep)
    assert after.failure is None
    kept = sorted({*before, step, step + 1})[-keep:]
    there = {path.name for path in directory.iterdir()}
    assert there <= {"latest", *(f"step-{number:08d}" for number in kept)}
    assert {"latest", f"step-{step + 1:08d}"} <= there
    for path in list_checkpoints(directory):
        assert verify(path).ranks == size


@contextmanager
def quick_directory() -> Iterator[Path]:
    """Lend a directory in memory, where there is one: to wait for a disk a thousand times shows nothing more."""
    memory = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=memory if os.access(memory, os.W_OK) else None) as name:
        yield Path(name)


class GatedDisk(Disk):
    """A disk on which no file is ever done writing until the gate is opened."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = threading.Event()

    def sync(self, file: int) -> None:
        assert self.gate.wait(30)
        super().sync(file)


class BrokenDisk(Disk):
    """A disk whose program has a bug."""

    def create(self, path: Path) -> int:
        raise KeyError("a bug")

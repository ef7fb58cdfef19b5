"""Saves whose process is killed at any one operation on the disk, and what is found afterwards.

python -m tests.faults.saving STRIDE

Prints, for every case, how many places were tried: every STRIDE-th there is. A process of two ranks, which are threads,
dies in each of them: as a job does, whose launcher ends all ranks when one is gone. A program of its own, with few
threads, so that it can be copied again and again.
"""

from __future__ import annotations

import os
import shutil
import signal
import sys
from pathlib import Path

from mpisparse.faults import DiskFault
from tests.unit.disks import (
    CASES,
    WAYS,
    assert_recovers,
    assert_whole,
    faulty,
    places,
    prepare,
    quick_directory,
    save_all,
)

SIZE = 2


def main(stride: int) -> None:
    """Try every case, written in every way."""
    for case in CASES:
        for way in WAYS:
            with quick_directory() as folder:
                tried = try_places(folder, case, way, stride)
            print(f"{case} {way}: {tried} places", flush=True)


def try_places(folder: Path, case: str, way: str, stride: int) -> int:
    """Return how many places were tried, of which every one left a good checkpoint."""
    inside = Path("run", "checkpoints")
    template, directory = folder / "template" / inside, folder / "now" / inside
    prepare(SIZE, template, case)
    everywhere = places(SIZE, folder / "count" / inside, case, way)
    # The last operation of rank 0 is the last of the whole save.
    tried = sorted({*everywhere[::stride], max(place for place in everywhere if place[0] == 0)})
    ends: set[int | None] = set()
    for rank, operation in tried:
        if template.exists():
            shutil.copytree(template, directory)
        kill_in_a_save(directory, case, DiskFault(rank, operation, "kill"), way)
        try:
            ends.add(assert_whole(SIZE, directory, case))
            assert_recovers(SIZE, directory, case)
        except BaseException as failure:
            failure.add_note(f"{case}, rank {rank}, operation {operation}, {way}")
            raise
        shutil.rmtree(folder / "now", ignore_errors=True)
    # Both ends were seen: the checkpoint of before, and the new one.
    assert ends == {1, 0 if case == "again" else None}
    return len(tried)


def kill_in_a_save(directory: Path, case: str, fault: DiskFault, way: str) -> None:
    """Have a copy of this process make the save of a case, and die in it."""
    _, step, keep = CASES[case]
    child = os.fork()
    if child == 0:
        try:
            save_all(SIZE, directory, step, take=1, keep=keep, disks=faulty(SIZE, fault.rank, fault), way=way)
        finally:
            os._exit(1)  # It was to be dead by now.
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status), f"it was not killed: {fault}"
    assert os.WTERMSIG(status) == signal.SIGKILL


if __name__ == "__main__":
    main(int(sys.argv[1]))

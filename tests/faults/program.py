"""A small training program that a rank keeps waiting, under a watchdog of a few seconds.

python -m tests.faults.program CRASH_DIRECTORY [PLACE]

The environment's MPISPARSE_FAULTS says what goes wrong in a step. With PLACE, all ranks but rank 1 wait there after the
steps; or the whole job is "suspended" in their midst.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import torch

import mpisparse as ms
from mpisparse.comm import Communicator
from mpisparse.overlap import Overlap

LIMIT = 3.0
STEPS = 8


def main(directory: Path, place: str = "") -> None:
    """Train a few steps; rank 1 then sleeps where the others wait."""
    comm = ms.init(banner=False, watchdog=0)
    step = build_step(comm)
    # What was compiled or loaded until here may have taken longer than the limit.
    comm.barrier()
    ms.Watchdog(comm, limit=LIMIT, directory=directory).start()
    if comm.rank == 0:
        print(f"begin {time.time()}", file=sys.stderr, flush=True)
    for number in range(STEPS):
        if place == "suspended" and number == 3:
            suspend()
            time.sleep(comm.rank)
        step()
    if place in PLACES:
        wait = build_step(comm, "on") if place == "flight" else partial(PLACES[place], comm)
        if comm.rank == 1:
            time.sleep(100)
        wait()
    print(f"end {comm.rank}", flush=True)


def build_step(comm: Communicator, overlap: Overlap = "off") -> Callable[[], object]:
    """Return what takes a step."""
    torch.manual_seed(0)
    model = torch.nn.Sequential(*[torch.nn.Linear(16, 16, bias=False) for _ in range(3)])
    optimizer = ms.DistributedOptimizer(
        torch.optim.SGD(model.parameters(), lr=0.1),
        model,
        sparsifier=ms.TopK(density=0.5),
        layout=ms.Layout(granularity="tensor", bucket_mib=1e-6),
        overlap=overlap,
        say=lambda line: None,
        comm=comm,
    )

    def step() -> None:
        optimizer.zero_grad()
        model(torch.ones(2, 16)).square().mean().backward()
        optimizer.step()

    return step


def suspend() -> None:
    """Stop this process for longer than the limit, as a batch system may."""
    subprocess.Popen(["sh", "-c", f"kill -STOP {os.getpid()}; sleep {2 * LIMIT}; kill -CONT {os.getpid()}"])
    time.sleep(0.5)


def allgatherv(comm: Communicator) -> None:
    """Wait for bytes."""
    comm.allgatherv(np.zeros(9, np.uint8), np.full(comm.size, 9))


def alltoallv(comm: Communicator) -> None:
    """Wait as a dense mean does."""
    comm.alltoallv(np.zeros(comm.size, np.uint8), np.ones(comm.size, np.int64), np.ones(comm.size, np.int64))


PLACES: dict[str, Callable[[Communicator], object]] = {
    "barrier": lambda comm: comm.barrier(),
    "broadcast": lambda comm: comm.broadcast(np.zeros(9, np.uint8), root=1),
    "allgatherv": allgatherv,
    "alltoallv": alltoallv,
    "allreduce": lambda comm: comm.allreduce(np.zeros(9, np.float32)),
    "duplicate": lambda comm: comm.duplicate(),
    "flight": lambda comm: None,
}


if __name__ == "__main__":
    main(Path(sys.argv[1]), *sys.argv[2:])

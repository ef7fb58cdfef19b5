"""Many small steps with ranks that dawdle at random, and what they leave behind: memory, open files, calls.

Three optimizers take turns: one overlaps, one does not, one draws at random what it sends. Now and then all is saved.

mpirun -n 3 python -m tests.mpi.endurance STEPS OUTPUT
"""

from __future__ import annotations

import json
import os
import random
import sys
import threading
import time
from pathlib import Path

import torch

import mpisparse as ms
from mpisparse.comm import Communicator, gather_json
from mpisparse.overlap import Overlap
from mpisparse.sparsifiers import Sparsifier
from tests.growth import heap, resident

#: How often the process is looked at.
LOOKS = 60

#: Seconds that a rank dawdles at most, in one step of fifty.
DELAY = 0.003


def main(steps: int, output: Path) -> None:
    """Train the optimizers in turn, save twenty times, and look at the process sixty times, not where it has saved."""
    comm = ms.init(banner=False, watchdog=60, crash_directory=output.with_suffix(".crash"))
    rules: list[tuple[Sparsifier, Overlap]] = [
        (ms.TopK(density=0.1), "off"),
        (ms.TopK(density=0.1), "on"),
        (ms.GSpar(density=0.1), "off"),
    ]
    programs = [build(comm, rule, overlap) for rule, overlap in rules]
    checkpointer = ms.Checkpointer(output.with_suffix(".checkpoints"), keep=2, comm=comm)
    dawdle = random.Random(comm.rank)
    seen: list[dict[str, int]] = []
    for step in range(steps):
        if dawdle.random() < 0.02:
            time.sleep(dawdle.uniform(0, DELAY))
        model, optimizer = programs[step % len(programs)]
        optimizer.zero_grad()
        model(torch.full((2, 16), float(step % 7))).square().mean().backward()
        optimizer.step()
        if (step + 1) % (steps // 20) == 0:
            own = [optimizer.exchange.state_dict() for _, optimizer in programs]
            checkpointer.save(step + 1, [model.state_dict() for model, _ in programs], own)
        if (step + 1) % (steps // LOOKS) == steps // LOOKS // 2 and len(seen) < LOOKS:
            seen.append(footprint(comm))
    for model, optimizer in programs:
        assert ms.check_replicas(model, comm, optimizer=optimizer) is None
    everyone = gather_json(comm, seen)
    if comm.rank == 0:
        output.write_text(json.dumps(everyone))


def build(
    comm: Communicator, sparsifier: Sparsifier, overlap: Overlap
) -> tuple[torch.nn.Module, ms.DistributedOptimizer]:
    """Return a small model and what trains it."""
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(16, 24), torch.nn.Tanh(), torch.nn.Linear(24, 8))
    plain = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.5)
    layout = ms.Layout(granularity="tensor", bucket_mib=1e-6)
    optimizer = ms.DistributedOptimizer(
        plain, model, sparsifier=sparsifier, layout=layout, overlap=overlap, comm=comm, say=lambda line: None
    )
    return model, optimizer


def footprint(comm: Communicator) -> dict[str, int]:
    """Return what this process holds: bytes allocated and bytes of memory, open files, threads, calls not ended."""
    recorder = comm.lane.recorder
    return {
        "heap": heap() or 0,
        "memory": resident(),
        "files": len(os.listdir("/proc/self/fd")),
        "threads": threading.active_count(),
        "open": sum(call.ended == 0 for call in recorder.calls()),
        "recorded": len(recorder.calls()),
        "lanes": len(recorder.lanes),
    }


if __name__ == "__main__":
    main(int(sys.argv[1]), Path(sys.argv[2]))

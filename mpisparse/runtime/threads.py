"""Threads a rank: as many as its share of the cores, unless the user said otherwise."""

from __future__ import annotations

import os
from collections.abc import Mapping

import torch

from mpisparse.comm import Communicator


def share_cores(comm: Communicator, node: str, environ: Mapping[str, str] = os.environ) -> tuple[int, str]:
    """Set torch's threads to this rank's share of the cores it may run on; return the number, and why. Collective.

    Ranks of one node that may run on the same cores share them evenly; ranks that the launcher bound apart use all of
    theirs. OMP_NUM_THREADS, when set, wins.
    """
    cores = sorted(os.sched_getaffinity(0))
    homes = comm.allgather_bytes(f"{node} {cores}".encode())
    wanted = environ.get("OMP_NUM_THREADS", "")
    if wanted.isdigit() and int(wanted) > 0:
        threads = int(wanted)
        reason = "OMP_NUM_THREADS"
    else:
        sharing = homes.count(homes[comm.rank])
        threads = max(1, len(cores) // sharing)
        reason = f"{len(cores)} cores for {sharing} ranks" if sharing > 1 else f"{len(cores)} cores"
    torch.set_num_threads(threads)
    return threads, reason

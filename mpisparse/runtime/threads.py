"""Threads a rank: as many as its share of the cores, unless the user said otherwise."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping

import torch

from mpisparse.comm import Communicator
from mpisparse.runtime.quota import Quota


def share_cores(
    comm: Communicator, machine: str, quota: Quota | None = None, environ: Mapping[str, str] = os.environ
) -> tuple[int, str]:
    """Set torch's threads to this rank's share of the cores it may run on; return the number, and why. Collective.

    Ranks of one machine, in containers or not, that may run on the same cores share them evenly; ranks that the
    launcher bound apart use all of theirs. A quota that leaves fewer cores is shared among its ranks in their place.
    OMP_NUM_THREADS, when set, wins.

    Args:
        machine: the name of this rank's. quota: this rank's own. environ: where OMP_NUM_THREADS is looked up.
    """
    cores = sorted(os.sched_getaffinity(0))
    own = [machine, cores, quota.group if quota else ""]
    told = [json.loads(said) for said in comm.allgather_bytes(json.dumps(own).encode())]
    wanted = environ.get("OMP_NUM_THREADS", "")
    if wanted.isdigit() and int(wanted) > 0:
        threads, reason = int(wanted), "OMP_NUM_THREADS"
    else:
        threads, reason = _share(float(len(cores)), sum(each[:2] == own[:2] for each in told), "cores")
        if quota:
            limited = _share(quota.cores, sum(each[::2] == own[::2] for each in told), "cores by quota")
            threads, reason = limited if limited[0] < threads else (threads, reason)
    torch.set_num_threads(threads)
    return threads, reason


def _share(cores: float, ranks: int, words: str) -> tuple[int, str]:
    reason = f"{cores:g} {words}" + (f" for {ranks} ranks" if ranks > 1 else "")
    return max(1, int(cores / ranks)), reason

"""Threads a rank: as many as its share of the cores, unless the user said otherwise."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence

import torch

from mpisparse.runtime.machines import Place
from mpisparse.words import counted


def share_cores(places: Sequence[Place], rank: int, environ: Mapping[str, str] = os.environ) -> tuple[int, str]:
    """Set torch's threads to this rank's share of the cores it may run on; return the number, and why.

    Ranks of one machine, in containers or not, that may run on the same cores share them evenly; ranks that the
    launcher bound apart use all of theirs. A quota that leaves fewer cores is shared among its ranks in their place.
    OMP_NUM_THREADS, when set, wins.

    Args:
        places: where each rank runs. rank: this one. environ: where OMP_NUM_THREADS is looked up.
    """
    wanted = environ.get("OMP_NUM_THREADS", "")
    if wanted.isdigit() and int(wanted) > 0:
        threads, reason = int(wanted), "OMP_NUM_THREADS"
    else:
        own = places[rank]
        here = [place for place in places if place.machine == own.machine]
        threads, reason = _share(len(own.cores), sum(place.cores == own.cores for place in here), "")
        if own.quota:
            limited = _share(own.quota.cores, sum(place.quota == own.quota for place in here), " by quota")
            threads, reason = limited if limited[0] < threads else (threads, reason)
    torch.set_num_threads(threads)
    return threads, reason


def _share(cores: float, ranks: int, words: str) -> tuple[int, str]:
    reason = f"{counted(cores, 'core')}{words}" + (f" for {ranks} ranks" if ranks > 1 else "")
    return max(1, int(cores / ranks)), reason

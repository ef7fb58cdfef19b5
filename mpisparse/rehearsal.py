"""rehearse: a step on a small made-up vector, so that no real step waits for a compiler."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from time import perf_counter
from typing import Literal, TypeVar

import numpy as np
from numba.core.event import install_recorder

from mpisparse import random, wire
from mpisparse.comm import Communicator
from mpisparse.kernels.histogram import BINS, count_high_bits
from mpisparse.kernels.largest import SHORT
from mpisparse.kernels.passes import largest_bits
from mpisparse.kernels.sums import mean_into
from mpisparse.kernels.vectors import is_finite
from mpisparse.memory import Memory
from mpisparse.sparsifiers import Dense, Sparsifier
from mpisparse.wire import Wire

Result = TypeVar("Result")

#: Rules that ask the same of a source, or nothing.
Kind = Literal["dense", "biased", "amplifying", "drawing"]

#: Long enough for the ways that long vectors take.
_NUMEL = 2 * SHORT


def rehearse_together(comm: Communicator, options: Wire, *choices: tuple[Sparsifier, Memory]) -> str:
    """Return what to say of the time it took to have every kernel ready that such exchanges need. Collective."""
    return leaders_first(comm, lambda: [rehearse(_kind(rule), memory, options) for rule, memory in choices])[1]


def leaders_first(comm: Communicator, action: Callable[[], Result]) -> tuple[Result, str]:
    """Return what `action`, which compiles or loads kernels, returned, and what to say of its time. Collective.

    One rank a node goes first: what it compiles lies on the disk, in numba's cache, when the others come. What is said
    goes by what ranks compiled, not by how long it took, nor by what no rank found on the disk.
    """
    nodes = comm.allgather_bytes(comm.describe().node.encode())
    leads = nodes.index(nodes[comm.rank]) == comm.rank
    begin = perf_counter()
    with install_recorder("numba:compile") as compilations:
        if leads:
            result = action()
        comm.barrier()
        if not leads:
            result = action()
    anywhere = comm.allgather([len(compilations.buffer)], equal=True).any()
    return result, _told(bool(anywhere), perf_counter() - begin, kept=largest_bits.stats.cache_path is not None)


def _told(anew: bool, seconds: float, *, kept: bool) -> str:
    if not anew:
        return f"kernels loaded, in {seconds:.1f} s"
    if kept:
        return f"kernels compiled, once for this machine, in {seconds:.1f} s"
    return (
        f"kernels compiled, in {seconds:.1f} s, and again in every start: neither the package's directory nor home nor "
        "TMPDIR can be written (set NUMBA_CACHE_DIR to a directory that can)"
    )


def _kind(sparsifier: Sparsifier) -> Kind:
    if isinstance(sparsifier, Dense):
        return "dense"
    if sparsifier.shares_grid:
        return "drawing"
    return "amplifying" if sparsifier.amplifies else "biased"


@cache
def rehearse(rule: Kind, memory: Memory, options: Wire) -> None:
    """Compile or load every kernel that an exchange of such a rule, memory and wire may call; once a process."""
    gradient = np.linspace(-1, 1, _NUMEL, dtype=np.float32)
    assert is_finite(gradient)
    if rule == "dense":
        return
    kept = memory.start(_NUMEL, _NUMEL)
    source = kept.source(gradient, slice(0, _NUMEL))
    if rule == "amplifying":
        for target, variance in ((_NUMEL / 50, None), (None, 1.0)):
            level = source.level(target=target, variance=variance, iterations=None)
        source.toss_equal(0.02, random.generator(0, 0, 0, 0))
        source.peak(), source.norm()
        sparse = source.toss(np.float32(level), random.generator(0, 0, 0, 0), _NUMEL / 50)
    elif rule == "drawing":
        sparse = source.draw(7, 512, random.generator(0, 0, 0, 0))
    else:
        source.find(np.float32(0.5), _NUMEL)
        sparse = source.largest(_NUMEL // 50, None)
    decoded = wire.decode(wire.encode(sparse, options))
    source.sent(wire.rounded(sparse, options))
    mean_into(gradient, [decoded, decoded], 2)
    # What is called only where a sample misleads, or many entries compete.
    bins = np.zeros(BINS, np.int64), np.zeros(BINS), np.zeros(BINS)
    count_high_bits(gradient, 2, *bins)
    wire.warm_up()

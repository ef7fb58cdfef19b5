"""Spans of a vector, each for a thread of its own. Results never depend on how many there are."""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, wait
from functools import cache
from itertools import pairwise
from typing import TypeVar

import torch

Result = TypeVar("Result")

#: Spans start at multiples of this, the pieces by which kernels add up sums, so that the sums do not depend on spans.
PIECE = 1 << 16

#: Entries for which another thread is worth its start.
WORTH = 1 << 19

#: Threads of a process at most: beyond what passes of several callers take together, so that none waits for another's.
_LIMIT = 1 << 12


def spans(numel: int, threads: int | None = None) -> list[tuple[int, int]]:
    """Return the spans of a vector of `numel` entries: as many as torch has threads, fewer for short vectors."""
    threads = torch.get_num_threads() if threads is None else threads
    count = max(1, min(threads, numel // WORTH))
    pieces = -(-numel // PIECE)
    edges = [min(numel, pieces * i // count * PIECE) for i in range(count)] + [numel]
    return list(pairwise(edges))


def for_each_span(numel: int, action: Callable[[int, int], Result]) -> list[Result]:
    """Return what `action(start, stop)` returns for each span, in order: the first runs here, the others on threads.

    They run side by side only while they are in kernels that release the interpreter's lock. All have ended when this
    returns or raises what the first that failed raised.
    """
    first, *others = spans(numel)
    if not others:
        return [action(*first)]
    pool = _pool(os.getpid())
    futures = [pool.submit(action, *part) for part in others]
    try:
        return [action(*first), *(future.result() for future in futures)]
    finally:
        wait(futures)


@cache
def _pool(process: int) -> ThreadPoolExecutor:
    """Return the threads of this process, which are made as they are needed and then used again.

    Made for each pass, they would leak hundreds of bytes a pass where MPI is loaded. A process that was forked has none
    of its parent's threads, which is why it gets others. They are idle between passes, and end with the interpreter.
    """
    return ThreadPoolExecutor(_LIMIT, thread_name_prefix="mpisparse-span")

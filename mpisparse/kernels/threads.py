"""Spans of a vector, each for a thread of its own. Results never depend on how many there are."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from typing import TypeVar

import torch

Result = TypeVar("Result")

#: Spans start at multiples of this, the pieces by which kernels add up sums, so that the sums do not depend on spans.
PIECE = 1 << 16

#: Entries for which another thread is worth its start.
WORTH = 1 << 19


def spans(numel: int, threads: int | None = None) -> list[tuple[int, int]]:
    """Return the spans of a vector of `numel` entries: as many as torch has threads, fewer for short vectors."""
    threads = torch.get_num_threads() if threads is None else threads
    count = max(1, min(threads, numel // WORTH))
    pieces = -(-numel // PIECE)
    edges = [min(numel, pieces * i // count * PIECE) for i in range(count)] + [numel]
    return list(pairwise(edges))


def for_each_span(numel: int, action: Callable[[int, int], Result]) -> list[Result]:
    """Return what `action(start, stop)` returns for each span, in order; each runs on a thread of its own.

    The threads run side by side only while they are in kernels that release the interpreter's lock.
    """
    parts = spans(numel)
    if len(parts) == 1:
        return [action(*parts[0])]
    with ThreadPoolExecutor(len(parts)) as pool:
        return list(pool.map(lambda part: action(*part), parts))

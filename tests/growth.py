"""Whether a number grows with the steps taken: a leak does so all the time, a page of memory once."""

from __future__ import annotations

import ctypes
import gc
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from scipy import stats


class _Mallinfo2(ctypes.Structure):
    _fields_ = [
        (name, ctypes.c_size_t)
        for name in (
            "arena", "ordblks", "smblks", "hblks", "hblkhd", "usmblks", "fsmblks", "uordblks", "fordblks", "keepcost",
        )
    ]  # fmt: skip


def heap() -> int | None:
    """Return the bytes that were allocated by malloc and not freed, to the byte; None where the C library cannot tell.

    With PYTHONMALLOC=malloc in the environment, Python's own objects count.
    """
    library = ctypes.CDLL(None)
    if not hasattr(library, "mallinfo2"):
        return None
    library.mallinfo2.restype = _Mallinfo2
    gc.collect()
    found = library.mallinfo2()
    return int(found.uordblks + found.hblkhd)


def resident() -> int:
    """Return the bytes of memory that this process has: a multiple of pages, and large pages come at any moment."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def growth(looks: Sequence[int]) -> float:
    """Return by how much a series rises from its first look to its last, as its steady slope says.

    The slope is Theil and Sen's, the median of those between any two looks (P. K. Sen, JASA 63, 1968), which single
    looks do not move. The one largest step up counts as an ordinary one: it may be a page, or a buffer that has grown
    to its size. A leak rises at every look, and loses nothing by that.
    """
    steps = np.diff(np.asarray(looks, np.float64))
    steps[int(np.argmax(steps))] = np.median(steps)
    slope = stats.theilslopes(np.concatenate([[0.0], np.cumsum(steps)])).slope
    return float(slope * len(steps))

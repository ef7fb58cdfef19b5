"""Shares: which samples a rank takes next when ranks never wait for each other."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from mpisparse.sampler import Sampler

#: Updates that a rank claims at a time at most: few enough that all end together, enough to hide what a claim costs.
_LARGEST = 256


class Share(NamedTuple):
    """What a rank does next: `first` is the number of its first update among those of all ranks; `samples` int64."""

    first: int
    samples: NDArray[np.int64]


class Shares:
    """The samples of all updates of a run, in shares that ranks claim by number, so that a fast rank takes more.

    Each sample is used exactly once a pass, whichever ranks claim what. The order of a pass is the sampler's; all of
    them are drawn beforehand, as sorting in between would be timed: 8 bytes a sample and pass.

    Args:
        samples: in the data set. batch: of one update; the last update of a pass may have fewer.
        updates: of all ranks together, above 0. finest: updates of a share at most.
    """

    def __init__(self, samples: int, batch: int, updates: int, finest: int, seed: int, *, shuffle: bool) -> None:
        self.updates = updates
        self._batch = batch
        self._per_pass = -(-samples // batch)
        self._length = max(1, min(_LARGEST, finest, self._per_pass))
        self._shares_per_pass = -(-self._per_pass // self._length)
        passes = -(-updates // self._per_pass)
        sampler = Sampler(samples, samples, seed, shuffle=shuffle)
        self._orders = [sampler.next().indices.numpy() for _ in range(passes)]

    def share(self, number: int) -> Share | None:
        """Return the share of a number that was claimed, or None when all are taken."""
        which, part = divmod(number, self._shares_per_pass)
        place = part * self._length
        first = which * self._per_pass + place
        if first >= self.updates:
            return None
        length = min(self._length, self.updates - first)
        return Share(first, self._orders[which][place * self._batch : (place + length) * self._batch])

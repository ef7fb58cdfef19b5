"""TrackedTopK: about the largest entries, by a threshold that follows them from step to step."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np

from mpisparse.errors import ConfigError
from mpisparse.kernels.source import Source
from mpisparse.kernels.vectors import LARGEST, SMALLEST
from mpisparse.sparse import SparseVector
from mpisparse.sparsifiers.base import Sparsifier, Tracked
from mpisparse.sparsifiers.density import Density, check_density, check_steps, density_at, fixed_density

#: How much of a deviation of the count's logarithm the threshold's makes up for. Under error feedback the count answers
#: with more than ten times that: entries that were kept crowd just below the threshold. More gain makes it swing.
_GAIN = 0.05

#: How much of it counts as drift that goes on.
_DRIFT_GAIN = 0.01

#: The drift of one step is never taken for more than this: a leap is no drift.
_LARGEST_DRIFT = 0.5


@dataclass(frozen=True)
class TrackedTopK(Sparsifier):
    """Sends the exact values of all entries that reach the threshold of the step before, about round(density * numel).

    One pass over the vector a step, where TopK needs a sample and a choice besides. The threshold moves with the count,
    and the exact one is taken anew, from that step's exact selection, whenever the count leaves the band, and every so
    many steps. Surprises first:

    - The count is not exact: it stays within the band, and is exact in the steps that take the threshold anew. The run
      log tells the density that was really sent.
    - It remembers a threshold a bucket, which is part of the exchange's state; `select`, which has none, is exact.
    - Zeros are not sent. Biased: keep what is left behind with error feedback.
    """

    density: Density
    """Share of entries to send, in (0, 1], or a schedule of it; lower sends less and delays small entries more."""
    band: float = 0.2
    """Largest deviation of the count, as a part of what was asked for; a wider band takes fewer exact steps."""
    every: int = 100
    """Steps after which the threshold is taken anew at the latest; 0 for never."""

    def __post_init__(self) -> None:
        check_density(self.density)
        check_steps(self.every, "every")
        number = isinstance(self.band, int | float) and not isinstance(self.band, bool)
        if not number or not 0 < self.band < 1:
            raise ConfigError(f"band {self.band!r} is outside (0, 1): give a part of the count, such as 0.2")

    def choose(
        self, source: Source, generator: np.random.Generator | None, tracked: Tracked | None = None
    ) -> SparseVector:
        """Return the entries that reach the tracked threshold, or the exactly largest ones."""
        density = fixed_density(self.density)
        if self.sends_everything:
            return source.everything()
        count = max(1, round(density * source.numel))
        tracked = Tracked() if tracked is None else tracked
        among = None
        if tracked.threshold:
            most = math.floor(count * (1 + self.band))
            # The drift may carry it out of float32, at either end.
            floor = max(np.float32(min(tracked.threshold, float(LARGEST))), SMALLEST)
            found = source.find(floor, most)
            tracked.age += 1
            due = 0 < self.every <= tracked.age
            if found.indices is not None and found.number >= count * (1 - self.band) and not due:
                deviation = math.log(found.number / count)
                tracked.drift += _DRIFT_GAIN * deviation
                tracked.threshold *= math.exp(_GAIN * deviation + tracked.drift)
                return source.take(found)
            among = found if found.indices is not None and found.number >= count else None
        sparse = source.largest(count, generator, among)
        threshold = float(np.abs(sparse.values).min()) if sparse.count else 0.0
        if threshold and tracked.threshold:
            missed = math.log(threshold / tracked.threshold)
            tracked.drift += min(max(missed / 2, -_LARGEST_DRIFT), _LARGEST_DRIFT)
        tracked.threshold, tracked.age = threshold * math.exp(tracked.drift), 0
        return sparse

    def at(self, step: int) -> TrackedTopK:
        """Return the rule in force at optimizer step `step`, its density a number."""
        return replace(self, density=density_at(self.density, step)) if callable(self.density) else self

    @property
    def sends_everything(self) -> bool:
        """Return True at density 1."""
        return self.density == 1

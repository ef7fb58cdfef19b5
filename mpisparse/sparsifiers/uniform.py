"""Uniform: every entry has the same chance, and those sent are scaled up to make up for the others."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from mpisparse import random
from mpisparse.errors import NonFiniteError
from mpisparse.kernels.source import Source
from mpisparse.kernels.vectors import is_finite
from mpisparse.sparse import SparseVector
from mpisparse.sparsifiers.base import Sparsifier, Tracked, Vector
from mpisparse.sparsifiers.density import Density, check_density, density_at, fixed_density


@dataclass(frozen=True)
class Uniform(Sparsifier):
    """Sends each entry independently with probability `density`, divided by it: unbiased, and blind to the values.

    - The expected squared norm is 1 / density times that of the vector: the price against which GSpar is measured.
    - The number of entries is random, density * numel on average. A zero that is drawn is not sent.
    - Scaling can take an entry out of float32's range; that is a `NonFiniteError`.
    """

    amplifies = True

    density: Density
    """Probability of each entry, in (0, 1], or a schedule of it; lower sends less and adds more variance."""

    def __post_init__(self) -> None:
        check_density(self.density)

    def choose(
        self, source: Source, generator: np.random.Generator | None, tracked: Tracked | None = None
    ) -> SparseVector:
        """Return a random choice of entries, scaled by 1 / density."""
        density = fixed_density(self.density)
        if self.sends_everything:
            return source.everything()
        draws = random.generator(0, 0, 0, 0) if generator is None else generator
        kept = source.toss_equal(density, draws)
        return replace(kept, values=_amplify(kept.values, density))

    def at(self, step: int) -> Uniform:
        """Return the rule in force at optimizer step `step`, its density a number."""
        return replace(self, density=density_at(self.density, step)) if callable(self.density) else self

    @property
    def sends_everything(self) -> bool:
        """Return True at density 1."""
        return self.density == 1


def _amplify(values: Vector, density: float) -> Vector:
    """Return `values` divided by `density`, rounded once."""
    with np.errstate(over="ignore"):
        amplified = (values.astype(np.float64) / density).astype(np.float32)
    if not is_finite(amplified):
        largest = np.abs(values).max()
        raise NonFiniteError(
            f"an entry of {largest} divided by density {density} leaves the range of float32: "
            "scale the gradients down, or send more"
        )
    return amplified

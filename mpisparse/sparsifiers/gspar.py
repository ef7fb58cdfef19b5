"""GSpar: large entries are likely to be sent, and those sent make up for the others (Wangni et al., NeurIPS 2018)."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from mpisparse import random
from mpisparse.errors import ConfigError
from mpisparse.kernels.source import HostSource, Source
from mpisparse.kernels.vectors import LARGEST, as_vector
from mpisparse.sparse import SparseVector
from mpisparse.sparsifiers.base import Sparsifier, Tracked, Vector
from mpisparse.sparsifiers.density import Density, check_density, check_steps, density_at, fixed_density


@dataclass(frozen=True, repr=False)
class GSpar(Sparsifier):
    """Sends each entry g independently with probability p = min(|g| / level, 1), divided by p: unbiased.

    The level (the paper's 1 / lambda) is one number a vector. Of all rules that keep entries independently, amplify
    them by 1/p and send as many on average, this one adds the least variance. Surprises first:

    - Entries with p = 1 are sent exactly. All others have the same magnitude when sent, the level itself, which is the
      result's `magnitude`: a sign is all they need on the wire. The level is rounded to float32 before the draws, so
      that the rounding moves the probabilities with it, and the mean of many draws stays the vector.
    - The number of entries is random. Zeros are never sent; a zero vector gives an empty result.
    - With density * numel below 1 most draws are empty, and the variance is about 1 / (density * numel) times the
      squared norm. That is correct, and seldom what is wanted: send short vectors dense.
    - With huge entries and a tiny density the level would leave float32. It is capped at the largest float32; more
      entries than asked for are sent then, and the mean still is the vector. Entries below 1e-38 have coarse levels:
      there, too, the number sent may differ while the mean does not.
    - Stateless: keep no residual around it.

    Give exactly one of `density` and `variance`.
    """

    amplifies = True
    shares_magnitude = True

    density: Density | None = None
    """Expected share of entries sent, in (0, 1], or a schedule of it; lower sends less and adds more variance."""
    variance: float | None = None
    """Variance to add, in units of the squared norm (the paper's epsilon), 0 or more; higher sends less."""
    iterations: int | None = None
    """With `density`: None for the exact level, or the number of rescalings of the paper's greedy Algorithm 3 (it used
    2), which sends somewhat less than asked for when a few entries dominate."""

    def __post_init__(self) -> None:
        if (self.density is None) == (self.variance is None):
            raise ConfigError(
                f"GSpar was given density {self.density!r} and variance {self.variance!r}: give exactly one of them"
            )
        if self.density is not None:
            check_density(self.density)
        if self.variance is not None:
            _check_variance(self.variance)
        if self.iterations is not None:
            check_steps(self.iterations, "iterations")
            if self.variance is not None:
                raise ConfigError("iterations is for a density: a variance is always met exactly; leave iterations out")

    def __repr__(self) -> str:
        options = {"density": self.density, "variance": self.variance, "iterations": self.iterations}
        given = ", ".join(f"{name}={value!r}" for name, value in options.items() if value is not None)
        return f"GSpar({given})"

    def probabilities(self, vector: Vector) -> NDArray[np.float64]:
        """Return the probability of each entry to be sent, float64 of shape (numel,).

        Raises:
            NonFiniteError: the vector holds NaN or infinity.
        """
        vector = as_vector(vector)
        if self.sends_everything:
            return np.ones(vector.size)
        return np.minimum(np.abs(vector).astype(np.float64) / float(self._level(HostSource(vector))), 1.0)

    def choose(
        self, source: Source, generator: np.random.Generator | None, tracked: Tracked | None = None
    ) -> SparseVector:
        """Return a random choice of entries, amplified.

        The result's `magnitude` is set when at least one entry sent had a probability below 1.
        """
        if self.sends_everything:
            return source.everything()
        level = self._level(source)
        draws = random.generator(0, 0, 0, 0) if generator is None else generator
        return source.toss(level, draws, self._expected(source.numel))

    def at(self, step: int) -> GSpar:
        """Return the rule in force at optimizer step `step`, its density a number."""
        return replace(self, density=density_at(self.density, step)) if callable(self.density) else self

    @property
    def sends_everything(self) -> bool:
        """Return True at density 1 and at variance 0."""
        return self.density == 1 or self.variance == 0

    def _level(self, source: Source) -> np.float32:
        """Return the level as the float32 that is used for the draws and sent."""
        target = None if self.density is None else fixed_density(self.density) * source.numel
        level = source.level(target=target, variance=self.variance, iterations=self.iterations)
        return np.float32(min(level, float(LARGEST)))

    def _expected(self, numel: int) -> float:
        """Return about how many entries will be sent: with a variance nobody knows before."""
        return numel / 64 if self.density is None else fixed_density(self.density) * numel


def _check_variance(variance: float) -> None:
    number = isinstance(variance, int | float) and not isinstance(variance, bool)
    if not number or not 0 <= variance < math.inf:
        raise ConfigError(
            f"variance {variance!r} is not 0 or more and finite: "
            "give the variance to add in units of the squared norm, such as 1.0"
        )

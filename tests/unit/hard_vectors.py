"""Vectors that break naive sparsifiers, and slow references in float64, for the tests of kernels and sparsifiers."""

from __future__ import annotations

import numpy as np
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray

Vector = NDArray[np.float32]


def draw(seed: int, numel: int) -> Vector:
    """Return Gaussian entries."""
    return np.random.default_rng(seed).standard_normal(numel).astype(np.float32)


def scatter(seed: int, values: NDArray[np.floating]) -> Vector:
    """Return `values` as float32 in random order with random signs."""
    rng = np.random.default_rng(seed)
    signed: NDArray[np.float64] = rng.permutation(values) * rng.choice([-1.0, 1.0], len(values))
    return signed.astype(np.float32)


#: Each kind that has a reason to go wrong.
HARD: dict[str, Vector] = {
    "no entry": np.empty(0, np.float32),
    "one zero": np.zeros(1, np.float32),
    "one negative zero": np.array([-0.0], np.float32),
    "one entry": np.array([-3.0], np.float32),
    "two entries": np.array([1e-20, -2.0], np.float32),
    "two equal": np.array([2.0, -2.0], np.float32),
    "all zero": np.zeros(100, np.float32),
    "all equal": scatter(0, np.full(301, 0.1)),
    "mostly zero": scatter(1, np.concatenate([np.zeros(400), np.arange(1.0, 6.0)])),
    "small integers": scatter(2, np.random.default_rng(2).integers(0, 4, 500).astype(np.float64)),
    "gaussian": draw(3, 1000),
    "heavy tailed": draw(4, 1000) ** 9,
    "geometric": scatter(5, 2.0 ** -np.arange(140.0)),
    "all scales": scatter(6, 10.0 ** np.linspace(-44, 38, 700)),
    "huge": scatter(7, np.full(64, 3e38)),
    "tiny": scatter(8, np.linspace(1e-45, 1e-40, 200)),
    "smallest": scatter(9, np.full(65, 1e-45)),
    "one huge among tiny": scatter(10, np.append(np.full(300, 1e-40), 3e38)),
    "neighbours": scatter(11, np.repeat(np.float32(1) + np.arange(8) * 2.0**-23, 20)),
}

_SPECIAL = [0.0, -0.0, 1e-45, -1e-45, 1e-40, 3e38, -3e38, 1.0, -1.0, 1.0000001]


def vectors(min_size: int = 0, max_size: int = 120) -> st.SearchStrategy[Vector]:
    """Return float32 vectors of any finite values, ties and zeros among them."""
    entries = st.one_of(
        st.floats(allow_nan=False, allow_infinity=False, width=32),
        st.sampled_from(_SPECIAL).map(lambda value: float(np.float32(value))),
        st.integers(-3, 3).map(float),
    )
    return hnp.arrays(np.float32, st.integers(min_size, max_size), elements=entries, fill=st.nothing())


def magnitudes(vector: Vector) -> NDArray[np.float64]:
    """Return the nonzero magnitudes, falling."""
    falling = np.sort(np.abs(vector.astype(np.float64)))[::-1]
    return falling[falling > 0]


def expected_count(vector: Vector, level: float) -> float:
    """Return the sum of the probabilities min(|g| / level, 1)."""
    return float(np.minimum(magnitudes(vector) / level, 1).sum())


def added_variance(vector: Vector, level: float) -> float:
    """Return the sum of g**2 (1 / p - 1)."""
    below = magnitudes(vector)
    below = below[below < level]
    return float((below * (level - below)).sum())


def bisect_level(vector: Vector, target: float) -> float:
    """Return the level for an expected count by bisection on its logarithm."""
    low, high = -110.0, 130.0
    for _ in range(200):
        middle = (low + high) / 2
        low, high = (middle, high) if expected_count(vector, 10.0**middle) >= target else (low, middle)
    return float(10.0**low)


def sorted_level(vector: Vector, variance: float) -> float:
    """Return the level of the paper's Algorithm 2 as it is printed, with its sort."""
    falling = magnitudes(vector)
    tail1 = np.cumsum(falling[::-1])[::-1]
    tail2 = np.cumsum(falling[::-1] ** 2)[::-1]
    budget = variance * tail2[0]
    k = int(np.flatnonzero(falling * tail1 <= budget + tail2)[0])
    return float((budget + tail2[k]) / tail1[k])

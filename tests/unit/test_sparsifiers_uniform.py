"""Uniform is unbiased, and its variance is 1 / density."""

from __future__ import annotations

import math

import numpy as np
import pytest

from mpisparse import random
from mpisparse.errors import NonFiniteError
from mpisparse.sparsifiers import Uniform
from tests.unit.hard_vectors import draw


@pytest.mark.parametrize("density", [0.05, 0.3, 0.9])
def test_the_mean_of_many_draws_is_the_vector(density: float) -> None:
    vector, draws = draw(0, 60), 5000
    mean = sum(
        Uniform(density).select(vector, random.generator(0, 0, step, 0)).to_dense().astype(np.float64)
        for step in range(draws)
    )
    spread = np.abs(vector) * math.sqrt((1 / density - 1) / draws)
    assert np.all(np.abs(mean / draws - vector) <= 5 * spread)


@pytest.mark.parametrize("density", [0.01, 0.1, 0.5])
def test_the_squared_norm_grows_by_one_over_density(density: float) -> None:
    vector = draw(1, 400_000)
    sparse = Uniform(density).select(vector, random.generator(0, 0, 0, 0))
    ratio = np.square(sparse.values.astype(np.float64)).sum() / np.square(vector.astype(np.float64)).sum()
    # Two per cent, or four standard deviations of one draw at the lowest density: sqrt(3 / count).
    assert ratio == pytest.approx(1 / density, rel=max(0.02, 4 * math.sqrt(3 / (density * vector.size))))


def test_the_mean_variance_over_many_draws_is_within_two_per_cent() -> None:
    vector = draw(2, 2000)
    norm = np.square(vector.astype(np.float64)).sum()
    for density in (0.02, 0.1):
        ratios = [
            np.square(Uniform(density).select(vector, random.generator(0, 0, step, 0)).values.astype(np.float64)).sum()
            for step in range(1500)
        ]
        assert np.mean(ratios) / norm == pytest.approx(1 / density, rel=0.02)


def test_values_are_the_entries_divided_by_the_density_rounded_once() -> None:
    vector = draw(3, 1000)
    sparse = Uniform(0.3).select(vector)
    exact = vector[sparse.indices].astype(np.float64) / 0.3
    assert np.array_equal(sparse.values, exact.astype(np.float32))
    assert sparse.magnitude is None


def test_zeros_are_drawn_but_not_sent() -> None:
    vector = draw(4, 10_000)
    vector[::2] = 0
    sparse = Uniform(0.5).select(vector)
    assert np.all(sparse.indices % 2 == 1)
    assert abs(sparse.count - 2500) < 5 * math.sqrt(5000 / 4)


def test_values_that_leave_float32_are_refused_not_sent_as_infinity() -> None:
    with pytest.raises(NonFiniteError, match="leaves the range of float32"):
        Uniform(0.5).select(np.full(64, 3e38, np.float32))

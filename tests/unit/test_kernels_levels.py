"""Levels meet their targets exactly, on vectors of any scale, and agree with slow references."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from mpisparse.kernels import histogram
from mpisparse.kernels.levels import HostParts, level_by_scaling, level_for_count, level_for_variance
from tests.unit.hard_vectors import (
    HARD,
    Vector,
    added_variance,
    bisect_level,
    draw,
    expected_count,
    magnitudes,
    sorted_level,
    vectors,
)

NONZERO = [name for name, vector in HARD.items() if vector.any()]


@pytest.fixture(params=[1 << 16, 0], ids=["sort", "histograms"])
def sort(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Take either way for vectors of any length."""
    monkeypatch.setattr(histogram, "SORT", request.param)


@pytest.mark.usefixtures("sort")
@pytest.mark.parametrize("name", NONZERO)
@pytest.mark.parametrize("density", [1e-4, 0.01, 0.1, 0.5, 0.9, 0.999])
def test_the_level_for_a_count_meets_it(name: str, density: float) -> None:
    vector = HARD[name]
    target = density * vector.size
    level = level_for_count(HostParts(vector), target)
    present = int(np.count_nonzero(vector))
    assert expected_count(vector, level) == pytest.approx(min(target, present), rel=1e-12)
    if target < present:
        assert level == pytest.approx(bisect_level(vector, target), rel=1e-9)


@pytest.mark.usefixtures("sort")
@pytest.mark.parametrize("name", NONZERO)
@pytest.mark.parametrize("variance", [1e-3, 0.1, 0.5, 1.0, 30.0])
def test_the_level_for_a_variance_meets_it_and_is_that_of_algorithm_2(name: str, variance: float) -> None:
    vector = HARD[name]
    level = level_for_variance(HostParts(vector), variance)
    norm = (magnitudes(vector) ** 2).sum()
    assert added_variance(vector, level) / norm == pytest.approx(variance, rel=1e-9)
    assert level == pytest.approx(sorted_level(vector, variance), rel=1e-9)


@given(vectors(min_size=1), st.floats(1e-3, 0.999))
def test_any_vector_meets_its_count(vector: Vector, density: float) -> None:
    assume(vector.any())
    target = density * vector.size
    level = level_for_count(HostParts(vector), target)
    assert expected_count(vector, level) == pytest.approx(min(target, np.count_nonzero(vector)), rel=1e-12)


@given(vectors(min_size=1), st.floats(1e-3, 100))
def test_any_vector_meets_its_variance(vector: Vector, variance: float) -> None:
    assume(vector.any())
    norm = (magnitudes(vector) ** 2).sum()
    level = level_for_variance(HostParts(vector), variance)
    assert added_variance(vector, level) / norm == pytest.approx(variance, rel=1e-9)


@given(vectors(min_size=1))
def test_without_a_variance_budget_every_nonzero_entry_is_certain(vector: Vector) -> None:
    assume(vector.any())
    assert level_for_variance(HostParts(vector), 0.0) <= magnitudes(vector)[-1] * (1 + 1e-15)


@pytest.mark.parametrize("name", ["no entry", "one zero", "one negative zero", "all zero"])
def test_a_vector_of_zeros_has_an_infinite_level(name: str) -> None:
    assert level_for_count(HostParts(HARD[name]), 1.0) == math.inf
    assert level_for_variance(HostParts(HARD[name]), 1.0) == math.inf
    assert level_by_scaling(HostParts(HARD[name]), 1.0, 2) == math.inf


@pytest.mark.parametrize("name", NONZERO)
def test_a_target_beyond_the_nonzero_entries_makes_them_all_certain(name: str) -> None:
    vector = HARD[name]
    smallest = float(magnitudes(vector)[-1])
    for extra in (0, 1, 1000):
        assert level_for_count(HostParts(vector), int(np.count_nonzero(vector)) + extra) == pytest.approx(
            smallest, rel=1e-15
        )


def test_long_vectors_with_a_dominant_entry_are_searched_whole() -> None:
    # One entry holds nearly the whole sum, so the level lies far below the first guess.
    vector = draw(0, 200_000)
    vector[77] = 1e30
    level = level_for_count(HostParts(vector), 2000.0)
    assert expected_count(vector, level) == pytest.approx(2000, rel=1e-12)
    wide = np.concatenate([vector, draw(1, 1000) * np.float32(1e35)])
    for variance in (1e-3, 1.0):
        assert level_for_variance(HostParts(wide), variance) == pytest.approx(sorted_level(wide, variance), rel=1e-9)


@pytest.mark.parametrize("name", NONZERO)
def test_scaling_rises_to_the_exact_level_and_stays_there(name: str) -> None:
    vector = HARD[name]
    target = min(0.3 * vector.size, float(np.count_nonzero(vector)))
    levels = [level_by_scaling(HostParts(vector), target, iterations) for iterations in (0, 1, 2, 5, 10**6)]
    assert levels == sorted(levels, reverse=True)
    assert all(expected_count(vector, level) <= target * (1 + 1e-12) for level in levels)
    assert expected_count(vector, levels[-1]) == pytest.approx(target, rel=1e-6)


def test_two_rescalings_undershoot_on_a_skewed_vector_as_the_paper_accepts() -> None:
    # The magnitudes of the paper's synthetic data at C1 = 0.01, C2 = 0.9.
    rng = np.random.default_rng(0)
    scale = rng.random(2048)
    vector = (rng.standard_normal(2048) * np.where(scale <= 0.9, 0.01 * scale, scale)).astype(np.float32)
    for density in (0.1, 0.3):
        target = density * vector.size
        reached = expected_count(vector, level_by_scaling(HostParts(vector), target, 2))
        assert 0.95 * target < reached < 0.9999 * target
        assert expected_count(vector, level_for_count(HostParts(vector), target)) == pytest.approx(target, rel=1e-12)

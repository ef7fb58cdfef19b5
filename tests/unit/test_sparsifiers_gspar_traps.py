"""Cases in which a naive GSpar divides by zero, loops, overflows, or is biased."""

from __future__ import annotations

import numpy as np
import pytest

from mpisparse import random
from mpisparse.sparse import SparseVector
from mpisparse.sparsifiers import GSpar
from tests.unit.hard_vectors import HARD, Vector


def draws(rule: GSpar, vector: Vector, number: int) -> list[SparseVector]:
    return [rule.select(vector, random.generator(0, 0, step, 0)) for step in range(number)]


RULES = [GSpar(density=0.3), GSpar(density=0.3, iterations=2), GSpar(variance=1.0)]
each_rule = pytest.mark.parametrize("rule", RULES, ids=repr)


@each_rule
@pytest.mark.parametrize("name", ["no entry", "one zero", "one negative zero", "all zero"])
def test_a_zero_vector_gives_an_empty_message(rule: GSpar, name: str) -> None:
    assert np.array_equal(rule.probabilities(HARD[name]), np.zeros(HARD[name].size))
    sparse = rule.select(HARD[name])
    assert sparse.count == 0
    assert sparse.magnitude is None


@each_rule
def test_zeros_inside_have_probability_zero_and_are_never_sent(rule: GSpar) -> None:
    vector = HARD["mostly zero"]
    assert np.all((rule.probabilities(vector) > 0) == (vector != 0))
    assert all(np.all(vector[sparse.indices] != 0) for sparse in draws(rule, vector, 20))


@pytest.mark.parametrize("iterations", [None, 1000])
def test_more_places_than_nonzero_entries_send_them_all_exactly(iterations: int | None) -> None:
    vector = HARD["mostly zero"]
    rule = GSpar(density=0.3, iterations=iterations)
    assert rule.probabilities(vector).sum() == pytest.approx(5, rel=1e-6)
    if iterations is None:
        sparse = rule.select(vector)
        assert np.array_equal(sparse.to_dense(), vector)
        assert sparse.magnitude is None


def test_less_than_one_expected_entry_mostly_sends_none_and_stays_unbiased() -> None:
    vector, number = np.array([3, -1, 2, -4], np.float32), 20_000
    rule = GSpar(density=0.05)
    messages = draws(rule, vector, number)
    assert rule.probabilities(vector).sum() == pytest.approx(0.2, rel=1e-6)
    assert 0.78 < np.mean([sparse.count == 0 for sparse in messages]) < 0.86
    mean = sum(sparse.to_dense().astype(np.float64) for sparse in messages) / number
    spread = np.abs(vector) * np.sqrt((1 / rule.probabilities(vector) - 1) / number)
    assert np.all(np.abs(mean - vector) <= 5 * spread)


@pytest.mark.parametrize("name", ["all equal", "huge", "smallest"])
@pytest.mark.parametrize("density", [0.01, 0.3, 0.99])
def test_equal_entries_have_equal_probabilities(name: str, density: float) -> None:
    vector = HARD[name]
    probabilities = GSpar(density=density).probabilities(vector)
    assert np.unique(probabilities).size == 1
    # The smallest float32 have levels of few digits.
    expected = max(density, 3e38 / 3.4028235e38) if name == "huge" else density
    assert probabilities[0] == pytest.approx(expected, rel=0.25 if name == "smallest" else 1e-6)


def test_scaling_stops_when_its_factor_is_one_but_for_rounding() -> None:
    vector = np.full(64, 0.1, np.float32)
    many = GSpar(density=0.3, iterations=10**9)
    assert many.probabilities(vector) == pytest.approx(np.full(64, 0.3), rel=1e-6)
    for other in HARD.values():
        assert many.probabilities(other).shape == other.shape


def test_half_precision_gradients_are_summed_in_double_precision() -> None:
    # Their sum and their squares are far beyond float16.
    vector = np.full(4096, 60_000, np.float16)
    probabilities = GSpar(density=0.1).probabilities(vector)  # type: ignore[arg-type]
    assert probabilities == pytest.approx(np.full(4096, 0.1), rel=1e-6)
    # And amplified entries are, too: values travel as float32.
    sparse = GSpar(variance=9.0).select(vector)  # type: ignore[arg-type]
    assert sparse.magnitude == pytest.approx(600_000, rel=1e-6)
    assert np.all(np.isfinite(sparse.values))


def test_tiny_gradients_whose_lambda_overflows_keep_their_probabilities() -> None:
    vector = np.linspace(1e-41, 1e-40, 1000).astype(np.float32)
    rule = GSpar(density=0.1)
    assert rule.probabilities(vector).sum() == pytest.approx(100, rel=1e-4)
    magnitude = rule.select(vector).magnitude
    assert magnitude is not None
    assert 0 < magnitude < 1e-38


def test_a_level_beyond_float32_is_capped_and_the_mean_stays() -> None:
    vector, number = np.array([3e38, -1e38, 1e38, 2e38], np.float32), 4000
    rule = GSpar(density=0.01)
    messages = draws(rule, vector, number)
    assert all(np.all(np.isfinite(sparse.values)) for sparse in messages)
    mean = sum(sparse.to_dense().astype(np.float64) for sparse in messages) / number
    spread = np.abs(vector.astype(np.float64)) * np.sqrt((1 / rule.probabilities(vector) - 1) / number)
    assert np.all(np.abs(mean - vector) <= 5 * spread)


@pytest.mark.parametrize(
    "rule", [GSpar(density=1.0), GSpar(density=1), GSpar(variance=0.0), GSpar(variance=0)], ids=repr
)
def test_density_one_and_variance_zero_are_the_identity(rule: GSpar) -> None:
    vector = np.array([0.0, -0.0, 1e-45, -3e38, 1.0], np.float32)
    assert rule.sends_everything
    assert np.array_equal(rule.probabilities(vector), np.ones(5))
    assert np.array_equal(rule.select(vector).to_dense().view(np.uint32), vector.view(np.uint32))

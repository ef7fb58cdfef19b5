"""GSpar: the paper's numbers, its guarantees, and every case in which a naive implementation goes wrong."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from mpisparse import random
from mpisparse.errors import ConfigError
from mpisparse.sparse import SparseVector
from mpisparse.sparsifiers import GSpar, Uniform
from tests.unit.hard_vectors import HARD, Vector, bisect_level, draw, sorted_level, vectors

#: The vector of the worked example.
G = np.array([4, -2, 1, -1], np.float32)


def variance_ratio(rule: GSpar, vector: Vector) -> float:
    """Return the expected squared norm of the result over that of the vector."""
    probabilities = rule.probabilities(vector)
    squares = np.square(vector.astype(np.float64))
    sent = probabilities > 0
    return float((squares[sent] / probabilities[sent]).sum() / squares.sum())


def draws(rule: GSpar, vector: Vector, number: int) -> list[SparseVector]:
    return [rule.select(vector, random.generator(0, 0, step, 0)) for step in range(number)]


# The worked example.


@pytest.mark.parametrize(
    ("variance", "lamda", "probabilities", "total"),
    [
        (0.1, 0.487805, [1, 0.975610, 0.487805, 0.487805], 2.951220),
        (0.25, 0.347826, [1, 0.695652, 0.347826, 0.347826], 2.391304),
        (0.5, 0.242424, [0.969697, 0.484848, 0.242424, 0.242424], 1.939394),
        (1.0, 0.181818, [0.727273, 0.363636, 0.181818, 0.181818], 1.454545),
    ],
)
def test_the_example_for_a_variance(variance: float, lamda: float, probabilities: list[float], total: float) -> None:
    rule = GSpar(variance=variance)
    assert rule.probabilities(G) == pytest.approx(probabilities, abs=1e-6)
    assert rule.probabilities(G)[3] == pytest.approx(lamda, abs=1e-6)
    assert rule.probabilities(G).sum() == pytest.approx(total, abs=1e-6)
    assert variance_ratio(rule, G) == pytest.approx(1 + variance, rel=1e-6)


@pytest.mark.parametrize(
    ("density", "probabilities", "total", "ratio"),
    [
        (0.25, [0.5, 0.25, 0.125, 0.125], 1.0, 2.909091),
        (0.5, [1, 0.5, 0.25, 0.25], 2.0, 1.454545),
        (0.75, [1, 1, 0.5, 0.5], 3.0, 1.090909),
        (0.9, [1, 1, 0.8, 0.8], 3.6, 1.022727),
    ],
)
def test_the_example_for_a_density(density: float, probabilities: list[float], total: float, ratio: float) -> None:
    for iterations in (None, 2, 3, 1000):
        rule = GSpar(density=density, iterations=iterations)
        assert rule.probabilities(G) == pytest.approx(probabilities, abs=1e-6)
        assert rule.probabilities(G).sum() == pytest.approx(total, abs=1e-6)
        assert variance_ratio(rule, G) == pytest.approx(ratio, abs=1e-6)


@pytest.mark.parametrize(
    ("density", "iterations", "probabilities"),
    [
        (0.75, 0, [1, 0.75, 0.375, 0.375]),
        (0.75, 1, [1, 1, 0.5, 0.5]),
        (0.9, 0, [1, 0.9, 0.45, 0.45]),
        (0.9, 1, [1, 1, 0.65, 0.65]),
        (0.9, 2, [1, 1, 0.8, 0.8]),
        (0.9, 3, [1, 1, 0.8, 0.8]),
    ],
)
def test_the_example_step_by_step(density: float, iterations: int, probabilities: list[float]) -> None:
    assert GSpar(density=density, iterations=iterations).probabilities(G) == pytest.approx(probabilities, abs=1e-6)


# What the paper promises.


@pytest.mark.parametrize(
    "rule",
    [GSpar(density=0.3), GSpar(density=0.3, iterations=1), GSpar(variance=0.5), GSpar(variance=5.0)],
    ids=repr,
)
@pytest.mark.parametrize("seed", [0, 1])
def test_the_mean_of_many_draws_is_the_vector(rule: GSpar, seed: int) -> None:
    # Entries certain, likely, unlikely and absent.
    vector = np.concatenate([draw(seed, 50) + np.float32(0.3), [100, -30, 0, 0]]).astype(np.float32)
    probabilities, number = rule.probabilities(vector), 6000
    total = np.zeros(vector.size)
    for sparse in draws(rule, vector, number):
        total[sparse.indices] += sparse.values
    with np.errstate(divide="ignore", invalid="ignore"):
        spread = np.abs(vector) * np.sqrt(np.where(probabilities > 0, 1 / probabilities - 1, 0) / number)
    assert np.all(np.abs(total / number - vector) <= 5 * spread + 1e-12)


@pytest.mark.parametrize("rule", [GSpar(density=0.1), GSpar(variance=2.0), GSpar(density=0.5, iterations=2)], ids=repr)
@pytest.mark.parametrize(
    "name", ["gaussian", "heavy tailed", "all equal", "tiny", "huge", "small integers", "all scales"]
)
def test_the_number_sent_is_that_of_the_probabilities(rule: GSpar, name: str) -> None:
    vector, number = HARD[name], 300
    probabilities = rule.probabilities(vector)
    counts = [sparse.count for sparse in draws(rule, vector, number)]
    spread = math.sqrt((probabilities * (1 - probabilities)).sum() / number)
    assert abs(np.mean(counts) - probabilities.sum()) <= 6 * spread + 1e-9


@pytest.mark.parametrize("rule", [GSpar(density=0.1), GSpar(density=0.9), GSpar(variance=2.0)], ids=repr)
@pytest.mark.parametrize("name", HARD)
def test_certain_entries_are_exact_and_all_others_share_one_magnitude(rule: GSpar, name: str) -> None:
    vector = HARD[name]
    probabilities = rule.probabilities(vector)
    for sparse in draws(rule, vector, 5):
        certain = probabilities[sparse.indices] == 1
        assert np.array_equal(sparse.values[certain], vector[sparse.indices[certain]])
        assert np.array_equal(np.flatnonzero(probabilities == 1), sparse.indices[certain])
        sampled = np.abs(sparse.values[~certain])
        if sampled.size:
            assert sparse.magnitude is not None
            assert np.array_equal(sampled.view(np.uint32), np.full(sampled.size, sparse.magnitude).view(np.uint32))
        else:
            assert sparse.magnitude is None


@pytest.mark.parametrize("rule", [GSpar(density=0.25), GSpar(variance=1.0)], ids=repr)
def test_probabilities_are_those_of_the_magnitude_that_is_sent(rule: GSpar) -> None:
    # Not of the level before it was rounded to float32: p times the magnitude must be the entry.
    vector = draw(3, 5000)
    magnitude = rule.select(vector).magnitude
    assert magnitude is not None
    wide = np.abs(vector).astype(np.float64)
    assert np.array_equal(rule.probabilities(vector), np.minimum(wide / float(magnitude), 1))


#: Those whose levels float32 holds to full precision.
NORMAL = [
    name
    for name, vector in HARD.items()
    if vector.any() and name not in ("huge", "tiny", "smallest", "one huge among tiny")
]


@pytest.mark.parametrize("name", NORMAL)
@pytest.mark.parametrize("amount", [0.01, 0.3, 0.8])
def test_probabilities_agree_with_slow_references(name: str, amount: float) -> None:
    vector = HARD[name]
    wide = np.abs(vector.astype(np.float64))
    if amount * vector.size < np.count_nonzero(vector):
        expected = np.minimum(wide / bisect_level(vector, amount * vector.size), 1)
        assert GSpar(density=amount).probabilities(vector) == pytest.approx(expected, rel=2e-7)
    expected = np.minimum(wide / sorted_level(vector, amount), 1)
    assert GSpar(variance=amount).probabilities(vector) == pytest.approx(expected, rel=2e-7)


@given(vectors(min_size=1), st.integers(1, 60))
def test_lemma_3_bounds_the_variance_and_the_count_of_approximately_sparse_vectors(vector: Vector, s: int) -> None:
    falling = np.sort(np.abs(vector.astype(np.float64)))[::-1]
    head, tail = falling[:s].sum(), falling[s:].sum()
    assume(tail > 0)
    rho = tail / head
    # Denormal levels are coarse: there the float32 magnitude may be off by more than rounding elsewhere.
    assume(rho < 1e30 and falling[0] > 1e-30)
    rule = GSpar(variance=rho)
    assert rule.probabilities(vector).sum() <= (1 + rho) * min(s, vector.size) * (1 + 1e-6)
    assert variance_ratio(rule, vector) <= (1 + rho) * (1 + 1e-6)


def test_the_variance_at_a_density_on_gaussian_entries_is_two_over_pi_of_uniform() -> None:
    vector = draw(4, 200_000)
    for density in (0.01, 0.05):
        rule = GSpar(density=density)
        assert rule.probabilities(vector).max() < 1
        assert variance_ratio(rule, vector) * density == pytest.approx(2 / math.pi, rel=0.01)
        sent = rule.select(vector).values.astype(np.float64)
        measured = np.square(sent).sum() / np.square(vector.astype(np.float64)).sum()
        assert measured * density == pytest.approx(2 / math.pi, rel=0.12)


def test_no_vector_does_worse_than_with_equal_probabilities() -> None:
    for name, vector in HARD.items():
        if np.all(vector != 0) and vector.size:
            for density in (0.1, 0.5):
                assert variance_ratio(GSpar(density=density), vector) <= (1 / density) * (1 + 1e-6), name


def test_messages_on_synthetic_data_cost_less_variance_than_uniform() -> None:
    # Entries N(0, 1) * U(0, 1): 0.477 of the uniform variance, from the ratio of the norms.
    rng = np.random.default_rng(5)
    vector = (rng.standard_normal(100_000) * rng.random(100_000)).astype(np.float32)
    assert 0.44 <= 0.02 * variance_ratio(GSpar(density=0.02), vector) <= 0.49
    sent = Uniform(0.02).select(vector).values.astype(np.float64)
    assert 0.9 <= 0.02 * np.square(sent).sum() / np.square(vector.astype(np.float64)).sum() <= 1.1


# Its options.


def test_exactly_one_of_density_and_variance_is_given() -> None:
    with pytest.raises(ConfigError, match="give exactly one"):
        GSpar()
    with pytest.raises(ConfigError, match="give exactly one"):
        GSpar(density=0.1, variance=0.1)


@pytest.mark.parametrize("variance", [-0.1, float("nan"), float("inf"), "1", True])
def test_wrong_variances_are_refused(variance: float) -> None:
    with pytest.raises(ConfigError, match="is not 0 or more and finite"):
        GSpar(variance=variance)


@pytest.mark.parametrize("iterations", [-1, 1.5, True])
def test_wrong_iterations_are_refused(iterations: int) -> None:
    with pytest.raises(ConfigError, match=r"iterations .* is not a whole number"):
        GSpar(density=0.1, iterations=iterations)


def test_iterations_do_not_go_with_a_variance() -> None:
    with pytest.raises(ConfigError, match="leave iterations out"):
        GSpar(variance=0.1, iterations=2)

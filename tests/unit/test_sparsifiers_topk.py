"""TopK sends exactly as many entries as asked for, the largest, and prefers no index among equals."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mpisparse import random
from mpisparse.sparsifiers import TopK
from tests.unit.hard_vectors import HARD, Vector, draw, vectors


def check_topk(vector: Vector, density: float) -> None:
    sparse = TopK(density).select(vector)
    count = min(max(1, round(density * vector.size)), np.count_nonzero(vector))
    assert sparse.count == count
    assert np.array_equal(sparse.values, vector[sparse.indices])
    assert np.array_equal(np.sort(np.abs(sparse.values))[::-1], np.sort(np.abs(vector))[::-1][:count])


@given(vectors(), st.floats(0.001, 0.999))
def test_the_largest_entries_are_those_of_a_full_sort(vector: Vector, density: float) -> None:
    check_topk(vector, density)


@pytest.mark.parametrize("name", HARD)
@pytest.mark.parametrize("density", [1e-6, 0.01, 0.1, 0.5, 0.99])
def test_hard_vectors(name: str, density: float) -> None:
    check_topk(HARD[name], density)


@pytest.mark.parametrize("density", [0.001, 0.01, 0.3])
def test_the_count_is_exact_under_massive_ties(density: float) -> None:
    rounded = np.round(draw(0, 200_000))
    assert TopK(density).select(rounded).count == round(density * rounded.size)
    check_topk(rounded, density)


@pytest.mark.parametrize(("density", "numel", "count"), [(1e-9, 10, 1), (0.25, 10, 2), (0.26, 10, 3), (0.5, 1, 1)])
def test_the_count_is_rounded_and_at_least_one(density: float, numel: int, count: int) -> None:
    assert TopK(density).select(draw(0, numel)).count == count


def test_no_entry_gives_no_entry() -> None:
    assert TopK(0.1).select(np.empty(0, np.float32)).count == 0


def count_choices(vector: Vector, density: float, draws: int) -> np.ndarray:
    """Return how often each index is sent."""
    counts = np.zeros(vector.size)
    for step in range(draws):
        counts[TopK(density).select(vector, random.generator(0, 0, step, 0)).indices] += 1
    return counts


def check_even(counts: np.ndarray, draws: int, share: float) -> None:
    """Check by chi-square, within five of its standard deviations, that each index was sent with chance `share`."""
    statistic = np.square(counts - draws * share).sum() / (draws * share * (1 - share))
    # The counts add up to a fixed number, which raises each one's share of the statistic by n / (n - 1).
    freedom = counts.size
    assert abs(statistic - freedom) < 5 * math.sqrt(2 * freedom)
    assert np.abs(counts - draws * share).max() < 6 * math.sqrt(draws * share * (1 - share))


def test_ties_are_broken_without_preferring_an_index() -> None:
    counts = count_choices(np.full(1000, -0.5, np.float32), 0.1, 2000)
    assert counts.sum() == 2000 * 100
    check_even(counts, 2000, 0.1)
    # No trend along the vector either: the halves are sent equally often.
    assert abs(counts[:500].sum() - counts[500:].sum()) < 5 * math.sqrt(2000 * 1000 * 0.09)


def test_only_the_ties_are_left_to_chance() -> None:
    vector = np.ones(400, np.float32)
    vector[::8] = -2
    vector[1::8] = 0.5
    counts = count_choices(vector, 0.5, 1000)
    assert np.all(counts[::8] == 1000)
    assert np.all(counts[1::8] == 0)
    check_even(counts[vector == 1], 1000, 150 / 300)


def test_nothing_is_drawn_without_a_choice() -> None:
    vector = np.random.default_rng(0).permutation(np.arange(1.0, 101.0)).astype(np.float32)
    generator = random.generator(0, 0, 0, 0)
    TopK(0.1).select(vector, generator)
    assert generator.random() == random.generator(0, 0, 0, 0).random()


def test_topk_loses_no_more_than_its_share_of_the_squared_norm() -> None:
    # The contraction that error feedback rests on (Stich et al., 2018).
    for name, vector in HARD.items():
        for density in (0.01, 0.3):
            sparse = TopK(density).select(vector)
            norm = np.square(vector.astype(np.float64)).sum()
            left = norm - np.square(sparse.values.astype(np.float64)).sum()
            count = max(1, round(density * vector.size))
            assert left <= (1 - count / max(vector.size, 1)) * norm * (1 + 1e-12), name

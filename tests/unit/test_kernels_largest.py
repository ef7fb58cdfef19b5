"""The largest entries are those a full sort gives, whatever the sample says, and ties are broken without preference."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mpisparse import random
from mpisparse.errors import NonFiniteError
from mpisparse.kernels.largest import SAMPLE, SHORT, Floor, guess_floor
from mpisparse.kernels.source import HostSource
from mpisparse.kernels.vectors import SMALLEST
from tests.unit.hard_vectors import HARD, Vector, draw, vectors


def check_largest(vector: Vector, count: int) -> None:
    sparse = HostSource(vector).largest(count, random.generator(0, 0, 0, 0))
    found = sparse.indices
    assert np.array_equal(sparse.values.view(np.uint32), vector[found].view(np.uint32))
    values = np.abs(vector)
    nonzero = np.flatnonzero(values)
    assert np.all(np.diff(found.astype(np.int64)) > 0)
    if nonzero.size <= count:
        assert found.tolist() == nonzero.tolist()
        return
    assert found.size == count
    threshold = np.sort(values)[::-1][count - 1]
    assert np.isin(np.flatnonzero(values > threshold), found).all()
    assert np.all(values[found] >= threshold)


@pytest.mark.parametrize("name", HARD)
@pytest.mark.parametrize("count", [1, 2, 10, 64, 1000])
def test_hard_vectors(name: str, count: int) -> None:
    check_largest(HARD[name], count)


@given(vectors(), st.integers(1, 130))
def test_any_vector(vector: Vector, count: int) -> None:
    check_largest(vector, count)


@pytest.mark.parametrize("count", [1, 300, 30_000, 299_999])
def test_long_vectors_where_a_sample_guesses_the_floor(count: int) -> None:
    check_largest(draw(0, 300_000), count)
    check_largest(np.round(draw(1, 300_000) * 8), count)


@pytest.mark.parametrize("numel", [SHORT, SHORT + 1, 2**24 + 1])
def test_lengths_at_which_the_way_changes(numel: int) -> None:
    check_largest(draw(3, numel), max(1, numel // 100))


def test_a_sample_that_misleads_costs_time_only() -> None:
    # The entries that are looked at are the large ones, so that the guess is too high.
    vector = draw(2, 16 * SAMPLE)
    stride = (vector.size // SAMPLE) | 1
    vector[::stride] += np.float32(100)
    check_largest(vector, vector.size // 100)
    # And the other way round: every entry that is looked at is zero.
    vector[::stride] = 0
    check_largest(vector, vector.size // 100)


def test_every_entry_equal_is_a_choice_without_preference() -> None:
    vector = np.full(200_000, -0.5, np.float32)
    chosen = HostSource(vector).largest(2000, random.generator(1, 0, 0, 0)).indices
    assert chosen.size == 2000
    # Uniform places have their mean in the middle, within 5 sigma.
    assert abs(chosen.mean() - 100_000) < 5 * 200_000 / np.sqrt(12 * 2000)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("numel", [50, 100_000])
def test_bad_entries_are_refused_although_nobody_looked_for_them(bad: float, numel: int) -> None:
    vector = draw(4, numel)
    vector[41] = bad
    with pytest.raises(NonFiniteError, match=f"entry 41 of {numel}"):
        HostSource(vector).largest(5, None)


def test_a_guess_lies_below_the_threshold_and_leaves_room() -> None:
    vector = np.abs(draw(5, 1_000_000))
    count = 10_000
    for start in range(17):
        guess = guess_floor(vector[start::17], vector.size, count)
        reached = int((vector >= guess.magnitude).sum())
        assert count <= reached <= guess.room < 2 * count
    assert guess_floor(np.zeros(SAMPLE, np.float32), 17 * SAMPLE, count).magnitude == SMALLEST
    assert guess_floor(vector[:SHORT], SHORT, 3) == Floor(SMALLEST, SHORT)

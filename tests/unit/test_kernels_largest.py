"""The largest entries are those a full sort gives, with the ties named apart."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mpisparse.kernels.largest import SAMPLE, find_largest
from tests.unit.hard_vectors import HARD, Vector, draw, vectors


def check_largest(vector: Vector, count: int) -> None:
    above, tied = find_largest(vector, count)
    values = np.abs(vector)
    nonzero = np.flatnonzero(values)
    if nonzero.size <= count:
        assert above.tolist() == nonzero.tolist()
        assert tied.size == 0
        return
    threshold = np.sort(values)[::-1][count - 1]
    assert above.tolist() == np.flatnonzero(values > threshold).tolist()
    assert tied.tolist() == np.flatnonzero(values == threshold).tolist()
    assert above.size < count <= above.size + tied.size


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


def test_a_sample_that_misleads_costs_time_only() -> None:
    # The entries that are looked at are the large ones, so that the guess is too high.
    vector = draw(2, 16 * SAMPLE)
    stride = (vector.size // SAMPLE) | 1
    vector[::stride] += np.float32(100)
    check_largest(vector, vector.size // 100)
    # And the other way round: every entry that is looked at is zero.
    vector[::stride] = 0
    check_largest(vector, vector.size // 100)

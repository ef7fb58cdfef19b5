"""Threshold sends what reaches it; Dense sends all."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mpisparse.errors import ConfigError
from mpisparse.sparsifiers import Dense, Threshold
from tests.unit.hard_vectors import HARD, Vector, vectors


@given(vectors(), st.floats(0, 1e39, exclude_min=True))
def test_exactly_the_entries_that_reach_the_threshold_are_sent(vector: Vector, threshold: float) -> None:
    sparse = Threshold(threshold).select(vector)
    expected = [index for index, value in enumerate(vector.tolist()) if abs(value) >= threshold]
    assert sparse.indices.tolist() == expected
    assert np.array_equal(sparse.values, vector[expected])


def test_a_threshold_between_two_float32_is_not_rounded() -> None:
    vector = np.array([1, 1 + 2.0**-23], np.float32)
    assert Threshold(1.0).select(vector).count == 2
    assert Threshold(1 + 2.0**-30).select(vector).indices.tolist() == [1]
    assert Threshold(1 + 2.0**-23).select(vector).indices.tolist() == [1]
    assert Threshold(1 + 2.0**-22).select(vector).count == 0


@pytest.mark.parametrize("name", HARD)
def test_a_tiny_threshold_sends_all_but_zeros(name: str) -> None:
    assert Threshold(1e-300).select(HARD[name]).indices.tolist() == np.flatnonzero(HARD[name]).tolist()


@pytest.mark.parametrize("threshold", [0, 0.0, -1.0, float("nan"), float("inf"), "1", True])
def test_wrong_thresholds_are_refused(threshold: object) -> None:
    with pytest.raises(ConfigError, match="is not above 0 and finite: give a magnitude"):
        Threshold(threshold)  # type: ignore[arg-type]


def test_dense_is_the_identity() -> None:
    for vector in HARD.values():
        assert np.array_equal(Dense().select(vector).to_dense().view(np.uint32), vector.view(np.uint32))
    assert Dense().sends_everything
    assert not Dense().amplifies

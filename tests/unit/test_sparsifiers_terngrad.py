"""TernGrad sends one magnitude, is unbiased without clipping, and has the variance that follows from it."""

from __future__ import annotations

import math

import numpy as np
import pytest

from mpisparse import random
from mpisparse.errors import ConfigError
from mpisparse.sparsifiers import GSpar, TernGrad
from tests.unit.hard_vectors import HARD, draw


@pytest.mark.parametrize("clip", [None, 0.5, 2.5])
@pytest.mark.parametrize("name", HARD)
def test_all_entries_have_one_magnitude(clip: float | None, name: str) -> None:
    vector = HARD[name]
    sparse = TernGrad(clip=clip).select(vector, random.generator(1, 0, 0, 0))
    if not vector.any():
        assert sparse.count == 0
        assert sparse.magnitude is None
        return
    largest = np.abs(vector).max()
    assert sparse.magnitude is not None
    assert np.all(np.abs(sparse.values) == sparse.magnitude)
    assert sparse.magnitude == largest if clip is None else 0 < sparse.magnitude <= largest
    assert np.isin(np.flatnonzero(np.abs(vector) == largest), sparse.indices).all()


@pytest.mark.parametrize("scale", [1.0, 1e-42, 1e37])
@pytest.mark.parametrize("clip", [None, 1.5])
def test_the_mean_of_many_draws_is_the_vector_cut_where_it_is_clipped(scale: float, clip: float | None) -> None:
    vector, draws = (draw(0, 60) * scale).astype(np.float32), 5000
    total, rule = np.zeros(60), TernGrad(clip=clip)
    for step in range(draws):
        sparse = rule.select(vector, random.generator(0, 0, step, 0))
        total += sparse.to_dense()
    assert sparse.magnitude is not None
    level, exact = float(sparse.magnitude), vector.astype(np.float64)
    cut = np.clip(exact, -level, level)
    if clip is not None:
        assert level == pytest.approx(clip * math.sqrt(np.mean(exact**2)), rel=1e-6, abs=2e-45)
        assert (cut != exact).any()
    sigma = np.sqrt(np.abs(cut) * (level - np.abs(cut)) / draws)
    assert np.all(np.abs(total / draws - cut) <= 5 * sigma + 1e-9 * scale)


def test_the_expected_squared_norm_is_the_largest_magnitude_times_the_sum() -> None:
    vector, draws = draw(2, 4000), 400
    due = float(np.abs(vector).max()) * float(np.abs(vector.astype(np.float64)).sum())
    found = [
        float(np.square(TernGrad().select(vector, random.generator(0, 0, step, 0)).values.astype(np.float64)).sum())
        for step in range(draws)
    ]
    assert np.mean(found) == pytest.approx(due, abs=5 * float(np.std(found)) / math.sqrt(draws))


def test_it_is_gspar_at_the_level_of_the_largest_entry() -> None:
    """A share at which GSpar's level is the largest magnitude: the same coins, and the same result."""
    vector = np.array([4.0, -2.0, 1.0, -1.0] * 300, np.float32)
    for step in range(5):
        ours = TernGrad().select(vector, random.generator(0, 0, step, 0))
        theirs = GSpar(density=0.5).select(vector, random.generator(0, 0, step, 0))
        assert np.array_equal(ours.indices, theirs.indices)
        assert np.array_equal(ours.values, theirs.values)


@pytest.mark.parametrize("clip", [0, -1.0, float("nan"), float("inf"), True, "2.5"])
def test_clips_that_are_no_deviations_are_refused(clip: object) -> None:
    with pytest.raises(ConfigError, match=r"not above 0 and finite: give standard deviations, such as 2\.5"):
        TernGrad(clip=clip)  # type: ignore[arg-type]

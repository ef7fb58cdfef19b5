"""The cut is found exactly, by histograms and by sorting alike."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from mpisparse.kernels import histogram
from mpisparse.kernels.histogram import Cut, Floats, Split, find_cut
from tests.unit.hard_vectors import HARD, Vector, vectors


@dataclass(frozen=True)
class AtLeast:
    """Holds up to the magnitude that `count` entries reach."""

    count: int
    moments: int = 2

    def holds(self, magnitudes: Floats, split: Split) -> NDArray[np.bool_]:
        return split.above >= self.count


@dataclass(frozen=True)
class Below:
    """Holds while the sum of the magnitudes below stays under a bound."""

    bound: float
    moments: int = 2

    def holds(self, magnitudes: Floats, split: Split) -> NDArray[np.bool_]:
        return split.total <= self.bound


@dataclass(frozen=True)
class UpTo:
    """Holds up to a magnitude, present or not."""

    last: float
    moments: int = 2

    def holds(self, magnitudes: Floats, split: Split) -> NDArray[np.bool_]:
        return magnitudes <= self.last


def check_cut(cut: Cut, values: Vector) -> None:
    """Check that the counts and sums of a cut are those of the values on its two sides."""
    wide = values.astype(np.float64)
    upto = wide[wide <= cut.magnitude]
    assert cut.above == wide.size - upto.size
    assert cut.total == pytest.approx(upto.sum(), rel=1e-12, abs=0)
    assert cut.squares == pytest.approx((upto**2).sum(), rel=1e-12, abs=0)


@pytest.fixture(params=[1 << 16, 0], ids=["sort", "histograms"])
def sort(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Take either way for vectors of any length."""
    monkeypatch.setattr(histogram, "SORT", request.param)


@pytest.mark.usefixtures("sort")
@pytest.mark.parametrize("name", [name for name, vector in HARD.items() if vector.any()])
def test_the_cut_at_a_rank_is_the_sorted_vectors(name: str) -> None:
    values = np.abs(HARD[name][HARD[name] != 0])
    falling = np.sort(values)[::-1]
    for count in sorted({1, 2, values.size // 2, values.size - 1, values.size} & set(range(1, values.size + 1))):
        cut = find_cut(values, AtLeast(count))
        assert cut.magnitude == falling[count - 1]
        check_cut(cut, values)


@settings(max_examples=25)
@given(vectors(min_size=1), st.integers(1, 120))
def test_both_ways_give_the_same_cut(vector: Vector, count: int) -> None:
    values = np.abs(vector)
    assume(count <= values.size)
    with pytest.MonkeyPatch.context() as patch:
        cuts = []
        for limit in (1 << 16, 0):
            patch.setattr(histogram, "SORT", limit)
            cuts.append(find_cut(values, AtLeast(count)))
    assert cuts[0].magnitude == cuts[1].magnitude == np.sort(values)[::-1][count - 1]
    check_cut(cuts[0], values)
    check_cut(cuts[1], values)


@pytest.mark.usefixtures("sort")
def test_a_law_on_sums_sees_the_entries_below_the_floor() -> None:
    values = np.array([5, 3, 4, 3], np.float32)
    cut = find_cut(values, Below(7.5), floor=2.0, total=1.5, squares=1.25)
    # Below 4 lie 1.5 + 3 + 3; below 5 lie 4 more.
    assert cut == Cut(4.0, 1.0, 11.5, 35.25)


@pytest.mark.usefixtures("sort")
def test_a_law_that_holds_at_no_entry_cuts_at_the_floor() -> None:
    values = np.array([5, 3, 4], np.float32)
    for last in (2.5, 2.75, 2.999):
        cut = find_cut(values, UpTo(last), floor=2.5, total=7.0, squares=9.0)
        assert cut[1:] == (3.0, 7.0, 9.0)
        assert 2.5 <= cut.magnitude <= last


@pytest.mark.usefixtures("sort")
def test_a_law_that_ends_between_entries_is_cut_there() -> None:
    values = np.array([5, 3, 4, 100], np.float32)
    for last in (4.0, 4.001, 4.9999):
        cut = find_cut(values, UpTo(last), total=7.0)
        assert cut[1:] == (2.0, 14.0, 25.0)
        assert 4 <= cut.magnitude <= last


@pytest.mark.parametrize("spread", [0, 1, 400])
def test_long_vectors_are_cut_exactly(spread: int) -> None:
    # More entries than are sorted: all in one bin, in neighbouring bins, and over many.
    bits = np.uint32(0x3F800000) + np.random.default_rng(0).integers(0, (spread + 1) * 32768, 300_000, np.uint32)
    values = bits.astype(np.uint32).view(np.float32)
    for count in (1, 1000, 150_000, 300_000):
        cut = find_cut(values, AtLeast(count))
        assert cut.magnitude == np.sort(values)[::-1][count - 1]
        check_cut(cut, values)

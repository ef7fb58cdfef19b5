"""TrackedTopK follows the threshold: within its band always, exact where it is taken anew, and repeatable."""

from __future__ import annotations

import math

import numpy as np
import pytest

from mpisparse.errors import ConfigError
from mpisparse.kernels.source import Added, HostSource
from mpisparse.sparse import SparseVector
from mpisparse.sparsifiers import Tracked, TrackedTopK
from tests.unit.hard_vectors import HARD, Vector, draw

NUMEL = 50_000
COUNT = 500


def walk(rule: TrackedTopK, steps: int, scale: float = 1.0, start: int = 0) -> list[tuple[SparseVector, int]]:
    """Return what is sent in each step of error feedback around `rule`, and the age of its threshold then."""
    residual, tracked, sent = np.zeros(NUMEL, np.float32), Tracked(), []
    for step in range(start, start + steps):
        gradient = draw(step, NUMEL) * np.float32(scale**step)
        source = Added(residual, gradient)
        sparse = rule.choose(source, None, tracked)
        source.sent(sparse)
        sent.append((sparse, tracked.age))
    return sent


def test_the_count_stays_in_the_band_and_most_steps_are_not_exact() -> None:
    sent = walk(TrackedTopK(COUNT / NUMEL, band=0.2), 120)
    counts = np.array([sparse.count for sparse, _ in sent])
    assert np.all(np.abs(counts - COUNT) <= 0.2 * COUNT)
    assert np.all(counts[[age == 0 for _, age in sent]] == COUNT)
    # While the residual still builds up, the threshold rises faster than it can be followed.
    assert sum(age > 0 for _, age in sent[60:]) > 50
    assert abs(counts.mean() - COUNT) < 0.1 * COUNT


@pytest.mark.parametrize("scale", [3.0, 0.3])
def test_a_gradient_that_leaps_is_followed_within_the_step(scale: float) -> None:
    counts = [sparse.count for sparse, _ in walk(TrackedTopK(COUNT / NUMEL, band=0.1), 12, scale)]
    assert all(abs(count - COUNT) <= 0.1 * COUNT for count in counts)


def test_the_threshold_is_taken_anew_every_so_many_steps() -> None:
    def ages(every: int) -> list[int]:
        rule, tracked, found = TrackedTopK(COUNT / NUMEL, band=0.9, every=every), Tracked(), []
        for step in range(20):
            rule.choose(HostSource(draw(step, NUMEL)), None, tracked)
            found.append(tracked.age)
        return found

    assert ages(5) == [0, 1, 2, 3, 4] * 4
    assert ages(0) == list(range(20))


def test_entries_at_the_threshold_and_above_are_sent_and_no_others() -> None:
    vector, tracked = draw(1, NUMEL), Tracked(threshold=2.5, age=1)
    sparse = TrackedTopK(np.count_nonzero(np.abs(vector) >= 2.5) / NUMEL).choose(HostSource(vector), None, tracked)
    assert sparse.indices.tolist() == np.flatnonzero(np.abs(vector) >= np.float32(2.5)).tolist()
    assert np.array_equal(sparse.values, vector[sparse.indices])


@pytest.mark.parametrize("name", HARD)
def test_hard_vectors_step_after_step(name: str) -> None:
    rule, tracked = TrackedTopK(0.1), Tracked()
    for _ in range(3):
        sparse = rule.choose(HostSource(HARD[name]), None, tracked)
        most = max(1, round(0.1 * HARD[name].size))
        assert sparse.count <= most * 1.2
        assert sparse.count >= min(0.8 * most, int(np.count_nonzero(HARD[name])))
        assert np.all(sparse.values != 0)


@pytest.mark.parametrize("threshold", [1e-60, 1e60])
def test_a_threshold_that_left_float32_is_found_again(threshold: float) -> None:
    tracked = Tracked(threshold, 1, 2.0)
    assert TrackedTopK(0.01).choose(HostSource(draw(5, NUMEL)), None, tracked).count == COUNT
    assert 1 < tracked.threshold < 10 * math.exp(3)


def test_state_goes_through_its_dictionary() -> None:
    tracked, again = Tracked(), Tracked()
    rule, vector = TrackedTopK(0.01), draw(2, NUMEL)
    rule.choose(HostSource(vector), None, tracked)
    again.load_state_dict(tracked.state_dict())
    assert again == tracked
    assert again.threshold > 0

    def following(state: Tracked) -> Vector:
        return rule.choose(HostSource(draw(3, NUMEL)), None, state).to_dense()

    assert np.array_equal(following(tracked), following(again))
    assert again == tracked


def test_a_selection_without_a_past_is_exact() -> None:
    assert TrackedTopK(0.01).select(draw(4, NUMEL)).count == COUNT


@pytest.mark.parametrize("band", [0, 1, -0.5, 2, float("nan"), True, "0.1"])
def test_bands_outside_the_range_are_refused(band: object) -> None:
    with pytest.raises(ConfigError, match=r"outside \(0, 1\): give a part of the count"):
        TrackedTopK(0.1, band=band)  # type: ignore[arg-type]


def test_a_negative_interval_is_refused() -> None:
    with pytest.raises(ConfigError, match="every"):
        TrackedTopK(0.1, every=-1)

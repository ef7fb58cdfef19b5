"""Compiled updates of linear models: gradients are autograd's, choices GSpar's, and one rank's run a plain loop's."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from time import monotonic

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

import mpisparse as ms
from mpisparse.kernels import linear
from mpisparse.kernels.linear import Choice, Samples
from mpisparse.training.models import LinearSVM, LogisticRegression
from tests.unit.hard_vectors import HARD, Vector, draw

NUMEL, SAMPLES = 37, 200
RULES = {"dense": linear.DENSE, "gspar": linear.GSPAR, "uniform": linear.UNIFORM}


def make_samples(hinge: bool = True, curvature: float = 0.1) -> Samples:
    generator = np.random.default_rng(5)
    rows = generator.standard_normal((SAMPLES, NUMEL)).astype(np.float32)
    signs = generator.choice(np.array([-1, 1], np.float32), SAMPLES)
    return Samples(rows, signs, hinge, np.float32(curvature))


def make_choice(rule: str, density: float = 0.2, iterations: int = 2) -> Choice:
    return Choice(RULES[rule], density, iterations, linear.make_draws(NUMEL, np.random.default_rng(6)))


@pytest.mark.parametrize("hinge", [True, False])
@pytest.mark.parametrize("halved", [True, False])
@pytest.mark.parametrize("count", [1, 7])
def test_gradients_are_those_of_autograd(hinge: bool, halved: bool, count: int) -> None:
    l2 = 0.3
    samples = make_samples(hinge, l2 if halved else 2 * l2)
    model = LinearSVM((NUMEL,)) if hinge else LogisticRegression((NUMEL,))
    loss = model.loss(l2=l2, halved=halved)
    for seed in range(20):
        chosen = np.random.default_rng(seed).integers(0, SAMPLES, count)
        weights, gradient = 0.2 * draw(seed, NUMEL), np.empty(NUMEL, np.float32)
        with torch.no_grad():
            model.weight.copy_(torch.from_numpy(weights))
        scores = model(torch.from_numpy(samples.rows[chosen]))
        mean = loss(scores, torch.from_numpy(samples.signs[chosen] > 0).long())
        (expected,) = torch.autograd.grad(mean, model.weight)
        assert linear.gradient_of(samples, chosen, weights, gradient)
        np.testing.assert_allclose(gradient, expected[0].numpy(), rtol=2e-5, atol=2e-6)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_scores_that_are_not_finite_are_noticed(bad: float) -> None:
    samples, weights = make_samples(), np.zeros(NUMEL, np.float32)
    weights[3] = bad
    assert not linear.gradient_of(samples, np.arange(3), weights, np.empty(NUMEL, np.float32))


@pytest.mark.parametrize("name", HARD)
@pytest.mark.parametrize("iterations", [0, 1, 2, None])
@pytest.mark.parametrize("density", [0.02, 0.3, 0.999])
def test_probabilities_are_those_of_gspar(name: str, iterations: int | None, density: float) -> None:
    vector = HARD[name]
    expected = ms.GSpar(density=density, iterations=iterations).probabilities(vector)
    passes = -1 if iterations is None else iterations
    level = linear.greedy_level(vector, density * vector.size, passes, np.empty_like(vector))
    largest = float(np.finfo(np.float32).max)
    found = np.minimum(np.abs(vector).astype(np.float64) / float(np.float32(min(level, largest))), 1.0)
    np.testing.assert_allclose(found, expected, rtol=3e-7)


@pytest.mark.parametrize("numel", [1, 64, 1000])
def test_every_entry_meets_every_draw_once(numel: int) -> None:
    draws = linear.make_draws(numel, np.random.default_rng(1))
    assert draws.shape == (linear.DRAWS + numel,)
    assert 0 <= draws.min() <= draws.max() < 1
    np.testing.assert_array_equal(draws[linear.DRAWS :], draws[:numel])
    positions = np.arange(linear.DRAWS) * numel % linear.DRAWS
    np.testing.assert_array_equal(np.sort(positions), np.arange(linear.DRAWS))
    # One draw lies in each of so many equal parts, but for the rounding to float32.
    parts = (np.arange(linear.DRAWS) + 0.5) / linear.DRAWS
    assert np.abs(np.sort(draws[: linear.DRAWS]) - parts).max() <= 0.51 / linear.DRAWS


def choices(choice: Choice, gradient: Vector, rate: float) -> NDArray[np.float64]:
    """Return the mean over all positions of what is added, and check each result's form."""
    scratch = linear.make_scratch(gradient.size)
    scratch.gradient[:] = gradient
    total, position = np.zeros(gradient.size), 0
    for _ in range(linear.DRAWS):
        count = linear.choose(choice, position, np.float32(rate), scratch)
        indices = scratch.indices[:count]
        assert (np.diff(indices.astype(np.int64)) > 0).all()
        total[indices] += scratch.values[:count]
        position = (position + gradient.size) % linear.DRAWS
    return total / linear.DRAWS


@pytest.mark.parametrize("rule", ["gspar", "uniform"])
def test_the_mean_of_what_is_added_is_the_gradient(rule: str) -> None:
    gradient = draw(3, NUMEL) ** 3
    gradient[5] = 0
    rate, choice = 0.5, make_choice(rule)
    added = choices(choice, gradient, rate)
    # Over a whole turn of the table each entry is kept as often as its chance says, to one in DRAWS.
    level = linear.greedy_level(gradient, choice.density * NUMEL, 2, np.empty_like(gradient))
    largest = max(float(np.abs(gradient).max()) / choice.density, level)
    np.testing.assert_allclose(added, -rate * gradient.astype(np.float64), atol=2 * rate * largest / linear.DRAWS)
    assert added[5] == 0


def test_sampled_entries_become_the_level_and_large_ones_stay() -> None:
    gradient = np.array([8, -1, 0.5, 0, -0.25, 1], np.float32)
    choice = Choice(linear.GSPAR, 0.5, -1, np.zeros(linear.DRAWS + 6, np.float32))
    scratch = linear.make_scratch(6)
    scratch.gradient[:] = gradient
    # All draws are 0, so everything but the zero is kept; the level is 2.75 / 2.
    assert linear.choose(choice, 0, np.float32(0.5), scratch) == 5
    assert scratch.indices[:5].tolist() == [0, 1, 2, 4, 5]
    assert scratch.values[:5].tolist() == [-4, 0.6875, -0.6875, 0.6875, -0.6875]


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("batch", [1, 3])
def test_one_rank_does_what_a_plain_loop_does_bit_for_bit(rule: str, batch: int) -> None:
    samples, choice, rate = make_samples(), make_choice(rule), np.float32(0.05)
    order = np.random.default_rng(2).permutation(SAMPLES)
    parameters, counters = np.zeros(NUMEL, np.float32), np.zeros(1, np.int64)
    scratch, tally = linear.make_scratch(NUMEL), linear.make_tally()
    end = linear.update(parameters, counters, samples, order, batch, rate, choice, 7, scratch, tally)

    weights, position, entries = np.zeros(NUMEL, np.float32), 7, 0
    for first in range(0, SAMPLES, batch):
        linear.gradient_of(samples, order[first : first + batch], weights, scratch.gradient)
        if rule == "dense":
            weights += -rate * scratch.gradient
            entries += NUMEL
            continue
        count = linear.choose(choice, position, rate, scratch)
        weights[scratch.indices[:count]] += scratch.values[:count]
        position, entries = (position + NUMEL) % linear.DRAWS, entries + count
    np.testing.assert_array_equal(parameters.view(np.uint32), weights.view(np.uint32))
    updates = -(-SAMPLES // batch)
    assert end == position
    assert counters[0] == updates
    assert tally.counts[[linear.UPDATES, linear.ENTRIES, linear.CONFLICTS]].tolist() == [updates, entries, 0]
    assert tally.counts[[linear.STALENESS, linear.STALEST]].tolist() == [0, 0]
    assert tally.staleness.tolist() == [updates] + [0] * (linear.BINS - 1)
    assert 0 < tally.counts[linear.TIMED_UPDATES] <= -(-updates // linear.TIMED)


def test_threads_on_one_vector_lose_no_update_and_see_each_other() -> None:
    threads = 4
    samples, choice = make_samples(curvature=0.0), make_choice("dense")
    parameters, counters = np.zeros(NUMEL, np.float32), np.zeros(1, np.int64)
    tallies = [linear.make_tally() for _ in range(threads)]
    order, rate, give_up = np.arange(SAMPLES).repeat(20), np.float32(1e-5), monotonic() + 60

    def work(i: int) -> None:
        memory = parameters, counters
        linear.update(*memory, samples, order, 1, rate, choice, 0, linear.make_scratch(NUMEL), tallies[i])

    rounds, counts = 0, tallies[0].counts
    # On a busy machine threads may take turns for a while.
    while counts[linear.STALENESS] == 0 and monotonic() < give_up:
        with ThreadPoolExecutor(threads) as pool:
            list(pool.map(work, range(threads)))
        counts, rounds = np.sum([tally.counts for tally in tallies], axis=0), rounds + 1
    assert counts[linear.STALENESS] > 0
    assert counters[0] == counts[linear.UPDATES] == threads * rounds * order.size
    assert counts[linear.ENTRIES] == counters[0] * NUMEL
    histogram = np.sum([tally.staleness for tally in tallies], axis=0)
    lows = np.concatenate(([0], 2 ** np.arange(linear.BINS - 1)))
    assert histogram.sum() == counters[0]
    assert (histogram * lows).sum() <= counts[linear.STALENESS] <= (histogram * 2 * lows).sum()


def test_arguments_that_do_not_fit_change_nothing() -> None:
    samples, choice, order = make_samples(), make_choice("gspar"), np.arange(5)
    short = Samples(samples.rows[:, :-1].copy(), samples.signs, True, samples.curvature)
    few = Samples(samples.rows[:3], samples.signs, True, samples.curvature)
    small = Choice(choice.rule, 0.2, 2, choice.draws[: linear.DRAWS])
    cases = [
        (short, order, 1, choice, 0, NUMEL),
        (few, order, 1, choice, 0, NUMEL),
        (samples, np.array([0, -1]), 1, choice, 0, NUMEL),
        (samples, np.array([SAMPLES]), 1, choice, 0, NUMEL),
        (samples, order, 0, choice, 0, NUMEL),
        (samples, order, 1, small, 0, NUMEL),
        (samples, order, 1, choice, linear.DRAWS, NUMEL),
        (samples, order, 1, choice, -1, NUMEL),
        (samples, order, 1, choice, 0, NUMEL - 1),
    ]
    for data, rows, batch, rule, position, room in cases:
        parameters, counters = np.zeros(NUMEL, np.float32), np.zeros(1, np.int64)
        scratch, tally = linear.make_scratch(room), linear.make_tally()
        done = linear.update(parameters, counters, data, rows, batch, np.float32(1), rule, position, scratch, tally)
        assert done == linear.MISFIT
        assert not parameters.any()
        assert not counters.any()
    parameters[:] = np.nan
    done = linear.update(
        parameters, counters, samples, order, 1, np.float32(1), choice, 0, linear.make_scratch(NUMEL), tally
    )
    assert done == linear.DIVERGED
    assert not counters.any()


def test_timing_writes_writes() -> None:
    vector = np.zeros(8, np.float32)
    assert linear.time_writes(vector, np.ones(5, np.float32)) >= 0
    assert vector.tolist() == [1, 1, 1, 1, 1, 0, 0, 0]
    assert linear.time_writes(vector, np.ones(9, np.float32)) == -1

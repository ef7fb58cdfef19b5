"""Updates of a linear model, one after another in compiled code, on parameters that other ranks change meanwhile.

What the GSpar paper's asynchronous experiment times (Wangni et al., NeurIPS 2018): read all parameters, the gradient of
a few samples, choose entries, add them. An update takes a microsecond or two, which a loop in Python would bury.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from mpisparse.kernels.atomic import attempt_add, fetch_add, load_counter, nanoseconds
from mpisparse.kernels.compiled import compiled
from mpisparse.kernels.levels import TOLERANCE
from mpisparse.kernels.vectors import LARGEST, Vector

#: Rules: every entry; GSpar's greedy Algorithm 3; every entry with the same chance.
DENSE, GSPAR, UNIFORM = 0, 1, 2

#: Of so many updates, one has its writes timed: reading the clock twice takes about as long as 15 writes.
TIMED = 16

#: Nanoseconds, and more for each entry, from which on a timed update did not wait for memory but lost its processor.
_LOST, _LOST_PER_ENTRY = 1_000_000, 1_000

#: Length of the table of draws: a prime, so that steps of any length but its multiples visit every place of it.
DRAWS = 65_521

#: Fields of `Tally.counts`.
UPDATES, ENTRIES, CONFLICTS, STALENESS, STALEST, TIMED_UPDATES, TIMED_ENTRIES, TIMED_NANOSECONDS = range(8)

#: What `update` returns in place of a position: the parameters have diverged; arguments do not fit each other.
DIVERGED, MISFIT = -1, -2

#: Bins of `Tally.staleness`: 0, 1, 2 to 3, 4 to 7, and so on.
BINS = 64


class Samples(NamedTuple):
    """What a linear model of two classes is trained on.

    rows: float32 of shape (samples, numel), C-contiguous. signs: float32 of shape (samples,), each -1 or 1.
    hinge: True for max(0, 1 - margin), False for log(1 + exp(-margin)).
    curvature: the penalty is curvature / 2 * ||w||^2.
    """

    rows: Vector
    signs: Vector
    hinge: bool
    curvature: np.float32


class Choice(NamedTuple):
    """Which entries of a gradient are added.

    rule: DENSE, GSPAR or UNIFORM. density: expected share of entries, in (0, 1]. iterations: rescalings of GSpar's
    level, as in `level_by_scaling`; -1 for as many as it takes.
    draws: float32 of shape (DRAWS + numel,), as `make_draws` makes it.
    """

    rule: int
    density: float
    iterations: int
    draws: Vector


class Scratch(NamedTuple):
    """Room for one update, made by `make_scratch`."""

    weights: Vector
    gradient: Vector
    indices: NDArray[np.uint32]
    values: Vector
    won: NDArray[np.uint8]


class Tally(NamedTuple):
    """What a rank's updates came to, added up: see the names of the fields of `counts`.

    counts: int64 of shape (8,). staleness: int64 of shape (BINS,); bin b > 0 counts from 2**(b - 1) to 2**b - 1.
    """

    counts: NDArray[np.int64]
    staleness: NDArray[np.int64]


def make_draws(numel: int, generator: np.random.Generator) -> Vector:
    """Return numbers in [0, 1), one from each of DRAWS equal parts, in random order, `numel` of them again at the end.

    The paper's second trick: drawn once and read cyclically, `numel` of them an update. In DRAWS updates every entry of
    the gradient meets every draw once, so that its chance is met to 1 / DRAWS.
    """
    parts = generator.permutation(DRAWS) + generator.random(DRAWS)
    draws = np.minimum(parts / DRAWS, np.nextafter(np.float32(1), np.float32(0))).astype(np.float32)
    return np.resize(draws, DRAWS + numel)


def make_scratch(numel: int) -> Scratch:
    """Return room for updates of `numel` entries."""
    floats = [np.zeros(numel, np.float32) for _ in range(3)]
    return Scratch(floats[0], floats[1], np.zeros(numel, np.uint32), floats[2], np.zeros(numel, np.uint8))


def make_tally() -> Tally:
    """Return a tally of nothing yet."""
    return Tally(np.zeros(8, np.int64), np.zeros(BINS, np.int64))


# Sums may be made in any order: that lets them be made several at a time.
@compiled(fastmath={"reassoc", "nsz"})
def gradient_of(samples, chosen, weights, gradient):
    """Fill in the gradient of the mean loss of some samples plus the penalty; return False if a score is not finite.

    A sample whose margin is exactly 1 has no slope under the hinge. Where False is returned, the gradient is not whole.

    Args:
        samples: Samples.
        chosen: int64 or int32 of shape (n,), n > 0: rows, each at least 0 and below their number.
        weights, gradient: float32 of shape (numel,).
    """
    numel = weights.size
    for i in range(numel):
        gradient[i] = samples.curvature * weights[i]
    for place in chosen:
        row, sign = samples.rows[place], samples.signs[place]
        score = np.float32(0)
        for i in range(numel):
            score += row[i] * weights[i]
        if not math.isfinite(score):
            return False
        margin = sign * score
        if samples.hinge:
            slope = np.float32(-1 if margin < 1 else 0)
        else:
            slope = np.float32(-1 / (1 + math.exp(np.float64(margin))))
        if slope != 0:
            factor = slope * sign / np.float32(chosen.size)
            for i in range(numel):
                gradient[i] += factor * row[i]
    return True


@compiled(fastmath={"reassoc", "nsz"})
def greedy_level(gradient, target, iterations, magnitudes):
    """Return what `level_by_scaling` returns, infinity for a zero vector, by passes that suit a short vector.

    Args:
        gradient: float32 of shape (numel,), finite. target: expected entries, above 0. iterations: -1 for no limit.
        magnitudes: float32 of shape (numel,), overwritten.
    """
    total, nonzero = 0.0, np.float32(0)
    for i in range(gradient.size):
        magnitude = abs(gradient[i])
        magnitudes[i] = magnitude
        total += np.float64(magnitude)
        nonzero += np.float32(1) if magnitude > 0 else np.float32(0)
    if total == 0:
        return math.inf
    target = min(target, np.float64(nonzero))
    level = total / target
    # Each pass but the last caps an entry more, so numel of them are enough.
    for _ in range(iterations if iterations >= 0 else gradient.size):
        below, capped = _split(magnitudes, level)
        places = target - capped
        if below >= level * max(places, 0.0) * (1 - TOLERANCE):
            break
        level = below / places
    return level


# Two loops, each of which makes eight comparisons at a time; in one loop the two sums would keep it from doing so.
@compiled(fastmath={"reassoc", "nsz"})
def _split(magnitudes, level):
    """Return the sum of the magnitudes below the level, and the number of the others (exact up to 2**24)."""
    floor = np.float32(level)
    if np.float64(floor) < level:
        floor = np.nextafter(floor, np.float32(math.inf))
    below, capped = 0.0, np.float32(0)
    for i in range(magnitudes.size):
        magnitude = magnitudes[i]
        below += np.float64(magnitude if magnitude < floor else np.float32(0))
    for i in range(magnitudes.size):
        capped += np.float32(0) if magnitudes[i] < floor else np.float32(1)
    return below, np.float64(capped)


@compiled()
def choose(choice, position, rate, scratch):
    """Return how many entries of the gradient are to be added; indices and values stand in the scratch room.

    Values are -rate times the entries, amplified by one over their chance. Under GSpar an entry below the level is
    amplified to the level, so that it takes a sign and no division: the paper's first trick.

    Args:
        choice: Choice, of GSPAR or UNIFORM. position: where to read draws, at least 0 and below DRAWS.
        rate: float32, the learning rate. scratch: Scratch, with the gradient.
    """
    gradient, numel = scratch.gradient, scratch.gradient.size
    draws = choice.draws[position : position + numel]
    if choice.rule == GSPAR:
        level = greedy_level(gradient, choice.density * numel, choice.iterations, scratch.values)
        level = np.float32(min(level, np.float64(LARGEST)))
        _toss(draws, level, gradient, scratch.won)
        return _collect(scratch, level, rate, rate * level)
    _toss_equal(draws, np.float32(choice.density), gradient, scratch.won)
    return _collect(scratch, np.float32(0), np.float32(rate / choice.density), np.float32(0))


@compiled()
def _toss(draws, level, gradient, won):
    """Mark the entries that are kept with the chance |entry| / level."""
    for i in range(gradient.size):
        won[i] = draws[i] * level < abs(gradient[i])


@compiled()
def _toss_equal(draws, chance, gradient, won):
    """Mark the entries that are kept with the same chance, zeros never."""
    for i in range(gradient.size):
        won[i] = (draws[i] < chance) & (gradient[i] != 0)


@compiled()
def _collect(scratch, level, rate, step):
    """Return how many entries are marked; their indices and what is to be added stand in the scratch room."""
    gradient, indices, values, won = scratch.gradient, scratch.indices, scratch.values, scratch.won
    count = np.uint64(0)
    # Written for every entry, and kept for those that are marked: a processor cannot foresee which these are.
    for i in range(gradient.size):
        indices[count] = i
        count += np.uint64(won[i])
    for k in range(count):
        entry = gradient[indices[k]]
        values[k] = math.copysign(step, -entry) if abs(entry) < level else -rate * entry
    return np.int64(count)


@compiled()
def write(parameters, numel, count, indices, values):
    """Return how many attempts failed while `count` entries were added; numel of them are all entries in order."""
    conflicts = 0
    if count == numel:
        for i in range(numel):
            while not attempt_add(parameters, i, values[i]):
                conflicts += 1
    else:
        for i in range(count):
            while not attempt_add(parameters, np.int64(indices[i]), values[i]):
                conflicts += 1
    return conflicts


@compiled()
def time_writes(parameters, values):
    """Return the nanoseconds that adding `values`, float32 of shape (numel,) or fewer, takes; -1 if there are more."""
    if values.size > parameters.size:
        return -1
    begin = nanoseconds()
    for i in range(values.size):
        while not attempt_add(parameters, i, values[i]):
            pass
    return nanoseconds() - begin


@compiled()
def update(parameters, counters, samples, order, batch, rate, choice, position, scratch, tally):
    """Make one update for every `batch` samples of `order`; return where to read draws next, or what is wrong.

    That is DIVERGED when a score is not finite, and MISFIT, with nothing done, where arguments do not fit together.

    Args:
        parameters: float32 of shape (numel,), shared. They are read without a lock: part of what is read may be older.
        counters: int64, shared; entry 0 counts the updates of all ranks.
        samples: Samples. order: int64, rows. batch: 1 or more; the last update may have fewer.
        rate: float32, the learning rate. choice: Choice. position: what the last call returned, or any draw.
        scratch: Scratch. tally: Tally, added to.
    """
    numel = parameters.size
    if not _fits(numel, counters, samples, order, batch, choice, position, scratch, tally):
        return MISFIT
    weights, gradient, counts = scratch.weights, scratch.gradient, tally.counts
    for first in range(0, order.size, batch):
        seen = load_counter(counters, 0)
        for i in range(numel):
            weights[i] = parameters[i]
        if not gradient_of(samples, order[first : min(first + batch, order.size)], weights, gradient):
            return DIVERGED
        if choice.rule == DENSE:
            for i in range(numel):
                scratch.values[i] = -rate * gradient[i]
            count = numel
        else:
            count = choose(choice, position, rate, scratch)
            position = (position + numel) % DRAWS
        timed = counts[UPDATES] % TIMED == 0
        begin = nanoseconds() if timed else 0
        counts[CONFLICTS] += write(parameters, numel, count, scratch.indices, scratch.values)
        if timed:
            _time(counts, count, nanoseconds() - begin)
        _note(tally, count, fetch_add(counters, 0, 1) - seen)
    return position


@compiled()
def _fits(numel, counters, samples, order, batch, choice, position, scratch, tally):
    """Return True if every index that an update can make lies inside its array."""
    room = min(scratch.weights.size, scratch.gradient.size, scratch.indices.size, scratch.values.size)
    if room != numel or scratch.gradient.size != numel or scratch.weights.size != numel:
        return False
    if scratch.won.size != numel or samples.rows.shape[1] != numel:
        return False
    if counters.size < 1 or tally.counts.size != 8 or tally.staleness.size != BINS or batch < 1:
        return False
    if choice.draws.size < DRAWS + numel or not 0 <= position < DRAWS:
        return False
    rows = min(samples.rows.shape[0], samples.signs.size)
    inside = True
    for place in order:
        inside &= 0 <= place < rows
    return inside


@compiled()
def _time(counts, count, spent):
    if spent < _LOST + _LOST_PER_ENTRY * count:
        counts[TIMED_UPDATES] += 1
        counts[TIMED_ENTRIES] += count
        counts[TIMED_NANOSECONDS] += spent


@compiled()
def _note(tally, count, others):
    """Note an update of `count` entries before whose end `others` updates came in."""
    counts = tally.counts
    counts[UPDATES] += 1
    counts[ENTRIES] += count
    counts[STALENESS] += others
    counts[STALEST] = max(counts[STALEST], others)
    place = 0
    while others > 0:
        place += 1
        others >>= 1
    tally.staleness[min(place, BINS - 1)] += 1

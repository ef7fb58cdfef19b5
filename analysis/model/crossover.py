"""Crossover: the density above which dense exchange is faster, and what would move it."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from analysis.bootstrap import Interval, interval
from analysis.model.cost import Cost, Point, at
from analysis.model.predict import Fitted

#: The range of densities that is searched, in logarithms, and how often it is halved.
_LEAST, _HALVINGS = math.log(1e-6), 20


@dataclass(frozen=True)
class Change:
    """Something that could be otherwise: in words, and the crossover density then, for each rank count."""

    words: str
    density: list[float]


def crossover(cost: Cost, sparse: Point, dense: Point) -> float:
    """Return the density at which both take the same time: 0 if dense always wins, 1 if never.

    Args:
        cost: the model. sparse, dense: steps of the same gradient on as many ranks.
    """
    limit = cost.seconds(dense)

    def gain(density: float) -> float:
        return limit - cost.seconds(at_density(sparse, density))

    if gain(1.0) >= 0:
        return 1.0
    if gain(math.exp(_LEAST)) <= 0:
        return 0.0
    low, high = _LEAST, 0.0
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        low, high = (middle, high) if gain(math.exp(middle)) > 0 else (low, middle)
    return math.exp(low)


def at_density(point: Point, density: float) -> Point:
    """Return a sparse step that sends another share of the gradient.

    A value takes as many bytes as measured. An index takes the entropy of the set of places and what it was measured
    to take beyond: the coding of mpisparse is near the entropy (docs/wire-format.md).
    """
    entries = point.numel - point.whole / 4
    count = density * entries
    return replace(point, count=count, message=count * (_value_bytes(point, entries) + index_bytes(density)))


def index_bytes(density: float) -> float:
    """Return the entropy of which entries are sent, in bytes an entry sent."""
    if not 0 < density < 1:
        return 0.0
    bits = -density * math.log2(density) - (1 - density) * math.log2(1 - density)
    return bits / density / 8


def _value_bytes(point: Point, entries: float) -> float:
    if not point.count:
        return 4.0
    return max(point.message / point.count - index_bytes(min(1.0, point.count / entries)), 0.125)


def crossovers(fitted: Fitted, sparse: Point, dense: Point, ranks: Sequence[int], draws: int = 60) -> list[Interval]:
    """Return the crossover density on each number of ranks."""
    found = []
    for count in ranks:
        pair = at(sparse, count, strong=True), at(dense, count, strong=True)
        drawn = np.array([crossover(cost, *pair) for cost in fitted.drawn[:draws]])
        found.append(interval(crossover(fitted.cost, *pair), drawn))
    return found


def changes(fitted: Fitted, sparse: Point, dense: Point, ranks: Sequence[int]) -> Iterator[Change]:
    """Yield what the crossover would be if something were otherwise; first as it is."""
    cost = fitted.cost
    half_dense = replace(dense, whole=dense.whole * 2 / dense.width, width=2.0)
    options: list[tuple[str, Cost, Callable[[Point], Point], Point]] = [
        ("as measured", cost, _same, dense),
        ("values in half the bytes", cost, _half_values, dense),
        ("dense in 16 bits", cost, _same, half_dense),
        ("local work for nothing", cost.but(select=0, encode=0, message=0, open=0, decode=0), _same, dense),
        ("a link ten times as slow", cost.but(beta=10), _same, dense),
        ("a link ten times as fast", cost.but(beta=0.1), _same, dense),
    ]
    for words, model, change, against in options:
        density = [crossover(model, change(at(sparse, n, strong=True)), at(against, n, strong=True)) for n in ranks]
        yield Change(words, density)
    reduced = [_reducing(cost, at(sparse, n, strong=True), at(dense, n, strong=True)) for n in ranks]
    yield Change("a collective that reduces on the way, as Ok-Topk's", reduced)


def _same(point: Point) -> Point:
    return point


def _half_values(point: Point) -> Point:
    entries = point.numel - point.whole / 4
    return replace(point, message=point.message - point.count * _value_bytes(point, entries) / 2)


def _reducing(cost: Cost, sparse: Point, dense: Point) -> float:
    """Return the crossover if 6 k words came into a rank, whatever the number of ranks, and as many were added up: the
    bound of S. Li and T. Hoefler, PPoPP 2022."""
    lighter = cost.but(decode=min(1.0, 3 / sparse.ranks))
    limit = cost.seconds(dense)
    low, high = _LEAST, 0.0
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        point = at_density(sparse, math.exp(middle))
        seconds = lighter.seconds(replace(point, message=24 * point.count / max(1, point.ranks - 1)))
        low, high = (middle, high) if seconds < limit else (low, middle)
    if high == 0.0:
        return 1.0
    return 0.0 if low == _LEAST else math.exp(low)

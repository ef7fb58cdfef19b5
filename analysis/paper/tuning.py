"""Tuning: of runs that differ in learning rate and seed alone, the rate that ends lowest makes the curve."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from statistics import fmean
from typing import Any

from analysis.method import Method
from analysis.paper.curves import final
from analysis.paper.place import Place, place_of
from analysis.paper.record import Record

#: What is lowest at the best learning rate.
TARGETS = {"sgd": "suboptimality", "svrg": "suboptimality", "real": "suboptimality", "cnn": "train_loss"}
_OTHER_TARGET = "objective"


@dataclass(frozen=True)
class Tuned:
    """A curve after the choice of its learning rate.

    records: the repeats at that rate, in the order of their seeds; empty if runs failed at every rate.
    lr: the rate chosen. scores: for each rate of the grid, the mean of the repeats' last values, infinity
    if one failed. y: the key of those values.
    """

    place: Place
    method: Method
    records: tuple[Record, ...]
    lr: float
    scores: dict[float, float]
    y: str

    @property
    def score(self) -> float:
        """Return the last value at the chosen rate."""
        return self.scores[self.lr]

    @property
    def edge(self) -> str:
        """Return "lowest" or "highest" if the rate is at that end of the grid, so that a better one may lie outside."""
        rates = sorted(self.scores)
        if len(rates) < 2:
            return ""
        return {rates[0]: "lowest", rates[-1]: "highest"}.get(self.lr, "")

    @property
    def failed(self) -> list[float]:
        """Return the rates at which a run failed, or ended in NaN."""
        return [rate for rate, score in sorted(self.scores.items()) if math.isinf(score)]

    @property
    def var(self) -> float | None:
        """Return the mean of the repeats' var, None where one does not tell."""
        return _mean(record.var for record in self.records)

    @property
    def spa(self) -> float | None:
        """Return the mean of the repeats' spa, None where one does not tell."""
        return _mean(record.spa for record in self.records)

    @property
    def legend(self) -> str:
        """Return the legend of the curve."""
        return self.method.legend(self.var, self.spa)


def tune(records: Iterable[Record]) -> list[Tuned]:
    """Return the tuned curves of records that have a place, in the order of places and methods.

    Of two rates with the same score the lower is taken.
    """
    groups: dict[str, list[Record]] = {}
    for record in records:
        groups.setdefault(_identity(record), []).append(record)
    curves = [curve for group in groups.values() for curve in _tuned(group)]
    return sorted([*curves, *_lent_baselines(curves)], key=lambda curve: (curve.place, curve.method.order))


def doubles(curves: Iterable[Tuned]) -> Iterator[tuple[Tuned, Tuned, list[str]]]:
    """Yield curves of one method in one panel, with the configuration's keys in which their runs differ."""
    seen: dict[tuple[Place, Method], Tuned] = {}
    for curve in curves:
        other = seen.setdefault((curve.place, curve.method), curve)
        if other is not curve and other.records and curve.records:
            yield other, curve, _differences(other.records[0].config, curve.records[0].config)


def _tuned(group: list[Record]) -> Iterator[Tuned]:
    place = place_of(group[0])
    if place is None:
        return
    y = TARGETS.get(place.experiment, _OTHER_TARGET)
    rates: dict[float, list[Record]] = {}
    for record in sorted(group, key=lambda record: (record.lr, record.seed)):
        rates.setdefault(record.lr, []).append(record)
    scores = {rate: fmean(final(record, y) for record in repeats) for rate, repeats in rates.items()}
    best = min(scores, key=lambda rate: (scores[rate], rate))
    chosen = tuple(rates[best]) if math.isfinite(scores[best]) else ()
    yield Tuned(place, group[0].method, chosen, best, scores, y)


def _lent_baselines(curves: list[Tuned]) -> Iterator[Tuned]:
    """Yield dense SVRG for the form that has none: without sparsification both forms are the same."""
    dense = {
        curve.place: curve for curve in curves if curve.place.experiment == "svrg" and curve.method.family == "dense"
    }
    for place in dict.fromkeys(curve.place for curve in curves if curve.place.experiment == "svrg"):
        if place in dense:
            continue
        for other, curve in dense.items():
            near = (other.figure, other.column) == (place.figure, place.column)
            if near and other.row[1].split(",")[0] == place.row[1].split(",")[0]:
                yield replace(curve, place=place)
                break


def _identity(record: Record) -> str:
    """Return what the runs of one curve have in common: all but the learning rate and the seed."""
    config = {key: value for key, value in record.config.items() if key != "seed"}
    config["optimizer"] = {key: value for key, value in config.get("optimizer", {}).items() if key != "lr"}
    return json.dumps([config, record.ranks], sort_keys=True)


def _differences(one: dict[str, Any], other: dict[str, Any], prefix: str = "") -> list[str]:
    found = []
    for key in sorted({*one, *other} - {"seed"}):
        left, right = one.get(key), other.get(key)
        if isinstance(left, dict) and isinstance(right, dict):
            found += _differences(left, right, f"{prefix}{key}.")
        elif left != right and f"{prefix}{key}" != "optimizer.lr":
            found.append(f"{prefix}{key}")
    return found


def _mean(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return fmean(known) if known else None

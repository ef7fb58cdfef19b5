"""The laws of Amdahl and Gustafson, and the metric of Karp and Flatt. Ranks are in units of those of the base."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from analysis.bootstrap import Interval, interval
from analysis.model.fit import fit, r_squared

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Law:
    """A fitted law. serial: the share of the base's step that ranks do not shorten, with its interval.

    r2: how much of the times' variation over rank counts the law explains; NaN with fewer than three rank counts.
    """

    name: str
    serial: Interval
    r2: float


def amdahl(ranks: Array, seconds: Array, drawn: Array) -> Law:
    """Return the fit of T(q) = T(1) (s + (1 - s) / q) to strong scaling (G. Amdahl, AFIPS 1967).

    Args:
        ranks: q, over those of the base, of shape (points,). seconds: T, of shape (points,).
        drawn: T drawn again, of shape (draws, points).
    """
    share = [_amdahl_share(ranks, row) for row in drawn]
    constant, divided = _amdahl(ranks, seconds)
    fitted = constant + divided / ranks
    return Law("Amdahl", interval(_amdahl_share(ranks, seconds), np.array(share)), _r2(seconds, fitted))


def _amdahl(ranks: Array, seconds: Array) -> tuple[float, float]:
    constant, divided = fit(np.stack([np.ones(len(ranks)), 1 / ranks], axis=1), seconds, seconds)
    return float(constant), float(divided)


def _amdahl_share(ranks: Array, seconds: Array) -> float:
    constant, divided = _amdahl(ranks, seconds)
    return constant / (constant + divided) if constant + divided > 0 else float("nan")


def gustafson(ranks: Array, seconds: Array, drawn: Array) -> Law:
    """Return the fit of q T(1) / T(q) = q - s (q - 1) to weak scaling (J. Gustafson, CACM 31, 1988).

    Args: as for `amdahl`. The base is the first point.
    """
    share = [_gustafson_share(ranks, row) for row in drawn]
    serial = _gustafson_share(ranks, seconds)
    speed_up = ranks * seconds[0] / seconds
    return Law("Gustafson", interval(serial, np.array(share)), _r2(speed_up, ranks - serial * (ranks - 1)))


def _gustafson_share(ranks: Array, seconds: Array) -> float:
    """Return s of least squares, relative to q: it lies outside 0 to 1 where the law does not hold."""
    missing = (1 - seconds[0] / seconds)[1:]
    share = (1 - 1 / ranks)[1:]
    return float(missing @ share / (share @ share)) if len(share) else float("nan")


def _r2(measured: Array, fitted: Array) -> float:
    return r_squared(measured, fitted) if len(measured) > 2 else float("nan")


def karp_flatt(ranks: float, speed_up: float) -> float:
    """Return (1/S - 1/q) / (1 - 1/q), the serial share as measured (A. Karp and H. Flatt, CACM 33, 1990)."""
    return (1 / speed_up - 1 / ranks) / (1 - 1 / ranks) if ranks > 1 else float("nan")

"""Curve: points with a band."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Curve:
    """Points in the order of x, float64 arrays of shape (points,); low and high are the band."""

    x: Array
    y: Array
    low: Array
    high: Array

    def where(self, keep: NDArray[np.bool_]) -> Curve:
        """Return the points for which `keep`, of shape (points,), is true."""
        return Curve(self.x[keep], self.y[keep], self.low[keep], self.high[keep])

    def scaled(self, factor: float) -> Curve:
        """Return the curve with y times `factor`."""
        return Curve(self.x, self.y * factor, self.low * factor, self.high * factor)

"""Fits whose coefficients are times, so that none is negative, and which single bad measurements do not bend."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import nnls

Array = NDArray[np.float64]

#: Relative residuals beyond so many times their median count less (Huber's weights), found in so many rounds.
_TOLERANCE, _ROUNDS = 2.0, 6


def fit(features: Array, seconds: Array, steps: Array) -> Array:
    """Return non-negative coefficients c for which features @ c is close to `seconds`, relative to `steps`.

    Relative, since steps that differ by factors of a thousand are all known to some per cent; and to whole steps, since
    a phase that is nothing of its step says little of anything. Huber's weights by
    iteration (P. Huber, Robust Statistics, 1981) around non-negative least squares (C. Lawson and R. Hanson, Solving
    Least Squares Problems, 1974).

    Args:
        features: of shape (measurements, coefficients), not negative. Of proportional columns one takes all.
        seconds: of shape (measurements,); those that are not above 0 do not count.
        steps: seconds of the whole steps that these are a part of.
    """
    known = np.isfinite(seconds) & (seconds > 0) & np.isfinite(features).all(axis=1)
    columns, shares = features[known] / steps[known, None], seconds[known] / steps[known]
    # Columns are of different units; nnls stops by an absolute tolerance.
    scale = np.linalg.norm(columns, axis=0)
    scale[scale == 0] = 1.0
    columns = columns / scale
    if not len(columns):
        return np.zeros(features.shape[1])
    weights = np.ones(len(columns))
    coefficients = np.zeros(features.shape[1])
    for _ in range(_ROUNDS):
        root = np.sqrt(weights)
        coefficients = nnls(columns * root[:, None], shares * root)[0]
        residuals = np.abs(columns @ coefficients - shares)
        spread = max(float(np.sort(residuals)[len(residuals) // 2]), 1e-9)
        weights = np.minimum(1.0, _TOLERANCE * spread / np.maximum(residuals, 1e-12))
    return np.asarray(coefficients / scale)


def r_squared(measured: Array, fitted: Array) -> float:
    """Return 1 - sum of squared residuals over that of deviations from the mean; NaN without deviations."""
    known = np.isfinite(measured) & np.isfinite(fitted)
    measured, fitted = measured[known], fitted[known]
    spread = float(np.square(measured - measured.mean()).sum()) if len(measured) else 0.0
    return 1 - float(np.square(measured - fitted).sum()) / spread if spread > 0 else float("nan")

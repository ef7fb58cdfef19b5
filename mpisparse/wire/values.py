"""Value coding: float32 as it is, or rounded to bfloat16 or float16, little-endian."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from mpisparse.errors import WireError

FLOAT32 = 0
BFLOAT16 = 1
FLOAT16 = 2

_WIDTHS = {FLOAT32: 4, BFLOAT16: 2, FLOAT16: 2}
_LARGEST_FLOAT16 = 65504.0


def width(value_coding: int) -> int:
    """Return the bytes of one value; WireError for a coding that does not exist."""
    if value_coding not in _WIDTHS:
        raise WireError(f"value coding {value_coding} does not exist in wire format 1")
    return _WIDTHS[value_coding]


def encode(values: NDArray[np.float32], value_coding: int) -> NDArray[np.uint8]:
    """Return the values as bytes, rounded to nearest (ties to even) where the coding is narrower.

    Raises:
        WireError: a value does not fit: it would become infinite.
    """
    if value_coding == FLOAT32:
        return np.ascontiguousarray(values, "<f4").view(np.uint8)
    largest = float(np.abs(values).max(initial=0.0))
    if value_coding == FLOAT16:
        if largest > _LARGEST_FLOAT16:
            raise WireError(
                f"value {largest:g} does not fit float16 (largest {_LARGEST_FLOAT16:g}): "
                "use wire values bfloat16 or float32"
            )
        return values.astype("<f2").view(np.uint8)
    rounded = _to_bfloat16(values)
    if (rounded & 0x7F80 == 0x7F80).any():
        raise WireError(f"value {largest:g} does not fit bfloat16: use wire values float32")
    return rounded.astype("<u2", copy=False).view(np.uint8)


def decode(body: NDArray[np.uint8], value_coding: int) -> NDArray[np.float32]:
    """Return the float32 values in `body`, which fill it exactly.

    Raises:
        WireError: a value is NaN or infinite, which no sender writes.
    """
    if value_coding == FLOAT32:
        values = np.frombuffer(body, "<f4").astype(np.float32)
    elif value_coding == FLOAT16:
        values = np.frombuffer(body, "<f2").astype(np.float32)
    else:
        values = (np.frombuffer(body, "<u2").astype(np.uint32) << np.uint32(16)).view(np.float32)
    if not np.isfinite(values).all():
        raise WireError("a value in the message is NaN or infinite")
    return values


def _to_bfloat16(values: NDArray[np.float32]) -> NDArray[np.uint16]:
    """Return the upper halves of the float32 patterns, rounded to nearest, ties to even."""
    bits = np.ascontiguousarray(values, np.float32).view(np.uint32)
    rounded = (bits + (np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1)))) >> np.uint32(16)
    return rounded.astype(np.uint16)

"""Value coding: float32 as it is, rounded to bfloat16 or float16, or a sign under one magnitude. Little-endian."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from mpisparse.errors import WireError
from mpisparse.wire import signs

Bytes = NDArray[np.uint8]
Vector = NDArray[np.float32]

FLOAT32 = 0
BFLOAT16 = 1
FLOAT16 = 2
SIGN = 3

_WIDTHS = {FLOAT32: 4, BFLOAT16: 2, FLOAT16: 2}
_LARGEST_FLOAT16 = 65504.0


def size(value_coding: int, count: int) -> int:
    """Return the bytes of `count` values; WireError for a coding that does not exist."""
    if value_coding == SIGN:
        return 4 + signs.size(count)
    if value_coding not in _WIDTHS:
        raise WireError(f"value coding {value_coding} does not exist")
    return _WIDTHS[value_coding] * count


def encode(values: Vector, value_coding: int) -> list[Bytes]:
    """Return the values as bytes, in pieces, rounded to nearest (ties to even) where the coding is narrower.

    Raises:
        WireError: a value does not fit: it would become infinite.
    """
    if value_coding == FLOAT32:
        return [np.ascontiguousarray(values, "<f4").view(np.uint8)]
    if value_coding == SIGN:
        return [np.array([mean_magnitude(values)], "<f4").view(np.uint8), signs.encode(values)]
    largest = float(np.abs(values).max(initial=0.0))
    if value_coding == FLOAT16:
        if largest > _LARGEST_FLOAT16:
            raise WireError(
                f"value {largest:g} does not fit float16 (largest {_LARGEST_FLOAT16:g}): "
                "use wire values bfloat16 or float32"
            )
        return [values.astype("<f2").view(np.uint8)]
    rounded = _to_bfloat16(values)
    if (rounded & 0x7F80 == 0x7F80).any():
        raise WireError(f"value {largest:g} does not fit bfloat16: use wire values float32")
    return [rounded.astype("<u2", copy=False).view(np.uint8)]


def decode(section: Bytes, value_coding: int, count: int) -> tuple[Vector, np.float32 | None]:
    """Return the `count` float32 values in `section`, which they must fill exactly, and the magnitude that all share.

    The magnitude is None unless the coding is SIGN, and where it is zero.

    Raises:
        WireError: the length is another, the coding does not exist, or a value is NaN or infinite, which none writes.
    """
    due = size(value_coding, count)
    if section.size != due:
        raise WireError(f"{count} values in coding {value_coding} take {due} bytes, but {section.size} are left")
    if value_coding == SIGN:
        return _read_signs(section, count)
    if value_coding == FLOAT32:
        values = section.view("<f4").astype(np.float32)
    elif value_coding == FLOAT16:
        values = section.view("<f2").astype(np.float32)
    else:
        values = (section.view("<u2").astype(np.uint32) << np.uint32(16)).view(np.float32)
    require_finite(values)
    return values, None


def require_finite(values: Vector) -> None:
    """Raise WireError if a value is NaN or infinite."""
    if not np.isfinite(values).all():
        raise WireError("a value in the message is NaN or infinite")


def mean_magnitude(values: Vector) -> np.float32:
    """Return the mean absolute value, summed in float64; 0 without values."""
    return np.float32(np.abs(values).mean(dtype=np.float64)) if values.size else np.float32(0)


def _read_signs(section: Bytes, count: int) -> tuple[Vector, np.float32 | None]:
    magnitude = np.float32(section[:4].view("<f4")[0])
    if not np.isfinite(magnitude) or np.signbit(magnitude) or (magnitude != 0 and count == 0):
        raise WireError(f"the mean magnitude of {count} values is {magnitude}: it must be finite and not negative")
    return signs.decode(section[4:], count, magnitude), magnitude if magnitude > 0 else None


def _to_bfloat16(values: Vector) -> NDArray[np.uint16]:
    """Return the upper halves of the float32 patterns, rounded to nearest, ties to even."""
    bits = np.ascontiguousarray(values, np.float32).view(np.uint32)
    rounded = (bits + (np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1)))) >> np.uint32(16)
    return rounded.astype(np.uint16)

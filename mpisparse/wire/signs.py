"""Values that share one magnitude, as a bit each: 1 for minus, the first in the lowest bit."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from mpisparse.errors import WireError

Bytes = NDArray[np.uint8]
Vector = NDArray[np.float32]


def size(count: int) -> int:
    """Return the bytes that hold `count` signs."""
    return (count + 7) >> 3


def encode(values: Vector) -> Bytes:
    """Return the signs of `values`, those of zeros among them."""
    return np.packbits(np.signbit(values), bitorder="little")


def decode(section: Bytes, count: int, magnitude: np.float32) -> Vector:
    """Return `count` values of `magnitude` with the signs in `section`, which they fill.

    Raises:
        WireError: an unused bit of the last byte is not zero.
    """
    if count & 7 and section[-1] >> (count & 7):
        raise WireError("unused bits after the last sign are not zero")
    negative = np.unpackbits(section, count=count, bitorder="little").astype(np.uint32)
    return ((negative << np.uint32(31)) | magnitude.view(np.uint32)).view(np.float32)

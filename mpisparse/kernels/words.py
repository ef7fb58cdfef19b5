"""Bytes as 64-bit words, which the coding kernels read and write: the first bit is the lowest of the first word."""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic
from numpy.typing import NDArray

Bytes = NDArray[np.uint8]
Words = NDArray[np.uint64]


@intrinsic  # type: ignore[untyped-decorator]
def lowest_bit(typing: Any, word: Any) -> Any:
    """Return the place of the lowest bit that is set in a uint64 that is not 0."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        kind = ir.FunctionType(ir.IntType(64), [ir.IntType(64), ir.IntType(1)])
        count = builder.module.declare_intrinsic("llvm.cttz", [ir.IntType(64)], kind)
        return builder.call(count, [args[0], ir.Constant(ir.IntType(1), 1)])

    return types.uint64(types.uint64), generate


def from_bytes(section: Bytes) -> Words:
    """Return the little-endian words that `section` fills, the last one filled up with zeros, and two more, as a copy."""
    words = zeros(section.size + 16)
    words.view(np.uint8)[: section.size] = section
    return words.view("<u8").astype(np.uint64, copy=False)


def to_bytes(words: Words, size: int) -> Bytes:
    """Return the first `size` bytes of `words`, little-endian."""
    return words.astype("<u8", copy=False).view(np.uint8)[:size]


def zeros(size: int) -> Words:
    """Return words with room for `size` bytes, all zero."""
    return np.zeros((size + 7) >> 3, np.uint64)

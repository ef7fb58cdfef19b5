"""Golomb-Rice coding of rising indices: each gap as its low bits, and the rest of it in unary.

A gap is the number of absent entries before an index: the index itself for the first, the difference to the one before
it, less one, for the others. With parameter k, its k low bits go into one stream and the rest, q = gap >> k, into
another, as q zeros and a one. Apart, each stream is read without waiting for the other. All gaps together are shorter
than the vector, so the unary stream never has more than count + (numel >> k) bits, wherever the entries are: a
parameter near log2(numel / count) needs no escape.
"""

from __future__ import annotations

import numpy as np

from mpisparse.kernels.compiled import compiled
from mpisparse.kernels.simd import lowest_bit

#: The largest parameter. Low bits and what is left of a word then fit 64 bits.
LARGEST = 56


@compiled()
def sum_quotients(indices, parameter):
    """Return the sums of all gaps >> parameter, gaps >> (parameter + 1) and gaps >> (parameter + 2), as uint64.

    Args:
        indices: uint32 or uint64 of shape (count,), count at least 1, strictly rising.
        parameter: uint64.
    """
    one = np.uint64(1)
    second, third = parameter + one, parameter + one + one
    gap = np.uint64(indices[0])
    sums = gap >> parameter, gap >> second, gap >> third
    first_sum, second_sum, third_sum = sums
    earlier, later = indices[:-1], indices[1:]
    for i in range(later.size):
        gap = np.uint64(later[i]) - np.uint64(earlier[i]) - one
        first_sum += gap >> parameter
        second_sum += gap >> second
        third_sum += gap >> third
    return first_sum, second_sum, third_sum


@compiled()
def encode(indices, parameter, lows, unary):
    """Write both streams, and return False if they do not fit: the indices do not rise.

    Args:
        indices: uint32 or uint64 of shape (count,), strictly rising.
        parameter: uint64, at most LARGEST.
        lows: uint64 words for count * parameter bits.
        unary: uint64 words for count bits and as many as `sum_quotients` says, all zero.
    """
    one, word_bits = np.uint64(1), np.uint64(64)
    mask, room = (one << parameter) - one, np.uint64(unary.size) * word_bits
    due, buffer, filled, at = np.uint64(0), np.uint64(0), np.uint64(0), 0
    place, word, where = np.uint64(0), np.uint64(0), np.uint64(0)
    for i in range(indices.size):
        index = np.uint64(indices[i])
        gap = index - due
        due = index + one
        low = gap & mask
        buffer |= low << filled
        filled += parameter
        if filled >= word_bits:
            if at >= lows.size:
                return False
            lows[at] = buffer
            at += 1
            filled -= word_bits
            buffer = low >> (parameter - filled)
        quotient = gap >> parameter
        if quotient >= room or place + quotient >= room:
            return False
        place += quotient
        if place >> np.uint64(6) != where:
            unary[where] = word
            word, where = np.uint64(0), place >> np.uint64(6)
        word |= one << (place & np.uint64(63))
        place += one
    if indices.size:
        unary[where] = word
    if filled:
        if at >= lows.size:
            return False
        lows[at] = buffer
    return True


@compiled()
def decode(lows, unary, parameter, numel, indices):
    """Fill `indices` and return the number of unary bits they took, or -1 if the streams are not what `encode` writes.

    Args:
        lows: uint64 words of count * parameter bits, and two words more.
        unary: uint64 words.
        parameter: uint64, at most LARGEST.
        numel: uint64, at most 2**62: every index must be below.
        indices: uint32 or uint64 of shape (count,), count at least 1.
    """
    one, six = np.uint64(1), np.uint64(6)
    count = np.uint64(indices.size)
    if ((count - one) * parameter >> six) + one >= np.uint64(lows.size):
        return -1
    mask, limit = (one << parameter) - one, numel >> parameter
    found, due, start, bit = np.uint64(0), np.uint64(0), np.uint64(0), np.uint64(0)
    for where in range(unary.size):
        word = unary[where]
        base = np.uint64(where) << six
        while word:
            if found == count:
                return -1
            place = base + lowest_bit(word)
            word &= word - one
            quotient = place - start
            start = place + one
            at, offset = bit >> six, bit & np.uint64(63)
            bit += parameter
            low = (lows[at] >> offset) | ((lows[at + one] << one) << (np.uint64(63) - offset))
            index = due + ((quotient << parameter) | (low & mask))
            if quotient > limit or index >= numel:
                return -1
            indices[found] = index
            found += one
            due = index + one
    if found < count:
        return -1
    return np.int64(start)

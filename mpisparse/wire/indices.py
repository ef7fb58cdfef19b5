"""Index coding: which entries are present. Each message takes the coding that costs least time in all."""

from __future__ import annotations

import math
import struct
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from mpisparse.errors import WireError
from mpisparse.kernels import bits, blocks, gaps, words
from mpisparse.sparse import Indices, index_dtype
from mpisparse.words import counted

Bytes = NDArray[np.uint8]
IndexCoding = Literal["auto", "raw", "rice", "blocks", "bitmap"]

RAW, RICE, BLOCKS, BITMAP = range(4)
NAMES = ("raw", "rice", "blocks", "bitmap")

#: The longest vector: sums of two of its indices then stay below 2**64.
LARGEST_NUMEL = 2**62

#: Nanoseconds for writing and reading, for an entry and for 256 positions of the vector, in the order of the codings:
#: what whole messages took of random positions, at densities from 0.01 % to 20 % of 25.6 M entries, checksum and copies
#: included and values left out, on one core of an AMD EPYC that copies 13 bytes a nanosecond. A receiver
#: takes in a message of every other rank and reads each: so one message's bytes weigh against one reading. The writing
#: is counted in full, as between two ranks. What a call costs whatever its size, some 20 microseconds, is left out.
_ENTRY_NANOSECONDS = (2.5, 5.5, 3.0, 2.0)
_BLOCK_NANOSECONDS = (0.0, 0.0, 4.0, 9.0)

#: Where a Rice parameter is best for gaps that are as often longer as in a vector of random positions:
#: the logarithm of the golden ratio, by Gallager and van Voorhis (1975).
_GOLDEN = math.log((1 + math.sqrt(5)) / 2)

_UNARY = struct.Struct("<I")


class Plan(NamedTuple):
    """How some indices are written."""

    coding: int
    parameter: int
    """Low bits of a gap in RICE, 0 in the others."""
    size: int
    """Bytes that they take, exactly."""


#: No index takes no bytes, in any coding.
EMPTY = Plan(RAW, 0, 0)


def plan(indices: Indices, numel: int, coding: IndexCoding, gigabits: float) -> Plan:
    """Return how to write `indices`, in time that is linear in their number.

    Args:
        indices: of the type that `index_dtype(numel)` names, contiguous.
        numel: entries of the vector, at most LARGEST_NUMEL.
        coding: "auto" takes the one that costs least.
        gigabits: the network's speed in Gbit/s, which says what a byte costs.

    Raises:
        WireError: they do not rise strictly, or one is not below `numel`.
    """
    check(indices, numel)
    if indices.size == 0:
        return EMPTY
    if coding != "auto":
        return _PLANS[NAMES.index(coding)](indices, numel)
    plans = [make(indices, numel) for make in _PLANS]
    return min(plans, key=lambda each: _nanoseconds(each, indices.size, numel, gigabits))


def encode(indices: Indices, numel: int, how: Plan) -> list[Bytes]:
    """Return the bytes of `indices` in pieces, `how.size` in all; `how` is what `plan` returned for them."""
    return _WRITERS[how.coding](indices, numel, how) if indices.size else []


def decode(body: Bytes, coding: int, parameter: int, numel: int, count: int) -> tuple[Indices, int]:
    """Return the `count` indices at the start of `body`, and how many bytes they took.

    Memory is taken only for as many indices as the bytes that are there can hold.

    Raises:
        WireError: the coding does not exist, or the bytes are not those of rising indices below `numel`.
    """
    if coding >= len(_READERS):
        raise WireError(f"index coding {coding} does not exist in wire format 2")
    if parameter > (gaps.LARGEST if coding == RICE else 0):
        raise WireError(f"index coding {NAMES[coding]} has no parameter {parameter}")
    if count == 0 and (coding, parameter) != (RAW, 0):
        raise WireError(f"a message without entries has index coding {NAMES[coding]}: it must be raw")
    return _READERS[coding](body, parameter, numel, count)


def check(indices: Indices, numel: int) -> None:
    """Raise WireError unless the indices rise strictly and stay below `numel`."""
    if words.rises(indices, np.uint64(numel)):
        return
    if int(indices[-1]) >= numel:
        raise WireError(f"index {int(indices[-1])} does not lie in a vector of {counted(numel, 'entry', 'entries')}")
    place = int(np.flatnonzero(indices[1:] <= indices[:-1])[0])
    raise WireError(f"indices do not rise: {int(indices[place])} is followed by {int(indices[place + 1])}")


def _nanoseconds(how: Plan, count: int, numel: int, gigabits: float) -> float:
    coding = how.coding
    coded = count * _ENTRY_NANOSECONDS[coding] + numel / blocks.LENGTH * _BLOCK_NANOSECONDS[coding]
    return 8 * how.size / gigabits + coded


# Raw: as they are, in the narrowest type that fits -------------------------------------------------------------------


def _plan_raw(indices: Indices, numel: int) -> Plan:
    return Plan(RAW, 0, indices.nbytes)


def _write_raw(indices: Indices, numel: int, how: Plan) -> list[Bytes]:
    return [indices.astype(indices.dtype.newbyteorder("<"), copy=False).view(np.uint8)]


def _read_raw(body: Bytes, parameter: int, numel: int, count: int) -> tuple[Indices, int]:
    dtype = index_dtype(numel)
    size = count * dtype.itemsize
    _require(body, size, "raw", count)
    indices: Indices = body[:size].view(dtype.newbyteorder("<")).astype(dtype)
    check(indices, numel)
    return indices, size


# Rice: low bits of the gaps, and the rest of them in unary -----------------------------------------------------------


def _plan_rice(indices: Indices, numel: int) -> Plan:
    count = indices.size
    mean = (int(indices[-1]) + 1) / count
    guess = math.ceil(math.log2(max(_GOLDEN * mean, 1.0)))
    least = min(max(guess - 1, 0), gaps.LARGEST - 2)
    quotients = [int(each) for each in gaps.sum_quotients(indices, np.uint64(least))]
    size, parameter = min((_rice_bytes(count, least + i, quotients[i]), least + i) for i in range(3))
    return Plan(RICE, parameter, size)


def _rice_bytes(count: int, parameter: int, quotients: int) -> int:
    return _UNARY.size + _bytes(count * parameter) + _bytes(count + quotients)


def _write_rice(indices: Indices, numel: int, how: Plan) -> list[Bytes]:
    low_bytes = _bytes(indices.size * how.parameter)
    unary_bytes = how.size - low_bytes - _UNARY.size
    lows, unary = words.zeros(low_bytes), words.zeros(unary_bytes)
    _require_room(gaps.encode(indices, np.uint64(how.parameter), lows, unary))
    length = np.frombuffer(_UNARY.pack(unary_bytes), np.uint8)
    return [length, words.to_bytes(lows, low_bytes), words.to_bytes(unary, unary_bytes)]


def _read_rice(body: Bytes, parameter: int, numel: int, count: int) -> tuple[Indices, int]:
    start = _UNARY.size + _bytes(count * parameter)
    _require(body, start, "rice", count)
    (unary_bytes,) = _UNARY.unpack_from(body.data)
    end = start + unary_bytes
    _require(body, max(end, start + _bytes(count)), "rice", count)
    _require_padding(body[_UNARY.size : start], count * parameter)
    indices: Indices = np.empty(count, index_dtype(numel))
    lows, unary = words.from_bytes(body[_UNARY.size : start]), words.from_bytes(body[start:end])
    used = gaps.decode(lows, unary, np.uint64(parameter), np.uint64(numel), indices)
    if used < 0 or _bytes(used) != unary_bytes:
        raise WireError(f"the gaps are not those of {count} rising indices below {numel}")
    return indices, end


# Blocks: a byte a block of 256 positions, a byte an index ------------------------------------------------------------


def _plan_blocks(indices: Indices, numel: int) -> Plan:
    return Plan(BLOCKS, 0, _blocks(numel) + int(blocks.payload_bytes(indices)))


def _write_blocks(indices: Indices, numel: int, how: Plan) -> list[Bytes]:
    counts = np.zeros(_blocks(numel), np.uint8)
    payload = np.zeros(how.size - counts.size, np.uint8)
    _require_room(blocks.encode(indices, counts, payload))
    return [counts, payload]


def _read_blocks(body: Bytes, parameter: int, numel: int, count: int) -> tuple[Indices, int]:
    start = _blocks(numel)
    _require(body, start, "blocks", count)
    counts = body[:start].copy()
    taken = int(counts.sum(dtype=np.int64))
    _require(body, start + max(taken, _bytes(count)), "blocks", count)
    indices: Indices = np.empty(count, index_dtype(numel))
    payload = body[start : start + taken].copy()
    if blocks.decode(counts, payload, np.uint64(numel), indices) != taken:
        raise WireError(f"the blocks are not those of {count} rising indices below {numel}")
    return indices, start + taken


def _blocks(numel: int) -> int:
    return -(-numel // blocks.LENGTH)


# Bitmap: one bit a position ------------------------------------------------------------------------------------------


def _plan_bitmap(indices: Indices, numel: int) -> Plan:
    return Plan(BITMAP, 0, _bytes(numel))


def _write_bitmap(indices: Indices, numel: int, how: Plan) -> list[Bytes]:
    bitmap = words.zeros(how.size)
    _require_room(bits.encode(indices, bitmap))
    return [words.to_bytes(bitmap, how.size)]


def _read_bitmap(body: Bytes, parameter: int, numel: int, count: int) -> tuple[Indices, int]:
    size = _bytes(numel)
    _require(body, size, "bitmap", count)
    _require_padding(body[:size], numel)
    indices: Indices = np.empty(count, index_dtype(numel))
    if not bits.decode(words.from_bytes(body[:size]), indices):
        raise WireError(f"the bitmap does not have {count} bits set, as the header says")
    return indices, size


# What they share -----------------------------------------------------------------------------------------------------

_PLANS = (_plan_raw, _plan_rice, _plan_blocks, _plan_bitmap)
_WRITERS = (_write_raw, _write_rice, _write_blocks, _write_bitmap)
_READERS = (_read_raw, _read_rice, _read_blocks, _read_bitmap)


def _bytes(length: int) -> int:
    """Return the bytes that hold `length` bits."""
    return (length + 7) >> 3


def _require(body: Bytes, size: int, name: str, count: int) -> None:
    if body.size < size:
        raise WireError(f"{count} indices in coding {name} take {size} bytes at least, but {body.size} are left")


def _require_padding(section: Bytes, length: int) -> None:
    """Raise WireError unless the bits of the last byte past the first `length` are zero."""
    if length & 7 and section[-1] >> (length & 7):
        raise WireError("unused bits after the last index are not zero")


def _require_room(fits: bool) -> None:
    if not fits:
        raise WireError("the indices do not fit the bytes that were counted for them: they changed meanwhile")

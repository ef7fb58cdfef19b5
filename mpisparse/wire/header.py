"""The 48 bytes in front of every message: what it is, whose, of which step, and a checksum over all of it."""

from __future__ import annotations

import struct
import zlib
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from mpisparse.errors import WireError

Bytes = NDArray[np.uint8]

MAGIC = b"MSPV"
#: What is written, and what can be read.
VERSION = 2
READABLE = (1, 2)
#: magic, version, index coding, value coding, index parameter, step, numel, count, bucket, rank, body bytes, checksum
_LAYOUT = struct.Struct("<4sBBBBQQQIIII")
SIZE = _LAYOUT.size
_CHECKSUM = struct.Struct("<I")
_CHECKSUM_AT = SIZE - _CHECKSUM.size


class Header(NamedTuple):
    """What a message says of itself, in the order of its bytes."""

    version: int
    index_coding: int
    value_coding: int
    parameter: int
    step: int
    numel: int
    count: int  # type: ignore[assignment]  # a tuple's method, which no reader of headers needs
    bucket: int
    rank: int
    body: int


@dataclass(frozen=True, slots=True)
class Expectation:
    """What a receiver knows of a message before it comes: a message that says otherwise is stale or foreign."""

    step: int
    bucket: int
    rank: int
    numel: int


def check_body(size: int) -> None:
    """Raise WireError if a body of `size` bytes is longer than a header can say."""
    if size >= 2**32:
        raise WireError(f"a message body of {size} bytes is over the limit of 4 GiB: use smaller buckets")


def write(header: Header, message: Bytes) -> None:
    """Fill in the first `SIZE` bytes of `message`, whose body is in place, ending in the checksum of all the rest."""
    _LAYOUT.pack_into(message.data, 0, MAGIC, *header, 0)
    _CHECKSUM.pack_into(message.data, _CHECKSUM_AT, _checksum(message.data))


def read(message: Bytes, expected: Expectation | None = None) -> Header:
    """Return the header of a message whose length, version and checksum are right.

    Raises:
        WireError: the message is truncated, too long, damaged, of another version, or not the expected one.
    """
    if message.size < SIZE:
        raise WireError(f"the message has {message.size} bytes, fewer than the header's {SIZE}: it was truncated")
    magic, *fields, checksum = _LAYOUT.unpack_from(message.data)
    header = Header(*fields)
    if magic != MAGIC:
        raise WireError(f"the message starts with {magic!r} instead of {MAGIC!r}: it does not come from mpisparse")
    if header.version not in READABLE:
        raise WireError(
            f"the message is of wire format {header.version}, this is format {VERSION}: run the same mpisparse on all "
            "ranks"
        )
    if message.size != SIZE + header.body:
        how = "it was cut short" if message.size < SIZE + header.body else "something was added to it"
        raise WireError(f"the message has {message.size} bytes, its header says {SIZE + header.body}: {how}")
    found = _checksum(message.data)
    if found != checksum:
        raise WireError(f"the message's checksum is {found:#010x}, its header says {checksum:#010x}: it was damaged")
    if header.count > header.numel:
        raise WireError(f"{header.count} entries are announced in a vector of {header.numel}")
    if expected is not None:
        _check_expected(header, expected)
    return header


def _checksum(message: memoryview) -> int:
    """Return the CRC-32 of everything but the checksum itself."""
    return zlib.crc32(message[SIZE:], zlib.crc32(message[:_CHECKSUM_AT]))


def _check_expected(header: Header, expected: Expectation) -> None:
    for name in ("step", "bucket", "rank", "numel"):
        theirs, ours = getattr(header, name), getattr(expected, name)
        if theirs != ours:
            raise WireError(
                f"a message of {name} {theirs} came where {name} {ours} was due (step {expected.step}, bucket "
                f"{expected.bucket}, from rank {expected.rank}): it is stale, or the ranks are out of step"
            )

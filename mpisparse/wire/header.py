"""The 48 bytes in front of every message: what it is, whose, of which step, and a checksum over all of it."""

from __future__ import annotations

import struct
import zlib
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mpisparse.errors import WireError

Bytes = NDArray[np.uint8]

MAGIC = b"MSPV"
VERSION = 1
#: magic, version, index coding, value coding, reserved, step, numel, count, bucket, rank, body bytes, checksum
_LAYOUT = struct.Struct("<4sBBBxQQQIIII")
SIZE = _LAYOUT.size
_CHECKSUM = struct.Struct("<I")


@dataclass(frozen=True, slots=True)
class Header:
    """What a message says of itself."""

    index_coding: int
    value_coding: int
    step: int
    numel: int
    count: int
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


def write(header: Header, message: Bytes) -> None:
    """Fill in the first `SIZE` bytes of `message`, whose body is in place, ending in the checksum of all the rest."""
    if not 0 <= header.body < 2**32:
        raise WireError(f"a message body of {header.body} bytes is over the limit of 4 GiB: use smaller buckets")
    # fmt: off
    _LAYOUT.pack_into(
        message.data, 0, MAGIC, VERSION, header.index_coding, header.value_coding,
        header.step, header.numel, header.count, header.bucket, header.rank, header.body, 0,
    )
    # fmt: on
    _CHECKSUM.pack_into(message.data, SIZE - 4, _checksum(message))


def read(message: Bytes, expected: Expectation | None = None) -> Header:
    """Return the header of a message whose length, version and checksum are right.

    Raises:
        WireError: the message is truncated, too long, damaged, of another version, or not the expected one.
    """
    if message.size < SIZE:
        raise WireError(f"the message has {message.size} bytes, fewer than the header's {SIZE}: it was truncated")
    magic, version, index_coding, value_coding, *rest, checksum = _LAYOUT.unpack_from(message.data)
    header = Header(index_coding, value_coding, *rest)
    if magic != MAGIC:
        raise WireError(f"the message starts with {magic!r} instead of {MAGIC!r}: it does not come from mpisparse")
    if version != VERSION:
        raise WireError(
            f"the message is of wire format {version}, this is format {VERSION}: run the same mpisparse on all ranks"
        )
    if message.size != SIZE + header.body:
        raise WireError(f"the message has {message.size} bytes, its header says {SIZE + header.body}: it was cut short")
    found = _checksum(message)
    if found != checksum:
        raise WireError(f"the message's checksum is {found:#010x}, its header says {checksum:#010x}: it was damaged")
    if expected is not None:
        _check_expected(header, expected)
    return header


def _checksum(message: Bytes) -> int:
    """Return the CRC-32 of everything but the checksum itself."""
    return zlib.crc32(message[SIZE:].data, zlib.crc32(message[: SIZE - 4].data))


def _check_expected(header: Header, expected: Expectation) -> None:
    for name in ("step", "bucket", "rank", "numel"):
        theirs, ours = getattr(header, name), getattr(expected, name)
        if theirs != ours:
            raise WireError(
                f"a message of {name} {theirs} came where {name} {ours} was due (step {expected.step}, bucket "
                f"{expected.bucket}, from rank {expected.rank}): it is stale, or the ranks are out of step"
            )

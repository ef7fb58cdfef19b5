"""A message: a sparse vector as bytes, and back. The format is written down in docs/wire-format.md."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from mpisparse.errors import ConfigError, WireError
from mpisparse.sparse import SparseVector
from mpisparse.wire import header as headers
from mpisparse.wire import hybrid, indices, values
from mpisparse.wire.header import Expectation, Header

Bytes = NDArray[np.uint8]
ValueCoding = Literal["auto", "float32", "bfloat16", "float16", "hybrid"]

_PLAIN = {"float32": values.FLOAT32, "bfloat16": values.BFLOAT16, "float16": values.FLOAT16}


@dataclass(frozen=True, slots=True)
class Wire:
    """How messages are written.

    values: "float32" is exact; "bfloat16" and "float16" halve the values' bytes, and the rounding error stays in the
        residual where there is one; "auto" and "hybrid" write GSpar's sampled entries as index and sign
        alone, exactly, and vectors without a shared magnitude as float32; "hybrid" says that one is expected.
    """

    values: ValueCoding = "auto"

    def __post_init__(self) -> None:
        if self.values not in ("auto", "hybrid", *_PLAIN):
            raise ConfigError(f"wire values {self.values!r} do not exist: use auto, hybrid, {', '.join(_PLAIN)}")

    @property
    def exact(self) -> bool:
        """Return True when what arrives is bit for bit what was selected."""
        return self.values in ("auto", "float32", "hybrid")


def encode(sparse: SparseVector, wire: Wire = Wire(), *, step: int = 0, bucket: int = 0, rank: int = 0) -> Bytes:
    """Return the message that holds `sparse`, uint8.

    Args:
        sparse: indices must rise strictly and values must be finite, which is not checked again here.
        wire: how to write it.
        step: optimizer step, bucket: index of the bucket, rank: who sends; receivers check all three.

    Raises:
        WireError: a value does not fit the value coding, or the coding does not fit the vector.
    """
    index_coding = indices.coding(sparse.numel)
    if wire.values in ("auto", "hybrid") and sparse.magnitude is not None:
        value_coding, *parts = hybrid.encode(sparse)
    else:
        value_coding = _PLAIN.get(wire.values, values.FLOAT32)
        parts = [indices.encode(sparse.indices), values.encode(sparse.values, value_coding)]
    body = sum(part.size for part in parts)
    message = np.empty(headers.SIZE + body, np.uint8)
    np.concatenate(parts, out=message[headers.SIZE :])
    headers.write(Header(index_coding, value_coding, step, sparse.numel, sparse.count, bucket, rank, body), message)
    return message


def decode(message: Bytes | bytes, expected: Expectation | None = None) -> SparseVector:
    """Return the vector that `message` holds, sharing no memory with it.

    Args:
        message: uint8 of one dimension, or bytes.
        expected: what the receiver knows of the message; without it, only the message's own consistency is checked.

    Raises:
        WireError: the message is damaged, truncated, stale or foreign.
    """
    if isinstance(message, bytes | bytearray | memoryview):
        message = np.frombuffer(message, np.uint8)
    header = headers.read(message, expected)
    body = message[headers.SIZE :]
    if header.index_coding != indices.coding(header.numel):
        raise WireError(f"index coding {header.index_coding} does not fit a vector of {header.numel} entries")
    if header.count > header.numel:
        raise WireError(f"{header.count} entries are announced in a vector of {header.numel}")
    if header.value_coding in (hybrid.LIST, hybrid.SYMBOLS):
        return hybrid.decode(body, header.value_coding, header.numel, header.count)
    cut = header.count * indices.width(header.index_coding)
    if body.size != cut + header.count * values.width(header.value_coding):
        raise WireError(f"{header.count} entries are announced, but the body has {body.size} bytes")
    chosen = indices.decode(body[:cut], header.index_coding, header.numel)
    return SparseVector(chosen, values.decode(body[cut:], header.value_coding), header.numel)

"""A message: a sparse vector as bytes, and back. The format is written down in docs/wire-format.md."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, NamedTuple, get_args

import numpy as np
from numpy.typing import NDArray

from mpisparse.arguments import is_number, is_one_of, short
from mpisparse.errors import ConfigError, WireError
from mpisparse.sparse import Grid, Indices, SparseVector, index_dtype
from mpisparse.wire import header as headers
from mpisparse.wire import hybrid, indices, levels, values, version1
from mpisparse.wire.header import Expectation, Header
from mpisparse.wire.indices import IndexCoding

Bytes = NDArray[np.uint8]
ValueCoding = Literal["auto", "float32", "bfloat16", "float16", "sign", "hybrid", "levels"]

_PLAIN = {
    "float32": values.FLOAT32,
    "bfloat16": values.BFLOAT16,
    "float16": values.FLOAT16,
    "sign": values.SIGN,
}


@dataclass(frozen=True, slots=True)
class Wire:
    """How messages are written.

    values: "float32" is exact; "bfloat16" and "float16" halve the values' bytes, and the rounding error stays in the
        residual where there is one; "sign" sends one bit an entry and the mean magnitude of all, which is biased: only
        for memories that keep a residual; "auto" writes what is shared once, exactly: "hybrid" GSpar's sampled entries
        as signs, "levels" QSGD's as signs and levels, and other vectors as float32; these two say what is expected.
    indices: "raw" (4 bytes an index), "rice" (near the entropy), "blocks" (about 1.4 bytes at a density of 1 %, and
        faster), "bitmap" (one bit a position), or "auto": for each message the one that costs least time.
    gigabits: speed of the network in Gbit/s, for "auto": the faster it is, the simpler the coding.
    """

    values: ValueCoding = "auto"
    indices: IndexCoding = "auto"
    gigabits: float = 1.0

    def __post_init__(self) -> None:
        if not is_one_of(self.values, get_args(ValueCoding)):
            raise ConfigError(f"wire values {short(self.values)} do not exist: use {', '.join(get_args(ValueCoding))}")
        if not is_one_of(self.indices, get_args(IndexCoding)):
            raise ConfigError(
                f"wire indices {short(self.indices)} do not exist: use {', '.join(get_args(IndexCoding))}"
            )
        if not is_number(self.gigabits) or not 0 < self.gigabits < float("inf"):
            raise ConfigError(f"wire gigabits {short(self.gigabits)} is no speed: give Gbit/s, above 0")

    @property
    def exact(self) -> bool:
        """Return True when what arrives is bit for bit what was selected."""
        return self.values in ("auto", "float32", "hybrid", "levels")


def encode(sparse: SparseVector, wire: Wire = Wire(), *, step: int = 0, bucket: int = 0, rank: int = 0) -> Bytes:
    """Return the message that holds `sparse`, uint8.

    Args:
        sparse: values must be finite, which is not checked again here.
        wire: how to write it.
        step: optimizer step, bucket: index of the bucket, rank: who sends; receivers check all three.

    Raises:
        WireError: indices do not rise strictly below numel, a value does not fit the value coding, or the vector is too
            long for the format.
    """
    numel, count = sparse.numel, sparse.count
    if numel > indices.LARGEST_NUMEL:
        raise WireError(f"a vector of {numel} entries is over the limit of 2**62: use smaller buckets")
    chosen: Indices = np.ascontiguousarray(sparse.indices, index_dtype(numel))
    how = indices.plan(chosen, numel, wire.indices, wire.gigabits)
    form = _form(sparse, wire)
    body = how.size + form.size
    headers.check_body(body)
    message = np.empty(headers.SIZE + body, np.uint8)
    np.concatenate((*indices.encode(chosen, numel, how), *form.write()), out=message[headers.SIZE :])
    fields = (how.coding, form.coding, how.parameter, step, numel, count, bucket, rank, body)
    headers.write(Header(headers.VERSION, *fields), message)
    return message


def decode(message: Bytes | bytes, expected: Expectation | None = None) -> SparseVector:
    """Return the vector that `message` holds, sharing no memory with it.

    Args:
        message: uint8 of one dimension, or bytes; of wire format 2, or 1.
        expected: what the receiver knows of the message; without it, only the message's own consistency is checked.

    Raises:
        WireError: the message is damaged, truncated, stale or foreign.
    """
    if not isinstance(message, np.ndarray):
        message = np.frombuffer(message, np.uint8)
    header = headers.read(message, expected)
    body, numel, count = message[headers.SIZE :], header.numel, header.count
    if header.version == 1:
        return version1.decode(header, body)
    if numel > indices.LARGEST_NUMEL:
        raise WireError(f"a vector of {numel} entries is announced, and the limit is 2**62")
    chosen, used = indices.decode(body, header.index_coding, header.parameter, numel, count)
    magnitude: np.float32 | None = None
    grid: Grid | None = None
    if header.value_coding == hybrid.HYBRID:
        found, magnitude = hybrid.decode(body[used:], count)
    elif header.value_coding == levels.LEVELS:
        found, grid = levels.decode(body[used:], chosen, numel)
    else:
        found, magnitude = values.decode(body[used:], header.value_coding, count)
    return SparseVector(chosen, found, numel, magnitude, grid)


def rounded(sparse: SparseVector, wire: Wire) -> SparseVector:
    """Return what receivers will decode from `encode(sparse, wire)`: the same indices and values, bit for bit.

    That is `sparse` itself where the wire is exact; otherwise the indices are shared with it. Costs a pass over the
    values, and no coding of indices.

    Raises:
        WireError: a value does not fit the value coding.
    """
    if wire.exact:
        return sparse
    if wire.values == "sign":
        magnitude = values.mean_magnitude(sparse.values)
        found = np.copysign(magnitude, sparse.values)
        return SparseVector(sparse.indices, found, sparse.numel, magnitude if magnitude > 0 else None)
    coding = _PLAIN[wire.values]
    found, _ = values.decode(np.concatenate(values.encode(sparse.values, coding)), coding, sparse.count)
    return SparseVector(sparse.indices, found, sparse.numel)


def warm_up() -> None:
    """Compile what coding needs, so that the first step does not wait for it: a tiny vector, in every coding."""
    numel = 4 * 256
    chosen = np.concatenate((np.arange(40), np.arange(512, numel, 50))).astype(np.uint32)
    sparse = SparseVector(chosen, np.ones(chosen.size, np.float32), numel)
    for coding in get_args(IndexCoding):
        decode(encode(sparse, Wire(indices=coding)))


class _Form(NamedTuple):
    """How the values of a vector are written."""

    coding: int
    size: int
    """Bytes that they take."""
    write: Callable[[], list[Bytes]]


def _form(sparse: SparseVector, wire: Wire) -> _Form:
    """Return the form that the wire names, or the shortest of those that it leaves to choose."""
    coding = _PLAIN.get(wire.values, values.FLOAT32)
    forms = [_Form(coding, values.size(coding, sparse.count), lambda: values.encode(sparse.values, coding))]
    if sparse.magnitude is not None and wire.values in ("auto", "hybrid"):
        split = hybrid.split(sparse, wire.indices, wire.gigabits)
        forms.append(_Form(hybrid.HYBRID, split.size, lambda: hybrid.encode(sparse, split)))
    if sparse.grid is not None and wire.values in ("auto", "levels"):
        sums = levels.add_up(sparse.grid)
        forms.append(_Form(levels.LEVELS, sums.size, lambda: levels.encode(sparse, sums)))
    return min(forms, key=lambda form: form.size)

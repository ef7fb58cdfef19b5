"""Vectors and messages for the tests of the wire format."""

from __future__ import annotations

import zlib
from typing import get_args

import numpy as np
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from numpy.typing import NDArray

from mpisparse.sparse import Grid, SparseVector, index_dtype
from mpisparse.wire import HEADER_SIZE, IndexCoding, ValueCoding, Wire, encode
from mpisparse.wire.levels import magnitudes

Bytes = NDArray[np.uint8]

INDEX_CODINGS: tuple[IndexCoding, ...] = get_args(IndexCoding)
VALUE_CODINGS: tuple[ValueCoding, ...] = get_args(ValueCoding)

#: Float32 that fit float16.
SMALL = st.floats(-65504, 65504, width=32)


@st.composite
def positions(draw: st.DrawFn) -> tuple[list[int], int]:
    """Return rising indices and the length of their vector: scattered, in runs, at borders, none or all."""
    numel = draw(st.one_of(st.integers(1, 8), st.integers(1, 5000), st.sampled_from([255, 256, 257, 511, 512, 513])))
    last = numel - 1
    kind = draw(st.sampled_from(["scattered", "runs", "borders", "ends", "all", "none"]))
    if kind == "scattered":
        return sorted(draw(st.sets(st.integers(0, last), max_size=60))), numel
    if kind == "runs":
        runs = draw(st.lists(st.tuples(st.integers(0, last), st.integers(1, 300)), max_size=4))
        return sorted({i for start, length in runs for i in range(start, min(start + length, numel))}), numel
    if kind == "borders":
        near = [256 * block + shift for block in range(numel // 256 + 1) for shift in (-1, 0, 1, 31, 32)]
        return sorted(draw(st.sets(st.sampled_from([i for i in near if 0 <= i < numel]), max_size=40))), numel
    return {"ends": sorted({0, last}), "all": list(range(numel)), "none": []}[kind], numel


@st.composite
def vectors(draw: st.DrawFn) -> SparseVector:
    """Return a vector without a shared magnitude, with values that fit every coding."""
    indices, numel = draw(positions())
    values = draw(arrays.arrays(np.float32, len(indices), elements=SMALL))
    return SparseVector(np.array(indices, index_dtype(numel)), values, numel)


@st.composite
def shared_vectors(draw: st.DrawFn) -> SparseVector:
    """Return a vector with a shared magnitude that none, some, most or all entries have."""
    indices, numel = draw(positions())
    magnitude = np.float32(draw(st.floats(2.0**-100, 2.0**14, width=32)))
    factors = draw(st.sampled_from([[1, -1], [1, -1, -1, 1, 1, -1, -1, 2], [1, -1, 2, -3], [2, -3]]))
    chosen = draw(arrays.arrays(np.int64, len(indices), elements=st.sampled_from(factors)))
    values = (chosen * magnitude).astype(np.float32)
    return SparseVector(np.array(indices, index_dtype(numel)), values, numel, magnitude)


@st.composite
def gridded_vectors(draw: st.DrawFn) -> SparseVector:
    """Return a vector on a grid, of one bucket or several, the last often short, with levels that fit every coding."""
    indices, numel = draw(positions())
    bucket = min(draw(st.sampled_from([1, 7, 256, 5000])), numel)
    units = draw(arrays.arrays(np.float32, -(-numel // bucket), elements=st.floats(2.0**-10, 4.0, width=32)))
    largest = draw(st.sampled_from([1, 2, 7, 127, 10_000]))
    levels = draw(arrays.arrays(np.uint16, len(indices), elements=st.integers(1, largest)))
    negative = draw(arrays.arrays(np.bool_, len(indices)))
    return on_grid(np.array(indices, index_dtype(numel)), numel, Grid(units, bucket, levels), negative)


def on_grid(indices: NDArray[np.unsignedinteger], numel: int, grid: Grid, negative: NDArray[np.bool_]) -> SparseVector:
    """Return the vector whose entries have the levels of a grid."""
    found = magnitudes(grid, indices)
    return SparseVector(indices, np.where(negative, -found, found).astype(np.float32), numel, grid=grid)


def same_grid(a: Grid, b: Grid) -> bool:
    """Return True when both are the same, bit for bit and in type."""
    return (
        a.bucket == b.bucket
        and np.array_equal(a.units.view(np.uint32), b.units.view(np.uint32))
        and a.levels.dtype == b.levels.dtype
        and np.array_equal(a.levels, b.levels)
    )


def same(a: SparseVector, b: SparseVector) -> bool:
    """Return True when both hold the same entries, bit for bit."""
    return (
        a.numel == b.numel
        and np.array_equal(a.indices, b.indices)
        and a.indices.dtype == b.indices.dtype
        and a.values.dtype == b.values.dtype
        and np.array_equal(a.values.view(np.uint32), b.values.view(np.uint32))
    )


def seal(message: Bytes) -> None:
    """Make the checksum right again."""
    view = message.data
    checksum = zlib.crc32(view[HEADER_SIZE:], zlib.crc32(view[: HEADER_SIZE - 4]))
    view[HEADER_SIZE - 4 : HEADER_SIZE] = checksum.to_bytes(4, "little")


def plain(numel: int, *indices: int, scale: float = 0.25) -> SparseVector:
    """Return a vector with different values of both signs, none of them zero."""
    values = np.array([(i % 13 - 6.5) * scale for i in range(len(indices))], np.float32)
    return SparseVector(np.array(indices, index_dtype(numel)), values, numel)


def shared(numel: int, *indices: int, exact: tuple[int, ...] = ()) -> SparseVector:
    """Return a vector of magnitude 0.5 with values of their own at some places."""
    values = np.where(np.arange(len(indices)) % 3 == 1, -0.5, 0.5).astype(np.float32)
    values[list(exact)] = [4.0 + i for i in range(len(exact))]
    return SparseVector(np.array(indices, index_dtype(numel)), values, numel, np.float32(0.5))


def gridded(numel: int, bucket: int, levels: dict[int, int]) -> SparseVector:
    """Return a vector with signed levels at some places, on units of 0.375, 0.75, 1.125 and so on."""
    units = np.arange(1, -(-numel // bucket) + 1).astype(np.float32) * np.float32(0.375)
    signed = np.array(list(levels.values()))
    grid = Grid(units, bucket, np.abs(signed).astype(np.uint16))
    return on_grid(np.array(list(levels), index_dtype(numel)), numel, grid, signed < 0)


def originals() -> dict[str, tuple[SparseVector, Wire]]:
    """Return a vector for every coding, from literals, and how it is written."""
    scattered, dense = (3, 4, 90, 255, 256, 300, 700, 998, 999), (*range(0, 120, 3), *range(256, 512), 520, 599)
    places = tuple(range(0, 990, 11))
    levels = (1, -2, 9, -1, 3, 4, -5, 1, 1, -12, 2, 30, -1, 7)
    wide = 2**32 + 1000
    return {
        "raw": (plain(10, 0, 3, 4, 9), Wire(indices="raw")),
        "raw-wide": (plain(wide, 7, 2**32 - 1, 2**32, wide - 1), Wire(indices="raw")),
        "rice": (plain(1000, *scattered), Wire(indices="rice")),
        "rice-0": (plain(12, 0, 1, 2, 5, 6, 9, 11), Wire(indices="rice")),
        "rice-wide": (plain(wide, 7, 2**32 - 1, 2**32, wide - 1), Wire(indices="rice")),
        "blocks": (plain(1000, *scattered), Wire(indices="blocks")),
        "blocks-dense": (plain(600, *dense), Wire(indices="blocks")),
        "bitmap": (plain(21, 0, 7, 8, 15, 20), Wire(indices="bitmap")),
        "bfloat16": (plain(1000, *scattered, scale=0.1), Wire("bfloat16")),
        "float16": (plain(1000, *scattered, scale=0.1), Wire("float16")),
        "sign": (plain(1000, *scattered), Wire("sign")),
        "hybrid": (shared(1000, *places, exact=(0, 5, 40)), Wire()),
        "hybrid-sampled": (shared(1000, *places), Wire(indices="blocks")),
        "hybrid-places": (shared(1000, *places, exact=tuple(range(20, 50))), Wire(indices="bitmap")),
        "empty": (SparseVector.empty(17), Wire()),
        "empty-sign": (SparseVector.empty(17), Wire("sign")),
        "levels": (gridded(40, 16, {3 * i: level for i, level in enumerate(levels)}), Wire(indices="bitmap")),
        "levels-unary": (gridded(600, 600, {i: 1 + (i % 4 == 1) for i in range(0, 600, 7)}), Wire("levels", "rice")),
        "levels-one": (gridded(1000, 512, {i: (-1) ** i for i in scattered}), Wire(indices="blocks")),
        "levels-wide": (gridded(wide, 2**31, {i << 27: level for i, level in enumerate(levels * 2)}), Wire()),
    }


def examples() -> dict[str, Bytes]:
    """Return a message of every coding."""
    return {
        name: encode(sparse, wire, step=number, bucket=2, rank=3)
        for number, (name, (sparse, wire)) in enumerate(originals().items())
    }

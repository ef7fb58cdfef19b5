"""Index codings: exact sizes, sizes near the entropy, the choice among them, and lies that are refused cheaply."""

from __future__ import annotations

import struct
import tracemalloc

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mpisparse.errors import WireError
from mpisparse.sparse import Indices, SparseVector, index_dtype
from mpisparse.wire import IndexCoding, Wire, decode, encode
from mpisparse.wire import indices as codings
from tests.unit.messages import INDEX_CODINGS, Bytes, examples, positions, same, seal

CODED: tuple[IndexCoding, ...] = INDEX_CODINGS[1:]


def written(indices: Indices, numel: int, coding: IndexCoding) -> tuple[codings.Plan, Bytes]:
    """Return how `indices` are written, and their bytes."""
    how = codings.plan(indices, numel, coding, 1.0)
    return how, np.concatenate([np.empty(0, np.uint8), *codings.encode(indices, numel, how)])


def scattered(numel: int, density: float, seed: int = 0) -> Indices:
    """Return each position with probability `density`."""
    found: Indices = np.flatnonzero(np.random.default_rng(seed).random(numel) < density).astype(index_dtype(numel))
    return found


def vector(indices: Indices, numel: int) -> SparseVector:
    return SparseVector(indices, np.random.default_rng(1).standard_normal(indices.size).astype(np.float32), numel)


@pytest.mark.parametrize("coding", INDEX_CODINGS)
@given(positions())
def test_sizes_are_known_before_coding(coding: IndexCoding, drawn: tuple[list[int], int]) -> None:
    indices: Indices = np.array(drawn[0], index_dtype(drawn[1]))
    how, body = written(indices, drawn[1], coding)
    assert body.size == how.size
    found, used = codings.decode(np.append(body, np.uint8(77)), how.coding, how.parameter, drawn[1], indices.size)
    assert used == body.size
    assert np.array_equal(found, indices)


@given(positions())
def test_rice_is_near_its_best_and_never_much_longer_than_raw(drawn: tuple[list[int], int]) -> None:
    indices, numel = np.array(drawn[0], np.uint32), drawn[1]
    if not indices.size:
        return
    steps = np.append(-1, indices.astype(np.int64))
    gaps = steps[1:] - steps[:-1] - 1
    sizes = [4 + -(-indices.size * k // 8) + -(-(indices.size + int((gaps >> k).sum())) // 8) for k in range(20)]
    how = codings.plan(indices, numel, "rice", 1.0)
    assert how.size == sizes[how.parameter]
    # A parameter far from the mean gap's can be better on clustered positions, by two bits an index at most.
    assert how.size <= min(sizes) + 2 + indices.size / 4
    assert how.size <= 4 * indices.size + 6


@pytest.mark.parametrize(("density", "most"), [(0.01, 8.2), (0.001, 11.6), (0.1, 4.8)])
def test_random_positions_take_bits_near_the_entropy(density: float, most: float) -> None:
    """The entropy is 8.08, 11.41 and 4.69 bits an index."""
    numel = 5_000_000
    indices = scattered(numel, density)
    how = codings.plan(indices, numel, "auto", 1.0)
    assert how.coding == codings.RICE
    assert 8 * how.size / indices.size < most


def test_an_index_takes_eleven_bits_in_blocks_at_one_percent() -> None:
    indices = scattered(5_000_000, 0.01)
    assert 8 * codings.plan(indices, 5_000_000, "blocks", 1.0).size / indices.size < 11.2


def test_the_choice_follows_density_and_network() -> None:
    def chosen(density: float, gigabits: float) -> str:
        return codings.NAMES[codings.plan(scattered(2_000_000, density), 2_000_000, "auto", gigabits).coding]

    assert [chosen(density, 1.0) for density in (0.0001, 0.01, 0.5)] == ["rice", "rice", "bitmap"]
    assert [chosen(0.05, gigabits) for gigabits in (0.1, 10, 1000)] == ["rice", "blocks", "raw"]


def test_runs_of_neighbours_are_cheap() -> None:
    """Twenty runs of 5,000 in ten million: a block of bits costs 33 bytes for 256 entries."""
    numel = 10_000_000
    indices = np.concatenate([np.arange(start, start + 5000) for start in range(7, numel, numel // 20)])
    how = codings.plan(indices.astype(np.uint32), numel, "auto", 1.0)
    assert 8 * how.size / indices.size < 5


@pytest.mark.parametrize("length", [31, 32, 33, 255, 256])
def test_blocks_change_their_form_at_thirty_two_entries(length: int) -> None:
    sparse = vector(np.array([*range(256, 256 + length), 600], np.uint32), 700)
    how, body = written(sparse.indices, 700, "blocks")
    assert body[:3].tolist() == [0, min(length, 32), 1]
    assert how.size == 3 + min(length, 32) + 1
    assert same(decode(encode(sparse, Wire(indices="blocks"))), sparse)


@pytest.mark.parametrize("coding", ["auto", "raw", "rice"])
def test_wide_indices_come_back(coding: IndexCoding) -> None:
    for numel in (2**32 + 1, 2**40, 2**62):
        for picked in ([0], [numel - 1], [0, numel - 1], [2**32 - 1, 2**32], [5, 6, 7, numel // 2, numel - 2]):
            sparse = vector(np.array(picked, np.uint64), numel)
            assert same(decode(encode(sparse, Wire(indices=coding))), sparse)


@pytest.mark.parametrize("numel", [2**31 - 1, 2**31, 2**31 + 1, 2**32 - 1, 2**32])
@pytest.mark.parametrize("coding", ["auto", "raw", "rice"])
def test_no_index_overflows_near_the_limits_of_its_type(coding: IndexCoding, numel: int) -> None:
    for picked in ([numel - 1], [0, numel - 1], [0, numel // 2, numel - 2, numel - 1]):
        sparse = vector(np.array(picked, np.uint32), numel)
        assert same(decode(encode(sparse, Wire(indices=coding))), sparse)


def test_wide_indices_come_back_from_blocks() -> None:
    numel = 2**32 + 300
    picked = np.concatenate(([0, 255, 256, 2**32 - 1], 2**32 + np.arange(300)))
    sparse = vector(picked.astype(np.uint64), numel)
    assert same(decode(encode(sparse, Wire(indices="blocks"))), sparse)


@pytest.mark.parametrize("coding", CODED)
def test_more_entries_come_back_than_a_float32_can_count(coding: IndexCoding) -> None:
    count = 2**24 + 1
    indices = (np.arange(count, dtype=np.uint32) * 2) + (np.arange(count, dtype=np.uint32) % 2)
    how, body = written(indices, 2 * count, coding)
    found, used = codings.decode(body, how.coding, how.parameter, 2 * count, count)
    assert used == body.size
    assert np.array_equal(found, indices)


@pytest.mark.parametrize("name", ["raw", "rice", "rice-wide", "blocks", "blocks-dense", "bitmap", "hybrid", "sign"])
def test_absurd_announcements_take_no_memory(name: str) -> None:
    """A count or a length that the bytes cannot hold is refused before anything is allocated for it."""
    count = decode(examples()[name]).count
    lies = [(numel, count) for numel in (2**33, 2**50, 2**62, 2**64 - 1)]
    lies += [(2**62, lie) for lie in (2**20, 2**33, 2**60, 2**62)]
    for lie in lies:
        message = examples()[name].copy()
        message[16:32] = np.frombuffer(struct.pack("<QQ", *lie), np.uint8)
        seal(message)
        tracemalloc.start()
        try:
            found = decode(message)
        except WireError:
            pass
        else:
            assert (found.numel, found.count) == lie  # a longer vector with the same few entries
        finally:
            _, peak = tracemalloc.get_traced_memory()
            tracemalloc.stop()
        assert peak < 64 * message.size + 20_000


def test_bits_and_blocks_must_be_there_for_the_whole_vector() -> None:
    for coding in (codings.BLOCKS, codings.BITMAP):
        for numel in (2**20, 2**40, 2**62):
            with pytest.raises(WireError, match="bytes at least, but 100 are left"):
                codings.decode(np.zeros(100, np.uint8), coding, 0, numel, 3)


@pytest.mark.parametrize("coding", ["rice", "blocks", "bitmap"])
@given(drawn=positions(), data=st.data())
def test_every_flipped_bit_gives_other_indices_or_an_error(
    coding: IndexCoding, drawn: tuple[list[int], int], data: st.DataObject
) -> None:
    """There is one way to write an index, so that no bit is without a meaning."""
    indices: Indices = np.array(drawn[0], np.uint32)
    how, body = written(indices, drawn[1], coding)
    if not body.size:
        return
    body[data.draw(st.integers(0, body.size - 1))] ^= 1 << data.draw(st.integers(0, 7))
    try:
        found, used = codings.decode(body, how.coding, how.parameter, drawn[1], indices.size)
    except WireError:
        return
    assert used != body.size or not np.array_equal(found, indices)
    assert (found[1:] > found[:-1]).all()
    assert int(found[-1]) < drawn[1]


@pytest.mark.parametrize(
    ("coding", "parameter", "count", "words"),
    [
        (4, 0, 3, "index coding 4 does not exist"),
        (codings.RICE, 57, 3, "rice has no parameter 57"),
        (codings.RAW, 1, 3, "raw has no parameter 1"),
        (codings.BITMAP, 1, 3, "bitmap has no parameter 1"),
        (codings.BITMAP, 0, 0, "without entries has index coding bitmap"),
    ],
)
def test_codings_that_nobody_writes_are_refused(coding: int, parameter: int, count: int, words: str) -> None:
    with pytest.raises(WireError, match=words):
        codings.decode(np.zeros(100, np.uint8), coding, parameter, 10, count)

"""The coding kernels against plain references, and on streams that no encoder writes."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from mpisparse.kernels import bits, blocks, gaps, words
from mpisparse.sparse import Indices
from tests.unit.messages import positions

Words = NDArray[np.uint64]

TYPES = pytest.mark.parametrize("dtype", [np.uint32, np.uint64])


def packed(stream: list[int]) -> Words:
    """Return bits, the first in the lowest place, as words, with two words more."""
    return words.from_bytes(np.packbits(np.array(stream, np.uint8), bitorder="little"))


def streams(indices: list[int], parameter: int) -> tuple[list[int], list[int]]:
    """Return the low bits of all gaps, and the rest of them in unary."""
    lows: list[int] = []
    unary: list[int] = []
    due = 0
    for index in indices:
        gap = index - due
        lows += [gap >> bit & 1 for bit in range(parameter)]
        unary += [0] * (gap >> parameter) + [1]
        due = index + 1
    return lows, unary


@TYPES
@given(positions(), st.integers(0, 20))
def test_rice_writes_and_reads_the_streams_of_the_definition(
    dtype: type[np.unsignedinteger], drawn: tuple[list[int], int], parameter: int
) -> None:
    if not drawn[0]:
        return
    indices: Indices = np.array(drawn[0], dtype)
    low_bits, unary_bits = streams(drawn[0], parameter)
    lows, unary = words.zeros(-(-len(low_bits) // 8)), words.zeros(-(-len(unary_bits) // 8))
    assert gaps.encode(indices, np.uint64(parameter), lows, unary)
    assert np.array_equal(lows, packed(low_bits)[:-2])
    assert np.array_equal(unary, packed(unary_bits)[:-2])
    found = np.empty_like(indices)
    used = gaps.decode(packed(low_bits), packed(unary_bits), np.uint64(parameter), np.uint64(drawn[1]), found)
    assert used == len(unary_bits)
    assert np.array_equal(found, indices)


@TYPES
@given(positions(), st.integers(0, 20))
def test_quotients_are_summed_for_three_parameters(
    dtype: type[np.unsignedinteger], drawn: tuple[list[int], int], parameter: int
) -> None:
    if not drawn[0]:
        return
    indices: Indices = np.array(drawn[0], dtype)
    gap = np.diff(np.array(drawn[0]), prepend=-1) - 1
    expected = [int((gap >> shift).sum()) for shift in range(parameter, parameter + 3)]
    assert [int(each) for each in gaps.sum_quotients(indices, np.uint64(parameter))] == expected


@TYPES
@given(positions())
def test_blocks_hold_bytes_or_bits(dtype: type[np.unsignedinteger], drawn: tuple[list[int], int]) -> None:
    indices: Indices = np.array(drawn[0], dtype)
    counts: list[int] = []
    payload: list[int] = []
    for start in range(0, drawn[1], 256):
        inside = [index - start for index in drawn[0] if start <= index < start + 256]
        counts.append(min(len(inside), 32))
        payload += (
            inside if len(inside) < 32 else np.packbits(np.isin(np.arange(256), inside), bitorder="little").tolist()
        )
    assert blocks.payload_bytes(indices) == len(payload)
    found_counts, found_payload = np.zeros(len(counts), np.uint8), np.zeros(len(payload), np.uint8)
    assert blocks.encode(indices, found_counts, found_payload)
    assert found_counts.tolist() == counts
    assert found_payload.tolist() == payload
    found = np.empty_like(indices)
    assert blocks.decode(found_counts, found_payload, np.uint64(drawn[1]), found) == len(payload)
    assert np.array_equal(found, indices)


@TYPES
@given(positions())
def test_a_bitmap_has_a_bit_a_position(dtype: type[np.unsignedinteger], drawn: tuple[list[int], int]) -> None:
    indices: Indices = np.array(drawn[0], dtype)
    expected = packed(np.isin(np.arange(drawn[1]), drawn[0]).astype(int).tolist())
    bitmap = words.zeros(-(-drawn[1] // 8))
    assert bits.encode(indices, bitmap)
    assert np.array_equal(bitmap, expected[:-2])
    found = np.empty_like(indices)
    assert bits.decode(bitmap, found)
    assert np.array_equal(found, indices)
    assert not bits.decode(bitmap, np.empty(indices.size + 1, dtype))
    assert not indices.size or not bits.decode(bitmap, np.empty(indices.size - 1, dtype))


@given(st.binary(max_size=64), st.integers(0, 64))
def test_words_keep_bytes(data: bytes, size: int) -> None:
    section = np.frombuffer(data, np.uint8)
    found = words.from_bytes(section)
    assert found.size == -(-section.size // 8) + 2
    assert np.array_equal(words.to_bytes(found, section.size), section)
    assert not found.view(np.uint8)[section.size :].any()
    assert 8 * words.zeros(size).size >= size


@given(st.lists(st.integers(0, 40), max_size=12), st.integers(0, 41))
def test_rises_tells_strictly_rising_indices_below_numel(drawn: list[int], numel: int) -> None:
    expected = drawn == sorted(set(drawn)) and all(index < numel for index in drawn)
    assert words.rises(np.array(drawn, np.uint32), np.uint64(numel)) == expected


WORD_LISTS = st.lists(st.one_of(st.integers(0, 2**64 - 1), st.sampled_from([0, 1, 2**64 - 1])), max_size=6)


@given(WORD_LISTS, WORD_LISTS, st.integers(0, gaps.LARGEST), st.integers(1, 2**62), st.integers(1, 80))
def test_rice_never_believes_noise(lows: list[int], unary: list[int], parameter: int, numel: int, count: int) -> None:
    """Whatever the streams hold, what is accepted rises strictly below numel, and nothing else is touched."""
    guarded = np.full(count + 16, 2**64 - 1, np.uint64)
    found = guarded[8:-8]
    used = gaps.decode(
        np.array(lows, np.uint64), np.array(unary, np.uint64), np.uint64(parameter), np.uint64(numel), found
    )
    assert (guarded[:8] == 2**64 - 1).all()
    assert (guarded[-8:] == 2**64 - 1).all()
    if used >= 0:
        assert used <= 64 * len(unary)
        assert (found[1:] > found[:-1]).all()
        assert int(found[-1]) < numel


@given(st.binary(max_size=8), st.binary(max_size=80), st.integers(1, 2048), st.integers(0, 300))
def test_blocks_never_believe_noise(counts: bytes, payload: bytes, numel: int, count: int) -> None:
    guarded = np.full(count + 16, 2**32 - 1, np.uint32)
    found = guarded[8:-8]
    numbers = np.frombuffer(counts, np.uint8).copy() % 40
    used = blocks.decode(numbers, np.frombuffer(payload, np.uint8).copy(), np.uint64(numel), found)
    assert (guarded[:8] == 2**32 - 1).all()
    assert (guarded[-8:] == 2**32 - 1).all()
    if used >= 0:
        assert used <= len(payload)
        assert (found[1:] > found[:-1]).all()
        assert not count or int(found[-1]) < numel


def test_a_dense_block_must_have_entries_enough() -> None:
    """31 entries in the form for 32 and more would be a second way to write them."""
    payload = np.packbits(np.arange(256) < 31, bitorder="little")
    counts = np.array([32], np.uint8)
    assert blocks.decode(counts, payload, np.uint64(256), np.empty(31, np.uint32)) == -1
    payload[-1] = 128
    assert blocks.decode(counts, payload, np.uint64(256), np.empty(32, np.uint32)) == 32


def test_encoders_refuse_streams_without_room() -> None:
    indices = np.array([0, 100, 101, 5000], np.uint32)
    for lows, unary in ((0, 9), (1, 0), (1, 1)):
        assert not gaps.encode(indices, np.uint64(6), np.zeros(lows, np.uint64), np.zeros(unary, np.uint64))
    assert not blocks.encode(indices, np.zeros(2, np.uint8), np.zeros(4, np.uint8))
    assert not blocks.encode(indices, np.zeros(20, np.uint8), np.zeros(3, np.uint8))
    assert not bits.encode(indices, np.zeros(3, np.uint64))

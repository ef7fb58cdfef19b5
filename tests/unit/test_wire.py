"""The wire format: round trips, golden messages, and no damage that goes unseen."""

from __future__ import annotations

import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from numpy.typing import NDArray

from mpisparse.errors import ConfigError, WireError
from mpisparse.sparse import SparseVector, index_dtype
from mpisparse.sparsifiers import GSpar
from mpisparse.wire import HEADER_SIZE, Expectation, ValueCoding, Wire, decode, encode

GOLDEN = Path(__file__).parent.parent / "golden" / "wire-v1"

FINITE = st.floats(width=32, allow_nan=False, allow_infinity=False)


@st.composite
def sparse_vectors(draw: st.DrawFn) -> SparseVector:
    numel = draw(st.integers(0, 300))
    indices = sorted(draw(st.sets(st.integers(0, numel - 1), max_size=numel))) if numel else []
    values = draw(arrays.arrays(np.float32, len(indices), elements=FINITE))
    return SparseVector(np.array(indices, index_dtype(numel)), values, numel)


@st.composite
def hybrid_vectors(draw: st.DrawFn) -> SparseVector:
    numel = draw(st.integers(1, 300))
    indices = sorted(draw(st.sets(st.integers(0, numel - 1), max_size=numel)))
    magnitude = np.float32(draw(st.floats(2.0**-100, 2.0**100, width=32)))
    values = [draw(st.sampled_from([magnitude, -magnitude, magnitude * 2, -magnitude * 3])) for _ in indices]
    return SparseVector(np.array(indices, index_dtype(numel)), np.array(values, np.float32), numel, magnitude)


def same(a: SparseVector, b: SparseVector) -> bool:
    """Return True when both hold the same entries, bit for bit (zeros of either sign apart)."""
    return (
        a.numel == b.numel
        and np.array_equal(a.indices, b.indices)
        and a.indices.dtype == b.indices.dtype
        and np.array_equal(a.values.view(np.uint32), b.values.view(np.uint32))
    )


@given(sparse_vectors())
def test_float32_round_trip_is_exact(sparse: SparseVector) -> None:
    message = encode(sparse, step=7, bucket=3, rank=2)
    assert message.size == HEADER_SIZE + 8 * sparse.count
    assert same(decode(message, Expectation(7, 3, 2, sparse.numel)), sparse)


@given(hybrid_vectors())
def test_hybrid_round_trip_is_exact_and_the_shorter_form(sparse: SparseVector) -> None:
    message = encode(sparse)
    found = decode(message)
    assert same(found, sparse)
    assert found.magnitude == sparse.magnitude
    exact = int((np.abs(sparse.values) != sparse.magnitude).sum())
    as_list = 8 * exact + 4 * (sparse.count - exact)
    as_symbols = -(-sparse.numel // 4) + 4 * exact
    assert message.size == HEADER_SIZE + 12 + min(as_list, as_symbols)


def test_gspar_is_written_as_hybrid_in_both_forms() -> None:
    vector = np.random.default_rng(0).standard_normal(4000).astype(np.float32)
    for density, form in ((0.02, 3), (0.6, 4)):
        sparse = GSpar(density=density).select(vector)
        message = encode(sparse)
        assert message[6] == form
        assert same(decode(message), sparse)
        assert message.size < encode(sparse, Wire("float32")).size


@pytest.mark.parametrize(("values", "torch_name"), [("bfloat16", "bfloat16"), ("float16", "float16")])
def test_narrow_values_round_as_torch_does(values: ValueCoding, torch_name: str) -> None:
    import torch

    numbers = np.random.default_rng(1).standard_normal(10_000).astype(np.float32)
    numbers[:6] = [0.0, -0.0, 1e-40, 65504.0, 1.00390625, -1.01171875]
    sparse = SparseVector(np.arange(numbers.size, dtype=np.uint32), numbers, numbers.size)
    found = decode(encode(sparse, Wire(values))).values
    expected = torch.from_numpy(numbers).to(getattr(torch, torch_name)).float().numpy()
    assert np.array_equal(found.view(np.uint32), expected.view(np.uint32))


@pytest.mark.parametrize(("values", "largest"), [("float16", 70000.0), ("bfloat16", 3.4e38)])
def test_a_value_that_would_become_infinite_is_refused(values: ValueCoding, largest: float) -> None:
    sparse = SparseVector(np.array([1], np.uint32), np.array([largest], np.float32), 4)
    with pytest.raises(WireError, match=f"does not fit {values}"):
        encode(sparse, Wire(values))


def test_vectors_of_more_than_2_to_the_32_entries_have_wide_indices() -> None:
    numel = 2**32 + 10
    sparse = SparseVector(np.array([1, 2**32 + 9], np.uint64), np.array([1, -2], np.float32), numel)
    assert same(decode(encode(sparse)), sparse)
    hybrid = SparseVector(sparse.indices, np.array([2, -2], np.float32), numel, np.float32(2))
    assert same(decode(encode(hybrid)), hybrid)


@pytest.mark.parametrize("numel", [2**31 - 1, 2**31, 2**31 + 1, 2**32])
def test_shifted_indices_do_not_overflow(numel: int) -> None:
    sparse = SparseVector(np.array([0, numel - 1], np.uint32), np.array([-5, 5], np.float32), numel, np.float32(5))
    assert same(decode(encode(sparse)), sparse)


def examples() -> dict[str, NDArray[np.uint8]]:
    """Return one message of every coding, from literals."""
    indices = np.array([0, 3, 4, 9], np.uint32)
    plain = SparseVector(indices, np.array([1.5, -2.25, 0.1, 1e-3], np.float32), 10)
    hybrid = SparseVector(indices, np.array([-0.5, 0.5, 4.0, -0.5], np.float32), 10, np.float32(0.5))
    sparse_hybrid = SparseVector(hybrid.indices, hybrid.values, 1000, hybrid.magnitude)
    wide = SparseVector(np.array([7, 2**32 + 1], np.uint64), np.array([1, -1], np.float32), 2**32 + 2)
    return {
        "float32": encode(plain, step=1, bucket=2, rank=3),
        "bfloat16": encode(plain, Wire("bfloat16"), step=2**40),
        "float16": encode(plain, Wire("float16")),
        "hybrid-list": encode(sparse_hybrid, step=5),
        "hybrid-symbols": encode(hybrid, step=6),
        "wide-indices": encode(wide),
        "empty": encode(SparseVector.empty(17), step=4, bucket=1, rank=1),
    }


@pytest.mark.parametrize("name", examples())
def test_golden_messages_are_written_and_read_as_ever(name: str) -> None:
    stored = (GOLDEN / f"{name}.hex").read_text().replace("\n", "")
    assert examples()[name].tobytes().hex() == stored
    assert same(decode(bytes.fromhex(stored)), decode(examples()[name]))


@pytest.mark.parametrize("name", examples())
def test_every_flipped_bit_and_every_cut_is_seen(name: str) -> None:
    message = examples()[name]
    for place in range(message.size):
        for bit in range(8):
            damaged = message.copy()
            damaged[place] ^= 1 << bit
            with pytest.raises(WireError):
                decode(damaged)
        with pytest.raises(WireError):
            decode(message[:place])
    with pytest.raises(WireError):
        decode(np.append(message, np.uint8(0)))


@given(st.binary(max_size=200))
def test_foreign_bytes_are_refused(noise: bytes) -> None:
    with pytest.raises(WireError):
        decode(noise)


@given(st.sampled_from(sorted(examples())), st.data())
def test_lies_under_a_right_checksum_are_seen_or_harmless(name: str, data: st.DataObject) -> None:
    """A sender's bug that signs its own damage gives a WireError, or a vector that keeps its promises."""
    message = examples()[name].copy()
    for _ in range(data.draw(st.integers(1, 4))):
        place = data.draw(st.integers(0, message.size - 1))
        message[place] = data.draw(st.integers(0, 255))
    sign(message)
    try:
        found = decode(message)
    except WireError:
        return
    assert np.isfinite(found.values).all()
    assert (np.diff(found.indices.astype(np.int64)) > 0).all()
    assert found.count == 0 or int(found.indices[-1]) < found.numel


def sign(message: NDArray[np.uint8]) -> None:
    checksum = zlib.crc32(message[HEADER_SIZE:].tobytes(), zlib.crc32(message[: HEADER_SIZE - 4].tobytes()))
    message[HEADER_SIZE - 4 : HEADER_SIZE] = np.frombuffer(checksum.to_bytes(4, "little"), np.uint8)


@pytest.mark.parametrize(
    ("expected", "words"),
    [
        (Expectation(2, 2, 3, 10), "step 1 came where step 2 was due"),
        (Expectation(1, 0, 3, 10), "bucket 2 came where bucket 0 was due"),
        (Expectation(1, 2, 0, 10), "rank 3 came where rank 0 was due"),
        (Expectation(1, 2, 3, 11), "numel 10 came where numel 11 was due"),
    ],
)
def test_a_message_of_another_place_is_refused(expected: Expectation, words: str) -> None:
    with pytest.raises(WireError, match=words):
        decode(examples()["float32"], expected)


def test_a_message_of_another_version_names_both() -> None:
    message = examples()["float32"].copy()
    message[4] = 9
    sign(message)
    with pytest.raises(WireError, match=r"wire format 9, this is format 1"):
        decode(message)


def test_options_are_checked() -> None:
    with pytest.raises(ConfigError, match="int8"):
        Wire("int8")  # type: ignore[arg-type]


def test_hybrid_writes_a_vector_without_a_shared_magnitude_as_float32() -> None:
    """GSpar's result has none when no entry was sampled: a zero vector, or certain entries alone."""
    for sparse in (SparseVector.empty(3), GSpar(density=0.001).select(np.eye(1, 4000, dtype=np.float32)[0])):
        assert same(decode(encode(sparse, Wire("hybrid"))), sparse)

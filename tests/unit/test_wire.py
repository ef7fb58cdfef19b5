"""The wire format: round trips, golden messages, and no damage that goes unseen.

python -m tests.unit.test_wire writes the golden messages that are missing; it changes none.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mpisparse.errors import ConfigError, WireError
from mpisparse.sparse import SparseVector
from mpisparse.sparsifiers import GSpar
from mpisparse.wire import HEADER_SIZE, Expectation, IndexCoding, ValueCoding, Wire, decode, encode, rounded
from tests.unit.messages import (
    INDEX_CODINGS,
    VALUE_CODINGS,
    examples,
    originals,
    plain,
    same,
    seal,
    shared,
    shared_vectors,
    vectors,
)

GOLDEN = Path(__file__).parent.parent / "golden" / "wire-v2"


@pytest.mark.parametrize("values", VALUE_CODINGS)
@pytest.mark.parametrize("indices", INDEX_CODINGS)
@given(sparse=st.one_of(vectors(), shared_vectors()), gigabits=st.sampled_from([0.01, 1.0, 100.0]))
def test_receivers_get_what_was_selected_or_its_rounding(
    indices: IndexCoding, values: ValueCoding, sparse: SparseVector, gigabits: float
) -> None:
    wire = Wire(values, indices, gigabits)
    message = encode(sparse, wire, step=7, bucket=3, rank=2)
    found = decode(message, Expectation(7, 3, 2, sparse.numel))
    assert same(found, rounded(sparse, wire))
    if wire.exact:
        assert same(found, sparse)
    assert not np.shares_memory(found.indices, message)
    assert not np.shares_memory(found.values, message)


@given(shared_vectors())
def test_a_shared_magnitude_is_written_once_where_that_is_shorter(sparse: SparseVector) -> None:
    message, as_float32 = encode(sparse), encode(sparse, Wire("float32"))
    exact = int((np.abs(sparse.values) != sparse.magnitude).sum())
    least = 14 + 4 * exact + -(-(sparse.count - exact) // 8)
    assert message.size <= as_float32.size
    if message.size < as_float32.size:
        assert decode(message).magnitude == sparse.magnitude
        assert message.size >= as_float32.size - 4 * sparse.count + least
    else:
        assert sparse.count < 5 or exact > sparse.count // 2


def test_gspar_is_written_as_hybrid() -> None:
    vector = np.random.default_rng(0).standard_normal(4000).astype(np.float32)
    for density in (0.02, 0.6):
        sparse = GSpar(density=density).select(vector)
        message = encode(sparse)
        assert message[6] == 4
        assert same(decode(message), sparse)
        assert decode(message).magnitude == sparse.magnitude
        # No longer than version 1: 8 bytes an exact entry and 4 a sampled one, or two bits a coordinate.
        exact = int((np.abs(sparse.values) != sparse.magnitude).sum())
        assert message.size <= HEADER_SIZE + 14 + min(4 * sparse.count + 4 * exact, 1000 + 4 * exact)


@pytest.mark.parametrize(("values", "torch_name"), [("bfloat16", "bfloat16"), ("float16", "float16")])
def test_narrow_values_round_as_torch_does(values: ValueCoding, torch_name: str) -> None:
    import torch

    numbers = np.random.default_rng(1).standard_normal(10_000).astype(np.float32)
    numbers[:6] = [0.0, -0.0, 1e-40, 65504.0, 1.00390625, -1.01171875]
    sparse = SparseVector(np.arange(numbers.size, dtype=np.uint32), numbers, numbers.size)
    found = decode(encode(sparse, Wire(values))).values
    expected = torch.from_numpy(numbers).to(getattr(torch, torch_name)).float().numpy()
    assert np.array_equal(found.view(np.uint32), expected.view(np.uint32))


def test_signs_share_the_mean_magnitude() -> None:
    sparse = SparseVector(np.array([1, 2, 5, 6], np.uint32), np.array([3, -1, 0.0, -0.0], np.float32), 8)
    found = decode(encode(sparse, Wire("sign")))
    assert found.values.tolist() == [1, -1, 1, -1]
    assert found.magnitude == 1
    zeros = SparseVector(sparse.indices, np.array([0.0, -0.0, 0.0, 0.0], np.float32), 8)
    assert same(decode(encode(zeros, Wire("sign"))), zeros)
    assert decode(encode(zeros, Wire("sign"))).magnitude is None


@pytest.mark.parametrize(("values", "largest"), [("float16", 70000.0), ("bfloat16", 3.4e38)])
def test_a_value_that_would_become_infinite_is_refused(values: ValueCoding, largest: float) -> None:
    sparse = SparseVector(np.array([1], np.uint32), np.array([largest], np.float32), 4)
    for write in (encode, rounded):
        with pytest.raises(WireError, match=f"does not fit {values}"):
            write(sparse, Wire(values))


@pytest.mark.parametrize("name", originals())
def test_golden_messages_are_written_and_read_as_ever(name: str) -> None:
    stored = (GOLDEN / f"{name}.hex").read_text().replace("\n", "")
    assert examples()[name].tobytes().hex() == stored
    assert same(decode(bytes.fromhex(stored)), rounded(*originals()[name]))


def test_golden_messages_show_every_coding() -> None:
    stored = [bytes.fromhex(path.read_text().replace("\n", "")) for path in GOLDEN.glob("*.hex")]
    assert {message[4] for message in stored} == {2}
    assert {message[5] for message in stored} == {0, 1, 2, 3}
    assert {message[6] for message in stored} == {0, 1, 2, 3, 4}


@pytest.mark.parametrize("name", originals())
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


@pytest.mark.parametrize("name", [name for name in originals() if not name.startswith("empty")])
def test_a_longer_body_under_a_right_checksum_is_refused(name: str) -> None:
    for tail in (b"\0", b"\1", b"\0" * 8):
        message = np.append(examples()[name], np.frombuffer(tail, np.uint8))
        message[40:44] = np.frombuffer((message.size - HEADER_SIZE).to_bytes(4, "little"), np.uint8)
        seal(message)
        with pytest.raises(WireError):
            decode(message)


@given(st.binary(max_size=200))
def test_foreign_bytes_are_refused(noise: bytes) -> None:
    with pytest.raises(WireError):
        decode(noise)


@pytest.mark.parametrize(
    ("expected", "words"),
    [
        (Expectation(2, 2, 3, 10), "step 0 came where step 2 was due"),
        (Expectation(0, 0, 3, 10), "bucket 2 came where bucket 0 was due"),
        (Expectation(0, 2, 0, 10), "rank 3 came where rank 0 was due"),
        (Expectation(0, 2, 3, 11), "numel 10 came where numel 11 was due"),
    ],
)
def test_a_message_of_another_place_is_refused(expected: Expectation, words: str) -> None:
    with pytest.raises(WireError, match=words):
        decode(examples()["raw"], expected)


def test_a_message_of_another_version_names_both() -> None:
    message = examples()["raw"].copy()
    message[4] = 9
    seal(message)
    with pytest.raises(WireError, match=r"wire format 9, this is format 2"):
        decode(message)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"values": "int8"}, "int8"),
        ({"indices": "zip"}, "zip"),
        ({"gigabits": 0.0}, "0.0"),
        ({"gigabits": np.inf}, "inf"),
    ],
)
def test_options_are_checked(options: dict[str, object], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        Wire(**options)  # type: ignore[arg-type]


def test_hybrid_writes_a_vector_without_a_shared_magnitude_as_float32() -> None:
    """GSpar's result has none when no entry was sampled: a zero vector, or certain entries alone."""
    for sparse in (SparseVector.empty(3), GSpar(density=0.001).select(np.eye(1, 4000, dtype=np.float32)[0])):
        message = encode(sparse, Wire("hybrid"))
        assert message[6] == 0
        assert same(decode(message), sparse)


def test_a_vector_is_refused_that_is_too_long_for_the_format() -> None:
    for numel, indices, words in (
        (2**62 + 1, "raw", r"over the limit of 2\*\*62"),
        (2**40, "bitmap", "over the limit of 4 GiB"),
        (2**41, "blocks", "over the limit of 4 GiB"),
    ):
        with pytest.raises(WireError, match=words):
            encode(plain(numel, 5), Wire(indices=indices))  # type: ignore[arg-type]


@pytest.mark.parametrize("indices", INDEX_CODINGS)
def test_a_sender_refuses_indices_that_do_not_rise(indices: IndexCoding) -> None:
    for chosen in ([5, 3], [0, 300, 200, 500], [7, 2000], [2**32 - 1], [4, 4, 4], [*range(300, 340), 20]):
        sparse = replace(plain(1000, *range(len(chosen))), indices=np.array(chosen, np.uint32))
        with pytest.raises(WireError, match=r"do not rise|does not lie in a vector of 1000"):
            encode(sparse, Wire(indices=indices))


def test_an_exact_value_of_the_shared_magnitude_is_refused() -> None:
    message = encode(shared(1000, *range(40), exact=(3,)))
    message[-4:] = np.frombuffer(np.float32(-0.5).tobytes(), np.uint8)
    seal(message)
    with pytest.raises(WireError, match="must be written as a sign"):
        decode(message)


def write_missing() -> None:
    GOLDEN.mkdir(exist_ok=True)
    for name, message in examples().items():
        path = GOLDEN / f"{name}.hex"
        if not path.exists():
            digits = message.tobytes().hex()
            path.write_text("".join(digits[i : i + 96] + "\n" for i in range(0, len(digits), 96)))


if __name__ == "__main__":
    write_missing()

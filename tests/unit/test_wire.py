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
from mpisparse.sparse import Grid, SparseVector
from mpisparse.sparsifiers import QSGD, GSpar, TernGrad
from mpisparse.wire import HEADER_SIZE, Expectation, IndexCoding, ValueCoding, Wire, decode, encode, rounded
from tests.unit.messages import (
    INDEX_CODINGS,
    VALUE_CODINGS,
    examples,
    gridded,
    gridded_vectors,
    originals,
    plain,
    same,
    same_grid,
    seal,
    shared,
    shared_vectors,
    vectors,
)

GOLDEN = Path(__file__).parent.parent / "golden" / "wire-v2"


@pytest.mark.parametrize("values", VALUE_CODINGS)
@pytest.mark.parametrize("indices", INDEX_CODINGS)
@given(sparse=st.one_of(vectors(), shared_vectors(), gridded_vectors()), gigabits=st.sampled_from([0.01, 1.0, 100.0]))
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
    assert {message[6] for message in stored} == {0, 1, 2, 3, 4, 5}


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


# Values on a grid ---------------------------------------------------------------------------------------------------


@given(gridded_vectors())
def test_a_grid_is_written_where_that_is_shorter_and_arrives(sparse: SparseVector) -> None:
    assert sparse.grid is not None
    message, as_float32 = encode(sparse), encode(sparse, Wire("float32"))
    assert message.size <= as_float32.size
    found = decode(message)
    assert same(found, sparse)
    if message.size < as_float32.size:
        assert message[6] == 5
        assert found.grid is not None
        assert same_grid(found.grid, sparse.grid)
    else:
        assert found.grid is None
        assert sparse.grid.units.size > sparse.count // 2 or sparse.count < 9 or sparse.grid.levels.max() > 127


@pytest.mark.parametrize("bits", [2, 3, 4, 8, 12, 16])
@pytest.mark.parametrize("bucket", [None, 1, 512, 1000])
@pytest.mark.parametrize("numel", [0, 1, 511, 512, 4001])
def test_qsgd_arrives_bit_for_bit(bits: int, bucket: int | None, numel: int) -> None:
    """Empty vectors, one entry, all entries, several buckets and a short last one."""
    vector = np.random.default_rng(numel).standard_normal(numel).astype(np.float32)
    sparse = QSGD(bits, bucket).select(vector)
    for values in ("auto", "levels", "float32"):
        assert same(decode(encode(sparse, Wire(values))), sparse)


#: Kinds of vectors, in the units of their own.
_LAWS = {
    "gaussian": lambda rng, numel: rng.standard_normal(numel),
    "uniform": lambda rng, numel: rng.uniform(-1, 1, numel),
    "laplace": lambda rng, numel: rng.laplace(size=numel),
    "uneven": lambda rng, numel: rng.standard_normal(numel) ** 5,
}


@pytest.mark.parametrize("kind", _LAWS)
@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("bucket", [None, 512])
def test_levels_take_fewer_bits_than_a_fixed_width(kind: str, bits: int, bucket: int | None) -> None:
    """Header and prefix (18 bytes) apart: `bits` an entry of the whole vector, and 32 a norm."""
    numel = 20_000
    vector = _LAWS[kind](np.random.default_rng(0), numel).astype(np.float32)
    sparse = QSGD(bits, bucket).select(vector)
    assert sparse.grid is not None
    taken = 8 * (encode(sparse).size - HEADER_SIZE - 18)
    assert taken <= numel * bits + 32 * sparse.grid.units.size


@pytest.mark.parametrize("kind", _LAWS)
@pytest.mark.parametrize("bits", [5, 6, 7, 8])
def test_levels_take_fewer_bits_than_the_bound_of_elias_codes(kind: str, bits: int) -> None:
    """The paper's bound: at s = sqrt(numel) levels, 2.8 numel + 32 bits on average; header and prefix apart."""
    numel = (2 ** (bits - 1) - 1) ** 2
    vector = _LAWS[kind](np.random.default_rng(bits), numel).astype(np.float32)
    rule, draws = QSGD(bits, None), 20
    sizes = [encode(rule.select(vector, np.random.default_rng(i))).size for i in range(draws)]
    assert 8 * (np.mean(sizes) - HEADER_SIZE - 18) <= 2.8 * numel + 32


def test_terngrad_is_written_as_signs() -> None:
    vector = np.random.default_rng(0).standard_normal(4000).astype(np.float32)
    sparse = TernGrad().select(vector)
    message = encode(sparse)
    assert message[6] == 4
    assert same(decode(message), sparse)
    places = message.size - HEADER_SIZE - 14 - -(-sparse.count // 8)
    assert 0 < places <= 500


def test_forms_are_those_asked_for() -> None:
    drawn, tossed = gridded(100, 100, dict.fromkeys(range(50), 3)), shared(100, *range(50))
    for values, codings in (("auto", (5, 4)), ("levels", (5, 0)), ("hybrid", (0, 4)), ("float32", (0, 0))):
        found = tuple(encode(sparse, Wire(values))[6] for sparse in (drawn, tossed))  # type: ignore[arg-type]
        assert found == codings


def test_rounded_values_are_on_no_grid() -> None:
    drawn = gridded(100, 100, dict.fromkeys(range(50), 3))
    assert rounded(drawn, Wire()).grid is drawn.grid
    for values in ("bfloat16", "float16", "sign"):
        assert rounded(drawn, Wire(values)).grid is None
        assert decode(encode(drawn, Wire(values))).grid is None


def test_a_sender_refuses_a_level_of_zero() -> None:
    sparse = gridded(100, 100, dict.fromkeys(range(50), 3))
    assert sparse.grid is not None
    for levels in (np.zeros(50, np.uint16), np.array([2, 0] * 25, np.uint16), np.array([0, 3] * 25, np.uint16)):
        wrong = replace(sparse, grid=Grid(sparse.grid.units, 100, levels))
        with pytest.raises(WireError):
            encode(wrong)


def _eight(number: int) -> bytes:
    return number.to_bytes(8, "little")


@pytest.mark.parametrize(
    ("offset", "data", "words"),
    [
        (0, _eight(0), "buckets of 0 entries"),
        (0, _eight(41), "buckets of 41 entries are announced in a vector of 40"),
        (0, _eight(1), "40 units take 160 bytes"),
        (8, _eight(13), "14 levels of 1 or more are announced to add up to 13"),
        (8, _eight(14), "14 levels of 1 need no coding"),
        (8, _eight(80), "14 that add up to 80"),
        (8, _eight(78), "unused bits after the last index"),
        (8, _eight(2**63), "announced to add up to"),
        (16, b"\0", "levels in index coding 0"),
        (16, b"\2", "levels in index coding 2"),
        (18, np.float32(-1).tobytes(), "a unit is negative"),
        (18, np.float32(np.nan).tobytes(), "a unit is negative, NaN or infinite"),
        (18, np.float32(0).tobytes(), "a level times its unit is zero"),
        (22, np.float32(3e38).tobytes(), "leaves the range of float32"),
    ],
)
def test_what_no_sender_of_levels_writes_is_refused(offset: int, data: bytes, words: str) -> None:
    message = examples()["levels"].copy()
    start = HEADER_SIZE + 5 + offset  # the places are a bitmap of 40 bits
    message[start : start + len(data)] = np.frombuffer(data, np.uint8)
    seal(message)
    with pytest.raises(WireError, match=words):
        decode(message)


def test_levels_above_the_largest_are_refused() -> None:
    sparse = gridded(100, 100, dict.fromkeys(range(50), 3))
    assert sparse.grid is not None
    levels = np.append(np.ones(49, np.uint32), np.uint32(65536))
    message = encode(replace(sparse, grid=Grid(sparse.grid.units, 100, levels)))  # type: ignore[arg-type]
    with pytest.raises(WireError, match="announced as 1, or 65536"):
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

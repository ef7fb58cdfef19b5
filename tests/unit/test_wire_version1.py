"""Wire format 1 is read as ever, though nothing writes it any more."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mpisparse.errors import WireError
from mpisparse.sparse import SparseVector
from mpisparse.wire import HEADER_SIZE, Expectation, Wire, decode, rounded
from tests.unit.messages import same, seal

GOLDEN = Path(__file__).parent.parent / "golden" / "wire-v1"

INDICES = np.array([0, 3, 4, 9], np.uint32)
PLAIN = SparseVector(INDICES, np.array([1.5, -2.25, 0.1, 1e-3], np.float32), 10)
HYBRID = SparseVector(INDICES, np.array([-0.5, 0.5, 4.0, -0.5], np.float32), 10, np.float32(0.5))
SPARSE = SparseVector(HYBRID.indices, HYBRID.values, 1000, HYBRID.magnitude)
WIDE = SparseVector(np.array([7, 2**32 + 1], np.uint64), np.array([1, -1], np.float32), 2**32 + 2)

#: What each golden message holds, and whose it is.
EXPECTED = {
    "float32": (PLAIN, Expectation(1, 2, 3, 10)),
    "bfloat16": (rounded(PLAIN, Wire("bfloat16")), Expectation(2**40, 0, 0, 10)),
    "float16": (rounded(PLAIN, Wire("float16")), Expectation(0, 0, 0, 10)),
    "hybrid-list": (SPARSE, Expectation(5, 0, 0, 1000)),
    "hybrid-symbols": (HYBRID, Expectation(6, 0, 0, 10)),
    "wide-indices": (WIDE, Expectation(0, 0, 0, 2**32 + 2)),
    "empty": (SparseVector.empty(17), Expectation(4, 1, 1, 17)),
}


def golden(name: str) -> bytes:
    return bytes.fromhex((GOLDEN / f"{name}.hex").read_text().replace("\n", ""))


def test_every_golden_message_is_looked_at() -> None:
    assert {path.stem for path in GOLDEN.glob("*.hex")} == set(EXPECTED)


@pytest.mark.parametrize("name", EXPECTED)
def test_golden_messages_are_read_as_ever(name: str) -> None:
    sparse, expectation = EXPECTED[name]
    found = decode(golden(name), expectation)
    assert same(found, sparse)
    assert found.magnitude == sparse.magnitude


@pytest.mark.parametrize("name", EXPECTED)
def test_every_flipped_bit_and_every_cut_is_seen(name: str) -> None:
    message = np.frombuffer(golden(name), np.uint8)
    for place in range(message.size):
        for bit in range(8):
            damaged = message.copy()
            damaged[place] ^= 1 << bit
            with pytest.raises(WireError):
                decode(damaged)
        with pytest.raises(WireError):
            decode(message[:place])


@given(st.sampled_from(sorted(EXPECTED)), st.data())
def test_lies_under_a_right_checksum_are_seen_or_harmless(name: str, data: st.DataObject) -> None:
    """A sender's bug that signs its own damage gives a WireError, or a vector that keeps its promises."""
    message = np.frombuffer(golden(name), np.uint8).copy()
    for _ in range(data.draw(st.integers(1, 4))):
        place = data.draw(st.integers(5, message.size - 1))
        message[place] = data.draw(st.integers(0, 255))
    seal(message)
    try:
        found = decode(message)
    except WireError:
        return
    assert np.isfinite(found.values).all()
    assert (found.indices[1:] > found.indices[:-1]).all()
    assert found.count == 0 or int(found.indices[-1]) < found.numel


def test_a_sampled_index_that_does_not_fit_is_not_cut_to_one_that_does() -> None:
    """Above 2**31 entries a sampled index had 63 bits, of which an index keeps 32."""
    numel, shifted = 2**32, (2**32 + 5) << 1
    body = np.float32(2).tobytes() + (0).to_bytes(8, "little") + shifted.to_bytes(8, "little")
    header = b"MSPV\1\0\3\0" + b"".join(n.to_bytes(8, "little") for n in (0, numel, 1)) + bytes(8)
    message = np.frombuffer(header + len(body).to_bytes(4, "little") + bytes(4) + body, np.uint8).copy()
    assert message.size == HEADER_SIZE + len(body)
    seal(message)
    with pytest.raises(WireError, match="index 4294967301 does not lie in a vector of 4294967296"):
        decode(message)
    message[HEADER_SIZE + 12 : HEADER_SIZE + 20] = np.frombuffer((11).to_bytes(8, "little"), np.uint8)
    seal(message)
    found = decode(message)
    assert (found.indices.tolist(), found.values.tolist()) == ([5], [-2])

"""Any buffer at all is a WireError, or a vector that keeps its promises.

A million mutated messages, most of them with a right checksum, so that it does not keep the decoders behind it from
trouble. It takes half a minute; MPISPARSE_FUZZ=10000 makes it fewer.
"""

from __future__ import annotations

import os
import struct
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from mpisparse.errors import WireError
from mpisparse.sparse import SparseVector, index_dtype
from mpisparse.wire import HEADER_SIZE, Wire, decode, encode
from mpisparse.wire.levels import magnitudes
from tests.unit.messages import INDEX_CODINGS, VALUE_CODINGS, Bytes, originals, plain, same, seal, shared

CASES = int(os.environ.get("MPISPARSE_FUZZ", "1000000"))
SEED = 20180

#: Messages mutated together: numpy's share of the work is then small.
BATCH = 256

GOLDEN = Path(__file__).parent.parent / "golden" / "wire-v1"

_BODY = struct.Struct("<I")


def templates() -> list[Bytes]:
    """Return small messages of every index coding with every value coding, and those of version 1."""
    sources = [sparse for sparse, _ in originals().values() if sparse.numel < 2**32]
    sources += [plain(1, 0), plain(64, *range(64)), shared(256, *range(0, 256, 5), exact=(0, 7, 8))]
    written = [
        encode(sparse, Wire(values, indices), step=1)
        for sparse in sources
        for indices in INDEX_CODINGS[1:]
        for values in VALUE_CODINGS[1:]
    ]
    written += [encode(*originals()[name]) for name in ("raw-wide", "rice-wide")]
    read = [np.frombuffer(bytes.fromhex(path.read_text()), np.uint8) for path in sorted(GOLDEN.glob("*.hex"))]
    return written + read * 8


def mutants(template: Bytes, generator: np.random.Generator) -> Iterator[tuple[str, Bytes]]:
    """Return BATCH mutants of a message, each with the name of what was done to it."""
    size, count = template.size, BATCH
    tail = generator.integers(0, 256, (count, 24), np.uint8)
    rows = np.concatenate((np.tile(template, (count, 1)), tail), axis=1)
    places = generator.integers(0, size, (count, 4))
    # Half of the places are those that say how to read the rest, where there is most to go wrong.
    near = generator.integers(HEADER_SIZE, HEADER_SIZE + 20, (count, 4)) % size
    places = np.where(generator.random((count, 4)) < 0.4, near, places)
    fresh = generator.integers(0, 256, (count, 4), np.uint8)
    fresh = np.where(generator.random((count, 4)) < 0.3, 1 << (fresh & 7), fresh).astype(np.uint8)
    wanted = generator.integers(1, 5, count)
    cuts = generator.integers(0, size + 24, count)
    cuts += cuts >= size
    for number, kind in enumerate(generator.choice(list(_SHARES), count, p=list(_SHARES.values()))):
        row, message = rows[number], rows[number, :size]
        if kind in ("sealed", "unsealed"):
            for place, byte in zip(places[number, : wanted[number]], fresh[number], strict=False):
                message[place] = byte
        elif kind in ("cut or longer", "sealed cut or longer"):
            message = row[: cuts[number]]
            if message.size >= HEADER_SIZE and kind.startswith("sealed"):
                _BODY.pack_into(message.data, 40, message.size - HEADER_SIZE)
        elif kind == "version":
            message[4] = 3 - message[4] if fresh[number, 0] & 1 else fresh[number, 1]
        elif kind == "noise":
            start = HEADER_SIZE if fresh[number, 0] & 1 else 0
            message[start:] = generator.integers(0, 256, size - start, np.uint8)
        elif kind == "untouched":
            message[8] = message[32] = message[36] = fresh[number, 0]
        if kind not in ("unsealed", "cut or longer") and message.size >= HEADER_SIZE:
            seal(message)
        yield str(kind), message


#: What is done to messages, and to which share of them.
_SHARES = {
    "sealed": 0.62,
    "unsealed": 0.05,
    "cut or longer": 0.04,
    "sealed cut or longer": 0.12,
    "version": 0.06,
    "noise": 0.06,
    "untouched": 0.05,
}


def check_promises(found: SparseVector, message: Bytes) -> None:
    """Assert what every decoded vector must hold."""
    numel, count = struct.unpack_from("<QQ", message.data, 16)
    indices, values = found.indices, found.values
    assert (found.numel, indices.size, values.size) == (numel, count, count)
    assert indices.dtype == index_dtype(numel)
    assert values.dtype == np.float32
    if count:
        assert int(indices[-1]) < numel
        assert (indices[1:] > indices[:-1]).all()
        assert np.isfinite(values).all()
    if found.grid is not None:
        assert np.array_equal(np.abs(values), magnitudes(found.grid, indices))
        assert found.grid.levels.size == count
        assert count == 0 or int(found.grid.levels.min()) > 0


def test_any_buffer_is_refused_or_keeps_its_promises() -> None:
    generator = np.random.default_rng(SEED)
    messages = templates()
    seen: Counter[tuple[str, bool]] = Counter()
    for turn in range(-(-CASES // BATCH)):
        template = messages[turn % len(messages)]
        original = decode(template)
        for kind, message in mutants(template, generator):
            try:
                found = decode(message)
            except WireError:
                seen[kind, False] += 1
                continue
            seen[kind, True] += 1
            if kind == "untouched":
                assert same(found, original)
            else:
                check_promises(found, message)
    assert sum(seen.values()) >= CASES
    assert seen["untouched", False] == seen["cut or longer", True] == 0
    # The decoders behind the checksum were reached, and found some mutants good and most bad.
    assert seen["sealed", True] > CASES // 20
    assert seen["sealed", False] > CASES // 10

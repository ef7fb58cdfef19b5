"""docs/wire-format.md is enough to read every message: its reader reads the golden ones, and those of today."""

from __future__ import annotations

import re
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mpisparse.sparse import SparseVector
from mpisparse.wire import IndexCoding, ValueCoding, Wire, decode, encode
from mpisparse.wire import indices as codings
from tests.paths import CHECKOUT
from tests.unit.messages import INDEX_CODINGS, VALUE_CODINGS, examples, gridded_vectors, shared_vectors, vectors

PAGE = (CHECKOUT / "docs" / "wire-format.md").read_text()
GOLDEN = sorted((CHECKOUT / "tests" / "golden").glob("wire-v*/*.hex"))

Reader = Callable[[bytes], tuple[dict[str, int], dict[int, float]]]


def page_reader() -> Reader:
    namespace: dict[str, Any] = {}
    (code,) = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    exec(code, namespace)
    read: Reader = namespace["decode"]
    return read


READ = page_reader()


def check(message: bytes) -> None:
    header, entries = READ(message)
    found = decode(message)
    assert (header["numel"], header["count"]) == (found.numel, found.count)
    assert list(entries) == found.indices.tolist()
    assert struct.pack(f"<{found.count}f", *entries.values()) == found.values.tobytes()


@pytest.mark.parametrize("path", GOLDEN, ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_the_reader_on_the_page_reads_golden_messages(path: Path) -> None:
    check(bytes.fromhex(path.read_text()))


@pytest.mark.parametrize("values", VALUE_CODINGS)
@pytest.mark.parametrize("indices", INDEX_CODINGS)
@given(sparse=st.one_of(vectors(), shared_vectors(), gridded_vectors()))
def test_the_reader_on_the_page_reads_what_is_written(
    indices: IndexCoding, values: ValueCoding, sparse: SparseVector
) -> None:
    check(encode(sparse, Wire(values, indices)).tobytes())


@pytest.mark.parametrize("name", ["rice", "sign"])
def test_the_examples_on_the_page_are_the_golden_messages(name: str) -> None:
    example = re.search(rf"`[^`]*{name}\.hex`.*?```text\n(.*?)```", PAGE, re.DOTALL)
    assert example is not None
    shown = b""
    for line in example[1].splitlines():
        offset, digits = re.match(r" *(\d*)((?:  ?[0-9a-f]{2}\b(?!\.))*)", line).groups()  # type: ignore[union-attr]
        if offset:
            start = int(offset)
            shown = shown.ljust(start, b"\0")
            expected = examples()[name].tobytes()[start:]
            assert expected.startswith(bytes.fromhex(digits))
            shown += bytes.fromhex(digits)
    assert len(shown) > 60


def test_the_costs_on_the_page_are_those_in_force() -> None:
    rows = re.findall(r"^\| (raw|rice|blocks|bitmap) \| ([\d.]+) \| ([\d.]+) \|$", PAGE, re.MULTILINE)
    assert [name for name, _, _ in rows] == list(codings.NAMES)
    assert np.allclose([float(a) for _, a, _ in rows], codings._ENTRY_NANOSECONDS)
    assert np.allclose([float(b) for _, _, b in rows], codings._BLOCK_NANOSECONDS)

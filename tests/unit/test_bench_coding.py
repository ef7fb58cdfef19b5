"""What GSpar's paper proves of its messages, on vectors of the kind that it speaks of."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest

from mpisparse import random
from mpisparse.bench.coding import (
    FLOAT_BITS,
    Options,
    approximately_sparse,
    entropy,
    measure_coding,
    measure_vector,
    message_bits,
    theorem_bound,
)
from mpisparse.bench.report import Report
from mpisparse.comm import solo
from mpisparse.runtime import Surroundings
from mpisparse.sparse import SparseVector
from mpisparse.sparsifiers import QSGD, GSpar
from tests.unit.hard_vectors import Vector

SURROUNDINGS = Surroundings("0", 1, 1, "threads", "no MPI", "multiple", 1, "a test")

#: Entries, large ones, rho.
CASES = [
    (numel, max(1, round(share * numel)), rho)
    for numel in (256, 2048, 50_000)
    for share in (0.004, 0.03, 0.3)
    for rho in (0.05, 0.3, 1.0, 4.0, 20.0)
]

each_case = pytest.mark.parametrize(("numel", "s", "rho"), CASES)


def vector_of(numel: int, s: int, rho: float, seed: int = 0) -> Vector:
    return approximately_sparse(numel, s, rho, random.generator(seed, 0, 0, 0))


@each_case
def test_vectors_are_as_sparse_as_they_are_called(numel: int, s: int, rho: float) -> None:
    """The s largest entries hold the most of any s entries: definition 1 of the paper is met, if by any, by them."""
    falling = np.sort(np.abs(vector_of(numel, s, rho).astype(np.float64)))[::-1]
    assert falling[s:].sum() <= rho * falling[:s].sum() * (1 + 1e-6)


@each_case
def test_lemma_3_bounds_the_entries_and_the_variance(numel: int, s: int, rho: float) -> None:
    """Exact expectations, from the probabilities: no draws, and float64 up to the rounding of the level to float32."""
    for seed in range(3):
        vector = vector_of(numel, s, rho, seed)
        chances, squares = GSpar(variance=rho).probabilities(vector), np.square(vector.astype(np.float64))
        some = squares > 0
        assert chances.sum() <= (1 + rho) * s * (1 + 1e-6)
        assert (squares[some] / chances[some]).sum() <= (1 + rho) * squares.sum() * (1 + 1e-6)


@each_case
def test_theorem_4_bounds_the_bits(numel: int, s: int, rho: float) -> None:
    """The mean over 60 messages, in bits, everything in a message but its fixed header of 384 bits, beside the bound.

    The theorem counts no signs of sampled entries, a bit each. They are in our figure, and nothing is added to the
    bound for them, nor for lengths and for filling up bytes: places are coded near their entropy instead of in log2 d
    bits each, and that pays for all of it. Only where a single entry is large do lengths show. There the bound is given
    what no message is without: 10 bytes for the number of exact entries and the coding of their places, 4 bytes of each
    of two Rice codes, and 7 bits in each of five parts that fill up bytes.
    """
    vector, draws = vector_of(numel, s, rho), 60
    rule = GSpar(variance=rho)
    bits = [message_bits(rule.select(vector, random.generator(0, 0, step, 0))) for step in range(draws)]
    lengths = 8 * (10 + 4 + 4) + 5 * 7 if s == 1 else 0
    assert np.mean(bits) <= theorem_bound(numel, s, rho) + lengths


def test_the_bound_is_the_formula() -> None:
    assert theorem_bound(1024, 10, 0.5) == 10 * (32 + 10) + 50 + 32
    assert theorem_bound(1024, 100, 2.0) == 100 * (32 + 10) + 1024 + 32


def test_the_entropy_is_that_of_the_symbols() -> None:
    magnitude = np.float32(0.5)
    values = np.array([0.5, -0.5, 0.5, 4.0], np.float32)
    sparse = SparseVector(np.arange(4, dtype=np.uint32), values, 8, magnitude)
    # Eight entries: four absent, two plus, one minus, one exact; the magnitude and one exact value.
    assert entropy(sparse) == pytest.approx(4 * 1 + 2 * 2 + 3 + 3 + 2 * FLOAT_BITS)
    assert entropy(SparseVector.empty(8)) == 0
    drawn = QSGD(2, None).select(np.array([3.0, 0, 0, 0], np.float32))
    assert entropy(drawn) == pytest.approx(3 * math.log2(4 / 3) + 2 + FLOAT_BITS)


def test_messages_are_near_their_entropy() -> None:
    """Within a tenth of it on long vectors, prefix apart, for GSpar, TernGrad and QSGD alike."""
    for row in measure_vector(100_000, 3000, 0.5, draws=3):
        assert row.entropy * 0.99 <= row.bits <= row.entropy * 1.1 + 8 * 40, row.method


def test_the_document_and_the_tables(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    target = tmp_path / "coding.json"
    options = Options(sizes=[512, 1024], supports=[0.1], rhos=[0.5], draws=3)
    measure_coding(solo(), options, Report(solo(), "coding", SURROUNDINGS, str(target)))
    document = json.loads(target.read_text())
    assert document["study"] == document["benchmark"] == "coding"
    methods = ["gspar", "qsgd-2", "qsgd-4", "qsgd-8", "terngrad"]
    assert [row["method"] for row in document["rows"]] == 2 * methods
    for row in document["rows"]:
        assert row["bits_with_header"] == row["bits"] + 384
        assert row["dense"] == 32 * row["numel"]
        assert row["s"] == round(0.1 * row["numel"])
        assert row["variance"] >= 0.5
        assert 0 < row["count"] <= row["numel"]
    printed = capsys.readouterr().out
    assert all(method in printed for method in methods)
    assert "rho 0.5" in printed

"""How many bits messages of unbiased rules really take, beside what GSpar's paper proves of its own.

The vectors are (rho, s)-approximately sparse: there are s entries, and the magnitudes of the others add up to at most
rho times what theirs do. For these, with variance = rho, the paper (Wangni et al., NeurIPS 2018) proves that at most
(1 + rho) s entries are sent on average (lemma 3), in at most s (b + log2 d) + min(rho s log2 d, d) + b bits
(theorem 4).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np
from numpy.typing import NDArray

from mpisparse import random, wire
from mpisparse.bench.report import Report
from mpisparse.bench.text import density_text, digits, entries_text
from mpisparse.comm import Communicator
from mpisparse.sparse import SparseVector
from mpisparse.sparsifiers import QSGD, GSpar, Sparsifier, TernGrad
from mpisparse.wire import HEADER_SIZE, Wire

Vector = NDArray[np.float32]

#: Bits of a number, the paper's b.
FLOAT_BITS = 32

#: Bits of the fixed header, which every message has and the paper leaves out.
HEADER_BITS = 8 * HEADER_SIZE

#: A network on which nothing counts but bytes: every message takes its shortest coding.
_SHORTEST = Wire(gigabits=1e-3)


@dataclass(frozen=True, kw_only=True)
class Options:
    """What to measure.

    sizes: entries of the vectors; supports: shares of them that are large; rhos: what the others add up to, as a part
        of what the large ones do, and GSpar's variance.
    draws: messages of each rule on each vector.
    """

    sizes: Sequence[int]
    supports: Sequence[float]
    rhos: Sequence[float]
    draws: int = 20


@dataclass(frozen=True, slots=True)
class Row:
    """What the messages of one rule took on one vector; means over the draws.

    numel, s, rho: of the vector. method: the rule.
    bits, bits_with_header: of a message, without and with its fixed header of 384 bits.
    bound: theorem 4's for GSpar on this vector, in bits. It counts neither signs nor lengths, nor a header.
    entropy: bits of an ideal code of the symbols that the entries became, and 32 for each number sent besides.
    dense: bits of the vector in float32.
    count: entries sent. count_bound: lemma 3's for GSpar, (1 + rho) s.
    variance: squared norm of what was sent over that of the vector.
    """

    numel: int
    s: int
    rho: float
    method: str
    bits: float
    bits_with_header: float
    bound: float
    entropy: float
    dense: int
    count: float
    count_bound: float
    variance: float


def rules(rho: float) -> dict[str, Sparsifier]:
    """Return the rules that are compared, by name; QSGD with one norm a vector, as the paper compares it."""
    qsgd = {f"qsgd-{bits}": QSGD(bits, bucket=None) for bits in (2, 4, 8)}
    return {"gspar": GSpar(variance=rho), **qsgd, "terngrad": TernGrad()}


def approximately_sparse(numel: int, s: int, rho: float, generator: np.random.Generator) -> Vector:
    """Return a vector whose other entries add up to rho times what `s` of them do: (rho, s)-approximately sparse.

    Both parts are Gaussian, at places drawn at random. `s` is 1 to `numel`.
    """
    entries = generator.standard_normal(numel)
    large, small = np.abs(entries[:s]).sum(), np.abs(entries[s:]).sum()
    entries[s:] *= rho * large / small if small else 0.0
    return generator.permutation(entries).astype(np.float32)


def theorem_bound(numel: int, s: int, rho: float) -> float:
    """Return theorem 4's bound on the mean length of a message in bits."""
    index = math.log2(numel)
    return s * (FLOAT_BITS + index) + min(rho * s * index, numel) + FLOAT_BITS


def entropy(sparse: SparseVector) -> float:
    """Return the bits of an ideal code of the symbols that entries became, and of the numbers that go along.

    Symbols are absent, and sign and level on a grid; without one absent, plus and minus the shared magnitude, and
    exact, each of whose values is a number more. Symbols that d_l of d entries became take the sum of d_l log2(d / d_l)
    bits. That the reader has to know these shares is not counted.
    """
    symbols = np.sign(sparse.values).astype(np.int64)
    if sparse.grid is not None:
        symbols *= sparse.grid.levels
        numbers = sparse.grid.units.size
    else:
        exact = np.abs(sparse.values) != sparse.magnitude
        symbols[exact] = 2
        numbers = int(exact.sum()) + (sparse.magnitude is not None)
    _, counts = np.unique(symbols, return_counts=True)
    counts = np.append(counts, sparse.numel - sparse.count)
    shares = counts[counts > 0] / sparse.numel
    return float(-sparse.numel * (shares * np.log2(shares)).sum()) + FLOAT_BITS * numbers


def measure_coding(comm: Communicator, options: Options, report: Report) -> None:
    """Measure, and report. Nothing depends on the machine: all ranks find the same."""
    rows: list[Row] = []
    for numel in options.sizes:
        for support in options.supports:
            s = max(1, round(support * numel))
            for rho in options.rhos:
                found = measure_vector(numel, s, rho, options.draws)
                _show(report, found)
                rows += found
    report.write(study="coding", options=asdict(options), rows=[asdict(row) for row in rows])


def measure_vector(numel: int, s: int, rho: float, draws: int) -> list[Row]:
    """Return a row for each rule on one vector."""
    vector = approximately_sparse(numel, s, rho, random.generator(0, 0, 0, 0))
    square = _square(vector)
    rows = []
    for method, rule in rules(rho).items():
        sent = [rule.select(vector, random.generator(1, 0, step, 0)) for step in range(draws)]
        bits = float(np.mean([message_bits(sparse) for sparse in sent]))
        rows.append(
            Row(
                numel=numel,
                s=s,
                rho=rho,
                method=method,
                bits=bits,
                bits_with_header=bits + HEADER_BITS,
                bound=theorem_bound(numel, s, rho),
                entropy=float(np.mean([entropy(sparse) for sparse in sent])),
                dense=FLOAT_BITS * numel,
                count=float(np.mean([sparse.count for sparse in sent])),
                count_bound=(1 + rho) * s,
                variance=float(np.mean([_square(sparse.values) for sparse in sent])) / square,
            )
        )
    return rows


def message_bits(sparse: SparseVector) -> int:
    """Return the bits of the message in its shortest coding, without the fixed header."""
    return 8 * wire.encode(sparse, _SHORTEST).size - HEADER_BITS


def _square(values: Vector) -> float:
    return float(np.square(values.astype(np.float64)).sum())


def _show(report: Report, rows: Sequence[Row]) -> None:
    first = rows[0]
    title = (
        f"{entries_text(first.numel)} entries, {density_text(first.s / first.numel)} large, rho {first.rho:g}: "
        f"{digits(first.bound)} bits by theorem 4"
    )
    cells = [
        [
            row.method,
            digits(row.bits),
            digits(row.bits_with_header),
            digits(row.entropy),
            digits(row.bits / row.bound),
            digits(row.dense / row.bits),
            digits(row.count),
            digits(row.variance),
        ]
        for row in rows
    ]
    columns = ["rule", "bits", "with header", "entropy", "/ bound", "dense / this", "entries", "variance"]
    report.table(title, columns, cells)

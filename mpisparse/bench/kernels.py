"""Each piece of local work against a copy of the vector, against torch, and against what is possible."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch

from mpisparse.bench.cases import Case, all_cases
from mpisparse.bench.report import Report, seconds_json
from mpisparse.bench.statistics import Summary, median_ratio, summarise
from mpisparse.bench.text import digits, entries_text, milliseconds
from mpisparse.bench.timing import Contender, interleave
from mpisparse.comm import Communicator
from mpisparse.words import counted


@dataclass(frozen=True, kw_only=True)
class Options:
    """What to measure: entries of the vector, densities, threads per rank, repetitions, seconds for one case."""

    sizes: Sequence[int]
    densities: Sequence[float]
    threads: int = 1
    repeat: int = 9
    budget: float = 120.0


@dataclass(frozen=True, slots=True)
class Row:
    """What one case took.

    copies: as many copies of the vector take as long; torch: how many times as long torch's expression takes; both are
        medians of ratios taken pair by pair.
    """

    name: str
    size: int
    seconds: Summary
    copy_seconds: float
    copies: float
    torch: float
    limit: float
    reason: str


def measure_kernels(comm: Communicator, options: Options, report: Report) -> None:
    """Measure, and report; ranks work at the same time and share the memory, as in training. Collective."""
    torch.set_num_threads(options.threads)
    rows: list[Row] = []
    for numel in options.sizes:
        for density in options.densities:
            rows += [_measure(comm, case, numel, density, options) for case in all_cases(density)]
        _show(report, comm, [row for row in rows if row.size == numel], options)
    report.write(options=asdict(options), rows=[_json(row) for row in rows])


def _measure(comm: Communicator, case: Case[Any], numel: int, density: float, options: Options) -> Row:
    state = case.prepare(numel, density)
    source, target = np.ones(numel, np.float32), np.zeros(numel, np.float32)
    contenders = [
        Contender(name="copy", run=lambda: np.copyto(target, source)),
        Contender(name="ours", run=lambda: case.ours(state), prepare=lambda: case.refresh(state)),
        Contender(name="torch", run=lambda: case.torch(state), prepare=lambda: case.refresh(state)),
    ]
    samples = interleave(contenders, options.repeat, comm=comm, warm_up=2, budget=options.budget)
    copy, ours, torchs = (samples[name].seconds for name in ("copy", "ours", "torch"))
    return Row(
        name=case.name,
        size=numel,
        seconds=summarise(ours),
        copy_seconds=summarise(copy).median,
        copies=median_ratio(ours, copy),
        torch=median_ratio(torchs, ours),
        limit=case.limit,
        reason=case.reason,
    )


def _show(report: Report, comm: Communicator, rows: Sequence[Row], options: Options) -> None:
    threads = counted(options.threads, "thread")
    ranks = f", {comm.size} ranks at once" if comm.size > 1 else ""
    copy = milliseconds(summarise([row.copy_seconds for row in rows]).median)
    title = f"{entries_text(rows[0].size)} entries, {threads}{ranks}: copying them takes {copy} ms"
    cells = [
        [
            row.name,
            milliseconds(row.seconds.median),
            digits(row.copies),
            digits(row.torch),
            digits(row.limit),
            row.reason,
        ]
        for row in rows
    ]
    report.table(title, ["what", "ms", "copies", "torch", "limit", "the limit is"], cells)


def _json(row: Row) -> dict[str, Any]:
    return {**asdict(row), "seconds": seconds_json(row.seconds)}

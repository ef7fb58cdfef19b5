"""A whole exchange of one gradient, sparse and dense, on the network at hand."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from mpisparse.bench.breakeven import BreakEven, Point, find_break_even
from mpisparse.bench.contenders import Gradients, dense, gloo, sparse_with_memory
from mpisparse.bench.gloo import gloo_group
from mpisparse.bench.report import Report, phase_medians, seconds_json, time_cells
from mpisparse.bench.statistics import Line, fit_line, median_ratio, summarise
from mpisparse.bench.text import digits, entries_text, milliseconds
from mpisparse.bench.timing import Samples, interleave
from mpisparse.collectives import Allreduce, BFloat16Pieces
from mpisparse.comm import Communicator, agreed
from mpisparse.phases import NAMES
from mpisparse.sparsifiers import GSpar, Sparsifier, TopK
from mpisparse.training.console import bytes_text
from mpisparse.wire import ValueCoding
from mpisparse.words import counted

#: What all others are compared with.
REFERENCE = "dense float32"

_RULES: dict[str, Callable[..., Sparsifier]] = {"topk": TopK, "gspar": GSpar}

#: Phases in which a rank waits for others, or bytes move; all others are its own work.
_SHARED = ("agree", "exchange")


@dataclass(frozen=True, kw_only=True)
class Options:
    """What to measure.

    sizes: entries of the gradient; densities: of the sparse contenders, each in (0, 1].
    rule: "topk" with error feedback, or "gspar".
    values: value coding of messages.
    repeat: repetitions of each contender; fewer where `budget`, seconds for one size, is used up.
    gloo: whether torch.distributed's all_reduce takes part.
    """

    sizes: Sequence[int]
    densities: Sequence[float]
    rule: Literal["topk", "gspar"] = "topk"
    values: ValueCoding = "auto"
    repeat: int = 15
    budget: float = 120.0
    gloo: bool = False


@dataclass(frozen=True, slots=True)
class Entry:
    """One contender at one size: its samples, the density asked for, and its peak memory in bytes beyond the gradient.

    `memory` is that of the rank that took most; None for dense contenders, and where it cannot be told.
    """

    name: str
    samples: Samples
    density: float | None = None
    memory: int | None = None

    def mean(self, name: str) -> float:
        """Return the mean over repetitions and ranks of a detail."""
        return float(self.samples.details[name].mean())


def measure_exchange(comm: Communicator, options: Options, report: Report) -> None:
    """Measure, and report. Collective."""
    with agreed(comm):
        rules = {density: _RULES[options.rule](density=density) for density in options.densities}
    group: AbstractContextManager[None] = gloo_group(comm) if options.gloo else nullcontext()
    results: dict[int, list[Entry]] = {}
    with group:
        for numel in options.sizes:
            results[numel] = _measure_size(comm, numel, rules, options)
            _show(report, comm, numel, results[numel])
    even = {numel: _break_even(numel, entries) for numel, entries in results.items()} if comm.size > 1 else {}
    lines = _dense_lines(results)
    sentences = _sentences(even, lines) if comm.size > 1 else [_ALONE]
    for sentence in sentences:
        report.say(sentence)
    report.write(
        options=asdict(options),
        results=[
            {
                "size": numel,
                "contenders": [_entry_json(entry, entries[0], numel) for entry in entries],
                "break_even": [asdict(item) for item in even.get(numel, [])],
            }
            for numel, entries in results.items()
        ],
        dense_lines={name: asdict(line) for name, line in lines.items()},
        verdict=sentences,
    )


_ALONE = "one rank: there is nobody to exchange with, so these are local costs. Start it with mpirun -n 2 or more"


# Measuring ----------------------------------------------------------------------------------------------------------


def _measure_size(comm: Communicator, numel: int, rules: Mapping[float, Sparsifier], options: Options) -> list[Entry]:
    """Return the entries of one size, the reference first. Collective."""
    gradients = Gradients(numel, comm.rank)
    vector = np.zeros(numel, np.float32)
    contenders = [
        dense(REFERENCE, Allreduce(comm), vector, gradients),
        dense("dense bfloat16", BFloat16Pieces(comm), vector, gradients),
    ]
    if options.gloo:
        contenders.append(gloo(comm, vector, gradients))
    densities: dict[str, float] = {}
    memory: dict[str, int | None] = {}
    for density, rule in rules.items():
        name = f"{options.rule} {100 * density:g} %"
        contender, memory[name] = sparse_with_memory(comm, name, rule, options.values, gradients, numel)
        contenders.append(contender)
        densities[name] = density
    samples = interleave(contenders, options.repeat, comm=comm, warm_up=2, budget=options.budget)
    return [Entry(name, taken, densities.get(name), memory.get(name)) for name, taken in samples.items()]


# Judging ------------------------------------------------------------------------------------------------------------


def _break_even(numel: int, entries: Sequence[Entry]) -> list[BreakEven]:
    """Return how sparse compares with each dense contender, the reference first."""
    points = [_point(entry) for entry in entries if entry.density is not None]
    whole = [entry for entry in entries if entry.density is None]
    return [find_break_even(numel, e.name, summarise(e.samples.seconds).median, points) for e in whole]


def _point(entry: Entry) -> Point:
    local = [name for name in NAMES if name not in _SHARED]
    return Point(
        density=entry.mean("density"),
        seconds=summarise(entry.samples.seconds).median,
        local=sum(phase_medians(entry.samples.details, local).values()),
        received=entry.mean("received"),
    )


def _dense_lines(results: Mapping[int, Sequence[Entry]]) -> dict[str, Line]:
    """Return seconds as a function of the bytes received for each dense contender, where two sizes were measured."""
    lines = {}
    for number, entry in enumerate(next(iter(results.values()))):
        same = [entries[number] for entries in results.values()]
        line = fit_line([e.mean("received") for e in same], [summarise(e.samples.seconds).median for e in same])
        if entry.density is None and line is not None:
            lines[entry.name] = line
    return lines


def _sentences(even: Mapping[int, Sequence[BreakEven]], lines: Mapping[str, Line]) -> list[str]:
    sentences = [item.sentence for items in even.values() for item in items]
    for name, line in lines.items():
        if line.slope > 0:
            speed = f"{bytes_text(1 / line.slope)}/s into a rank"
            start = f"{milliseconds(max(0.0, line.start))} ms"
            sentences.append(f"{name} costs about {start} and then {speed}, between the sizes measured")
    return sentences


# Showing ------------------------------------------------------------------------------------------------------------


def _show(report: Report, comm: Communicator, numel: int, entries: Sequence[Entry]) -> None:
    reference = entries[0].samples.seconds
    ranks = counted(comm.size, "rank")
    title = f"Exchange of {entries_text(numel)} entries over {ranks}, {counted(reference.size, 'repetition')} each"
    columns = ["", "ms", "10 - 90 %", "/ dense", "message", "received", "density", "memory"]
    report.table(title, columns, [list(_cells(entry, reference, numel)) for entry in entries])
    sparse = [entry for entry in entries if entry.density is not None]
    phases = {entry.name: phase_medians(entry.samples.details, NAMES) for entry in sparse}
    shown = [name for name in NAMES if any(name in spent for spent in phases.values())]
    rows = [[name, *(milliseconds(spent.get(phase, 0.0)) for phase in shown)] for name, spent in phases.items()]
    report.table("of which, ms, mean over ranks", ["", *shown], rows)


def _cells(entry: Entry, reference: NDArray[np.float64], numel: int) -> Iterator[str]:
    yield entry.name
    yield from time_cells(summarise(entry.samples.seconds))
    yield digits(median_ratio(entry.samples.seconds, reference))
    yield bytes_text(entry.mean("sent"))
    yield bytes_text(entry.mean("received"))
    yield f"{100 * entry.mean('density'):.3g} %" if entry.density is not None else "-"
    yield f"{100 * entry.memory / (4 * numel):.0f} %" if entry.memory is not None else "-"


def _entry_json(entry: Entry, reference: Entry, numel: int) -> dict[str, Any]:
    samples = entry.samples
    found: dict[str, Any] = {
        "name": entry.name,
        "repetitions": int(samples.seconds.size),
        "seconds": seconds_json(summarise(samples.seconds)),
        "ratio_to_dense": median_ratio(samples.seconds, reference.samples.seconds),
        "sent_bytes": entry.mean("sent"),
        "received_bytes": entry.mean("received"),
    }
    if entry.density is None:
        return found
    percent = None if entry.memory is None else 100 * entry.memory / (4 * numel)
    return {
        **found,
        "density": entry.density,
        "density_sent": entry.mean("density"),
        "memory_percent_of_gradient": percent,
        "phase_seconds": phase_medians(samples.details, NAMES),
    }

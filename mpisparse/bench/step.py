"""The step time of a real model: dense, sparse, sparse while backward runs, and torch's DistributedDataParallel."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch

from mpisparse.bench.ddp import ddp_contender
from mpisparse.bench.gloo import gloo_group
from mpisparse.bench.report import Report, phase_medians, seconds_json, time_cells
from mpisparse.bench.runs import dense_of, with_overlap, without_overlap
from mpisparse.bench.statistics import median_ratio, summarise
from mpisparse.bench.text import digits, milliseconds
from mpisparse.bench.timing import Contender, Samples, interleave
from mpisparse.comm import Communicator, agreed
from mpisparse.errors import ConfigError
from mpisparse.phases import NAMES, Phases
from mpisparse.runtime.runlog import StepRecord
from mpisparse.training.build import build_data, build_trainer
from mpisparse.training.config import RunConfig
from mpisparse.training.configfile import to_tree
from mpisparse.training.console import bytes_text
from mpisparse.training.data import Split
from mpisparse.words import counted

DENSE, SPARSE, OVERLAPPED, DDP = "dense", "sparse", "sparse, overlapped", "DDP over gloo"

#: Steps of one contender in a row, so that caches and allocator see what they see in training.
BLOCK = 5


def measure_step(comm: Communicator, run: RunConfig, report: Report, *, steps: int, budget: float, gloo: bool) -> None:
    """Measure, and report. Collective."""
    with agreed(comm):
        data = build_data(run.data)
    group: AbstractContextManager[None] = gloo_group(comm) if gloo else nullcontext()
    with group:
        contenders, notes = _contenders(comm, run, data)
        if gloo:
            contenders.append(ddp_contender(DDP, comm, run, data))
        samples = interleave(contenders, steps, comm=comm, warm_up=2, block=BLOCK, lead_in=1, budget=budget)
    title = f"Step of {run.name} over {counted(comm.size, 'rank')}"
    _show(report, title, samples)
    for note in notes:
        report.say(note)
    report.write(
        config=to_tree(run),
        steps=steps,
        gloo=gloo,
        contenders=[_json(name, taken, samples) for name, taken in samples.items()],
        notes=notes,
    )


# Measuring ----------------------------------------------------------------------------------------------------------


def _contenders(comm: Communicator, run: RunConfig, data: Split) -> tuple[list[Contender], list[str]]:
    """Return the contenders of this package, each with a model of its own, and what to say of one that is missing."""
    plain = without_overlap(run)
    contenders = [
        _contender(DENSE, comm, dense_of(plain), data),
        _contender(SPARSE, comm, plain, data),
    ]
    overlapped, reason = with_overlap(run, comm.size)
    if overlapped is None:
        return contenders, [reason] if reason else []
    try:
        contenders.append(_contender(OVERLAPPED, comm, overlapped, data))
    except ConfigError as error:
        if not error.on_all_ranks:
            raise
        return contenders, [f"not measured with overlap: {error}"]
    return contenders, []


def _contender(name: str, comm: Communicator, run: RunConfig, data: Split) -> Contender:
    """Return a contender that takes the steps of `mpisparse train`. Collective."""
    torch.manual_seed(run.seed)
    trainer = build_trainer(run, data, comm, Phases())
    return Contender(name=name, run=trainer.step, inspect=_inspect)


def _inspect(record: StepRecord) -> dict[str, float]:
    traffic = record.traffic
    density = traffic.count / max(1, traffic.numel)
    moved = {"sent": float(traffic.payload), "received": float(traffic.received), "density": density}
    return {**record.seconds, **moved}


# Showing ------------------------------------------------------------------------------------------------------------


def _show(report: Report, title: str, samples: dict[str, Samples]) -> None:
    repetitions = samples[DENSE].seconds.size
    columns = ["", "ms", "10 - 90 %", "/ dense", "/ DDP", "received", "density"]
    report.table(
        f"{title}, {counted(repetitions, 'step')} each", columns, [_cells(n, s, samples) for n, s in samples.items()]
    )
    phases = {name: phase_medians(taken.details, NAMES) for name, taken in samples.items() if name != DDP}
    shown = [name for name in NAMES if any(name in spent for spent in phases.values())]
    rows = [[name, *(milliseconds(spent.get(phase, 0.0)) for phase in shown)] for name, spent in phases.items()]
    report.table("of which, ms, mean over ranks", ["", *shown], rows)


def _cells(name: str, taken: Samples, samples: dict[str, Samples]) -> list[str]:
    details = taken.details
    return [
        name,
        *time_cells(summarise(taken.seconds)),
        digits(median_ratio(taken.seconds, samples[DENSE].seconds)),
        digits(median_ratio(taken.seconds, samples[DDP].seconds)) if DDP in samples else "-",
        bytes_text(float(details["received"].mean())),
        f"{100 * float(details['density'].mean()):.3g} %",
    ]


def _json(name: str, taken: Samples, samples: dict[str, Samples]) -> dict[str, Any]:
    return {
        "name": name,
        "steps": int(taken.seconds.size),
        "seconds": seconds_json(summarise(taken.seconds)),
        "ratio_to_dense": median_ratio(taken.seconds, samples[DENSE].seconds),
        "ratio_to_ddp": median_ratio(taken.seconds, samples[DDP].seconds) if DDP in samples else None,
        "sent_bytes": float(taken.details["sent"].mean()),
        "received_bytes": float(taken.details["received"].mean()),
        "density_sent": float(taken.details["density"].mean()),
        "phase_seconds": phase_medians(taken.details, NAMES),
    }

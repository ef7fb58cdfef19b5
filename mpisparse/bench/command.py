"""`mpisparse bench exchange`, `step`, `kernels` and `coding`: what sparsification costs here, and where it pays."""

from __future__ import annotations

from pathlib import Path
from typing import Any, get_args

import click

from mpisparse.wire import ValueCoding

_DENSITY = click.FloatRange(0, 1, min_open=True)
_BUDGET = click.option(
    "--budget",
    type=click.FloatRange(min=0),
    default=120.0,
    show_default=True,
    metavar="SECONDS",
    help="No further round begins after so long (at least three are made).",
)
_JSON = click.option("--json", "target", metavar="FILE", help="Write the results as JSON, too; - for standard output.")
_GLOO = click.option("--gloo", is_flag=True, help="Compare with torch.distributed over gloo.")


@click.group()
def bench() -> None:
    """Measure what sparsification costs here, and where it pays."""


@bench.command()
@click.option("--size", "sizes", type=click.IntRange(min=1), multiple=True, default=(10_000_000,), metavar="ENTRIES")
@click.option("--density", "densities", type=_DENSITY, multiple=True, default=(0.001, 0.01, 0.05), metavar="SHARE")
@click.option("--rule", type=click.Choice(["topk", "gspar"]), default="topk", show_default=True)
@click.option("--values", type=click.Choice(get_args(ValueCoding)), default="auto", show_default=True)
@click.option("--repeat", type=click.IntRange(min=1), default=15, show_default=True, help="Repetitions of each.")
@_BUDGET
@_GLOO
@_JSON
def exchange(target: str | None, **options: Any) -> None:
    """Average one gradient over the ranks, sparse and dense. Start it under mpirun or srun.

    --size and --density may be repeated.
    """
    from mpisparse.bench.exchange import Options, measure_exchange
    from mpisparse.bench.report import Report
    from mpisparse.runtime import start

    comm, surroundings = start()
    measure_exchange(comm, Options(**options), Report(comm, "exchange", surroundings, target))


@bench.command()
@click.option("--config", type=click.Path(path_type=Path), help="A run's TOML file; a built-in model without.")
@click.option("--set", "settings", multiple=True, metavar="SECTION.KEY=VALUE", help="Set a key over the file.")
@click.option("--steps", type=click.IntRange(min=1), default=20, show_default=True, help="Steps of each contender.")
@_BUDGET
@_GLOO
@_JSON
def step(
    config: Path | None, settings: tuple[str, ...], steps: int, budget: float, gloo: bool, target: str | None
) -> None:
    """Train a model for some steps, sparse and dense. Start it under mpirun or srun."""
    from mpisparse.bench.report import Report
    from mpisparse.bench.runs import read_run
    from mpisparse.bench.step import measure_step
    from mpisparse.comm import agreed
    from mpisparse.runtime import start

    comm, surroundings = start()
    with agreed(comm):
        run = read_run(config, settings)
    report = Report(comm, "step", surroundings, target)
    measure_step(comm, run, report, steps=steps, budget=budget, gloo=gloo)


@bench.command()
@click.option("--size", "sizes", type=click.IntRange(min=1), multiple=True, default=(25_600_000,), metavar="ENTRIES")
@click.option("--density", "densities", type=_DENSITY, multiple=True, default=(0.01, 0.001), metavar="SHARE")
@click.option("--threads", type=click.IntRange(min=1), default=1, show_default=True, help="Threads a rank.")
@click.option("--repeat", type=click.IntRange(min=1), default=9, show_default=True, help="Repetitions of each.")
@_BUDGET
@_JSON
def kernels(target: str | None, **options: Any) -> None:
    """Run each kernel beside a copy of the vector and the obvious torch expression. Needs no mpirun."""
    from mpisparse.bench.kernels import Options, measure_kernels
    from mpisparse.bench.report import Report
    from mpisparse.runtime import start

    comm, surroundings = start()
    measure_kernels(comm, Options(**options), Report(comm, "kernels", surroundings, target))


@bench.command()
@click.option("--size", "sizes", type=click.IntRange(min=2), multiple=True, default=(2048, 131_072), metavar="ENTRIES")
@click.option("--support", "supports", type=_DENSITY, multiple=True, default=(0.01, 0.1), metavar="SHARE")
@click.option(
    "--rho", "rhos", type=click.FloatRange(0, min_open=True), multiple=True, default=(0.1, 0.5, 1.0), metavar="PART"
)
@click.option("--draws", type=click.IntRange(min=1), default=20, show_default=True, help="Messages of each rule.")
@_JSON
def coding(target: str | None, **options: Any) -> None:
    """Count the bits of messages of GSpar, QSGD and TernGrad, beside GSpar's bound. Needs no mpirun.

    The vectors have a SHARE of large entries, and the others add up to PART of what these do.
    """
    from mpisparse.bench.coding import Options, measure_coding
    from mpisparse.bench.report import Report
    from mpisparse.runtime import start

    comm, surroundings = start()
    measure_coding(comm, Options(**options), Report(comm, "coding", surroundings, target))

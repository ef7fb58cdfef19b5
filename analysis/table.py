"""A table of runs: repeats that differ in the seed alone make one row."""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from analysis.find import find
from analysis.load import Run, load_run
from analysis.markdown import table

#: Phases in which a rank works or waits for the exchange, beside computing the gradient.
_EXCHANGE = ("agree", "sparsify", "encode", "exchange", "decode")

_COLUMNS = [
    "run", "ranks", "repeats", "test accuracy", "test loss", "into each rank", "dense / this", "seconds", "exchange",
]  # fmt: skip


@dataclass(frozen=True)
class Row:
    """Runs of one configuration.

    accuracy, loss: of the last evaluation, one a run. received: bytes into each rank. dense_ratio: by how much a dense
    exchange would have received more. seconds: of all steps. exchange_share: part of them spent on the exchange.
    """

    name: str
    ranks: int
    accuracy: list[float]
    loss: list[float]
    received: float
    dense_ratio: float
    seconds: float
    exchange_share: float


def read_runs(paths: Iterable[Path]) -> tuple[list[Run], list[str]]:
    """Return the runs below some paths that have an evaluation, each once, and lines on what is left out.

    Raises:
        ValueError: a path does not exist, or there is no such run.
    """
    paths = list(paths)
    found = find(paths)
    runs, left_out = [], [f"{file} is no run directory" for file in found.files if file in paths]
    left_out += [f"{path} holds no run" for path in paths if path.is_dir() and not _holds(path, found.runs)]
    for directory in found.runs:
        try:
            with warnings.catch_warnings(record=True) as noted:
                warnings.simplefilter("always")
                run = load_run(directory)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            left_out.append(str(error) if isinstance(error, ValueError) else f"{directory} cannot be read: {error!r}")
            continue
        if run.evaluations and run.steps:
            runs.append(run)
            left_out += [str(note.message) for note in noted]
        else:
            left_out.append(f"{directory} has no {'evaluation' if run.steps else 'steps'}")
    if not runs:
        listed = ", ".join(map(str, paths[:5])) + (", ..." if len(paths) > 5 else "")
        raise ValueError("; ".join([f"there is no run with an evaluation in {listed}", *left_out[:5]]))
    return runs, left_out


def _holds(path: Path, runs: Iterable[Path]) -> bool:
    return any(run == path or path in run.parents for run in runs)


def rows_of(runs: Iterable[Run]) -> list[Row]:
    """Return a row for each configuration, in the order in which they come; runs without an evaluation are left out."""
    groups: dict[str, list[Run]] = {}
    for run in runs:
        if run.evaluations and run.steps:
            groups.setdefault(_identity(run), []).append(run)
    return [_row(group) for group in groups.values()]


def to_markdown(rows: Iterable[Row]) -> str:
    """Return the rows as a Markdown table; means with standard deviations over the runs of a row."""
    return table(_COLUMNS, (_cells(row) for row in rows), right=True)


def _cells(row: Row) -> list[str]:
    return [
        row.name,
        str(row.ranks),
        str(len(row.accuracy)),
        f"{_spread(row.accuracy, 100, 2)} %",
        _spread(row.loss, 1, 4),
        f"{row.received / 1e6:.1f} MB",
        f"{row.dense_ratio:.1f}",
        f"{row.seconds:.0f}",
        f"{row.exchange_share:.0%}",
    ]


def _identity(run: Run) -> str:
    """Return what repeats have in common: everything but the seed."""
    config = {key: value for key, value in run.config.items() if key != "seed"}
    return json.dumps([config, run.environment.get("ranks")], sort_keys=True)


def _row(runs: list[Run]) -> Row:
    first, ranks = runs[0], int(runs[0].environment["ranks"])
    received = [sum(step["received_bytes"] for step in run.steps) / ranks for run in runs]
    dense = [sum(step["dense_bytes"] for step in run.steps) / ranks for run in runs]
    seconds = [sum(sum(step["seconds"].values()) for step in run.steps) for run in runs]
    exchange = [sum(sum(step["seconds"][name] for name in _EXCHANGE) for step in run.steps) for run in runs]
    return Row(
        name=_describe(first.config),
        ranks=ranks,
        accuracy=[run.evaluations[-1]["accuracy"] for run in runs],
        loss=[run.evaluations[-1]["loss"] for run in runs],
        received=mean(received),
        dense_ratio=mean(dense) / mean(received) if mean(received) else 1.0,
        seconds=mean(seconds),
        exchange_share=mean(exchange) / mean(seconds),
    )


def _describe(config: dict[str, Any]) -> str:
    """Return the run's name, its rule with options, and its memory when it is not the default one."""
    rule = dict(config["sparsifier"])
    name = rule.pop("name")
    options = ", ".join(f"{key} {value:g}" for key, value in rule.items() if isinstance(value, int | float))
    memory = config["memory"]["name"]
    parts = [config["name"], f"{name} {options}".strip(), "" if memory == "auto" else memory.replace("_", " ")]
    return ", ".join(part for part in parts if part)


def _spread(values: list[float], factor: float, digits: int) -> str:
    text = f"{mean(values) * factor:.{digits}f}"
    return text if len(values) < 2 else f"{text} ± {stdev(values) * factor:.{digits}f}"

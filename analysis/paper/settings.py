"""The settings of an experiment's runs, as rows of a table: what all of them share, and what varies."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from analysis.markdown import code
from analysis.paper.record import Record

#: Keys that the page says, in its order; those that no run has are left out.
_KEYS = (
    "data.name", "data.train", "data.samples", "data.features", "data.train_limit", "data.c1", "data.c2",
    "model.name", "model.channels", "model.l2", "model.halved", "model.penalty",
    "training.length", "training.batch", "training.global_batch",
    "optimizer.name", "schedule.name", "schedule.period", "svrg.every", "svrg.form",
    "sparsifier.name", "sparsifier.iterations", "resparsify.name", "asynchronous.window",
    "exchange.values", "exchange.indices", "seed",
)  # fmt: skip
_ENVIRONMENT = {
    "ranks": "ranks",
    "nodes": "nodes",
    "library": "MPI library",
    "host": "hosts",
    "platform": "platform",
    "mpisparse": "mpisparse",
    "torch": "torch",
}


def settings(records: Sequence[Record]) -> list[list[str]]:
    """Return rows of a name and the values that the runs have, each once."""
    rows = [["runs", str(len(records))]]
    failed = [record for record in records if record.error is not None]
    if failed:
        rows.append(["failed", f"{len(failed)}, such as {failed[0].directory.name}: {failed[0].error}"])
    for key in _KEYS:
        rows += _row(code(key), (_get(record.config, key) for record in records))
    for key, words in _ENVIRONMENT.items():
        rows += _row(words, (record.environment.get(key) for record in records))
    dates = sorted(str(record.environment["started"]) for record in records if "started" in record.environment)
    if dates:
        rows.append(["started", dates[0] if dates[0] == dates[-1] else f"{dates[0]} to {dates[-1]}"])
    windows = {str(record.end["window"]) for record in records if "window" in record.end}
    return rows + ([["window", ", ".join(sorted(windows))]] if windows else [])


def _row(name: str, values: Iterable[Any]) -> list[list[str]]:
    known = {value for value in values if isinstance(value, str | int | float)}
    if not known:
        return []
    numbers = sorted(value for value in known if not isinstance(value, str))
    words = sorted(value for value in known if isinstance(value, str))
    shown = [f"{value:g}" if isinstance(value, float) else str(value) for value in numbers]
    return [[name, ", ".join([*shown, *words])]]


def _get(config: dict[str, Any], key: str) -> Any:
    section, _, name = key.partition(".")
    return config.get(section, {}).get(name) if name else config.get(section)

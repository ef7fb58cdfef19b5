"""run_sweep: all runs of a study, one after another, each in a directory of its own."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from time import perf_counter
from typing import Any

from mpisparse.comm import Communicator, from_root, require_same
from mpisparse.errors import ConfigError, NonFiniteError
from mpisparse.runtime import Surroundings
from mpisparse.runtime.runlog import replace_file
from mpisparse.training.build import build_data
from mpisparse.training.configfile import to_toml
from mpisparse.training.console import SweepConsole
from mpisparse.training.run import run_training
from mpisparse.training.study import Planned, Study

_FAILED = "failed.json"
_FINISHED = "finished before"


@dataclass(slots=True)
class Tally:
    """How many runs of a sweep were made, had been before, and diverged (now or before)."""

    done: int = 0
    before: int = 0
    diverged: int = 0


def run_sweep(
    comm: Communicator,
    surroundings: Surroundings,
    study: Study,
    directory: Path,
    *,
    only: range | None = None,
    retry: bool = False,
) -> Tally:
    """Return how the runs of `study` ended, having made those that were not finished. Collective.

    A finished run is left alone, one that was interrupted goes on from its newest checkpoint. One that diverges (NaN or
    infinity, as at too large a step) has that written to its failed.json, and the next run follows; any other error
    ends the sweep.

    Args:
        directory: of the sweep; each run has one of its own in it.
        only: indices of the runs to make; all by default.
        retry: make again what failed before.

    Raises:
        ConfigError: `directory` belongs to another study, or `only` names no run.
        MpiSparseError: what a run raises, but for divergence.
    """
    chosen = _chosen(study, only)
    require_same(comm, "the studies", _table(study).splitlines())
    from_root(comm, lambda: _claim(directory, study))
    load, tally = lru_cache(maxsize=1)(build_data), Tally()
    with SweepConsole(comm.rank, len(chosen)) as console:
        console.say(f"{study.name}: {len(chosen)} runs{' (reduced version)' if study.reduced else ''}, in {directory}")
        for run in chosen:
            path, begin = directory / run.directory, perf_counter()
            state = from_root(comm, partial(_state, path, run, retry))
            if state != "due":
                tally.before += state == _FINISHED
                tally.diverged += state != _FINISHED
                console.ended(run.directory, state, None, 0.0)
                continue
            # Whatever the run duplicates goes with it: MPI has room for about two thousand communicators.
            scope = comm.duplicate()
            try:
                result = run_training(scope, surroundings, run.config, run_dir=path, load=load, quiet=True)
            except NonFiniteError as error:
                if not error.on_all_ranks:
                    raise
                tally.diverged += 1
                from_root(comm, partial(_write_failure, path, error))
                console.ended(run.directory, f"diverged: {error}", None, perf_counter() - begin)
            else:
                tally.done += 1
                console.ended(run.directory, "", result.metrics, perf_counter() - begin)
            scope.free()
    return tally


def listing(study: Study) -> list[dict[str, Any]]:
    """Return the runs of a study as data: index, directory and settings of each."""
    return [{"index": run.index, "directory": run.directory, "settings": run.settings} for run in study.runs]


def _chosen(study: Study, only: range | None) -> Sequence[Planned]:
    if only is None:
        return study.runs
    if not only or only.start < 0 or only.stop > len(study.runs):
        raise ConfigError(
            f"runs {only.start} to {only.stop - 1} were asked for, and {study.name} has 0 to {len(study.runs) - 1}"
        )
    return study.runs[only.start : only.stop]


def _claim(directory: Path, study: Study) -> None:
    """Write what the directory is of, unless it says so already; refuse another study's. For rank 0 alone."""
    table = _table(study)
    try:
        directory.mkdir(parents=True, exist_ok=True)
        known = (directory / "runs.csv").read_text(encoding="utf-8") if (directory / "runs.csv").exists() else None
        if known is not None and known != table:
            raise ConfigError(_other_study(directory, known, table))
        replace_file(directory / "study.toml", lambda file: file.write(study.text))
        replace_file(directory / "runs.csv", lambda file: file.write(table))
        about = {"study": study.name, "reduced": study.reduced, "runs": len(study.runs)}
        replace_file(directory / "sweep.json", lambda file: file.write(json.dumps(about) + "\n"))
    except OSError as error:
        raise ConfigError(f"cannot write to the sweep's directory {directory}: {error}") from error


def _other_study(directory: Path, known: str, table: str) -> str:
    before, now = known.splitlines(), table.splitlines()
    place = next((i for i, (a, b) in enumerate(zip(before, now, strict=False)) if a != b), min(len(before), len(now)))
    lines = [f"{text[place]!r}" if place < len(text) else "nothing more" for text in (before, now)]
    return (
        f"{directory} holds {len(before) - 1} runs of another study, and this one has {len(now) - 1}: line {place + 1} "
        f"of runs.csv is {lines[0]} there and {lines[1]} here. Use another --run-dir"
    )


def _table(study: Study) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(("index", "directory", "settings"))
    writer.writerows((run.index, run.directory, json.dumps(run.settings)) for run in study.runs)
    return text.getvalue()


def _state(path: Path, run: Planned, retry: bool) -> str:
    """Return "due", or what became of a run that is not to be made again. For rank 0 alone."""
    try:
        if (path / _FAILED).exists():
            if not retry:
                failure = json.loads((path / _FAILED).read_text(encoding="utf-8"))
                return f"diverged before ({failure['error']}): --retry makes it again"
            (path / _FAILED).unlink()
        log, config = path / "metrics.jsonl", path / "config.toml"
        if not log.exists() or config.read_text(encoding="utf-8") != to_toml(run.config):
            return "due"
        last = log.read_text(encoding="utf-8").rpartition("\n")[0].rpartition("\n")[2]
        return _FINISHED if last and json.loads(last).get("kind") == "end" else "due"
    except (OSError, ValueError, KeyError) as error:
        raise ConfigError(f"{path} cannot be read: {error}. Remove it to have its run made again") from error


def _write_failure(path: Path, error: NonFiniteError) -> None:
    failure = {"error": type(error).__name__, "message": str(error)}
    path.mkdir(parents=True, exist_ok=True)
    replace_file(path / _FAILED, lambda file: file.write(json.dumps(failure, indent=2) + "\n"))

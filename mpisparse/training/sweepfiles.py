"""The directory of a sweep: what it is of, and what became of each run in it. For rank 0 alone."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from mpisparse import errors
from mpisparse.errors import ConfigError, MpiSparseError
from mpisparse.files import parse_json, parse_toml, read_text, write_text
from mpisparse.runtime.runlog import last_line, writes
from mpisparse.training.config import RunConfig
from mpisparse.training.configfile import complete, to_toml, to_tree
from mpisparse.training.study import Planned, Study

_FAILED = "failed.json"


@dataclass(frozen=True, slots=True)
class Failure:
    """How a run failed on all ranks alike.

    error: name of the exception. step: the step that could not be taken; None when the run failed elsewhere.
    """

    error: str
    message: str
    step: int | None

    @property
    def diverged(self) -> bool:
        """Return True for NaN or infinity in a gradient, which a study of step sizes has to expect."""
        return self.error == errors.NonFiniteError.__name__

    @property
    def exit_code(self) -> int:
        """Return the exit code that the exception stands for."""
        kind = getattr(errors, self.error, None)
        return (
            kind.exit_code if isinstance(kind, type) and issubclass(kind, MpiSparseError) else MpiSparseError.exit_code
        )

    @property
    def text(self) -> str:
        """Return one short line."""
        return f"{self.error}{'' if self.step is None else f' at step {self.step}'}"


def read_failure(text: str) -> Failure:
    """Return what a failed.json says, or raise ValueError."""
    fields = parse_json(text)
    if not isinstance(fields, dict) or set(fields) != {"error", "message", "step"}:
        raise ValueError(f"{_FAILED} does not say how a run failed")
    if not isinstance(fields["error"], str) or not isinstance(fields["message"], str):
        raise ValueError(f"{_FAILED} does not say how a run failed")
    return Failure(**fields)


def chosen_runs(study: Study, only: range | None) -> Sequence[Planned]:
    """Return the runs of a study with the indices `only`, all by default.

    Raises:
        ConfigError: it names a run that is not there, or none.
    """
    if only is None:
        return study.runs
    if not only or only.start < 0 or only.stop > len(study.runs):
        raise ConfigError(
            f"--only {only.start}:{only.stop} names no runs of {study.name}: give the first and one more than the "
            f"last, between 0:1 and 0:{len(study.runs)}"
        )
    return study.runs[only.start : only.stop]


def listing(study: Study, only: range | None = None) -> list[dict[str, Any]]:
    """Return the runs of a study as data: index, directory and settings of each."""
    runs = chosen_runs(study, only)
    return [{"index": run.index, "directory": run.directory, "settings": run.settings} for run in runs]


def table(study: Study) -> str:
    """Return the runs of a study as the text of its runs.csv."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(("index", "directory", "settings"))
    writer.writerows((run.index, run.directory, json.dumps(run.settings)) for run in study.runs)
    return text.getvalue()


def claim(directory: Path, study: Study) -> None:
    """Write what the directory is of, unless it says so already.

    Raises:
        ConfigError: it holds runs of another study, or of other axes; or it cannot be written to.
    """
    runs, about = table(study), {"study": study.name, "reduced": study.reduced, "runs": len(study.runs)}
    try:
        directory.mkdir(parents=True, exist_ok=True)
        known = _read(directory / "runs.csv")
        if known not in (None, runs) and any(directory.glob("*/config.toml")):
            raise ConfigError(_other_study(directory, known or "", runs))
        _write(directory / "study.toml", study.text)
        _write(directory / "runs.csv", runs)
        _write(directory / "sweep.json", json.dumps(about) + "\n")
    except OSError as error:
        raise ConfigError(f"cannot write to the sweep's directory {directory}: {error}") from error


def look_up(path: Path, config: RunConfig) -> dict[str, Any] | None:
    """Return what became of a run: {} if it is finished, the fields of its `Failure`, or None if it is to be made.

    Raises:
        ConfigError: its directory cannot be read.
    """
    try:
        failure = _read(path / _FAILED)
        if failure is not None:
            return asdict(read_failure(failure))
        text = _read(path / "config.toml")
        if text is None or (text != to_toml(config) and complete(parse_toml(text)) != to_tree(config)):
            return None
        last = last_line(path / "metrics.jsonl")
        return {} if last and parse_json(last, constants=True).get("kind") == "end" else None
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise ConfigError(f"{path} cannot be read: {error}. Remove it to have its run made again") from error


def write_failure(path: Path, error: MpiSparseError, *, at_a_step: bool) -> dict[str, Any]:
    """Write failed.json in a run's directory, and return what it holds.

    Args:
        at_a_step: whether it was the step after the last one of the log that failed.
    """
    last = last_line(path / "metrics.jsonl")
    step = (parse_json(last, constants=True)["step"] if last else 0) + 1
    failure = asdict(Failure(type(error).__name__, str(error), step if at_a_step else None))
    with writes(path / _FAILED):
        path.mkdir(parents=True, exist_ok=True)
        write_text(path / _FAILED, json.dumps(failure, indent=2) + "\n")
    return failure


def forget_failure(path: Path) -> None:
    """Remove failed.json, if it is there: the run is made again."""
    with writes(path / _FAILED):
        (path / _FAILED).unlink(missing_ok=True)


def _read(path: Path) -> str | None:
    try:
        return read_text(path)
    except FileNotFoundError:
        return None


def _write(path: Path, text: str) -> None:
    """Write a file, which other jobs of the same sweep may be writing, too, unless it says this already."""
    if _read(path) == text:
        return
    write_text(path, text)


def _other_study(directory: Path, known: str, ours: str) -> str:
    before, now = known.splitlines(), ours.splitlines()
    place = next((i for i, (a, b) in enumerate(zip(before, now, strict=False)) if a != b), min(len(before), len(now)))
    lines = [f"{text[place]!r}" if place < len(text) else "nothing more" for text in (before, now)]
    return (
        f"{directory} holds runs of another study, {len(before) - 1} in all, and this one has {len(now) - 1}: line "
        f"{place + 1} of runs.csv is {lines[0]} there and {lines[1]} here. Use another --run-dir"
    )

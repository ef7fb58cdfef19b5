"""Finding what can be read below a path: run directories, the sweeps they belong to, and JSON files of studies."""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from analysis.files import parse_toml, read_json, read_text

#: What marks a directory as that of a run, and as that of a sweep.
_RUN, _SWEEP = "config.toml", "study.toml"


@dataclass(frozen=True)
class Sweep:
    """A sweep as its directory tells it.

    study: name of the study. reduced: whether it is the reduced version. runs: how many there will be.
    """

    directory: Path
    study: str
    reduced: bool
    runs: int


@dataclass(frozen=True)
class Found:
    """What lies below some paths, each in the order of its name: run directories, sweeps, and files named *.json."""

    runs: list[Path]
    sweeps: list[Sweep]
    files: list[Path]


def find(paths: Iterable[Path]) -> Found:
    """Return what lies below `paths`: run directories, sweeps, parents of them at any depth, or JSON files.

    Raises:
        ValueError: a path does not exist, or a sweep's files cannot be read.
    """
    runs: dict[Path, None] = {}
    sweeps: dict[Path, None] = {}
    files: dict[Path, None] = {}
    for path in paths:
        if not path.exists():
            raise ValueError(f"{path} does not exist")
        if path.is_file():
            files[path] = None
        for directory, names in _walk(path) if path.is_dir() else ():
            if _RUN in names:
                runs[directory] = None
                if (directory.parent / _SWEEP).exists():
                    sweeps[directory.parent] = None
            elif _SWEEP in names:
                sweeps[directory] = None
            else:
                files.update(dict.fromkeys(directory / name for name in names if name.endswith(".json")))
    return Found(list(runs), [load_sweep(directory) for directory in sweeps], list(files))


def load_sweep(directory: Path) -> Sweep:
    """Return the sweep in `directory`; one without a sweep.json counts as not reduced, with the runs of runs.csv.

    Raises:
        ValueError: a file is not what this version reads.
    """
    try:
        study = parse_toml(read_text(directory / _SWEEP))
        about: dict[str, Any] = {}
        if (directory / "sweep.json").exists():
            about = read_json(directory / "sweep.json")
        name = str(about.get("study", study.get("name", directory.name)))
        runs = int(about["runs"]) if "runs" in about else _rows(directory / "runs.csv")
        return Sweep(directory, name, bool(about.get("reduced", False)), runs)
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise ValueError(f"{directory} is no sweep that can be read: {error}") from error


def _rows(path: Path) -> int:
    if not path.exists():
        return 0
    return sum(1 for _ in csv.DictReader(io.StringIO(read_text(path), newline="")))


def _walk(path: Path) -> Iterator[tuple[Path, list[str]]]:
    """Yield directories with the names of their files; what lies below a run is the run's own."""
    for directory, below, names in os.walk(path):
        below.sort()
        if _RUN in names:
            below.clear()
        yield Path(directory), sorted(names)

"""Loading a run directory: the one place that knows how its files are laid out (docs/run-directory.md)."""

from __future__ import annotations

import json
import tomllib
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

SCHEMA = 1


@dataclass(frozen=True)
class Run:
    """A run as its directory tells it.

    config: the resolved configuration. environment: what it ran on.
    steps, evaluations: the lines of metrics.jsonl of those kinds, in order.
    """

    directory: Path
    config: dict[str, Any]
    environment: dict[str, Any]
    steps: list[dict[str, Any]]
    evaluations: list[dict[str, Any]]


def load_run(directory: Path) -> Run:
    """Return the run in `directory`; a torn last line, as that of a run still going on, is left out with a warning.

    Raises:
        ValueError: a file is missing, or its content is not what this version reads.
    """
    try:
        config = tomllib.loads((directory / "config.toml").read_text(encoding="utf-8"))
        environment = json.loads((directory / "environment.json").read_text(encoding="utf-8"))
        text = (directory / "metrics.jsonl").read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise ValueError(f"{directory} is no run directory that can be read: {error}") from error
    lines = list(_lines(directory / "metrics.jsonl", text))
    for line in lines:
        if line.get("schema") != SCHEMA:
            raise ValueError(f"{directory}: metrics.jsonl is of schema {line.get('schema')}, this reads {SCHEMA}")
    steps = [line for line in lines if line["kind"] == "step"]
    evaluations = [line for line in lines if line["kind"] == "evaluation"]
    return Run(directory, config, environment, steps, evaluations)


def _lines(path: Path, text: str) -> list[dict[str, Any]]:
    lines = text.splitlines(keepends=True)
    if lines and not lines[-1].endswith("\n"):
        warnings.warn(f"{path}: the last line is torn and left out; the run may still be going on", stacklevel=3)
        lines.pop()
    found = []
    for number, line in enumerate(lines, start=1):
        try:
            found.append(json.loads(line))
        except ValueError as error:
            raise ValueError(f"{path}, line {number}: {error}") from error
    return found

"""Loading a run directory: the one place that knows how its files are laid out (docs/run-directory.md)."""

from __future__ import annotations

import json
import tomllib
import warnings
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

SCHEMA = 1


@dataclass(frozen=True)
class Run:
    """A run as its directory tells it.

    config: the resolved configuration. environment: what it ran on.
    steps, evaluations, starts, ends: the lines of metrics.jsonl of those kinds, in order; an asynchronous run has no
    steps. optimum: the least objective, where it was asked for. failed: why the run ended early, if it did so in a
    sweep; such a run may have none of the rest but its configuration.
    """

    directory: Path
    config: dict[str, Any]
    environment: dict[str, Any]
    steps: list[dict[str, Any]]
    evaluations: list[dict[str, Any]]
    starts: list[dict[str, Any]] = field(default_factory=list)
    ends: list[dict[str, Any]] = field(default_factory=list)
    optimum: dict[str, Any] | None = None
    failed: dict[str, Any] | None = None

    @property
    def finished(self) -> bool:
        """Return True if the run made all its steps: its last end lies no earlier than its last start aims."""
        return bool(self.ends) and all(self.ends[-1]["step"] >= start["steps"] for start in self.starts[-1:])


def counted(number: int, noun: str) -> str:
    """Return "1 rank", "2 ranks" or "1,000 ranks"."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def load_run(directory: Path) -> Run:
    """Return the run in `directory`; a torn last line, as that of a run still going on, is left out with a warning.

    Raises:
        ValueError: a file is missing, or its content is not what this version reads.
    """
    try:
        failed = _optional(directory / "failed.json")
        config = tomllib.loads((directory / "config.toml").read_text(encoding="utf-8"))
        if failed is None:
            environment = json.loads((directory / "environment.json").read_text(encoding="utf-8"))
            text = (directory / "metrics.jsonl").read_text(encoding="utf-8")
        else:
            environment = _optional(directory / "environment.json") or {}
            metrics = directory / "metrics.jsonl"
            text = metrics.read_text(encoding="utf-8") if metrics.exists() else ""
        optimum = _optional(directory / "optimum.json")
    except (OSError, ValueError) as error:
        raise ValueError(f"{directory} is no run directory that can be read: {error}") from error
    kinds: dict[str, list[dict[str, Any]]] = {"step": [], "evaluation": [], "start": [], "end": []}
    for line in _lines(directory / "metrics.jsonl", text):
        if line.get("schema") != SCHEMA:
            raise ValueError(f"{directory}: metrics.jsonl is of schema {line.get('schema')}, this reads {SCHEMA}")
        if line["kind"] in kinds:
            kinds[line["kind"]].append(line)
    return Run(
        directory=directory,
        config=config,
        environment=environment,
        steps=kinds["step"],
        evaluations=kinds["evaluation"],
        starts=kinds["start"],
        ends=kinds["end"],
        optimum=optimum,
        failed=failed,
    )


def _optional(path: Path) -> dict[str, Any] | None:
    """Return the object in a JSON file, None if there is no such file."""
    if not path.exists():
        return None
    content = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(content, dict):
        raise ValueError(f"{path.name} holds no object")
    return content


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

"""Loading a run directory: the one place that knows how its files are laid out (docs/run-directory.md)."""

from __future__ import annotations

import warnings
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from analysis.files import parse_json, parse_toml, read_json, read_text

SCHEMA = 1

#: Bytes of a run log at most.
LOG = 2**31


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


def load_run(directory: Path) -> Run:
    """Return the run in `directory`; a torn last line, as that of a run still going on, is left out with a warning.

    Raises:
        ValueError: a file is missing, or its content is not what this version reads.
    """
    try:
        failed = _optional(directory / "failed.json")
        config = parse_toml(read_text(directory / "config.toml"))
        if failed is None:
            environment = _object(directory / "environment.json")
            text = read_text(directory / "metrics.jsonl", LOG)
        else:
            environment = _optional(directory / "environment.json") or {}
            metrics = directory / "metrics.jsonl"
            text = read_text(metrics, LOG) if metrics.exists() else ""
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
    return _object(path)


def _object(path: Path) -> dict[str, Any]:
    content = read_json(path)
    if not isinstance(content, dict):
        raise ValueError(f"{path.name} holds no object")
    return content


def _lines(path: Path, text: str) -> list[dict[str, Any]]:
    lines = text.split("\n")
    if lines.pop():
        warnings.warn(f"{path}: the last line is torn and left out; the run may still be going on", stacklevel=3)
    found = []
    for number, line in enumerate(lines, start=1):
        try:
            found.append(_line(parse_json(line, constants=True)))
        except ValueError as error:
            raise ValueError(f"{path}, line {number}: {error}") from error
    return found


def _line(line: Any) -> dict[str, Any]:
    if not isinstance(line, dict) or not {"schema", "kind", "step"} <= line.keys():
        raise ValueError("no object with schema, kind and step")
    return line

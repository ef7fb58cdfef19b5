"""Studies: many runs from one TOML file, a base configuration and axes along which it varies. See docs/studies.md."""

from __future__ import annotations

import copy
import itertools
import json
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from pydantic import ConfigDict, Field, ValidationError, field_validator

from mpisparse.errors import ConfigError
from mpisparse.training.config import RunConfig
from mpisparse.training.configfile import KEYS, apply_settings, load_toml, parse_config
from mpisparse.training.explain import explain
from mpisparse.training.section import Section

#: Runs of a study at most: each is checked before the first is made.
_RUNS = 10_000
#: Characters of a run's directory at most, without its number.
_SLUG = 80


class Variation(Section):
    """What the reduced version of a study does otherwise: values of keys, and axes in the place of the study's.

    drop: axes of the study that it does not have.
    """

    set: dict[str, Any] = Field(default_factory=dict)
    drop: list[str] = Field(default_factory=list)
    axes: dict[str, list[Any]] = Field(default_factory=dict)


class Launch(Section):
    """On how many ranks `python -m jobs` makes a study, and how it cuts its jobs. `mpisparse sweep` does not read it.

    ranks: each number of ranks makes all runs of the study, in a directory of its own.
    array: a job of its own for each run, a task of an array; otherwise the runs on one number of ranks follow each
        other in one job, on the same nodes. Long runs want the first, comparisons of times the second.
    minutes: time limit of a job.
    order: seed of the order in which the runs follow each other, so that no method always comes first.
    """

    ranks: list[Annotated[int, Field(ge=1)]] = Field(min_length=1)
    array: bool = False
    minutes: int = Field(default=60, ge=1)
    order: int = Field(default=0, ge=0)

    @field_validator("ranks")
    @classmethod
    def _each_once(cls, ranks: list[int]) -> list[int]:
        if len(set(ranks)) < len(ranks):
            raise ValueError(f"{ranks} has a number of ranks twice: repeat runs by an axis, as seed = [0, 1, 2]")
        return ranks


class StudyFile(Section):
    """A study as its file tells it.

    base: a run configuration, without what the axes give.
    axes: for each key the values it takes. A key names a section, whose values are tables in the place of it, or a key
        of one, as in "optimizer.lr"; keys joined by commas take their values together, from lists.
    launch: on how many ranks, for `python -m jobs`.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    base: dict[str, Any]
    axes: dict[str, list[Any]]
    reduced: Variation | None = None
    launch: Launch | None = None


@dataclass(frozen=True, slots=True)
class Planned:
    """One run of a study. settings: what its axes gave, by key. directory: its name below that of the sweep."""

    index: int
    settings: dict[str, Any]
    config: RunConfig
    directory: str


@dataclass(frozen=True, slots=True)
class Study:
    """All runs of a study, in the order of its axes: the last one varies fastest."""

    name: str
    reduced: bool
    text: str
    runs: tuple[Planned, ...]
    launch: Launch | None = None


def read_study(path: Path, *, reduced: bool = False, settings: Iterable[str] = ()) -> Study:
    """Return the study in `path`, every run of it checked.

    Args:
        path: a TOML file.
        reduced: take the file's reduced version.
        settings: "section.key=value" over the base and the reduced version, as `mpisparse train --set` takes it.

    Raises:
        ConfigError: the file is missing or no study, two of its axes or an axis and `settings` set the same key, or a
            run of it is no configuration, saying which.
    """
    text, file = _read(path)
    if reduced and file.reduced is None:
        raise ConfigError(f"{path} has no [reduced] version: leave --reduced out")
    varied = file.reduced if reduced and file.reduced is not None else Variation()
    axes = _axes(file, varied, path)
    tree = copy.deepcopy(file.base)
    for key, value in varied.set.items():
        _refuse_axis(key, axes, f"{path}: reduced.set")
        _put(tree, key, value, path)
    for setting in settings:
        if "=" not in setting:
            continue  # what is wrong with it is said where it is applied
        _refuse_axis(setting.partition("=")[0].strip(), axes, f"--set {setting!r}")
    combinations = _combinations(axes, path)
    varies = {key for key in combinations[0] if any(chosen[key] != combinations[0][key] for chosen in combinations)}
    tree = apply_settings(tree, settings)
    runs = tuple(_plan(path, tree, index, chosen, varies) for index, chosen in enumerate(combinations))
    return Study(runs[0].config.name, reduced, text, runs, file.launch)


def _read(path: Path) -> tuple[str, StudyFile]:
    text, tree = load_toml(path, "a study")
    try:
        if "base" not in tree and tree.keys() >= {"data", "model", "training"}:
            raise ConfigError(f"{path} is the configuration of one run: train it by `mpisparse train {path}`")
        return text, StudyFile.model_validate(tree)
    except ValidationError as error:
        raise ConfigError(f"{path} is no study: {explain(error)}") from None


def _axes(file: StudyFile, varied: Variation, path: Path) -> dict[str, list[Any]]:
    """Return the axes of a version, in their order; ConfigError for two that set the same."""
    for key in varied.drop:
        if key not in file.axes:
            raise ConfigError(
                f"{path}: reduced.drop: {key!r} is no axis of the study. Its axes: {', '.join(file.axes)}"
            )
    axes = {key: values for key, values in file.axes.items() if key not in varied.drop} | varied.axes
    seen: list[str] = []
    for axis in axes:
        for key in _keys(axis):
            other = next((known for known in seen if _meet(key, known)), None)
            if other is not None:
                raise ConfigError(
                    f"{path}: axis {axis!r} sets {key!r}, and {other!r} is set by an axis already: join the two by a "
                    "comma, or leave one out, in a reduced version by reduced.drop"
                )
            seen.append(key)
    return axes


def _refuse_axis(key: str, axes: Mapping[str, list[Any]], source: str) -> None:
    """Raise ConfigError if a value is given to what an axis sets all the same."""
    axis = next((axis for axis in axes if any(_meet(key, known) for known in _keys(axis))), None)
    if axis is not None:
        raise ConfigError(f"{source}: the study's axis {axis!r} sets {key!r}: choose among its runs with --only")


def _meet(key: str, other: str) -> bool:
    """Return True when one key is the other, or a section that holds it."""
    return f"{key}.".startswith(f"{other}.") or f"{other}.".startswith(f"{key}.")


def _keys(axis: str) -> list[str]:
    """Return the keys that an axis sets: one, or several joined by commas."""
    return [key.strip() for key in axis.split(",")]


def _combinations(axes: Mapping[str, list[Any]], path: Path) -> list[dict[str, Any]]:
    """Return what each run sets, by key."""
    for key, values in axes.items():
        if not values:
            raise ConfigError(f"{path}: axis {key!r} has no values: give one or more, or leave it out")
    runs = math.prod(len(values) for values in axes.values())
    if runs > _RUNS:
        each = " x ".join(str(len(values)) for values in axes.values())
        raise ConfigError(
            f"{path}: its axes make {each} = {runs} runs, and a study has at most {_RUNS}: give fewer values"
        )
    choices = [[_together(axis, value, path) for value in values] for axis, values in axes.items()]
    return [dict(pair for part in parts for pair in part.items()) for parts in itertools.product(*choices)]


def _together(axis: str, value: Any, path: Path) -> dict[str, Any]:
    """Return what one value of an axis sets, by key."""
    keys = _keys(axis)
    if len(keys) == 1:
        return {keys[0]: value}
    if not isinstance(value, list) or len(value) != len(keys):
        raise ConfigError(f"{path}: axis {axis!r} takes lists of {len(keys)} values, not {value!r}")
    return dict(zip(keys, value, strict=True))


def _plan(path: Path, base: dict[str, Any], index: int, settings: dict[str, Any], varies: set[str]) -> Planned:
    tree = copy.deepcopy(base)
    for key, value in settings.items():
        _put(tree, key, value, path)
    config = parse_config(tree, f"{path}, run {index} ({describe(settings)})")
    return Planned(index, settings, config, _directory(index, {k: v for k, v in settings.items() if k in varies}))


def _directory(index: int, settings: dict[str, Any]) -> str:
    """Return "012-gspar-0.1-lr-0.4" or so, from what differs between the runs."""
    words = "-".join(_words(key, value) for key, value in settings.items())
    slug = re.sub(r"[^A-Za-z0-9.]+", "-", words).strip("-.")[:_SLUG].rstrip("-.")
    return f"{index:03d}-{slug}" if slug else f"{index:03d}"


def _put(tree: dict[str, Any], key: str, value: Any, path: Path) -> None:
    *sections, last = key.split(".")
    if len(sections) >= KEYS:
        raise ConfigError(f"{path}: {key:.40}... names {len(sections)} sections, where no configuration has as many")
    for section in sections:
        tree = tree.setdefault(section, {})
        if not isinstance(tree, dict):
            raise ConfigError(f"{path}: key {key!r} goes into {section!r}, which is a value, not a section")
    tree[last] = copy.deepcopy(value)


def describe(settings: Mapping[str, Any]) -> str:
    """Return settings as one line: "sparsifier gspar 0.1, optimizer.lr 0.4"."""
    return ", ".join(f"{key} {_value(value)}" for key, value in settings.items()) or "as the base says"


def _value(value: Any) -> str:
    return " ".join(_value(part) for part in value.values()) if isinstance(value, dict) else _plain(value)


def _plain(value: Any) -> str:
    return f"{value:.6g}" if isinstance(value, float) else value if isinstance(value, str) else json.dumps(value)


def _words(key: str, value: Any) -> str:
    return _value(value) if isinstance(value, dict) else f"{key.rpartition('.')[2]}-{_plain(value)}"

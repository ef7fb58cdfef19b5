"""Study: runs that may be compared. What may differ between them, what may not, and what is said when it does."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from analysis.brief import Brief

#: Sections that make a method: what is compared.
METHOD = ("sparsifier", "memory", "exchange", "resparsify")

#: What does not matter to a step: where its beginning is, how often something happens between steps.
_IGNORED = ("seed", "checkpoint.", "training.log_every", "training.evaluate")

#: How the batch is given; whether that is strong or weak scaling is told by the samples of the steps.
_BATCH = ("training.batch", "training.global_batch")

#: What a run ran on: told where it differs, since times then differ for that, too.
_SURROUNDINGS = (
    "hosts",
    "host",
    "processors",
    "quotas",
    "platform",
    "library",
    "threads",
    "torch",
    "mpisparse",
    "python",
)


@dataclass(frozen=True)
class Study:
    """Runs of one name whose configurations agree in all but method, batch and seed.

    runs: by method and number of ranks, in the order in which a table has them. surroundings: what differs, in words.
    """

    name: str
    runs: dict[str, dict[int, list[Brief]]]
    surroundings: list[str]

    @property
    def briefs(self) -> list[Brief]:
        """Return all runs."""
        return [brief for by_ranks in self.runs.values() for briefs in by_ranks.values() for brief in briefs]

    @property
    def repeats(self) -> int:
        """Return how many repeats the method and rank count with the fewest has."""
        return min(len(briefs) for by_ranks in self.runs.values() for briefs in by_ranks.values())


@dataclass(frozen=True)
class Refusal:
    """Runs that are not compared, and why."""

    name: str
    runs: int
    reason: str


def studies_of(briefs: Iterable[Brief]) -> tuple[list[Study], list[Refusal]]:
    """Return the studies among the runs, by `name` and by how the batch is given, and what is refused."""
    groups: dict[tuple[str, bool], list[Brief]] = {}
    for brief in briefs:
        each_rank = flat(brief.config).get("training.batch") is not None
        groups.setdefault((str(brief.config.get("name", "?")), each_rank), []).append(brief)
    studies, refusals = [], []
    for (name, each_rank), group in groups.items():
        both = (name, not each_rank) in groups
        words = f"{name}, batch of {'each rank' if each_rank else 'all ranks'} given" if both else name
        reason = _mixed(group)
        if reason:
            refusals.append(Refusal(words, len(group), reason))
        else:
            studies.append(Study(words, _by_method(group), list(_surroundings(group))))
    return studies, refusals


def flat(config: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return a configuration with dotted keys."""
    found: dict[str, Any] = {}
    for key, value in config.items():
        found |= flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return found


def differing(configs: Sequence[dict[str, Any]]) -> dict[str, list[Any]]:
    """Return the dotted keys in which configurations differ, with their values, each once; None where a key is not."""
    every = [flat(config) for config in configs]
    found = {}
    for key in sorted({key for config in every for key in config}):
        values = _each_once(config.get(key) for config in every)
        if len(values) > 1:
            found[key] = values
    return found


def in_words(keys: dict[str, list[Any]]) -> str:
    """Return differing keys and their values, as in "optimizer.lr: 0.1, 0.2"."""
    return "; ".join(f"{key}: {', '.join(_value(value) for value in values)}" for key, values in keys.items())


def _mixed(group: Sequence[Brief]) -> str:
    """Return why runs are no study: keys that differ and may not."""
    keys = differing([brief.config for brief in group])
    bad = {key: values for key, values in keys.items() if not key.startswith((*_IGNORED, *_sections(), *_BATCH))}
    by_ranks: dict[int, list[Brief]] = {}
    for brief in group:
        by_ranks.setdefault(brief.ranks, []).append(brief)
    for same in by_ranks.values():
        found = differing([brief.config for brief in same])
        bad |= {key: values for key, values in found.items() if key in _BATCH}
    return in_words(bad)


def _sections() -> tuple[str, ...]:
    return tuple(f"{section}." for section in METHOD)


def _by_method(group: Sequence[Brief]) -> dict[str, dict[int, list[Brief]]]:
    names = method_names([brief.config for brief in group])
    found: dict[str, dict[int, list[Brief]]] = {}
    order = sorted(range(len(group)), key=lambda i: (_order(group[i].config), names[i], group[i].ranks))
    for i in order:
        found.setdefault(names[i], {}).setdefault(group[i].ranks, []).append(group[i])
    return found


def method_names(configs: Sequence[dict[str, Any]]) -> list[str]:
    """Return a name for the method of each configuration, which tells methods that differ apart."""
    # A thousand runs have a handful of methods, and comparing all with all is for those.
    identities = [_identity(config) for config in configs]
    methods = dict(zip(identities, configs, strict=True))
    names = {}
    for identity, config in methods.items():
        name = _rule(config)
        alike = [_method(other) for other in methods.values() if _rule(other) == name]
        keys = [key for key in differing(alike) if not key.startswith("sparsifier.")]
        own = flat(_method(config))
        names[identity] = ", ".join([name, *(f"{key} {_value(own.get(key))}" for key in keys)])
    return [names[identity] for identity in identities]


def _method(config: dict[str, Any]) -> dict[str, Any]:
    return {section: config[section] for section in METHOD if section in config}


def _identity(config: dict[str, Any]) -> str:
    return json.dumps(_method(config), sort_keys=True)


def _rule(config: dict[str, Any]) -> str:
    rule = dict(config.get("sparsifier", {"name": "dense"}))
    name = str(rule.pop("name"))
    exchange = config.get("exchange", {})
    if name == "dense":
        return "dense, 16 bits" if exchange.get("dense") == "bfloat16" else "dense"
    numbers = [(key, value) for key, value in rule.items() if isinstance(value, int | float) and value is not True]
    told = [f"{100 * value:.3g} %" if key == "density" else f"{key} {value:g}" for key, value in numbers[:2]]
    words = {"topk": "TopK", "gspar": "GSpar", "qsgd": "QSGD", "terngrad": "TernGrad", "tracked_topk": "TrackedTopK"}
    values = str(exchange.get("values", "auto"))
    return " ".join([words.get(name, name), *told]) + ("" if values in ("auto", "float32") else f", {values}")


def _order(config: dict[str, Any]) -> tuple[bool, bool, float]:
    """Return where a method stands: dense first, then what sends most."""
    dense = config.get("sparsifier", {}).get("name", "dense") == "dense"
    half = config.get("exchange", {}).get("dense") == "bfloat16"
    density = config.get("sparsifier", {}).get("density", 0.0)
    return not dense, half and dense, -float(density) if isinstance(density, int | float) else 0.0


def _surroundings(group: Sequence[Brief]) -> Iterator[str]:
    for key in _SURROUNDINGS:
        values = _each_once(brief.surroundings[key] for brief in group if key in brief.surroundings)
        if key == "hosts" and _nested(values):
            continue
        if len(values) > 1:
            ranks = {json.dumps(value): sorted({b.ranks for b in group if b.surroundings.get(key) == value})
                     for value in values}  # fmt: skip
            told = [f"{_value(value)} (on {_on(ranks[json.dumps(value)])})" for value in values]
            yield f"{key} differ: {'; '.join(told)}"


def _on(ranks: Sequence[int]) -> str:
    return f"{', '.join(map(str, ranks))} rank{'' if ranks == [1] else 's'}"


def _nested(values: Sequence[Any]) -> bool:
    """Return True if fewer ranks ran on the first of the hosts that more ranks ran on, which is no difference."""
    longest: Sequence[Any] = max(values, key=len, default=[])
    return all(list(hosts) == list(longest)[: len(hosts)] for hosts in values)


def _each_once(values: Iterable[Any]) -> list[Any]:
    return list({json.dumps(value, sort_keys=True): value for value in values}.values())


def _value(value: Any) -> str:
    if value is None:
        return "not set"
    if value == []:
        return "none"
    return f"{value:g}" if isinstance(value, float) else str(value)

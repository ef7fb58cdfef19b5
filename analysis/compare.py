"""compare: two runs, or two groups of repeats, side by side, with a verdict in words."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from analysis.bootstrap import ENOUGH, Interval, drawn_medians, interval, median_of
from analysis.brief import Brief
from analysis.columns import PHASES
from analysis.drawing.curve import Array
from analysis.many import read_briefs
from analysis.markdown import bullets, code, table, text
from analysis.report.tables import bytes_text, limits, time_text
from analysis.study import differing, in_words

#: What two losses are compared at the same amount of.
_AXES = {"step": "steps", "seconds": "seconds of steps", "bytes": "bytes into each rank"}

#: Losses within so many standard deviations of each other are told to be alike.
_ALIKE = 2.0


@dataclass(frozen=True)
class AtEqual:
    """The losses of both at the same x. at: the largest x that all runs reach. one, other: a loss a run."""

    axis: str
    at: float
    one: Array
    other: Array

    @property
    def verdict(self) -> str:
        """Return which has the lower loss, if that can be told from the spread of repeats."""
        gap = float(np.mean(self.other) - np.mean(self.one))
        if min(len(self.one), len(self.other)) < 2:
            return f"A's is {'lower' if gap > 0 else 'higher'}, one run each: seeds may do as much"
        spread = math.sqrt(self.one.var(ddof=1) / len(self.one) + self.other.var(ddof=1) / len(self.other))
        if abs(gap) <= _ALIKE * spread:
            return "no difference beyond that of seeds"
        return f"{'A' if gap > 0 else 'B'}'s is lower"


@dataclass(frozen=True)
class Comparison:
    """Two groups of runs. seconds: the median step of B over that of A; received: the same of bytes into each rank."""

    one: tuple[Brief, ...]
    other: tuple[Brief, ...]
    keys: str
    surroundings: str
    seconds: Interval
    received: float
    losses: tuple[AtEqual, ...]


def compare(one: Path, other: Path) -> Comparison:
    """Return the comparison of the runs below two paths; runs below one path have to be repeats of each other.

    Raises:
        ValueError: there is no run, or the runs below a path differ in more than the seed.
    """
    groups = [_repeats(path) for path in (one, other)]
    configs = [{key: value for key, value in group[0].config.items() if key != "seed"} for group in groups]
    environments = [
        {key: group[0].environment.get(key) for key in ("ranks", "nodes", "host", "library", "threads", "processors")}
        for group in groups
    ]
    generator = np.random.default_rng(0)
    times = [[brief.times for brief in group] for group in groups]
    drawn = [drawn_medians(each, generator) for each in times]
    received = [float(np.median([b.means["received_bytes"] / b.ranks for b in group])) for group in groups]
    return Comparison(
        one=tuple(groups[0]),
        other=tuple(groups[1]),
        keys=in_words(differing(configs)),
        surroundings=in_words(differing(environments)),
        seconds=interval(median_of(times[1]) / median_of(times[0]), drawn[1] / drawn[0]),
        received=received[1] / received[0] if received[0] else math.nan,
        losses=tuple(_at_equal(groups[0], groups[1], axis) for axis in _AXES if _comparable(groups, axis)),
    )


def _repeats(path: Path) -> list[Brief]:
    briefs, _ = read_briefs([path])
    configs = [{key: value for key, value in brief.config.items() if key != "seed"} for brief in briefs]
    keys = differing([{**config, "ranks": brief.ranks} for config, brief in zip(configs, briefs, strict=True)])
    if keys:
        raise ValueError(f"{path} has runs that are no repeats of each other, they differ in {in_words(keys)}")
    return briefs


def _comparable(groups: Sequence[Sequence[Brief]], axis: str) -> bool:
    return all(np.isfinite(brief.curve["loss"]).any() and brief.curve[axis][-1] > 0 for g in groups for brief in g)


def _at_equal(one: Sequence[Brief], other: Sequence[Brief], axis: str) -> AtEqual:
    at = min(float(brief.curve[axis][-1]) for brief in (*one, *other))
    return AtEqual(axis, at, np.array([_loss(brief, axis, at) for brief in one]),
                   np.array([_loss(brief, axis, at) for brief in other]))  # fmt: skip


def _loss(brief: Brief, axis: str, at: float) -> float:
    """Return the training loss around x = `at`: the mean of the twentieth of the run before it."""
    places, losses = brief.curve[axis], brief.curve["loss"]
    end = int(np.searchsorted(places, at, side="right"))
    begin = max(0, end - max(1, len(places) // 20))
    window = losses[begin : max(end, begin + 1)]
    return float(np.nanmean(window)) if np.isfinite(window).any() else math.nan


def to_text(found: Comparison) -> str:
    """Return the comparison in Markdown."""
    groups = (found.one, found.other)
    rows = [
        ["runs", *(str(len(group)) for group in groups), ""],
        ["ranks", *(str(group[0].ranks) for group in groups), ""],
        ["median step", *(time_text(median_of([b.times for b in group])) for group in groups),
         f"{found.seconds.value:.3f} ({limits(found.seconds, 3)})"],
        ["into each rank, a step", *(bytes_text(_received(group)) for group in groups),
         f"{found.received:.3g}" if math.isfinite(found.received) else ""],
        *(_phase_row(phase, groups) for phase in PHASES),
    ]  # fmt: skip
    parts = [
        f"A: {_named(found.one)}  \nB: {_named(found.other)}",
        f"They differ in: {text(found.keys or 'nothing but the seed')}",
        f"They ran on other things: {text(found.surroundings)}" if found.surroundings else "",
        table(["", "A", "B", "B / A"], rows),
        table(["training loss at equal", "", "A", "B", ""], [_loss_row(each) for each in found.losses]),
        bullets(verdicts(found)),
    ]
    return "\n\n".join(part for part in parts if part)


def verdicts(found: Comparison) -> Iterator[str]:
    """Yield what follows from the numbers, in words, with what speaks against it."""
    seconds = found.seconds
    if seconds.low > 1:
        yield f"B's step takes longer than A's, {seconds.value:.2f} times ({limits(seconds)})."
    elif seconds.high < 1:
        faster = Interval(1 / seconds.value, 1 / seconds.high, 1 / seconds.low)
        yield f"B's step is faster than A's, {faster.value:.2f} times ({limits(faster)})."
    else:
        yield f"No difference in time can be told: B / A is {seconds.value:.2f} ({limits(seconds)})."
    if math.isfinite(found.received) and found.received > 0:
        fewer = found.received < 1
        times = 1 / found.received if fewer else found.received
        yield f"B receives {times:.3g} times {'fewer' if fewer else 'more'} bytes." if times != 1 else "As many bytes."
    for each in found.losses:
        yield f"Training loss at equal {_AXES[each.axis]}: {each.verdict}."
    few = min(len(found.one), len(found.other))
    if few < ENOUGH:
        yield f"Fewer than {ENOUGH} repeats: the interval tells how steps vary within a run, and not how runs vary."
    for brief in (*found.one, *found.other):
        yield from (f"{brief.directory}: {problem}" for problem in brief.problems)


def _received(group: Sequence[Brief]) -> float:
    return float(np.median([brief.means["received_bytes"] / brief.ranks for brief in group]))


def _phase_row(phase: str, groups: Sequence[Sequence[Brief]]) -> list[str]:
    one, other = (float(np.median([brief.phases[phase] for brief in group])) for group in groups)
    return [phase, time_text(one), time_text(other), f"{other / one:.2f}" if one > 1e-6 else ""]


def _loss_row(each: AtEqual) -> list[str]:
    at = bytes_text(each.at) if each.axis == "bytes" else f"{each.at:.4g}"
    return [_AXES[each.axis], at, _spread(each.one), _spread(each.other), each.verdict]


def _spread(values: Array) -> str:
    return f"{values.mean():.4g}" + (f" ± {values.std(ddof=1):.2g}" if len(values) > 1 else "")


def _named(group: Sequence[Brief]) -> str:
    return code(group[0].directory) + (f" and {len(group) - 1} more" if len(group) > 1 else "")

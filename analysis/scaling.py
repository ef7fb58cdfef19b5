"""Scaling: speed-up, efficiency and the serial share of a method, with intervals, and whether they may be claimed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from analysis.bootstrap import DRAWS, Interval, drawn_medians, interval, median_of
from analysis.brief import Brief
from analysis.markdown import number
from analysis.model.laws import Law, amdahl, gustafson, karp_flatt

Array = NDArray[np.float64]

#: By how much the samples of a step may differ between rank counts, and still count as the same.
_SAME = 0.01


@dataclass(frozen=True)
class Step:
    """A method on one number of ranks.

    seconds: the median step. speed_up: over the base; in weak scaling of the work done. efficiency: of it.
    serial: Karp and Flatt's share. drawn: seconds drawn again, of shape (draws,).
    """

    ranks: int
    nodes: int
    briefs: tuple[Brief, ...]
    seconds: Interval
    speed_up: Interval
    efficiency: Interval
    serial: Interval
    drawn: Array


@dataclass(frozen=True)
class Series:
    """A method on several numbers of ranks.

    kind: "strong" (the same samples a step in all), "weak" (the same on each rank), "single" (one number of ranks).
    refused: why there is no speed-up to speak of, "" if there is. law: Amdahl's or Gustafson's, from three rank counts.
    """

    method: str
    kind: str
    refused: str
    steps: tuple[Step, ...]
    law: Law | None

    @property
    def base(self) -> int:
        """Return the smallest number of ranks: what speed-ups are over. It is not extrapolated to one rank."""
        return self.steps[0].ranks


def series_of(method: str, runs: dict[int, list[Brief]], generator: np.random.Generator) -> Series:
    """Return the scaling of a method from its runs by number of ranks."""
    kind, refused = _kind(runs)
    ranks = sorted(runs)
    drawn = {count: drawn_medians([brief.times for brief in runs[count]], generator) for count in ranks}
    seconds = {count: median_of([brief.times for brief in runs[count]]) for count in ranks}
    weak = kind == "weak"
    steps = tuple(_step(count, ranks[0], runs[count], seconds, drawn, weak=weak) for count in ranks)
    return Series(method, kind, refused, steps, None if refused else _law(steps, kind))


def ratio(one: Step, other: Step) -> Interval:
    """Return how many times as long `other` takes as `one`, with the interval of draws that are independent."""
    return interval(other.seconds.value / one.seconds.value, other.drawn / one.drawn)


def _kind(runs: dict[int, list[Brief]]) -> tuple[str, str]:
    """Return what kind of scaling runs show, and why it is refused if it is none."""
    samples = {ranks: float(np.median([b.means["samples"] for b in briefs])) for ranks, briefs in sorted(runs.items())}
    if len(samples) < 2:
        return "single", ""
    if _alike(list(samples.values())):
        return "strong", ""
    if _alike([all_ranks / ranks for ranks, all_ranks in samples.items()]):
        return "weak", ""
    told = ", ".join(f"{count:g} on {number(ranks, 'rank')}" for ranks, count in samples.items())
    return "single", (
        f"the samples of a step change with the ranks, and not in proportion ({told}): this is neither strong nor weak "
        "scaling. Give training.global_batch for the one, training.batch for the other"
    )


def _alike(values: Sequence[float]) -> bool:
    return max(values) <= min(values) * (1 + _SAME)


def _step(
    ranks: int,
    base: int,
    briefs: Sequence[Brief],
    seconds: dict[int, float],
    drawn: dict[int, Array],
    *,
    weak: bool,
) -> Step:
    q = ranks / base
    own, again = seconds[ranks], drawn[ranks]
    # The base over itself is 1, and not a number that is uncertain.
    faster = seconds[base] / own
    faster_again = drawn[base] / again if ranks != base else np.ones(DRAWS)
    work = q if weak else 1.0
    serial = np.array([karp_flatt(q, each) for each in work * faster_again])
    return Step(
        ranks=ranks,
        nodes=int(briefs[0].environment.get("nodes", 1)),
        briefs=tuple(briefs),
        seconds=interval(own, again),
        speed_up=interval(work * faster, work * faster_again),
        efficiency=interval(work * faster / q, work * faster_again / q),
        serial=interval(karp_flatt(q, work * faster), serial),
        drawn=again,
    )


def _law(steps: Sequence[Step], kind: str) -> Law | None:
    if len(steps) < 2 or kind == "single":
        return None
    ranks = np.array([step.ranks / steps[0].ranks for step in steps])
    seconds = np.array([step.seconds.value for step in steps])
    drawn = np.stack([step.drawn[:200] for step in steps], axis=1)
    return (amdahl if kind == "strong" else gustafson)(ranks, seconds, drawn)

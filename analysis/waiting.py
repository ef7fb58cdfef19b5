"""Waiting: what each rank did, from the files of the ranks, added up while they are read."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from analysis.columns import read_lines
from analysis.markdown import number

Array = NDArray[np.float64]

#: Bins along the steps in which waiting is kept, at most.
BINS = 64

#: Phases in which a rank does what the run is for; the rest is waiting ("agree") and moving ("exchange").
USEFUL = ("data", "compute", "sparsify", "encode", "decode", "apply")


@dataclass(frozen=True)
class Waiting:
    """What each rank spent.

    width: steps of a bin. map: float64 of shape (ranks, bins), mean seconds a step in phase "agree"; NaN where a rank
    says nothing. useful, waiting, moving: float64 of shape (ranks,), seconds of all steady steps together; NaN for a
    rank without a file. steps: how many steady steps each rank has.
    """

    width: int
    map: Array
    useful: Array
    waiting: Array
    moving: Array
    steps: Array

    @property
    def load_balance(self) -> float:
        """Return mean over maximum of the ranks' useful time, as POP defines it; NaN if unknown."""
        return float(np.nanmean(self.useful) / np.nanmax(self.useful))

    @property
    def communication_efficiency(self) -> float:
        """Return the maximum of the ranks' useful time over the run's, as POP defines it; NaN if unknown."""
        return float(np.nanmax(self.useful) / np.nanmax(self.useful + self.waiting + self.moving))


def read_waiting(directory: Path, ranks: int, warm_up: int, steps: int, problems: list[str]) -> Waiting | None:
    """Return what the files of a run's ranks say, None if there is none of them.

    Args:
        directory: the run's. ranks: how many there should be. warm_up: steps up to this one are in the map alone.
        steps: the last step. problems: takes what is wrong with the files.
    """
    width = max(1, -(-steps // BINS))
    bins = max(1, -(-steps // width))
    sums, counts = np.zeros((ranks, bins)), np.zeros((ranks, bins))
    totals = np.full((ranks, 4), np.nan)
    missing = []
    for rank in range(ranks):
        path = directory / "ranks" / f"rank-{rank:05d}.jsonl"
        if path.exists():
            totals[rank] = _read(path, sums[rank], counts[rank], width, warm_up, problems)
        else:
            missing.append(rank)
    if missing:
        named = ", ".join(str(rank) for rank in missing[:5]) + (", ..." if len(missing) > 5 else "")
        problems.append(f"ranks/: {len(missing)} of {number(ranks, 'rank')} have no file ({named})")
    if len(missing) == ranks or not np.nansum(totals[:, 3]):
        return None
    if np.nanmin(totals[:, 3]) < np.nanmax(totals[:, 3]):
        problems.append("ranks/: some ranks have fewer steps than others; balance is of those they have")
    with np.errstate(invalid="ignore"):
        return Waiting(width, sums / counts, *totals.T)


def _read(
    path: Path, sums: Array, counts: Array, width: int, warm_up: int, problems: list[str]
) -> tuple[float, float, float, float]:
    """Add a rank's waiting to the bins; return its seconds useful, waiting, moving, and steady steps."""
    useful = waiting = moving = 0.0
    steady = 0
    for line in read_lines(path, problems):
        step, seconds = line.get("step"), line.get("seconds")
        if not isinstance(step, int) or not isinstance(seconds, dict) or not 0 < step <= width * len(sums):
            continue
        sums[(step - 1) // width] += seconds.get("agree", 0.0)
        counts[(step - 1) // width] += 1
        if step > warm_up:
            useful += sum(seconds.get(phase, 0.0) for phase in USEFUL)
            waiting += seconds.get("agree", 0.0)
            moving += seconds.get("exchange", 0.0)
            steady += 1
    return useful, waiting, moving, float(steady)

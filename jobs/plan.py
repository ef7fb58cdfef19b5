"""Batch: the runs of a study that go to a cluster together, on one number of ranks."""

from __future__ import annotations

import random
from collections.abc import Collection, Mapping
from dataclasses import dataclass

from mpisparse.errors import ConfigError
from mpisparse.training.study import Planned, Study


@dataclass(frozen=True, slots=True)
class Batch:
    """Runs on one number of ranks, in the order in which they are made; one job, or an array of one task a run."""

    ranks: int
    runs: tuple[Planned, ...]
    array: bool
    minutes: int

    @property
    def directory(self) -> str:
        """Return its name below the directory of the study."""
        return f"ranks-{self.ranks:03d}"


def plan(study: Study, due: Mapping[int, Collection[int]]) -> list[Batch]:
    """Return the batches of a study, fewest ranks first; one that has nothing to do is left out.

    The order of runs is a shuffle by `launch.order`, another for each number of ranks, and the same each time: what a
    machine does over an hour then falls on no method more than on another.

    Args:
        due: by number of ranks, the indices of the runs to make.

    Raises:
        ConfigError: the study does not say on how many ranks it is made.
    """
    launch = study.launch
    if launch is None:
        raise ConfigError(f"{study.name} does not say on how many ranks: give [launch] ranks = [1, 2], or --ranks 1,2")
    batches = []
    for ranks in sorted(due):
        runs = list(study.runs)
        random.Random(f"{launch.order} {ranks}").shuffle(runs)
        left = tuple(run for run in runs if run.index in due[ranks])
        if left:
            batches.append(Batch(ranks, left, launch.array, launch.minutes))
    return batches


def spread(ranks: int, ranks_per_node: int) -> tuple[int, int]:
    """Return how many nodes `ranks` take, and how many ranks each of them has.

    Raises:
        ConfigError: not all nodes would have as many.
    """
    each = min(ranks, ranks_per_node)
    if ranks % each:
        raise ConfigError(
            f"{ranks} ranks do not fill nodes of {each} evenly, and the fuller ones would hold up the others: "
            "change the study's launch.ranks, or the site's MPISPARSE_RANKS_PER_NODE"
        )
    return ranks // each, each

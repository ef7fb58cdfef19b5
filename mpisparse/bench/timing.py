"""Timing: contenders are taken in turn in one run, and a repetition lasts as long as its slowest rank took."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from time import perf_counter
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mpisparse.comm import Communicator, gather_json

Numbers = NDArray[np.float64]

#: Rounds that are made whatever the budget: fewer have no median worth the name.
FEWEST = 3


def _nothing() -> None:
    pass


def _no_details(result: Any) -> Mapping[str, float]:
    return {}


@dataclass(frozen=True, kw_only=True)
class Contender:
    """Something to be timed.

    name: what tables call it; no two of one run are called alike.
    run: what the clock measures.
    prepare: called before each repetition, off the clock.
    inspect: called after each, off the clock, with what `run` returned; its numbers are kept with the sample.
    """

    name: str
    run: Callable[[], Any]
    prepare: Callable[[], Any] = _nothing
    inspect: Callable[[Any], Mapping[str, float]] = _no_details


@dataclass(frozen=True, slots=True)
class Samples:
    """What the repetitions of one contender took.

    seconds: of the slowest rank, float64 of shape (repetitions,).
    details: what `inspect` returned, by name, mean over ranks, each of the same shape.
    """

    seconds: Numbers
    details: dict[str, Numbers]


def interleave(
    contenders: Sequence[Contender],
    repeat: int,
    *,
    comm: Communicator,
    warm_up: int = 1,
    block: int = 1,
    lead_in: int = 0,
    budget: float = float("inf"),
) -> dict[str, Samples]:
    """Return the samples of each contender, the same on all ranks. Collective.

    Args:
        repeat: repetitions of each contender, at most.
        warm_up: repetitions of each that are made first and not kept.
        block: repetitions of one contender in a row, before it is the next one's turn.
        lead_in: repetitions at the start of each block that are not kept: caches still hold another contender's data.
        budget: seconds after which no further round begins, once there are `FEWEST` repetitions.
    """
    for contender in contenders:
        for _ in range(warm_up):
            _once(comm, contender)
    taken: dict[str, list[_Sample]] = {contender.name: [] for contender in contenders}
    begin, done = perf_counter(), 0
    while done < repeat:
        count = min(block, repeat - done)
        for contender in contenders:
            for _ in range(lead_in):
                _once(comm, contender)
            taken[contender.name] += [_once(comm, contender) for _ in range(count)]
        done += count
        if done >= FEWEST and _slowest(comm, perf_counter() - begin) > budget:
            break
    return _merge(gather_json(comm, taken))


#: Seconds on this rank, and what `inspect` said.
_Sample = tuple[float, dict[str, float]]


def _once(comm: Communicator, contender: Contender) -> _Sample:
    contender.prepare()
    comm.barrier()
    begin = perf_counter()
    result = contender.run()
    seconds = perf_counter() - begin
    return seconds, dict(contender.inspect(result))


def _slowest(comm: Communicator, seconds: float) -> float:
    """Return the longest of all ranks' times, so that all take the same decision on it. Collective."""
    return float(comm.allgather([int(seconds * 1e9)]).max()) * 1e-9


def _merge(everyone: list[dict[str, list[_Sample]]]) -> dict[str, Samples]:
    """Return the samples of all ranks as one."""
    merged = {}
    for name, own in everyone[0].items():
        theirs = [rank[name] for rank in everyone]
        seconds = np.array([[sample[0] for sample in rank] for rank in theirs])
        keys = own[0][1] if own else {}
        details = {key: np.array([[sample[1][key] for sample in rank] for rank in theirs]).mean(axis=0) for key in keys}
        merged[name] = Samples(seconds.max(axis=0), details)
    return merged

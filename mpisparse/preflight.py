"""Preflight: what the ranks tell each other before a step's exchange, so that all take the same decisions."""

from __future__ import annotations

import zlib
from collections.abc import Callable
from dataclasses import dataclass
from enum import IntFlag
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from mpisparse.comm import Communicator, require_same
from mpisparse.errors import ConfigError, MpiSparseError, NonFiniteError, RankMismatchError, alike
from mpisparse.words import counted

NonFinite = Literal["raise", "skip"]

#: Columns of a rank's report; the presence of gradients follows, 32 parameters to a word.
_STEP, _SAMPLES, _BAD_ENTRY, _OPTIONS, _NEWS, _PRESENT = range(6)
_NONE = -1


class News(IntFlag):
    """What a rank has to tell beside numbers.

    OVERLAPS: messages of this step are on their way already. FAILED: this rank could not write one of them.
    UNANNOUNCED: samples are counted, and were not announced before backward. RECOUNTED: they were announced otherwise.
    CHANGED: gradients were changed between backward and the exchange. REPEATED: several backward passes added up.
    STOP: the job is to end after this step. DISCARDED: a backward pass was thrown away. MOVED: parameters were changed
    between the last step and this one. RECALLABLE: what this rank sent early can be taken back. RECALLED: it is to be,
    on all ranks.
    """

    OVERLAPS = 1
    FAILED = 2
    UNANNOUNCED = 4
    RECOUNTED = 8
    CHANGED = 16
    REPEATED = 32
    STOP = 64
    DISCARDED = 128
    MOVED = 256
    RECALLABLE = 512
    RECALLED = 1024


@dataclass(frozen=True, slots=True)
class Clearance:
    """What all ranks decided.

    present: parameters that have a gradient on some rank, bool of shape (parameters,).
    share: factor that makes the plain mean over ranks a mean over samples: samples here * ranks / samples in all.
    skip: the step is not to be taken, on any rank. bad: where gradients hold NaN or infinity, if any do.
    news: what any rank had to tell.
    """

    present: NDArray[np.bool_]
    share: float
    skip: bool
    news: News
    bad: str = ""


def clear_for_exchange(
    comm: Communicator,
    where: Callable[[int], str],
    present: NDArray[np.bool_],
    *,
    step: int,
    samples: int | None,
    options: list[str],
    nonfinite: NonFinite,
    bad_entry: int | None,
    news: News,
) -> Clearance:
    """Return what all ranks decided about this step. Collective, one small Allgather.

    Args:
        where: names the parameter of a bad entry.
        present: which parameters have a gradient on this rank.
        step: this rank's count of steps.
        samples: how many samples stand behind this rank's gradient; None when all ranks have equally many.
        options: the optimizer's, such as the learning rate: replicas would part if they differed.
        nonfinite: what to do when a gradient holds NaN or infinity.
        bad_entry: a number for where this rank's first one is, if anywhere.
        news: of this rank.

    Raises:
        RankMismatchError: the ranks are at different steps, or their optimizers' options differ.
        NonFiniteError: a gradient holds NaN or infinity, and `nonfinite` is "raise". All on every rank.
        ConfigError: some ranks give `samples` and others do not, there is no sample at all, or what was sent ahead
            weighs samples otherwise.
        MpiSparseError: gradients changed after they were sent ahead.
    """
    known = [step, _NONE if samples is None else samples, _NONE if bad_entry is None else bad_entry]
    own = [*known, zlib.crc32("\n".join(options).encode(errors="surrogatepass")), int(news), *_pack(present)]
    reports = comm.allgather(own, equal=True)
    _require_same_step(reports[:, _STEP])
    if (reports[:, _OPTIONS] != reports[0, _OPTIONS]).any():
        require_same(comm, "the optimizer's options", options)
    told = News(int(np.bitwise_or.reduce(reports[:, _NEWS])))
    told |= _look_for_contradictions(reports[:, _NEWS], told, reports[:, _SAMPLES])
    bad = reports[:, _BAD_ENTRY]
    if (bad != _NONE).any() and nonfinite == "raise":
        raise alike(NonFiniteError(_describe_bad_entries(where, bad, step, told)))
    union = np.bitwise_or.reduce(reports[:, _PRESENT:], axis=0)
    share = _share(comm, reports[:, _SAMPLES])
    skip, places = bool((bad != _NONE).any()), _bad_places(where, bad)
    return Clearance(_unpack(union, present.size), share, skip=skip, news=told, bad=places)


def share_ahead(comm: Communicator, step: int, samples: int | None) -> float:
    """Return the share of this rank in the mean over samples, before there is a gradient. Collective, one Allgather.

    Raises:
        RankMismatchError: the ranks are at different steps.
        ConfigError: some ranks give `samples` and others do not, or there is no sample at all.
    """
    reports = comm.allgather([step, _NONE if samples is None else samples], equal=True)
    _require_same_step(reports[:, 0])
    return _share(comm, reports[:, 1])


def _look_for_contradictions(everyone: NDArray[np.int64], told: News, samples: NDArray[np.int64]) -> News:
    """Return RECALLED if what was sent ahead is not what was to be sent; raise, on all ranks, if it cannot be."""
    overlaps = (everyone & News.OVERLAPS) != 0
    if overlaps.any() != overlaps.all():
        raise alike(
            RankMismatchError(
                f"some ranks sent messages during backward and others did not: {overlaps.tolist()} in rank order. "
                "Every rank must use the same rule, layout and overlap"
            )
        )
    if News.RECOUNTED in told:
        raise alike(ConfigError("expect(samples=) and step(samples=) differ on some rank: give the same count twice"))
    if not overlaps.any() or News.RECALLED in told:
        return News(0)
    if News.RECALLABLE in told:
        return News.RECALLED if News.UNANNOUNCED in told and (samples != samples[0]).any() else News(0)
    if News.UNANNOUNCED in told and (samples != samples[0]).any():
        raise alike(
            ConfigError(
                f"samples are {samples.tolist()} in rank order, but messages went out during backward as if ranks had "
                'equally many: call expect(samples=) before the last backward() of each step, or use overlap="off"'
            )
        )
    if News.CHANGED in told:
        raise alike(
            MpiSparseError(
                "gradients were changed between backward() and the exchange, when their messages were on their way: "
                'change the mean, between synchronize() and step(), or use overlap="off"'
            )
        )
    return News(0)


def _require_same_step(steps: NDArray[np.int64]) -> None:
    if (steps != steps[0]).any():
        raise alike(
            RankMismatchError(
                f"the ranks are at different steps: {steps.tolist()} in rank order. Every rank must call step() "
                "equally often: look for loops whose length depends on the rank"
            )
        )


def _describe_bad_entries(where: Callable[[int], str], bad: NDArray[np.int64], step: int, told: News) -> str:
    found = f"after {counted(step, 'step')} the gradient holds NaN or infinity on {_bad_places(where, bad)}. "
    if News.OVERLAPS in told and News.RECALLABLE not in told:
        return found + (
            "No parameter changed, but other buckets were on their way, and memories count them as sent: go on from a "
            "checkpoint. Look at that rank's loss and data, or lower the learning rate"
        )
    return found + (
        "Nothing was sent and no parameter changed. Look at that rank's loss and data, lower the learning rate, or "
        'skip such steps on all ranks with nonfinite="skip" (the right setting beside a GradScaler)'
    )


def _bad_places(where: Callable[[int], str], bad: NDArray[np.int64]) -> str:
    places = [f"rank {rank} in {where(int(entry))}" for rank, entry in enumerate(bad) if entry != _NONE]
    return "; ".join(places)


def _share(comm: Communicator, samples: NDArray[np.int64]) -> float:
    if (samples == _NONE).all():
        return 1.0
    if (samples < 0).any():
        raise alike(
            ConfigError(f"samples are {samples.tolist()} in rank order: give a count on every rank, or on none")
        )
    if samples.sum() == 0:
        raise alike(ConfigError("no rank has a sample in this step: the mean gradient is not defined"))
    return float(samples[comm.rank] * comm.size / samples.sum())


def _pack(present: NDArray[np.bool_]) -> list[int]:
    padded = np.zeros(-(-present.size // 32) * 32, np.uint8)
    padded[: present.size] = present
    return np.packbits(padded).view(np.uint32).astype(np.int64).tolist()


def _unpack(words: NDArray[np.int64], numel: int) -> NDArray[np.bool_]:
    return np.unpackbits(words.astype(np.uint32).view(np.uint8))[:numel].astype(bool)

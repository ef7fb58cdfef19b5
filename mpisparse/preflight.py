"""Preflight: what the ranks tell each other before a step's exchange, so that all take the same decisions."""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from mpisparse.comm import Communicator, require_same
from mpisparse.errors import ConfigError, NonFiniteError, RankMismatchError, alike
from mpisparse.flat import FlatGradients

NonFinite = Literal["raise", "skip"]

#: Columns of a rank's report; the presence of gradients follows, 32 parameters to a word.
_STEP, _SAMPLES, _BAD_ENTRY, _OPTIONS, _PRESENT = range(5)
_NONE = -1


@dataclass(frozen=True, slots=True)
class Clearance:
    """What all ranks decided.

    present: parameters that have a gradient on some rank, bool of shape (len(slots),).
    share: factor that makes the plain mean over ranks a mean over samples: samples here * ranks / samples in all.
    skip: the step is not to be taken, on any rank.
    """

    present: NDArray[np.bool_]
    share: float
    skip: bool


def clear_for_exchange(
    comm: Communicator,
    flat: FlatGradients,
    present: NDArray[np.bool_],
    *,
    step: int,
    samples: int | None,
    options: list[str],
    nonfinite: NonFinite,
) -> Clearance:
    """Return what all ranks decided about this step. Collective, one small Allgather.

    Args:
        present: which parameters have a gradient on this rank.
        step: this rank's count of steps.
        samples: how many samples stand behind this rank's gradient; None when all ranks have equally many.
        options: the optimizer's, such as the learning rate: replicas would part if they differed.
        nonfinite: what to do when a gradient holds NaN or infinity.

    Raises:
        RankMismatchError: the ranks are at different steps, or their optimizers' options differ.
        NonFiniteError: a gradient holds NaN or infinity, and `nonfinite` is "raise". All on every rank.
        ConfigError: some ranks give `samples` and others do not, or there is no sample at all.
    """
    first = flat.first_bad_entry()
    known = [step, _NONE if samples is None else samples, _NONE if first is None else first]
    reports = comm.allgather([*known, zlib.crc32("\n".join(options).encode()), *_pack(present)])
    _require_same_step(reports[:, _STEP])
    if (reports[:, _OPTIONS] != reports[0, _OPTIONS]).any():
        require_same(comm, "the optimizer's options", options)
    bad = reports[:, _BAD_ENTRY]
    if (bad != _NONE).any() and nonfinite == "raise":
        raise alike(NonFiniteError(_describe_bad_entries(flat, bad, step)))
    union = np.bitwise_or.reduce(reports[:, _PRESENT:], axis=0)
    share = _share(comm, reports[:, _SAMPLES])
    return Clearance(_unpack(union, present.size), share, skip=bool((bad != _NONE).any()))


def _require_same_step(steps: NDArray[np.int64]) -> None:
    if (steps != steps[0]).any():
        raise alike(
            RankMismatchError(
                f"the ranks are at different steps: {steps.tolist()} in rank order. Every rank must call step() "
                "equally often: look for loops whose length depends on the rank"
            )
        )


def _describe_bad_entries(flat: FlatGradients, bad: NDArray[np.int64], step: int) -> str:
    places = [f"rank {rank} in {flat.where(int(entry))}" for rank, entry in enumerate(bad) if entry != _NONE]
    return (
        f"after {step} steps the gradient holds NaN or infinity on {'; '.join(places)}. Nothing was sent and no "
        "parameter changed. Look at that rank's loss and data, lower the learning rate, or skip such steps on all "
        'ranks with nonfinite="skip" (the right setting beside a GradScaler)'
    )


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

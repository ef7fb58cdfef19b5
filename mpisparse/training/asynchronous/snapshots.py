"""Snapshots: copies of the shared parameters, taken while all ranks work and judged when they are done."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from mpisparse.comm import Communicator, Window
from mpisparse.kernels.vectors import Vector
from mpisparse.metrics import gather_doubles
from mpisparse.sampler import shard_range
from mpisparse.training.data import Dataset
from mpisparse.training.models import MarginLoss

#: Samples whose scores under all snapshots are computed at a time.
_BATCH = 2048


class Snapshot(NamedTuple):
    """The parameters as rank 0 saw them after `step` updates of all ranks and `seconds` from the common start."""

    step: int
    seconds: float
    weights: Vector


class Snapshots:
    """What rank 0 saw. A copy takes a microsecond for a short vector, and no other rank notices.

    Others write while it is made, so some of its entries may be older than others.
    """

    def __init__(self, window: Window, every: float) -> None:
        """Take one whenever about another `every` updates are done."""
        self._window, self._every, self._due = window, every, every
        self._taken: list[Snapshot] = []

    def take(self, seconds: float) -> None:
        """Take one now."""
        weights = np.empty(self._window.numel, np.float32)
        self._taken.append(Snapshot(self._window.read(weights), seconds, weights))

    def take_if_due(self, updates: int, seconds: float) -> None:
        """Take one if it is time, `updates` being about how many are done."""
        if updates >= self._due:
            self.take(seconds)
            self._due = (updates // self._every + 1) * self._every

    def to_all(self, comm: Communicator) -> list[Snapshot]:
        """Return what rank 0 took, on every rank. Collective."""
        count, numel = int(comm.allgather([len(self._taken)])[0, 0]), self._window.numel
        steps, seconds = np.zeros(count, np.int64), np.zeros(count)
        weights = np.zeros((count, numel), np.float32)
        if comm.rank == 0:
            for i, (step, when, copy) in enumerate(self._taken):
                steps[i], seconds[i], weights[i] = step, when, copy
        for array in (steps, seconds, weights):
            comm.broadcast(array.reshape(-1).view(np.uint8))
        return [Snapshot(*item) for item in zip(steps.tolist(), seconds.tolist(), weights, strict=True)]


@torch.no_grad()
def objectives(
    comm: Communicator, weights: NDArray[np.float32], loss: MarginLoss, curvature: float, data: Dataset
) -> list[float]:
    """Return the objective over the whole of `data` of each vector of weights, the same on all ranks. Collective.

    As `evaluate.objective` computes it, in float64, but in one pass over the data for all of them.

    Args:
        weights: shape (snapshots, numel).
        loss: of margins; its own penalty is not looked at. curvature: the penalty is curvature / 2 * ||w||^2.
    """
    exact = torch.from_numpy(weights).double()
    sums = torch.zeros(len(exact), dtype=torch.float64, device="cpu")
    mine = shard_range(len(data), comm.rank, comm.size)
    for start in range(mine.start, mine.stop, _BATCH):
        inputs, targets = data.batch(torch.arange(start, min(start + _BATCH, mine.stop), device="cpu"))
        scores = inputs.flatten(1).double() @ exact.T
        sums += loss.of_margins((2 * targets.double() - 1)[:, None] * scores).sum(0)
    everyone = gather_doubles(comm, sums.numpy())
    penalties = curvature / 2 * exact.square().sum(1)
    found: list[float] = (everyone.sum(axis=0) / len(data) + penalties.numpy()).tolist()
    return found

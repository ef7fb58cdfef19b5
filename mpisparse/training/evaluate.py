"""Evaluation on all ranks: each sample on one rank, sums added exactly."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch import nn

from mpisparse.comm import Communicator
from mpisparse.metrics import add_in_order, gather_doubles
from mpisparse.sampler import shard_range
from mpisparse.training.data import Dataset
from mpisparse.training.models import Loss

_BATCH = 500
_SUMS = ("loss", "correct", "count")


class CutShortError(Exception):
    """Raised on all ranks alike: one of them is to stop, and the evaluation was not ended."""


def _never() -> bool:
    return False


@torch.no_grad()
def evaluate(
    comm: Communicator, model: nn.Module, loss: Loss, data: Dataset, stops: Callable[[], object] = _never
) -> dict[str, float]:
    """Return "loss" and "accuracy" over the whole of `data`, each target counted once, the same on all ranks.

    Collective. The model is the same afterwards; ranks whose normalisation layers saw different samples evaluate with
    the mean of their running statistics.

    Args:
        stops: asked before each batch; what it returns is true where this rank is to stop.

    Raises:
        CutShortError: a rank is to stop.
    """
    with averaged_buffers(comm, model):
        total = _total(comm, model, loss, data, stops)
    return {"loss": total["loss"] / total["count"], "accuracy": total["correct"] / total["count"]}


@torch.no_grad()
def objective(
    comm: Communicator, model: nn.Module, loss: Loss, data: Dataset, stops: Callable[[], object] = _never
) -> float:
    """Return the mean loss over the whole of `data`, penalty included, computed in float64; the same on all ranks.

    Collective. In float32 the loss would be known to seven digits, and its distance from the least one to none.
    `stops` and what is raised are as for `evaluate`.
    """
    with averaged_buffers(comm, model):
        exact = copy.deepcopy(model).double()
        total = _total(comm, exact, loss, data, stops)
    return total["loss"] / total["count"]


def _total(
    comm: Communicator, model: nn.Module, loss: Loss, data: Dataset, stops: Callable[[], object]
) -> dict[str, float]:
    """Return the sums over all of `data`, each sample on one rank. Inputs take the model's own precision."""
    sums = dict.fromkeys(_SUMS, 0.0)
    double = any(parameter.dtype == torch.float64 for parameter in model.parameters())
    mine = shard_range(len(data), comm.rank, comm.size)
    was_training = model.training
    model.eval()
    stopped = not mine and bool(stops())
    for start in range(mine.start, mine.stop, _BATCH):
        if stopped := bool(stops()):
            break
        inputs, targets = data.batch(torch.arange(start, min(start + _BATCH, mine.stop), device="cpu"))
        outputs = model(inputs.double() if double and inputs.is_floating_point() else inputs)
        for name, value in loss.metrics(outputs, targets).items():
            sums[name] += value
    model.train(was_training)
    # A rank that was not asked to stop hears of it here, where all of them come together.
    everyone = gather_doubles(comm, np.array([*(sums[name] for name in _SUMS), float(stopped)]))
    if everyone[:, -1].any():
        raise CutShortError
    return dict(zip(_SUMS, everyone[:, :-1].sum(axis=0).tolist(), strict=True))


@contextmanager
def averaged_buffers(comm: Communicator, model: nn.Module) -> Iterator[None]:
    """Give the model, inside the block, the mean over ranks of its floating-point buffers. Collective."""
    buffers = [b for b in model.buffers() if b.is_floating_point() and b.numel()]
    if comm.size == 1 or not buffers:
        yield
        return
    own = [buffer.clone() for buffer in buffers]
    for buffer in buffers:
        # By way of the host, whatever device it lies on: ranks then add up the same bits in the same order.
        flat = buffer.detach().cpu().double().reshape(-1).numpy()
        average = add_in_order(gather_doubles(comm, flat)) / comm.size
        buffer.copy_(torch.from_numpy(average).view(buffer.shape))
    try:
        yield
    finally:
        for buffer, value in zip(buffers, own, strict=True):
            buffer.copy_(value)

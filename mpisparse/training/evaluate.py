"""Evaluation on all ranks: each sample on one rank, sums added exactly."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch import nn

from mpisparse.comm import Communicator
from mpisparse.sampler import shard_range
from mpisparse.training.data import Dataset
from mpisparse.training.models import Loss

_BATCH = 500
_SUMS = ("loss", "correct", "count")


@torch.no_grad()
def evaluate(comm: Communicator, model: nn.Module, loss: Loss, data: Dataset) -> dict[str, float]:
    """Return "loss" and "accuracy" over the whole of `data`, each target counted once, the same on all ranks.

    Collective. The model is the same afterwards; ranks whose normalisation layers saw different samples evaluate with
    the mean of their running statistics.
    """
    with averaged_buffers(comm, model):
        total = _total(comm, model, loss, data)
    return {"loss": total["loss"] / total["count"], "accuracy": total["correct"] / total["count"]}


@torch.no_grad()
def objective(comm: Communicator, model: nn.Module, loss: Loss, data: Dataset) -> float:
    """Return the mean loss over the whole of `data`, penalty included, computed in float64; the same on all ranks.

    Collective. In float32 the loss would be known to seven digits, and its distance from the least one to none.
    """
    with averaged_buffers(comm, model):
        exact = copy.deepcopy(model).double()
        total = _total(comm, exact, loss, data)
    return total["loss"] / total["count"]


def _total(comm: Communicator, model: nn.Module, loss: Loss, data: Dataset) -> dict[str, float]:
    """Return the sums over all of `data`, each sample on one rank. Inputs take the model's own precision."""
    sums = dict.fromkeys(_SUMS, 0.0)
    double = any(parameter.dtype == torch.float64 for parameter in model.parameters())
    mine = shard_range(len(data), comm.rank, comm.size)
    was_training = model.training
    model.eval()
    for start in range(mine.start, mine.stop, _BATCH):
        inputs, targets = data.batch(torch.arange(start, min(start + _BATCH, mine.stop), device="cpu"))
        outputs = model(inputs.double() if double and inputs.is_floating_point() else inputs)
        for name, value in loss.metrics(outputs, targets).items():
            sums[name] += value
    model.train(was_training)
    everyone = comm.allgather(np.array([sums[name] for name in _SUMS]).view(np.int64)).view(np.float64)
    return dict(zip(_SUMS, everyone.sum(axis=0).tolist(), strict=True))


@contextmanager
def averaged_buffers(comm: Communicator, model: nn.Module) -> Iterator[None]:
    """Give the model, inside the block, the mean over ranks of its floating-point buffers. Collective."""
    buffers = [b for b in model.buffers() if b.is_floating_point() and b.numel()]
    if comm.size == 1 or not buffers:
        yield
        return
    own = [buffer.clone() for buffer in buffers]
    for buffer in buffers:
        flat = buffer.detach().double().reshape(-1).numpy()
        everyone = comm.allgather(flat.view(np.int64)).view(np.float64)
        buffer.copy_(torch.from_numpy(everyone.mean(axis=0)).view(buffer.shape))
    try:
        yield
    finally:
        for buffer, value in zip(buffers, own, strict=True):
            buffer.copy_(value)

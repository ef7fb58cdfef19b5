"""Replicas: every rank holds the same model. Made so at the start, and refused where it cannot be."""

from __future__ import annotations

import re

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from mpisparse.comm import Communicator, require_same
from mpisparse.kernels.checksum import checksum


def make_replicas(
    comm: Communicator, optimizer: Optimizer, model: nn.Module, settings: list[object]
) -> list[tuple[str, Tensor]]:
    """Return the optimizer's parameters with their names, after giving all ranks rank 0's values. Collective.

    Args:
        settings: whatever else has to be the same on all ranks, compared by `repr`.

    Raises:
        RankMismatchError: models, optimizers or settings differ in more than values.
    """
    parameters = named_parameters(optimizer, model)
    replicated = [*model.named_parameters(), *model.named_buffers(), *parameters]
    require_same_model(comm, replicated)
    require_same(comm, "the optimizers", [type(optimizer).__name__, *options_of(optimizer), *state_of(optimizer)])
    # A schedule may be a plain function, whose repr has an address in it that differs between ranks.
    require_same(comm, "the settings", [re.sub(r" at 0x[0-9a-f]+", "", repr(setting)) for setting in settings])
    for tensor in {id(tensor): tensor for _, tensor in replicated}.values():
        broadcast_tensor(comm, tensor)
    return parameters


def require_same_model(comm: Communicator, named: list[tuple[str, Tensor]]) -> None:
    """Raise RankMismatchError unless all ranks' tensors have the same names, shapes and types.

    Collective. The message names the first difference.
    """
    lines = [f"{name}: {tuple(t.shape)} {t.dtype}{'' if t.requires_grad else ' fixed'}" for name, t in named]
    require_same(comm, "the models", lines)


@torch.no_grad()
def broadcast_tensor(comm: Communicator, tensor: Tensor, root: int = 0) -> None:
    """Replace `tensor`, of any type, by that of rank `root`. Collective."""
    if comm.size == 1:
        return
    host = tensor.detach().to("cpu", copy=True).contiguous().reshape(-1)
    comm.broadcast(host.view(torch.uint8).numpy(), root)
    tensor.copy_(host.view(tensor.shape))


def named_parameters(optimizer: Optimizer, model: nn.Module) -> list[tuple[str, Tensor]]:
    """Return the optimizer's parameters with their names in the model, in the model's order; strangers last."""
    trained = {id(p): p for group in optimizer.param_groups for p in group["params"]}
    named = [(name, p) for name, p in model.named_parameters() if id(p) in trained]
    inside = {id(p) for _, p in named}
    outside = [p for key, p in trained.items() if key not in inside]
    return named + [(f"outside_the_model.{i}", p) for i, p in enumerate(outside)]


def options_of(optimizer: Optimizer) -> list[str]:
    """Return the options of all parameter groups, a line each: what replicas must share to stay equal."""
    return [
        f"group {number}, {name}={float(value) if isinstance(value, Tensor) else value!r}"
        for number, group in enumerate(optimizer.param_groups)
        for name, value in sorted(group.items())
        if name != "params"
    ]


def state_of(optimizer: Optimizer) -> list[str]:
    """Return a line for each tensor that the optimizer holds already, with its checksum."""
    states = [optimizer.state.get(p, {}) for group in optimizer.param_groups for p in group["params"]]
    return [
        f"state {number}, {name}: checksum {bits_of(value)}"
        for number, state in enumerate(states)
        for name, value in sorted(state.items())
        if isinstance(value, Tensor)
    ]


def bits_of(tensor: Tensor) -> int:
    """Return a checksum of 64 bits of a tensor of any type, on any device."""
    host = tensor.detach().cpu().contiguous().reshape(-1)
    return checksum(host.view(torch.uint8).numpy())

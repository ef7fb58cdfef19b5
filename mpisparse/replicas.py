"""Replicas: every rank holds the same model. Made so at the start, and refused where it cannot be."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from mpisparse.comm import Communicator, agreed, require_same
from mpisparse.comparable import comparable
from mpisparse.names import plain_names
from mpisparse.tensors import bits_of, describe, fill, is_plain, on_host, packed, refuse_unusable, unpacked


def make_replicas(
    comm: Communicator, optimizer: Optimizer, model: nn.Module, settings: list[object]
) -> list[tuple[str, Tensor]]:
    """Return the optimizer's parameters with their names, after giving all ranks rank 0's values. Collective.

    Args:
        settings: whatever else has to be the same on all ranks, see `comparable`; texts as they are.

    Raises:
        ConfigError: a parameter or buffer of a kind that cannot be replicated, on any rank.
        RankMismatchError: models, optimizers or settings differ in more than values.
    """
    with agreed(comm):
        refuse_unusable_parts(optimizer, model)
    parameters = named_parameters(optimizer, model)
    names = plain_names(model)
    inside = [(names[name], tensor) for name, tensor in (*model.named_parameters(), *model.named_buffers())]
    replicated = [*inside, *parameters]
    require_same_model(comm, replicated)
    require_same(comm, "the optimizers", [type(optimizer).__name__, *options_of(optimizer), *state_of(optimizer)])
    require_same(comm, "the settings", [text if isinstance(text, str) else comparable(text) for text in settings])
    for tensor in {id(tensor): tensor for _, tensor in replicated}.values():
        broadcast_tensor(comm, tensor)
    return parameters


def require_same_model(comm: Communicator, named: list[tuple[str, Tensor]]) -> None:
    """Raise RankMismatchError unless all ranks' tensors have the same names, shapes and types.

    Collective. The message names the first difference.
    """
    require_same(comm, "the models", [describe(name, tensor) for name, tensor in named])


@torch.no_grad()
def broadcast_tensor(comm: Communicator, tensor: Tensor, root: int = 0) -> None:
    """Replace the values of `tensor`, of any type and layout, by those of rank `root`. Collective."""
    if comm.size == 1:
        return
    if is_plain(tensor):
        host = on_host(tensor)
        comm.broadcast(host.view(torch.uint8).numpy(), root)
        fill(tensor, host.view(tensor.shape))
    else:
        fill(tensor, unpacked(comm.broadcast_bytes(packed(tensor) if comm.rank == root else None, root)))


def refuse_unusable_parts(optimizer: Optimizer, model: nn.Module) -> None:
    """Raise ConfigError for a parameter or buffer of a kind that cannot be replicated, or not be trained."""
    for name, replicated in model.named_parameters():
        refuse_unusable(f"parameter {name}", replicated)
    for name, buffer in model.named_buffers():
        refuse_unusable(f"buffer {name}", buffer)
    for name, parameter in named_parameters(optimizer, model):
        refuse_unusable(f"parameter {name}", parameter, trained=parameter.requires_grad)


def named_parameters(optimizer: Optimizer, model: nn.Module) -> list[tuple[str, Tensor]]:
    """Return the optimizer's parameters with their plain names in the model, in its order; strangers last."""
    trained = {id(p): p for group in optimizer.param_groups for p in group["params"]}
    names = plain_names(model)
    named: list[tuple[str, Tensor]] = [(names[name], p) for name, p in model.named_parameters() if id(p) in trained]
    inside = {id(p) for _, p in named}
    outside = [p for key, p in trained.items() if key not in inside]
    return named + [(f"outside_the_model.{i}", p) for i, p in enumerate(outside)]


def options_of(optimizer: Optimizer) -> list[str]:
    """Return the options of all parameter groups, a line each: what replicas must share to stay equal."""
    return [
        f"group {number}, {name}={comparable(value)}"
        for number, group in enumerate(optimizer.param_groups)
        for name, value in sorted(group.items(), key=lambda item: str(item[0]))
        if name != "params"
    ]


def state_of(optimizer: Optimizer) -> list[str]:
    """Return a line for each tensor that the optimizer holds already, with its checksum."""
    states = [optimizer.state.get(p, {}) for group in optimizer.param_groups for p in group["params"]]
    return [
        f"state {number}, {name}: checksum {bits_of(value)}"
        for number, state in enumerate(states)
        for name, value in sorted(state.items(), key=lambda item: str(item[0]))
        if isinstance(value, Tensor)
    ]

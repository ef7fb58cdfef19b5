"""Replicas: every rank holds the same model. Made so at the start, and refused where it cannot be."""

from __future__ import annotations

import torch
from torch import Tensor

from mpisparse.comm import Communicator, require_same


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

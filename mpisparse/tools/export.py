"""A plain torch file of what a checkpoint holds of a model or its optimizer, to be loaded anywhere."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from mpisparse.checkpoint import Saved
from mpisparse.checkpoint.disk import reason
from mpisparse.checkpoint.reshape import Blend
from mpisparse.errors import CheckpointError
from mpisparse.files import replacing

What = Literal["model", "optimizer"]


def export(saved: Saved, target: Path, what: What = "model") -> dict[str, Any]:
    """Write a state dict to a new file, and return it: what `torch.load(target, weights_only=True)` gives.

    A model's running statistics are the mean over the ranks, which is what evaluations use.

    Raises:
        CheckpointError: the checkpoint is damaged or has nothing of that name, or the file exists or cannot be written.
    """
    replicated = saved.replicated()
    if not isinstance(replicated, dict) or not isinstance(replicated.get(what), dict):
        held = sorted(replicated) if isinstance(replicated, dict) else type(replicated).__name__
        raise CheckpointError(f"{saved.path} holds no {what!r} in its replicated state, but {held!r:.200}")
    state = dict(replicated[what])
    if what == "model":
        state |= {name: value for name, value in _mean_buffers(saved).items() if name in state}
    _write(target, state)
    return state


def _mean_buffers(saved: Saved) -> dict[str, Tensor]:
    """Return the mean over ranks of the buffers that a training run keeps by rank; none of another program's."""
    blend = Blend(saved.ranks)
    for rank in range(saved.ranks):
        tree = saved.rank(rank)
        if not isinstance(tree, dict) or not isinstance(tree.get("buffers"), dict):
            return {}
        blend.add(tree["buffers"], 1)
    mean: dict[str, Tensor] = blend.result()
    return mean


def _write(target: Path, state: dict[str, Any]) -> None:
    """Write the file whole or not at all, and over no other."""
    try:
        if target.exists() or target.is_symlink():
            raise CheckpointError(f"{target} is there already: name another file, or remove it first")
        with replacing(target) as file:
            torch.save(state, file)
    except (OSError, RuntimeError) as error:  # so torch says that a file could not be written
        raise CheckpointError(f"{target} cannot be written: {reason(error)}") from error

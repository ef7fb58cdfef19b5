"""Names of parameters, the same whatever a model is wrapped in: what state is kept by."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import TypeVar

from torch import nn

Value = TypeVar("Value")

#: Names under which torch's wrappers hold what they wrap: torch.compile, activation checkpointing, FSDP.
_WRAPPERS = frozenset({"_orig_mod", "_checkpoint_wrapped_module", "_fsdp_wrapped_module"})

#: The name under which DataParallel, DistributedDataParallel and AveragedModel do.
_MODULE = "module."


def plain_name(name: str) -> str:
    """Return a parameter's name as it is without torch.compile and the like around the model or parts of it."""
    return ".".join(part for part in name.split(".") if part not in _WRAPPERS)


def plain_names(model: nn.Module) -> dict[str, str]:
    """Return the plain names of parameters and buffers by those in `model`; DataParallel's prefix is left out, too."""
    parallel = isinstance(model, nn.DataParallel | nn.parallel.DistributedDataParallel)
    names = [name for name, _ in (*model.named_parameters(), *model.named_buffers())]
    return {name: plain_name(name.removeprefix(_MODULE) if parallel else name) for name in names}


def fitted(ours: Collection[str], theirs: Mapping[str, Value]) -> dict[str, Value]:
    """Return a state by the names that this model has, where only what the two models were wrapped in differs.

    Args:
        ours: plain names.
        theirs: the state by the names that it was saved under.
    """
    plain = {plain_name(name): value for name, value in theirs.items()}
    without = {name.removeprefix(_MODULE): value for name, value in plain.items()}
    within = {_MODULE + name: value for name, value in plain.items()}
    return next((state for state in (plain, without, within) if state.keys() == set(ours)), dict(theirs))

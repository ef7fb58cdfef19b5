"""Options that go together, and the reasons why others do not."""

from __future__ import annotations

import torch
from torch.optim import Optimizer

from mpisparse.collectives import DENSE_MEANS
from mpisparse.errors import ConfigError
from mpisparse.flat import FlatGradients
from mpisparse.memory import Memory, NoMemory
from mpisparse.preflight import NonFinite
from mpisparse.sparsifiers import Sparsifier
from mpisparse.wire import Wire


def check_options(
    optimizer: Optimizer,
    sparsifier: Sparsifier,
    memory: Memory,
    wire: Wire,
    dense: str,
    nonfinite: NonFinite,
    seed: int,
) -> None:
    """Raise ConfigError, saying why, for an optimizer that cannot be distributed or options that are wrong together."""
    if isinstance(optimizer, torch.optim.SparseAdam):
        raise ConfigError("SparseAdam takes torch's sparse gradients, and averaged gradients are dense: use Adam")
    if dense not in DENSE_MEANS:
        raise ConfigError(f"dense {dense!r} does not exist: use {', '.join(DENSE_MEANS)}")
    if nonfinite not in ("raise", "skip"):
        raise ConfigError(f"nonfinite {nonfinite!r} does not exist: use raise or skip")
    if not 0 <= seed < 2**64:
        raise ConfigError(f"seed {seed} is outside 0 to 2**64 - 1: give another")
    if wire.values == "hybrid" and not sparsifier.shares_magnitude:
        raise ConfigError(
            f"wire values hybrid need the magnitude that GSpar's entries share, not {sparsifier!r}: use auto"
        )
    if wire.values == "levels" and not sparsifier.shares_grid:
        raise ConfigError(f"wire values levels need the grid that QSGD's entries lie on, not {sparsifier!r}: use auto")
    if wire.values == "sign" and isinstance(memory, NoMemory) and not sparsifier.sends_everything:
        raise ConfigError(
            f"wire values sign send every entry of {sparsifier!r} with the mean magnitude of all, and {memory!r} keeps "
            "nothing of the difference, so that the gradient would be biased for good: use ErrorFeedback or "
            "MomentumCorrection, or other wire values"
        )
    memory.check(sparsifier, optimizer.param_groups)


def check_resparsify(rule: Sparsifier | None) -> None:
    """Raise ConfigError for a rule that would lose a part of the average for good."""
    if rule is not None and not (rule.amplifies or rule.sends_everything):
        raise ConfigError(
            f"resparsify {rule!r} is biased, and nothing keeps what it leaves out of the average: use GSpar or Uniform"
        )


def check_samples(samples: int | None) -> None:
    """Raise ConfigError unless `samples` is a count or None."""
    if samples is not None and (not isinstance(samples, int) or samples < 0):
        raise ConfigError(f"samples {samples!r} is no count: give how many samples this rank used, 0 or more")


def check_anything_sparse(flat: FlatGradients, sparsifier: Sparsifier) -> None:
    """Raise ConfigError when a rule is to select and the layout leaves it nothing."""
    if flat.sparse_numel == 0 and not sparsifier.sends_everything:
        raise ConfigError(
            f"{sparsifier!r} has nothing to select from: every tensor has one dimension or is small, and the layout "
            "sends those whole. Use Layout(dense_vectors=False, dense_below=0)"
        )


def refuse_strangers(optimizer: Optimizer, flat: FlatGradients) -> None:
    """Raise ConfigError for a gradient that no exchange would average, so that replicas would part silently."""
    known = {id(slot.parameter) for slot in flat.slots}
    for number, group in enumerate(optimizer.param_groups):
        for place, parameter in enumerate(group["params"]):
            if parameter.grad is not None and id(parameter) not in known:
                raise ConfigError(
                    f"parameter {place} of group {number}, of shape {tuple(parameter.shape)}, has a gradient but "
                    "was frozen or absent when the optimizer was wrapped: wrap it again after unfreezing or adding"
                )

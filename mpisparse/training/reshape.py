"""Reshaper: what a rank of a training run takes over from a checkpoint of another number of ranks."""

from __future__ import annotations

from collections.abc import Iterator
from hashlib import blake2b
from typing import Any

import torch
from torch import Tensor

from mpisparse.checkpoint import Norms, Residual, Saved, Tally
from mpisparse.checkpoint.reshape import Blend, ExchangeBlend, begins_in, shares
from mpisparse.comm import Communicator
from mpisparse.errors import CheckpointError
from mpisparse.words import counted

#: What `Trainer.rank_state` holds.
_KEYS = {"exchange", "random", "buffers"}


class Reshaper:
    """Makes a rank's state of those of others, as `Checkpointer.restore(reshape=)` asks for it, and knows the norms.

    - Memories and running statistics: the mean over ranks stays what it was, so that what is still to be applied is
      conserved, and an evaluation, which takes the mean of the statistics, comes out the same.
    - Random state: a new one for each rank, which follows from the seed, the step and the rank.
    - All else is the same on all ranks, and free of their number.
    """

    def __init__(self, residual: Residual) -> None:
        self.residual = residual
        self.before, self.after = Tally(), Tally()

    def __call__(self, saved: Saved, rank: int, size: int) -> dict[str, Any]:
        """Return the state of rank `rank` of `size`; one file of `saved` after another is in memory.

        Raises:
            CheckpointError: a file is damaged, or it is not the state of a training run.
        """
        self.before, self.after = Tally(), Tally()
        return self._take_over(saved, rank, size)

    def all_ranks(self, saved: Saved, size: int) -> Iterator[dict[str, Any]]:
        """Yield the states of all of `size` ranks, in their order: what one process needs to write them."""
        self.before, self.after = Tally(), Tally()
        for rank in range(size):
            yield self._take_over(saved, rank, size)

    def describe(self, old_size: int, size: int, comm: Communicator | None = None) -> str:
        """Return one line on what was done, with the norms. Collective with `comm`."""
        before, after = self.before.norms(comm), self.after.norms(comm)
        parts = [f"{name}: {describe_norms(before[name], after[name])}" for name in before]
        return f"reshaped from {old_size} to {counted(size, 'rank')} ({self.residual}); " + (
            "; ".join(parts) or "no memory to keep"
        )

    def _take_over(self, saved: Saved, rank: int, size: int) -> dict[str, Any]:
        exchange = ExchangeBlend(saved.ranks, rank, size, self.residual)
        buffers = Blend(saved.ranks)
        for old, units in shares(saved.ranks, rank, size):
            tree = saved.rank(old)
            if not isinstance(tree, dict) or set(tree) != _KEYS:
                raise CheckpointError(
                    f"rank {old} of {saved.path} does not hold the state of `mpisparse train`: a program's own can be "
                    "reshaped by itself alone, with restore(reshape=...)"
                )
            exchange.add(tree["exchange"], old, units)
            buffers.add(tree["buffers"], units)
            self.before.add(tree["exchange"]["memory"], counts=begins_in(old, saved.ranks, size) == rank)
        state = exchange.result()
        self.after.add(state["memory"])
        return {"exchange": state, "random": _random_state(state, rank, size), "buffers": buffers.result()}


def describe_norms(before: Norms, after: Norms) -> str:
    """Return norms before and after as text: of the mean over ranks, which is to be applied, and of a rank's own."""
    return (
        f"norm {before.pending:.6g} before and {after.pending:.6g} after in the mean over ranks, "
        f"{before.rank:.6g} and {after.rank:.6g} on a rank"
    )


def _random_state(exchange: dict[str, Any], rank: int, size: int) -> Tensor:
    """Return a state of torch's generator that no other rank, step or number of ranks has."""
    words = f"{exchange['seed']} {exchange['step']} {rank} {size}"
    seed = int.from_bytes(blake2b(words.encode(), digest_size=8).digest(), "little") >> 1
    return torch.Generator().manual_seed(seed).get_state()

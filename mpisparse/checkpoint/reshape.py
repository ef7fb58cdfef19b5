"""What each rank takes over when a state that P ranks saved goes on with Q.

Laid side by side on a line of length 1, old rank p covers [p/P, (p+1)/P] and new rank q covers [q/Q, (q+1)/Q]. A new
rank takes the mean of what lies above its part of the line. So the mean over ranks stays what it was, entry by entry;
with as many ranks as before each gets its own back; from P to a multiple of P and back is exact; and all ranks together
read about P + Q files, each holding one at a time.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from mpisparse.checkpoint.tree import Tree
from mpisparse.errors import CheckpointError
from mpisparse.sparsifiers.base import Tracked

#: What becomes of the memories: their mean over ranks is conserved, or all start empty.
Residual = Literal["redistribute", "drop"]

_KEYS = {"step", "seed", "rank", "size", "memory", "tracked"}


class Share(NamedTuple):
    """The part of an old rank in a new one: `units` of as many as there were old ranks."""

    rank: int
    units: int


def shares(old_size: int, rank: int, size: int) -> list[Share]:
    """Return what new rank `rank` of `size` takes from the old ranks, in their order; the units add up to `old_size`.

    Example:
        >>> shares(3, 0, 2), shares(3, 1, 2)
        ([Share(rank=0, units=2), Share(rank=1, units=1)], [Share(rank=1, units=1), Share(rank=2, units=2)])
    """
    begin, end = rank * old_size, (rank + 1) * old_size
    first, last = begin // size, -(-end // size)
    return [Share(old, min(end, (old + 1) * size) - max(begin, old * size)) for old in range(first, last)]


def begins_in(old: int, old_size: int, size: int) -> int:
    """Return the new rank in whose part old rank `old` begins: exactly one, so that sums count it once."""
    return old * size // old_size


class Blend:
    """The weighted mean of trees of one form, of which the first and one other at a time are in memory.

    Real and complex tensors are added up in float64, times whole numbers, and rounded once, at the end. Whatever cannot
    be averaged, such as whole numbers, is the first tree's.
    """

    def __init__(self, total: int) -> None:
        self._total, self._done = total, 0
        self._form: Tree = None
        self._first: dict[str, Tensor] = {}
        self._sums: dict[str, Tensor] = {}

    def add(self, tree: Tree, units: int) -> None:
        """Add a tree of weight `units` / `total`.

        Raises:
            CheckpointError: it has not the form of those before it.
        """
        found = tensors(tree)
        if self._done == 0:
            self._form, self._first = tree, found
            if units < self._total:
                self._sums = {name: _wide(tensor) * units for name, tensor in found.items() if _is_continuous(tensor)}
        else:
            self._require_form(found)
            for name, total in self._sums.items():
                total += _wide(found[name]) * units
        self._done += units

    def result(self) -> Tree:
        """Return the mean, in the form and dtypes of the first tree. A tree that is all of it comes back as it was."""
        if self._done != self._total:
            raise CheckpointError(f"{self._done} parts of {self._total} were added up: every rank's state is needed")
        means = {name: (total / self._total).to(self._first[name].dtype) for name, total in self._sums.items()}
        return rebuilt(self._form, lambda name, tensor: means.get(name, tensor))

    def _require_form(self, found: dict[str, Tensor]) -> None:
        ours, theirs = (
            [(name, tensor.dtype, tuple(tensor.shape)) for name, tensor in some.items()]
            for some in (self._first, found)
        )
        if ours != theirs:
            raise CheckpointError(
                "the ranks' states differ in form, so that they have no mean: were they saved by the same program?"
            )


def reshape_exchange(
    read: Callable[[int], dict[str, Any]], old_size: int, rank: int, size: int, *, residual: Residual = "redistribute"
) -> dict[str, Any]:
    """Return the exchange state of rank `rank` of `size`, from those that `old_size` ranks saved.

    Args:
        read: returns what `GradientExchange.state_dict` gave on an old rank; asked for as few as are needed, in turn.
        residual: "drop" starts all memories empty: what they held back is lost.

    Raises:
        CheckpointError: the states do not belong together.
    """
    blend = ExchangeBlend(old_size, rank, size, residual)
    for old, units in shares(old_size, rank, size):
        blend.add(read(old), old, units)
    return blend.result()


class ExchangeBlend:
    """One new rank's exchange state, from those of the old ranks it takes over.

    The mean over ranks of each vector of the memory is conserved: with a division by the number of ranks after it, that
    is what the memories will in time apply. What an old rank kept is weighed by its samples already. Tracked thresholds
    start anew, as they belong to vectors that are no more: the next step selects exactly.
    """

    def __init__(self, old_size: int, rank: int, size: int, residual: Residual) -> None:
        self._old_size, self._rank, self._size, self._residual = old_size, rank, size, residual
        self._memory = Blend(old_size)
        self._state: dict[str, Any] = {}

    def add(self, state: dict[str, Any], old: int, units: int) -> None:
        """Add the state of old rank `old`, of weight `units` / `old_size`."""
        if not isinstance(state, dict) or not _KEYS - {"tracked"} <= set(state) <= _KEYS:
            raise CheckpointError(f"{state!r:.200} is no state of an exchange that this version can reshape")
        if (state["rank"], state["size"]) != (old, self._old_size):
            raise CheckpointError(
                f"the state of rank {old} of {self._old_size} says that it is of rank {state['rank']} of "
                f"{state['size']}: give every rank's own"
            )
        for key in ("step", "seed"):
            if self._state and state[key] != self._state[key]:
                raise CheckpointError(
                    f"the states have {key} {self._state[key]} and {state[key]}: they are of two runs"
                )
        memory = state["memory"]
        if not isinstance(memory, dict) or not all(isinstance(vectors, dict) for vectors in memory.values()):
            raise CheckpointError(f"{memory!r:.200} is no memory: it holds dicts of tensors")
        self._memory.add(memory, units)
        self._state = self._state or {**state, "memory": None}

    def result(self) -> dict[str, Any]:
        """Return the new rank's state."""
        memory = self._memory.result()
        if self._residual == "drop":
            memory = rebuilt(memory, lambda _, tensor: torch.zeros_like(tensor))
        tracked = [Tracked().state_dict() for _ in self._state.get("tracked", [])]
        state = {**self._state, "rank": self._rank, "size": self._size, "memory": memory}
        return {**state, "tracked": tracked} if "tracked" in self._state else state


def tensors(tree: Tree, name: str = "") -> dict[str, Tensor]:
    """Return the tensors of a tree of dicts by their path, such as "residual/layers.1.weight", in its order."""
    if isinstance(tree, Tensor):
        return {name: tree}
    if not isinstance(tree, dict):
        raise CheckpointError(
            f"{name or 'the state'} is a {type(tree).__name__}, where a tensor or a dict of them is due"
        )
    return {
        path: tensor for key in tree for path, tensor in tensors(tree[key], f"{name}/{key}" if name else key).items()
    }


def rebuilt(tree: Tree, replace: Callable[[str, Tensor], Tensor], name: str = "") -> Tree:
    """Return a tree of dicts with each tensor replaced by what `replace` makes of its path and itself."""
    if isinstance(tree, Tensor):
        return replace(name, tree)
    return {key: rebuilt(tree[key], replace, f"{name}/{key}" if name else key) for key in tree}


def _is_continuous(tensor: Tensor) -> bool:
    return tensor.is_floating_point() or tensor.is_complex()


def _wide(tensor: Tensor) -> Tensor:
    return tensor.to(torch.complex128 if tensor.is_complex() else torch.float64)

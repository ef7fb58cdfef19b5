"""What a checkpoint holds: trees with names, shapes, dtypes and sizes, the norms of memories, where the run was."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch

from mpisparse.checkpoint import Saved, Tally
from mpisparse.checkpoint.manifest import STATE, rank_file
from mpisparse.checkpoint.tree import Tree


@dataclass(frozen=True, slots=True)
class Leaf:
    """One value of a tree: an array with its dtype, shape and bytes, or anything else as text in `value`."""

    name: str
    dtype: str
    shape: tuple[int, ...] | None
    bytes: int
    value: str | None = None


def describe_contents(saved: Saved) -> dict[str, Any]:
    """Return what `saved` holds, as JSON can say it. Every file is read and verified, one at a time in memory.

    path, step, ranks, files: of the manifest.
    configuration, sampler, steps_done: of a training run, else None.
    trees: by file, the leaves of the replicated state and those of rank 0; other ranks' are listed where they differ.
    norms: by rank, of each vector of each exchange's memory; and of their mean over ranks under "mean".

    Raises:
        CheckpointError: a file is damaged.
    """
    replicated = saved.replicated()
    trees = {STATE: [asdict(leaf) for leaf in leaves(replicated)]}
    first: list[Leaf] = []
    tally, per_rank = Tally(), []
    for rank in range(saved.ranks):
        tree = saved.rank(rank)
        found = list(leaves(tree))
        if rank == 0 or _form(found) != _form(first):
            trees[rank_file(rank)] = [asdict(leaf) for leaf in found]
        first = first or found
        memory = _memory(tree)
        tally.add(memory)
        alone = Tally()
        alone.add(memory)
        per_rank.append({name: norms.rank for name, norms in alone.norms().items()})
    known = replicated if isinstance(replicated, dict) else {}
    configuration = known.get("config")
    return {
        "path": str(saved.path),
        "step": saved.step,
        "ranks": saved.ranks,
        "files": [asdict(entry) for entry in saved.manifest.files],
        "configuration": configuration.get("name") if isinstance(configuration, dict) else None,
        "sampler": known.get("sampler") if isinstance(known.get("sampler"), dict) else None,
        "steps_done": known.get("steps_done"),
        "trees": trees,
        "norms": {"ranks": per_rank, "mean": {name: norms.pending for name, norms in tally.norms().items()}},
    }


def leaves(tree: Tree, name: str = "") -> Iterator[Leaf]:
    """Yield the values of a tree with their paths, such as "model/layers.1.weight"."""
    if isinstance(tree, dict):
        for key, value in tree.items():
            yield from leaves(value, f"{name}/{key}" if name else str(key))
    elif isinstance(tree, list | tuple):
        for number, value in enumerate(tree):
            yield from leaves(value, f"{name}/{number}" if name else str(number))
    elif isinstance(tree, torch.Tensor):
        dtype = str(tree.dtype).removeprefix("torch.")
        yield Leaf(name, dtype, tuple(tree.shape), tree.numel() * tree.element_size())
    elif isinstance(tree, np.ndarray):
        yield Leaf(name, tree.dtype.name, tree.shape, tree.nbytes)
    else:
        yield Leaf(name, type(tree).__name__, None, 0, f"{tree!r:.80}")


def _form(found: list[Leaf]) -> list[tuple[Any, ...]]:
    return [(leaf.name, leaf.dtype, leaf.shape) for leaf in found]


def _memory(tree: Tree) -> dict[str, dict[str, torch.Tensor]]:
    """Return the vectors of every exchange's memory that the tree of a rank holds, wherever the program put it."""
    if not isinstance(tree, dict):
        return {}
    memory = tree.get("memory")
    if {"step", "seed", "rank", "size"} <= tree.keys() and isinstance(memory, dict):
        return {
            vector: parts
            for vector, parts in memory.items()
            if isinstance(parts, dict) and all(isinstance(part, torch.Tensor) for part in parts.values())
        }
    found: dict[str, dict[str, torch.Tensor]] = {}
    for value in tree.values():
        for vector, parts in _memory(value).items():
            found.setdefault(vector, {}).update(parts)
    return found

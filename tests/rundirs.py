"""What run directories hold, for tests to compare."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

from mpisparse.checkpoint import open_checkpoint, verify


def read_lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def states(directory: Path, size: int) -> dict[str, Any]:
    """Return every tensor and number of the last checkpoint, by its path in the tree."""
    newest = max(directory.glob("checkpoints/step-*"))
    verify(newest)
    flat: dict[str, Any] = {}

    def walk(prefix: str, node: Any) -> None:
        if isinstance(node, dict):
            for key, value in node.items():
                walk(f"{prefix}.{key}", value)
        elif isinstance(node, list | tuple):
            for i, value in enumerate(node):
                walk(f"{prefix}.{i}", value)
        else:
            flat[prefix] = node

    saved = open_checkpoint(newest)
    walk("state.h5", saved.replicated())
    for rank in range(size):
        walk(f"rank-{rank:05d}.h5", saved.rank(rank))
    return flat


def assert_same_end(left: Path, right: Path, size: int) -> None:
    """Assert that the newest checkpoints of two runs hold the same bits."""
    expected, found = states(left, size), states(right, size)
    assert expected.keys() == found.keys()
    for name, value in expected.items():
        if isinstance(value, torch.Tensor):
            assert torch.equal(value, found[name]), name
        else:
            assert value == found[name], name

"""What `mpisparse bench kernels` runs: each piece of local work beside the obvious torch expression.

The limit of a case is what its bytes cost at the speed of a copy of the vector, which reads four bytes an entry and
writes four: no code can be faster unless it leaves work out.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mpisparse import random, wire
from mpisparse.memory import ErrorFeedback
from mpisparse.sparse import SparseVector
from mpisparse.sparsifiers import GSpar, TopK
from mpisparse.wire import Expectation, Wire

Vector = NDArray[np.float32]
State = TypeVar("State")

#: Ranks whose messages are added up.
RANKS = 8

#: Bytes of an index and a value.
_ENTRY = 8


@dataclass(frozen=True, kw_only=True)
class Case(Generic[State]):
    """One piece of work.

    name: what the table calls it.
    prepare: makes what the work needs from the entries of the vector and a density; called once.
    ours, torch: do the work, any number of times.
    limit: the least it can take, in copies of the vector; reason: why.
    """

    name: str
    prepare: Callable[[int, float], State]
    ours: Callable[[State], object]
    torch: Callable[[State], object]
    limit: float
    reason: str


def all_cases(density: float) -> list[Case[Any]]:
    """Return every case at one density."""
    return [compress_topk(density), select_gspar(density), write_and_read(density), add_up(density)]


# Top-k with error feedback: add the residual, select, take, clear ---------------------------------------------------


class _Compression:
    def __init__(self, numel: int, density: float) -> None:
        self.gradient = _noise(numel)
        self.place = slice(0, numel)
        self.rule = TopK(density)
        self.kept = ErrorFeedback().start(numel, numel)
        self.count = max(1, round(density * numel))
        self.gradient_tensor = torch.from_numpy(self.gradient)
        self.residual = torch.zeros(numel)


def compress_topk(density: float) -> Case[_Compression]:
    """Return the pass from a gradient to what is sent, the rest being remembered."""
    return Case(
        name=f"top-k with residual, {100 * density:g} %",
        prepare=_Compression,
        ours=_compress_topk,
        torch=_compress_topk_torch,
        limit=1.5,
        reason="reads gradient and residual, writes the residual",
    )


def _compress_topk(state: _Compression) -> SparseVector:
    corrected = state.kept.accumulate(state.gradient, state.place)
    selected = state.rule.select(corrected)
    state.kept.sent(selected, state.place)
    return selected


def _compress_topk_torch(state: _Compression) -> tuple[Tensor, Tensor]:
    state.residual.add_(state.gradient_tensor)
    indices = state.residual.abs().topk(state.count, sorted=False).indices
    values = state.residual[indices]
    state.residual[indices] = 0.0
    return indices, values


# GSpar: find the level, toss a coin for each entry ------------------------------------------------------------------


class _Choice:
    def __init__(self, numel: int, density: float) -> None:
        self.gradient = _noise(numel)
        self.rule = GSpar(density=density)
        self.generator = random.generator(0, 0, 0, 0)
        self.tensor = torch.from_numpy(self.gradient)
        # Given to torch, which would have to search for it.
        self.scale = 1.0 / float(self.rule.select(self.gradient).magnitude or 1.0)


def select_gspar(density: float) -> Case[_Choice]:
    """Return the choice of entries by GSpar."""
    return Case(
        name=f"GSpar, {100 * density:g} %",
        prepare=_Choice,
        ours=_select_gspar,
        torch=_select_gspar_torch,
        limit=1.0,
        reason="reads the gradient twice: the level, then the coins",
    )


def _select_gspar(state: _Choice) -> SparseVector:
    return state.rule.select(state.gradient, state.generator)


def _select_gspar_torch(state: _Choice) -> tuple[Tensor, Tensor]:
    probabilities = (state.tensor.abs() * state.scale).clamp_(max=1.0)
    indices = (torch.rand_like(probabilities) < probabilities).nonzero().squeeze(1)
    return indices, state.tensor[indices] / probabilities[indices]


# A message: written, and read again ---------------------------------------------------------------------------------


class _Message:
    def __init__(self, numel: int, density: float) -> None:
        self.selected = TopK(density).select(_noise(numel))
        self.indices = torch.from_numpy(self.selected.indices.astype(np.int32))
        self.values = torch.from_numpy(self.selected.values)


def write_and_read(density: float) -> Case[_Message]:
    """Return the encoding of a message and its decoding."""
    return Case(
        name=f"encode and decode, {100 * density:g} %",
        prepare=_Message,
        ours=_write_and_read,
        torch=_write_and_read_torch,
        limit=4 * density * _ENTRY / 8,
        reason=f"reads and writes {_ENTRY} bytes an entry sent, twice",
    )


def _write_and_read(state: _Message) -> SparseVector:
    return wire.decode(wire.encode(state.selected, Wire()))


def _write_and_read_torch(state: _Message) -> tuple[Tensor, Tensor]:
    message = torch.cat([state.indices.view(torch.uint8), state.values.view(torch.uint8)])
    cut = 4 * state.indices.numel()
    return message[:cut].view(torch.int32).clone(), message[cut:].view(torch.float32).clone()


# The messages of all ranks: read, and added up -----------------------------------------------------------------------


class _Messages:
    def __init__(self, numel: int, density: float) -> None:
        chosen = [TopK(density).select(_noise(numel, rank)) for rank in range(RANKS)]
        self.messages = [wire.encode(selected, Wire(), rank=rank) for rank, selected in enumerate(chosen)]
        self.mean = np.empty(numel, np.float32)
        self.pairs = [(torch.from_numpy(s.indices.astype(np.int64)), torch.from_numpy(s.values)) for s in chosen]
        self.tensor = torch.empty(numel)


def add_up(density: float) -> Case[_Messages]:
    """Return the mean of the messages of `RANKS` ranks."""
    return Case(
        name=f"decode and add {RANKS} ranks, {100 * density:g} %",
        prepare=_Messages,
        ours=_add_up,
        torch=_add_up_torch,
        limit=(4 + RANKS * density * _ENTRY) / 8,
        reason="writes the mean once, reads the messages once",
    )


def _add_up(state: _Messages) -> Vector:
    mean = state.mean
    mean[:] = 0.0
    for rank, message in enumerate(state.messages):
        sparse = wire.decode(message, Expectation(0, 0, rank, mean.size))
        mean[sparse.indices] += sparse.values
    mean /= RANKS
    return mean


def _add_up_torch(state: _Messages) -> Tensor:
    state.tensor.zero_()
    for indices, values in state.pairs:
        state.tensor.index_add_(0, indices, values)
    return state.tensor.div_(RANKS)


def _noise(numel: int, rank: int = 0) -> Vector:
    return random.generator(0, rank, 0, 0).standard_normal(numel, dtype=np.float32)

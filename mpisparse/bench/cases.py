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
from mpisparse.kernels.sums import mean_into
from mpisparse.memory import ErrorFeedback, Memory, MomentumCorrection, NoMemory
from mpisparse.sparse import SparseVector
from mpisparse.sparsifiers import GSpar, Sparsifier, TopK, Tracked, TrackedTopK
from mpisparse.wire import Expectation, Wire

Vector = NDArray[np.float32]
State = TypeVar("State")

#: Ranks whose messages are added up.
RANKS = 8

_MOMENTUM = 0.9

#: Bytes of an index and a value.
_ENTRY = 8


@dataclass(frozen=True, kw_only=True)
class Case(Generic[State]):
    """One piece of work.

    name: what the table calls it.
    prepare: makes what the work needs from the entries of the vector and a density; called once.
    refresh: puts back what the work used up, before each time, outside the clock.
    ours, torch: do the work.
    limit: the least it can take, in copies of the vector; reason: why.
    """

    name: str
    prepare: Callable[[int, float], State]
    ours: Callable[[State], object]
    torch: Callable[[State], object]
    limit: float
    reason: str
    refresh: Callable[[State], None] = lambda state: None


def all_cases(density: float) -> list[Case[Any]]:
    """Return every case at one density."""
    return [
        compress("exact top-k, residual", TopK(density), ErrorFeedback(), density),
        compress("tracked top-k, residual", TrackedTopK(density), ErrorFeedback(), density),
        compress("exact top-k, momentum", TopK(density), MomentumCorrection(momentum=_MOMENTUM), density),
        select_gspar(density),
        write_and_read(density),
        add_up(density),
    ]


# From a gradient to what is sent: add the residual, select, pack, clear both -----------------------------------------


class _Compression:
    """Gradients that follow one another, as in training: only then are residuals what they are there."""

    def __init__(self, numel: int, density: float, rule: Sparsifier, memory: Memory) -> None:
        self.gradient = _noise(numel)
        self.place = slice(0, numel)
        self.rule = rule
        self.kept = memory.start(numel, numel)
        self.count = max(1, round(density * numel))
        self.tracked = Tracked()
        self.tensor = torch.from_numpy(self.gradient)
        self.noise = _noise(numel, 1)
        self.turn = 0
        for _ in range(10):
            self.refresh()
            _compress(self)
        kept = {name: torch.from_numpy(vector.copy()) for name, vector in self.kept.vectors().items()}
        self.velocity = kept.get("velocity")
        self.residual = kept["residual" if self.velocity is None else "accumulated"]

    def refresh(self) -> None:
        """Put another gradient in place of the one that was cleared: the same noise, from elsewhere on."""
        self.turn += 1
        start = self.turn * 7_368_787 % self.noise.size
        np.copyto(self.gradient[: self.noise.size - start], self.noise[start:])
        np.copyto(self.gradient[self.noise.size - start :], self.noise[:start])


def compress(name: str, rule: Sparsifier, memory: Memory, density: float) -> Case[_Compression]:
    """Return the whole pass from a gradient to what is sent, the rest being remembered."""
    momentum = isinstance(memory, MomentumCorrection)
    streams = 6 if momentum else 4
    return Case(
        name=f"{name}, {100 * density:g} %",
        prepare=lambda numel, density: _Compression(numel, density, rule, memory),
        refresh=_Compression.refresh,
        ours=_compress,
        torch=_compress_torch,
        limit=streams / 2,
        reason="reads and writes gradient and " + ("velocity and sum" if momentum else "residual"),
    )


def _compress(state: _Compression) -> SparseVector:
    source = state.kept.source(state.gradient, state.place)
    selected = state.rule.choose(source, None, state.tracked)
    source.sent(selected)
    return selected


def _compress_torch(state: _Compression) -> tuple[Tensor, Tensor]:
    if state.velocity is None:
        state.residual.add_(state.tensor)
    else:
        state.residual.add_(state.velocity.mul_(_MOMENTUM).add_(state.tensor))
    indices = state.residual.abs().topk(state.count, sorted=False).indices
    values = state.residual[indices]
    state.residual[indices] = 0.0
    if state.velocity is not None:
        state.velocity[indices] = 0.0
    state.tensor.zero_()
    return indices, values


# GSpar: find the level, toss a coin for each entry, pack, clear ------------------------------------------------------


class _Choice:
    def __init__(self, numel: int, density: float) -> None:
        self.source = _noise(numel)
        self.gradient = self.source.copy()
        self.rule = GSpar(density=density)
        self.generator = random.generator(0, 0, 0, 0)
        self.kept = NoMemory().start(numel, numel)
        self.tensor = torch.from_numpy(self.gradient)
        # Given to torch, which would have to search for it.
        self.scale = 1.0 / float(self.rule.select(self.gradient).magnitude or 1.0)

    def refresh(self) -> None:
        """Put the gradient back that was cleared."""
        np.copyto(self.gradient, self.source)


def select_gspar(density: float) -> Case[_Choice]:
    """Return the choice of entries by GSpar."""
    return Case(
        name=f"GSpar, {100 * density:g} %",
        prepare=_Choice,
        refresh=_Choice.refresh,
        ours=_select_gspar,
        torch=_select_gspar_torch,
        limit=1.5,
        reason="reads the gradient twice, for the level and for the coins, and clears it",
    )


def _select_gspar(state: _Choice) -> SparseVector:
    source = state.kept.source(state.gradient, slice(0, state.gradient.size))
    selected = state.rule.choose(source, state.generator)
    source.sent(selected)
    return selected


def _select_gspar_torch(state: _Choice) -> tuple[Tensor, Tensor]:
    probabilities = (state.tensor.abs() * state.scale).clamp_(max=1.0)
    indices = (torch.rand_like(probabilities) < probabilities).nonzero().squeeze(1)
    values = state.tensor[indices] / probabilities[indices]
    state.tensor.zero_()
    return indices, values


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
        self.mean = np.zeros(numel, np.float32)
        self.pairs = [(torch.from_numpy(s.indices.astype(np.int64)), torch.from_numpy(s.values)) for s in chosen]
        self.tensor = torch.from_numpy(self.mean)

    def refresh(self) -> None:
        """Put the zeros there that the memory leaves in the gradient."""
        self.mean[:] = 0.0


def add_up(density: float) -> Case[_Messages]:
    """Return the mean of the messages of `RANKS` ranks."""
    touched = 1 - (1 - density) ** (16 * RANKS)
    return Case(
        name=f"decode and add {RANKS} ranks, {100 * density:g} %",
        prepare=_Messages,
        refresh=_Messages.refresh,
        ours=_add_up,
        torch=_add_up_torch,
        limit=(8 * touched + RANKS * density * _ENTRY) / 8,
        reason="reads and writes the cache lines that are touched, reads the messages",
    )


def _add_up(state: _Messages) -> int | None:
    sparse = [
        wire.decode(message, Expectation(0, 0, rank, state.mean.size)) for rank, message in enumerate(state.messages)
    ]
    return mean_into(state.mean, sparse, RANKS)


def _add_up_torch(state: _Messages) -> Tensor:
    for indices, values in state.pairs:
        state.tensor.index_add_(0, indices, values)
    return state.tensor.div_(RANKS)


def _noise(numel: int, rank: int = 0) -> Vector:
    return random.generator(0, rank, 0, 0).standard_normal(numel, dtype=np.float32)

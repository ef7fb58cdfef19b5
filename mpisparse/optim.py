"""DistributedOptimizer: a torch optimizer that steps on the mean gradient of all ranks."""

from __future__ import annotations

import re
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from mpisparse.collectives import DENSE_MEANS, Allgatherv
from mpisparse.comm import Communicator, agreed, require_same, world
from mpisparse.errors import ConfigError, MpiSparseError
from mpisparse.exchange import GradientExchange, Traffic
from mpisparse.flat import FlatGradients, Layout
from mpisparse.memory import Memory, NoMemory, default_memory
from mpisparse.phases import Phases
from mpisparse.preflight import NonFinite, clear_for_exchange
from mpisparse.replicas import broadcast_tensor, require_same_model
from mpisparse.sparsifiers import Dense, Sparsifier
from mpisparse.wire import Wire

#: The key under which `state_dict` keeps what a plain optimizer does not have.
STATE_KEY = "mpisparse"


class DistributedOptimizer(Optimizer):
    """Wraps `optimizer`, and is a torch optimizer itself: schedulers, GradScaler and `state_dict` work as ever.

    Surprises first:

    - Making one is collective: it checks that all ranks hold the same model, and gives all of them rank 0's values.
    - `step` is collective. It exchanges the gradients unless `synchronize` did, then steps the wrapped optimizer.
    - Gradients add up over several `backward` calls, and are exchanged once: `no_sync` only guards against stepping.
    - The mean is over ranks. Where ranks hold different numbers of samples, give `samples=` and it is over samples.
    - With a GradScaler, a step that overflowed on any rank is skipped on all; each rank keeps a scale of its own.
    - `state_dict` adds this rank's memory under the key "mpisparse": save it on every rank. `load_state_dict` also
      takes a plain optimizer's state.

    Args:
        optimizer: any torch optimizer but LBFGS and SparseAdam.
        model: what `optimizer` trains.
        sparsifier: what to send; everything by default.
        memory: what to keep of the rest; by default what the sparsifier needs.
        wire: how to write messages.
        layout: what is selected from as one, and which tensors are never sparsified.
        dense: how whole vectors are averaged: "pieces" (same bits on any MPI), "allreduce" (the library's own), or
            "bfloat16" (pieces that travel rounded, in half the bytes; what that loses is kept nowhere, at density 1
            neither).
        nonfinite: "raise" or "skip" (on all ranks) when a gradient holds NaN or infinity.
        seed: seed of the random choices, the same on all ranks.
        comm: the ranks; those that the launcher started by default.
        phases: where to add up times.

    Raises:
        ConfigError: a combination that is wrong, saying why.
        RankMismatchError: the ranks hold different models or settings.
    """

    # GradScaler then leaves unscaling and skipping to `step`, which is where all ranks decide together.
    _step_supports_amp_scaling = True

    def __init__(
        self,
        optimizer: Optimizer,
        model: nn.Module,
        *,
        sparsifier: Sparsifier | None = None,
        memory: Memory | None = None,
        wire: Wire | None = None,
        layout: Layout | None = None,
        dense: str = "pieces",
        nonfinite: NonFinite = "raise",
        seed: int = 0,
        comm: Communicator | None = None,
        phases: Phases | None = None,
    ) -> None:
        sparsifier, wire, layout = sparsifier or Dense(), wire or Wire(), layout or Layout()
        memory = memory or default_memory(sparsifier)
        self.optimizer = optimizer
        self.comm = (comm or world()).duplicate()
        with agreed(self.comm):
            _check_options(optimizer, sparsifier, memory, wire, dense, nonfinite, seed)
        self.phases = phases or Phases()
        self.skipped = 0
        self.traffic: Traffic = Traffic(0, 0, 0, 0, 0)
        self._nonfinite = nonfinite
        self._synchronized = False
        self._skip = False
        self._accumulating = False
        parameters = _named_parameters(optimizer, model)
        replicated = [*model.named_parameters(), *model.named_buffers(), *parameters]
        require_same_model(self.comm, replicated)
        require_same(self.comm, "the optimizers", [type(optimizer).__name__, *_options(optimizer), *_state(optimizer)])
        options = [sparsifier, memory, wire, layout, f"dense={dense!r}", f"nonfinite={nonfinite!r}", f"seed={seed}"]
        # A schedule may be a plain function, whose repr has an address in it that differs between ranks.
        require_same(self.comm, "the settings", [re.sub(r" at 0x[0-9a-f]+", "", repr(option)) for option in options])
        for tensor in {id(tensor): tensor for _, tensor in replicated}.values():
            broadcast_tensor(self.comm, tensor)
        with agreed(self.comm):
            self.flat = FlatGradients(parameters, layout)
            _check_anything_sparse(self.flat, sparsifier)
        self.exchange = GradientExchange(
            self.flat,
            sparsifier=sparsifier,
            memory=memory,
            wire=wire,
            collective=Allgatherv(self.comm.duplicate()),
            dense_mean=DENSE_MEANS[dense](self.comm),
            phases=self.phases,
            seed=seed,
        )

    def synchronize(self, *, samples: int | None = None) -> None:
        """Exchange the gradients now, so that they can be looked at or clipped before `step`. Collective.

        Args:
            samples: how many samples stand behind this rank's gradient, on all ranks or on none; may be 0.

        Raises:
            NonFiniteError: a gradient holds NaN or infinity (unless nonfinite="skip"); on all ranks.
            RankMismatchError: the ranks are at different steps.
        """
        self._synchronize(samples, self._nonfinite)

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None, *, samples: int | None = None) -> Any:
        """Exchange the gradients unless `synchronize` did, step the wrapped optimizer, and return the closure's result.

        Collective. Arguments and errors are those of `synchronize`.
        """
        if self._accumulating:
            raise MpiSparseError("step() inside no_sync(): leave the block first, its gradients are still adding up")
        result = None
        if closure is not None:
            with torch.enable_grad():
                result = closure()
        # GradScaler sets these two around its call.
        scale, scaled = getattr(self, "grad_scale", None), hasattr(self, "found_inf")
        if not self._synchronized:
            self._synchronize(samples, "skip" if scaled else self._nonfinite, scale)
        elif scale is not None:
            raise MpiSparseError(
                "synchronize() averaged gradients that are still scaled: call scaler.unscale_(optimizer) before it"
            )
        elif self.flat.fresh:
            raise MpiSparseError(
                "gradients changed after synchronize(), and the change was not averaged: call step() before the next "
                "backward(), or zero_grad() of this optimizer"
            )
        with self.phases("apply"):
            if not self._skip:
                self.optimizer.step()
        self._synchronized = self._skip = False
        return result

    @contextmanager
    def no_sync(self) -> Iterator[None]:
        """Mark a block whose backward passes only add to the gradients; `step` comes after it."""
        if self._accumulating:
            raise MpiSparseError("no_sync() inside no_sync(): one is enough")
        self._accumulating = True
        try:
            yield
        finally:
            self._accumulating = False

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Reset all gradients, as the wrapped optimizer does, and forget a `synchronize` that no step followed."""
        self.optimizer.zero_grad(set_to_none)
        self._synchronized = self._skip = False

    def _synchronize(self, samples: int | None, nonfinite: NonFinite, scale: Tensor | None = None) -> None:
        if self._synchronized:
            raise MpiSparseError(
                "synchronize() twice without step() or zero_grad() between: the gradients are averaged"
            )
        if samples is not None and (not isinstance(samples, int) or samples < 0):
            raise ConfigError(f"samples {samples!r} is no count: give how many samples this rank used, 0 or more")
        with self.phases("compute"):
            present = self.flat.collect()
            self._refuse_strangers()
            if scale is not None:
                self.flat.buffer /= float(scale)
        with self.phases("agree"):
            clearance = clear_for_exchange(
                self.comm,
                self.flat,
                present,
                step=self.exchange.step,
                samples=samples,
                options=_options(self.optimizer),
                nonfinite=nonfinite,
            )
        self._synchronized, self._skip, self.flat.fresh = True, clearance.skip, False
        if clearance.skip:
            self.skipped += 1
            self.traffic = self.exchange.no_traffic()
            self.flat.clear()
            return
        if clearance.share != 1.0:
            self.flat.buffer *= clearance.share
        untouched = self.exchange.changes_nothing and scale is None
        self.traffic = self.exchange.average()
        if not untouched:
            with self.phases("apply"):
                self.flat.publish(clearance.present)

    def _refuse_strangers(self) -> None:
        """Raise ConfigError for a gradient that no exchange would average, so that replicas would part silently."""
        known = {id(slot.parameter) for slot in self.flat.slots}
        for number, group in enumerate(self.param_groups):
            for place, parameter in enumerate(group["params"]):
                if parameter.grad is not None and id(parameter) not in known:
                    raise ConfigError(
                        f"parameter {place} of group {number}, of shape {tuple(parameter.shape)}, has a gradient but "
                        "was frozen or absent when the optimizer was wrapped: wrap it again after unfreezing or adding"
                    )

    # What makes it a torch optimizer: everything but the step is the wrapped one's ------------------------------------

    @property
    def param_groups(self) -> list[dict[str, Any]]:  # type: ignore[override]
        """Return the wrapped optimizer's parameter groups, where schedulers change the learning rate."""
        return self.optimizer.param_groups

    @property
    def state(self) -> Any:  # type: ignore[override]
        """Return the wrapped optimizer's state."""
        return self.optimizer.state

    @property
    def defaults(self) -> dict[str, Any]:  # type: ignore[override]
        """Return the wrapped optimizer's defaults."""
        return self.optimizer.defaults

    def state_dict(self) -> dict[str, Any]:
        """Return the wrapped optimizer's state, and this rank's exchange state under the key "mpisparse"."""
        return {**self.optimizer.state_dict(), STATE_KEY: self.exchange.state_dict()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take up a state that this rank saved, or a plain optimizer's, which leaves the exchange as it is."""
        plain = {key: value for key, value in state_dict.items() if key != STATE_KEY}
        self.optimizer.load_state_dict(plain)
        if STATE_KEY in state_dict:
            self.exchange.load_state_dict(state_dict[STATE_KEY])

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Refuse: the buffer is laid out already."""
        raise ConfigError("add parameter groups to the optimizer before it is wrapped: the gradient buffer is laid out")

    def __getattr__(self, name: str) -> Any:
        # Only for what is not found here, such as the hook tables that torch looks up on every optimizer.
        if name == "optimizer":
            raise AttributeError(name)
        return getattr(self.optimizer, name)

    def describe(self) -> str:
        """Return one line for people: what is trained, what is sent, and what is kept."""
        whole = self.flat.buffer.numel() - self.flat.sparse_numel
        return (
            f"{self.flat.buffer.numel()} parameters ({whole} always dense) in {len(self.flat.buckets)} buckets, "
            f"{self.exchange.sparsifier!r}, {self.exchange.memory!r}, {self.exchange.wire!r}, {self.comm.size} ranks"
        )

    def __repr__(self) -> str:
        return f"DistributedOptimizer({self.optimizer!r}: {self.describe()})"


def _named_parameters(optimizer: Optimizer, model: nn.Module) -> list[tuple[str, Tensor]]:
    """Return the optimizer's parameters with their names in the model, in the model's order; strangers last."""
    trained = {id(p): p for group in optimizer.param_groups for p in group["params"]}
    named = [(name, p) for name, p in model.named_parameters() if id(p) in trained]
    inside = {id(p) for _, p in named}
    outside = [p for key, p in trained.items() if key not in inside]
    return named + [(f"outside_the_model.{i}", p) for i, p in enumerate(outside)]


def _options(optimizer: Optimizer) -> list[str]:
    """Return the options of all parameter groups, a line each: what replicas must share to stay equal."""
    return [
        f"group {number}, {name}={float(value) if isinstance(value, Tensor) else value!r}"
        for number, group in enumerate(optimizer.param_groups)
        for name, value in sorted(group.items())
        if name != "params"
    ]


def _state(optimizer: Optimizer) -> list[str]:
    """Return a line for each tensor that the optimizer holds already, with its checksum."""
    states = [optimizer.state.get(p, {}) for group in optimizer.param_groups for p in group["params"]]
    return [
        f"state {number}, {name}: checksum {_checksum(value)}"
        for number, state in enumerate(states)
        for name, value in sorted(state.items())
        if isinstance(value, Tensor)
    ]


def _checksum(tensor: Tensor) -> int:
    return zlib.crc32(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())


def _check_options(
    optimizer: Optimizer,
    sparsifier: Sparsifier,
    memory: Memory,
    wire: Wire,
    dense: str,
    nonfinite: NonFinite,
    seed: int,
) -> None:
    if isinstance(optimizer, DistributedOptimizer):
        raise ConfigError("the optimizer is a DistributedOptimizer already: wrap it once")
    if isinstance(optimizer, torch.optim.LBFGS):
        raise ConfigError("LBFGS evaluates the loss several times a step and cannot be distributed: use SGD or Adam")
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
    if wire.values == "sign" and isinstance(memory, NoMemory) and not sparsifier.sends_everything:
        raise ConfigError(
            f"wire values sign send every entry of {sparsifier!r} with the mean magnitude of all, and {memory!r} keeps "
            "nothing of the difference, so that the gradient would be biased for good: use ErrorFeedback or "
            "MomentumCorrection, or other wire values"
        )
    memory.check(sparsifier, optimizer.param_groups)


def _check_anything_sparse(flat: FlatGradients, sparsifier: Sparsifier) -> None:
    if flat.sparse_numel == 0 and not sparsifier.sends_everything:
        raise ConfigError(
            f"{sparsifier!r} has nothing to select from: every tensor has one dimension or is small, and the layout "
            "sends those whole. Use Layout(dense_vectors=False, dense_below=0)"
        )

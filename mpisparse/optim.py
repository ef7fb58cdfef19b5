"""DistributedOptimizer: a torch optimizer that steps on the mean gradient of all ranks."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from time import perf_counter_ns
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.optim import Optimizer

from mpisparse.collectives import DENSE_MEANS, Allgatherv
from mpisparse.combinations import (
    check_anything_sparse,
    check_options,
    check_resparsify,
    check_samples,
    refuse_strangers,
)
from mpisparse.comm import Communicator, agreed, world
from mpisparse.divergence import Diverged, Divergence, ReplicaCheck
from mpisparse.errors import ConfigError, MpiSparseError, RankMismatchError
from mpisparse.exchange import GradientExchange, Traffic
from mpisparse.faults import faults_of
from mpisparse.flat import FlatGradients, Layout
from mpisparse.memory import Memory, NoMemory, default_memory
from mpisparse.overlap import Early, Overlap, check_overlap, say_on_stderr
from mpisparse.phases import Phases
from mpisparse.preflight import Clearance, News, NonFinite, clear_for_exchange
from mpisparse.rehearsal import rehearse_together
from mpisparse.replicas import make_replicas, options_of
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
    - With `overlap`, messages leave while `backward` runs: only the last one of a step may be outside `no_sync`, what
      changes gradients goes between `synchronize` and `step`, and a backward pass cannot be thrown away.
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
        overlap: "on" sends buckets while `backward` still runs, "off" does not, "auto" tries both and stays with the
            faster; the results are the same bits. See the user guide.
        say: takes the lines that tell, on rank 0, how long kernels took to compile or load and how "auto" decided;
            printed on standard error by default.
        resparsify: an unbiased rule that makes the average of sparsified tensors sparse once more, with one random
            decision on all ranks (the paper's Algorithm 1). It adds variance, and saves nothing where every rank gets
            all messages, as here: it is there to study what a server that sends the average back would do.
        gauge: measure squared norms before and after sparsification, in `traffic.squares`, at the cost of a pass.
        check_replicas: steps after which all ranks compare their parameters and the optimizer's state, bit by bit, at
            the cost of a pass over them; 0 never does.
        diverged: what to do when they differ: "raise", or "broadcast" what most ranks hold, and say so.
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
        overlap: Overlap = "auto",
        say: Callable[[str], None] | None = None,
        resparsify: Sparsifier | None = None,
        gauge: bool = False,
        check_replicas: int = 100,
        diverged: Diverged = "raise",
        seed: int = 0,
        comm: Communicator | None = None,
        phases: Phases | None = None,
    ) -> None:
        sparsifier, wire, layout = sparsifier or Dense(), wire or Wire(), layout or Layout()
        memory = memory or default_memory(sparsifier)
        self.optimizer = optimizer
        self.comm = (comm or world()).duplicate("optimizer")
        with agreed(self.comm):
            if isinstance(optimizer, DistributedOptimizer):
                raise ConfigError("the optimizer is a DistributedOptimizer already: wrap it once")
            check_options(optimizer, sparsifier, memory, wire, dense, nonfinite, seed)
            check_resparsify(resparsify)
            check_overlap(overlap, nonfinite, self.comm.thread_level)
            self._replicas = ReplicaCheck(
                model, optimizer, self.comm, every=check_replicas, diverged=diverged, say=say or say_on_stderr
            )
            self._faults = faults_of(self.comm.rank)
        self.phases = phases or Phases()
        #: Steps that were skipped, and where the gradient of the last one held NaN or infinity.
        self.skipped = 0
        self.skipped_because = ""
        self.traffic: Traffic = Traffic(0, 0, 0, 0, 0)
        #: Seconds that messages of the last exchange were in the air while this rank computed.
        self.hidden_seconds = 0.0
        #: Whether all ranks know since the last step that one of them asked to stop.
        self.stopping = False
        self._stop_requested = False
        self._nonfinite = nonfinite
        self._synchronized = False
        self._skip = False
        self._accumulating = False
        settings = [sparsifier, memory, wire, layout, f"dense={dense!r}", f"nonfinite={nonfinite!r}", f"seed={seed}"]
        settings += [f"resparsify={resparsify!r}", f"gauge={gauge!r}", self._replicas]
        parameters = make_replicas(self.comm, optimizer, model, [*settings, f"overlap={overlap!r}"])
        with agreed(self.comm):
            self.flat = FlatGradients(parameters, layout)
            check_anything_sparse(self.flat, sparsifier)
        second = [] if resparsify is None else [(resparsify, NoMemory())]
        news = rehearse_together(self.comm, wire, *second, (sparsifier, memory))
        if self.comm.rank == 0:
            self._replicas.say(news)
        self.exchange = GradientExchange(
            self.flat,
            sparsifier=sparsifier,
            memory=memory,
            wire=wire,
            collective=Allgatherv(self.comm.duplicate("messages")),
            dense_mean=DENSE_MEANS[dense](self.comm),
            phases=self.phases,
            seed=seed,
            resparsifier=resparsify,
            gauge=gauge,
            faults=self._faults,
        )
        self._early = Early(
            self.exchange,
            self.comm,
            mode=overlap,
            limit=int(layout.bucket_mib * 2**20 / 4),
            nonfinite=nonfinite,
            say=say,
        )
        self._watch()

    def expect(self, *, samples: int | None = None) -> None:
        """Announce, before the last `backward` of a step, how many samples stand behind this rank's gradient.

        Collective. Needed where messages leave during `backward` and ranks hold different numbers of samples, as the
        weight of a gradient has to be known before it is sent. Costs nothing in steps that do not overlap.
        `synchronize` and `step` need no `samples` then.

        Args:
            samples: a count on all ranks, or None on all for equally many; may be 0.
        """
        check_samples(samples)
        self._early.expect(samples)

    def say_with(self, say: Callable[[str], None]) -> None:
        """Have `say` take the lines that tell how overlap="auto" decided, and of replicas that were mended."""
        self._replicas.say = self._early.choice.say = say

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
        if scaled:
            self._early.refuse_scaler(exchanged=self._synchronized)
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
        if self._faults is not None:
            self._faults.parameters(self.exchange.step - 1, [(slot.name, slot.parameter) for slot in self.flat.slots])
        if not self._skip:
            with self.phases("agree"):
                self._replicas.step_ended(self.exchange.step)
        self._synchronized = self._skip = False
        self._early.step_ended()
        self._watch()
        return result

    def request_stop(self) -> None:
        """Have all ranks know, when the next step has ended, that the job is to end: `stopping` is True then.

        Not collective: one rank is enough. It costs nothing, as ranks speak to each other in every step.
        """
        self._stop_requested = True

    @contextmanager
    def no_sync(self) -> Iterator[None]:
        """Mark a block whose backward passes only add to the gradients: none of them is the last before `step`."""
        if self._accumulating:
            raise MpiSparseError("no_sync() inside no_sync(): one is enough")
        self._accumulating = True
        try:
            yield
        finally:
            self._accumulating = False

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Reset all gradients, as the wrapped optimizer does, and forget a `synchronize` that no step followed.

        Raises:
            MpiSparseError: a backward pass was to be thrown away whose messages are on their way. Nothing changes then.
        """
        self._early.sender.refuse_if_broken()
        self._early.refuse_while_in_the_air("zero_grad()")
        self._early.sender.start_afresh()
        self.optimizer.zero_grad(set_to_none)
        self._synchronized = self._skip = False

    def _synchronize(self, samples: int | None, nonfinite: NonFinite, scale: Tensor | None = None) -> None:
        if self._synchronized:
            raise MpiSparseError(
                "synchronize() twice without step() or zero_grad() between: the gradients are averaged"
            )
        early, sender = self._early, self._early.sender
        sender.refuse_if_broken()
        check_samples(samples)
        if self._faults is not None:
            self._faults.before_exchange(self.exchange.step)
        news = early.news(samples)
        overlaps = News.OVERLAPS in news
        with self.phases("compute"):
            present = self.flat.collect(sender.sent_slots())
            refuse_strangers(self.optimizer, self.flat)
            if self._faults is not None:
                self._faults.gradient(self.exchange.step, self.flat.buffer)
            if scale is not None:
                # By a tensor beside it: CUDA multiplies by the reciprocal of a number on the host.
                self.flat.buffer /= scale.to(self.flat.buffer)
        if overlaps:
            sender.send_rest()
        computed = perf_counter_ns()
        clearance = self._clear(present, early.samples(samples), nonfinite, news)
        early.reconsider(clearance.news)
        self.stopping = News.STOP in clearance.news
        self._synchronized, self._skip, self.flat.fresh = True, clearance.skip, False
        had_messages = bool(self.exchange.sparse_buckets())
        if clearance.skip:
            self.skipped_because = clearance.bad
            self._skip_exchange()
        else:
            self._average(clearance, overlaps, unscaled=scale is None)
        self.hidden_seconds = sender.seconds_before(computed)
        early.exchanged(overlaps, had_messages)

    def _skip_exchange(self) -> None:
        self.skipped += 1
        self.traffic = self.exchange.no_traffic()
        self.flat.clear()

    def _average(self, clearance: Clearance, overlaps: bool, unscaled: bool) -> None:
        """Replace the gradients by their mean. Messages that left early are weighed already."""
        if clearance.share != 1.0:
            self.flat.buffer[self.flat.sparse_numel if overlaps else 0 :] *= clearance.share
        untouched = self.exchange.changes_nothing and unscaled
        try:
            self.traffic = self.exchange.average(self._early.sender.received() if overlaps else None)
        except MpiSparseError:
            self._early.sender.break_off(all_have_sent=False)
            raise
        if not untouched:
            with self.phases("apply"):
                self.flat.publish(clearance.present)

    def _clear(self, present: NDArray[np.bool_], samples: int | None, nonfinite: NonFinite, news: News) -> Clearance:
        """Return what all ranks decided about this step, or raise on all of them why it cannot be taken."""
        sender = self._early.sender
        if sender.failure is not None:
            news |= News.FAILED
        if self._stop_requested:
            news |= News.STOP
        with self.phases("agree"):
            # What left early was looked at before.
            bad = self.flat.first_bad_entry(slice(self.flat.sparse_numel if News.OVERLAPS in news else 0, None))
            try:
                clearance = clear_for_exchange(
                    self.comm,
                    self.flat,
                    present,
                    step=self.exchange.step,
                    samples=samples,
                    options=options_of(self.optimizer),
                    nonfinite=nonfinite,
                    bad_entry=bad if sender.bad_entry is None else sender.bad_entry,
                    news=news,
                )
                if News.FAILED in clearance.news:
                    self.exchange.collective.raise_everywhere(sender.failure)
            except MpiSparseError as error:
                sender.break_off(all_have_sent=error.on_all_ranks and not isinstance(error, RankMismatchError))
                raise
        return clearance

    def _watch(self) -> None:
        """Have backward tell which gradients are final, as long as there is something to make of it."""
        self.flat.on_final = self._final if self._early.may_overlap else None

    def _final(self, number: int) -> None:
        if not self._synchronized:
            self._early.sender.final(number, last=not self._accumulating)

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
        """Return the wrapped optimizer's state, and this rank's exchange state under the key "mpisparse".

        Raises:
            MpiSparseError: between `backward` and the exchange, when memories count messages on their way as sent.
        """
        self._early.refuse_while_in_the_air("state_dict()")
        return {**self.optimizer.state_dict(), STATE_KEY: self.exchange.state_dict()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take up a state that this rank saved, or a plain optimizer's, which leaves the exchange as it is."""
        self._early.refuse_while_in_the_air("load_state_dict()")
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

    @property
    def mended(self) -> list[Divergence]:
        """Return what `check_replicas` found, and replaced by what most ranks held."""
        return self._replicas.mended

    def describe(self) -> str:
        """Return one line for people: what is trained, what is sent, and what is kept."""
        whole = self.flat.buffer.numel() - self.flat.sparse_numel
        return (
            f"{self.flat.buffer.numel()} parameters ({whole} always dense) in {len(self.flat.buckets)} buckets, "
            f"{self.exchange.sparsifier!r}, {self.exchange.memory!r}, {self.exchange.wire!r}, {self.comm.size} ranks"
        )

    def __repr__(self) -> str:
        return f"DistributedOptimizer({self.optimizer!r}: {self.describe()})"

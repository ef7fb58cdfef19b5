"""DistributedOptimizer: a torch optimizer that steps on the mean gradient of all ranks."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from inspect import ismethod
from time import perf_counter_ns
from types import TracebackType
from typing import Any, NoReturn, Self, SupportsIndex

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.optim import Optimizer

from mpisparse.arguments import require_callable, require_flag
from mpisparse.collectives import DENSE_MEANS, Allgatherv
from mpisparse.combinations import (
    check_anything_sparse,
    check_clip_norm,
    check_kinds,
    check_options,
    check_resparsify,
    check_samples,
    check_sparse_adam,
    evaluates_closures,
    refuse_replaced,
    refuse_strangers,
    wrong_groups,
)
from mpisparse.comm import Communicator, agreed, require_communicator, world
from mpisparse.comparable import comparable
from mpisparse.divergence import Diverged, Divergence, ReplicaCheck
from mpisparse.errors import ConfigError, MpiSparseError, NonFiniteError, RankMismatchError, alike
from mpisparse.exchange import GradientExchange, Traffic
from mpisparse.faults import faults_of
from mpisparse.flat import FlatGradients, Layout, weakly
from mpisparse.memory import Memory, NoMemory, default_memory
from mpisparse.overlap import Early, Overlap, check_overlap, say_on_stderr
from mpisparse.phases import Phases
from mpisparse.preflight import Clearance, News, NonFinite, clear_for_exchange
from mpisparse.rehearsal import rehearse_together
from mpisparse.replicas import make_replicas, named_parameters, options_of
from mpisparse.rows import RowGradients, row_sparse
from mpisparse.sparsifiers import Dense, Sparsifier
from mpisparse.tensors import bits_of
from mpisparse.wire import Wire
from mpisparse.words import counted

#: The key under which `state_dict` keeps what a plain optimizer does not have.
STATE_KEY = "mpisparse"

#: What holds communicators and buffers, and goes when the optimizer is closed.
_HELD = ("comm", "flat", "rows", "exchange", "_early", "_replicas")


class _Skipped(Exception):  # noqa: N818 - nothing is wrong: all ranks leave a step that none of them takes
    """Raised through a step that evaluates closures, when its gradient holds NaN or infinity on some rank."""


class DistributedOptimizer(Optimizer):
    """Wraps `optimizer`, and is a torch optimizer itself: schedulers, GradScaler and `state_dict` work as ever.

    Surprises first:

    - Making one is collective: it checks that all ranks hold the same model, and gives all of them rank 0's values.
    - `step` is collective. It exchanges the gradients unless `synchronize` did, then steps the wrapped optimizer.
    - Gradients add up over several `backward` calls, and are exchanged once: `no_sync` only guards against stepping.
    - The mean is over ranks. Where ranks hold different numbers of samples, give `samples=` and it is over samples.
    - With a GradScaler, a step that overflowed on any rank is skipped on all; each rank keeps a scale of its own.
    - What changes gradients, such as clipping, goes between `synchronize` and `step`, where they are the mean of all
      ranks, or is `clip_norm`: before, each rank would change its own.
    - Methods of the wrapped optimizer that change parameters by gradients, as SAM's, need a `synchronize` before them.
    - With overlap="on", messages leave while `backward` runs: only the last one of a step may be outside `no_sync`, and
      a backward pass cannot be thrown away.
    - `state_dict` adds this rank's memory under the key "mpisparse": save it on every rank. `load_state_dict` also
      takes a plain optimizer's state.
    - It takes up to four of MPI's two thousand communicators. `close`, the end of a `with` block, or letting go of it
      frees them for the next one. It cannot be copied or pickled.

    Args:
        optimizer: any torch optimizer; SparseAdam for embeddings with sparse=True alone. LBFGS, which wants several
            gradients per step, takes Dense alone.
        model: what `optimizer` trains.
        sparsifier: what to send; everything by default.
        memory: what to keep of the rest; by default what the sparsifier needs.
        wire: how to write messages.
        layout: what is selected from as one, and which tensors are never sparsified.
        dense: how whole vectors are averaged: "pieces" (same bits on any MPI), "allreduce" (the library's own), or
            "bfloat16" (pieces that travel rounded, in half the bytes; what that loses is kept nowhere, at density 1
            neither).
        nonfinite: "raise" or "skip" (on all ranks) when a gradient holds NaN or infinity.
        clip_norm: largest norm of the mean gradient, to which `step` scales it down; `grad_norm` is what it was. None
            does not clip.
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
        clip_norm: float | None = None,
        overlap: Overlap = "off",
        say: Callable[[str], None] | None = None,
        resparsify: Sparsifier | None = None,
        gauge: bool = False,
        check_replicas: int = 100,
        diverged: Diverged = "raise",
        seed: int = 0,
        comm: Communicator | None = None,
        phases: Phases | None = None,
    ) -> None:
        require_communicator(comm)
        self.optimizer, self._closed = optimizer, False
        self.comm = (comm or world()).duplicate("optimizer")
        with agreed(self.comm):
            check_kinds(
                optimizer,
                model,
                sparsifier=sparsifier,
                memory=memory,
                wire=wire,
                layout=layout,
                resparsify=resparsify,
                phases=phases,
            )
            require_callable("say", say, "a function of a line, such as print")
            require_flag("gauge", gauge)
            sparsifier, wire, layout = sparsifier or Dense(), wire or Wire(), layout or Layout()
            memory = memory or default_memory(sparsifier)
            if isinstance(optimizer, DistributedOptimizer):
                raise ConfigError("the optimizer is a DistributedOptimizer already: wrap it once")
            check_options(optimizer, sparsifier, memory, wire, dense, nonfinite, seed)
            check_resparsify(resparsify)
            check_clip_norm(clip_norm)
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
        #: Norm of the last mean gradient, before it was clipped; NaN without `clip_norm`, and until the first step.
        self.grad_norm = math.nan
        self._clip_norm = clip_norm
        self._share = 1.0
        self._absent: set[int] = set()
        self._told_of_change = False
        self._evaluates_closures = evaluates_closures(optimizer)
        self._stop_requested = False
        self._nonfinite = nonfinite
        self._synchronized = False
        self._skip = False
        self._accumulating = False
        settings = [sparsifier, memory, wire, layout, f"dense={dense!r}", f"nonfinite={nonfinite!r}", f"seed={seed}"]
        settings += [f"resparsify={comparable(resparsify)}", f"gauge={gauge!r}", f"clip_norm={clip_norm!r}"]
        settings += [self._replicas]
        rows = row_sparse(optimizer, model)
        names = [name for name, parameter in named_parameters(optimizer, model) if id(parameter) in rows]
        settings.append(f"row-sparse gradients={names!r}")
        parameters = make_replicas(self.comm, optimizer, model, [*settings, f"overlap={overlap!r}"])
        with agreed(self.comm):
            dense_ones = [(name, parameter) for name, parameter in parameters if id(parameter) not in rows]
            self.flat = FlatGradients(dense_ones, layout, may_be_empty=bool(rows))
            self.rows = RowGradients([pair for pair in parameters if id(pair[1]) in rows], self.flat)
            check_sparse_adam(optimizer, self.flat)
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
            rows=self.rows,
        )
        self._early = Early(
            self.exchange,
            self.comm,
            mode=overlap,
            limit=int(layout.bucket_mib * 2**20 / 4),
            nonfinite=nonfinite,
            say=say,
        )
        self._versions = self._moves()
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
        require_callable("say", say, "a function of a line, such as print")
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
        require_callable("closure", closure, "a function, and samples by name, step(samples=...)")
        if self._accumulating:
            raise MpiSparseError("step() inside no_sync(): leave the block first, its gradients are still adding up")
        if closure is not None and self._evaluates_closures:
            return self._step_by_closure(closure, samples)
        if isinstance(self.optimizer, torch.optim.LBFGS):
            raise ConfigError("LBFGS evaluates the loss several times per step: give step() a closure that does so")
        result = None
        if closure is not None:
            with torch.enable_grad():
                result = closure()
        self._exchange_for_step(samples)
        with self.phases("apply"):
            if not self._skip:
                self.optimizer.step()
        self._end_step()
        return result

    def _exchange_for_step(self, samples: int | None) -> None:
        """Exchange the gradients unless `synchronize` did, and clip their mean."""
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
        self._clip()

    def _clip(self) -> None:
        if self._clip_norm is not None and not self._skip:
            with self.phases("apply"):
                self.grad_norm, factor = self.flat.clip(self._clip_norm, self.rows.square_of_gradients())
                if factor < 1.0:
                    self.rows.scale(factor)

    def _step_by_closure(self, closure: Callable[[], Any], samples: int | None) -> Any:
        """Let the wrapped optimizer evaluate the closure when it likes, and exchange the gradient each time.

        It gets the mean loss, as LBFGS decides by it how to go on. Gradients that were there before, as SAM climbs by,
        are averaged first.
        """
        results: list[Any] = []

        def evaluate() -> Any:
            with torch.enable_grad():
                results.append(closure())
            with torch.no_grad():
                self._synchronized = False
                self._synchronize(samples, self._nonfinite)
                if self._skip:
                    raise _Skipped
                self._clip()
                return self._mean(results[-1])

        if self._synchronized or self._holds_unaveraged():
            self._exchange_for_step(samples)
        before = self._moves()
        try:
            with self.phases("apply"):
                if not self._skip:
                    self.optimizer.step(evaluate)
        except _Skipped:
            if self._moves() != before:
                raise alike(
                    NonFiniteError(
                        f"the gradient of evaluation {len(results)} in step() holds NaN or infinity on "
                        f"{self.skipped_because}, and parameters had moved already: go on from a checkpoint"
                    )
                ) from None
        self._end_step()
        return results[0] if results else None

    def _end_step(self) -> None:
        if self._faults is not None:
            self._faults.parameters(self.exchange.step - 1, self._exchanged())
        if not self._skip:
            with self.phases("agree"):
                self._replicas.step_ended(self.exchange.step)
        self._applied()

    def _moves(self) -> list[tuple[int, int]]:
        """Return for each parameter what changes when it is changed in place, or gets other memory."""
        return self.flat.versions() + self.rows.versions()

    def _exchanged(self) -> list[tuple[str, Tensor]]:
        """Return the parameters whose gradients are exchanged, with their names."""
        slots = [(slot.name, slot.parameter) for slot in self.flat.slots]
        return slots + [(table.name, table.parameter) for table in self.rows.tables]

    def _where(self, number: int) -> str:
        """Return the name of a parameter with a bad entry: entries of the buffer are counted first, then tables."""
        beyond = number - self.flat.buffer.numel()
        return self.flat.where(number) if beyond < 0 else self.rows.tables[beyond].name

    def _applied(self) -> None:
        """Note that the mean gradient was used."""
        self._synchronized = self._skip = False
        self._versions = self._moves()
        self._early.step_ended()
        self._watch()

    def _mean(self, loss: Any) -> Any:
        """Return the mean of a loss over the ranks, the same bits on all, or what is no number as it is. Collective."""
        number = isinstance(loss, int | float) or (isinstance(loss, Tensor) and loss.numel() == 1)
        value = float(loss.detach() if isinstance(loss, Tensor) else loss) if number else math.nan
        # A rank without samples may have a loss of NaN.
        mine = np.array([float(number), value * self._share / self.comm.size if self._share else 0.0])
        reports = np.frombuffer(b"".join(self.comm.allgather_bytes(mine.tobytes()))).reshape(-1, 2)
        if self.comm.size == 1 or not reports[:, 0].all():
            return loss
        mean = math.fsum(reports[:, 1])
        return torch.full_like(loss.detach(), mean) if isinstance(loss, Tensor) else mean

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
        self._early.discard()
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
            present = np.concatenate([self.flat.collect(sender.sent_slots()), self.rows.collect()])
            refuse_strangers(self.optimizer, [parameter for _, parameter in self._exchanged()])
            self._look_at_absent(present)
            if self._faults is not None:
                self._faults.gradient(self.exchange.step, self.flat.buffer, *self.rows.values())
            if scale is not None:
                # By a tensor beside it: CUDA multiplies by the reciprocal of a number on the host.
                self.flat.buffer /= scale.to(self.flat.buffer)
                self.rows.divide(scale)
        if overlaps:
            sender.send_rest()
        computed = perf_counter_ns()
        clearance = self._clear(present, early.samples(samples), nonfinite, news)
        early.reconsider(clearance.news)
        if overlaps and (clearance.skip or News.RECALLED in clearance.news):
            sender.take_back()
            overlaps = False
        self.stopping = News.STOP in clearance.news
        self._synchronized, self._skip, self.flat.fresh = True, clearance.skip, False
        self._share = clearance.share
        self._look_at(clearance.news)
        had_messages = bool(self.exchange.sparse_buckets())
        if clearance.skip:
            self.skipped_because = clearance.bad
            self._skip_exchange()
        else:
            self._average(clearance, overlaps, unscaled=scale is None)
        self.hidden_seconds = sender.seconds_before(computed)
        early.exchanged(overlaps, had_messages)

    def _look_at_absent(self, present: NDArray[np.bool_]) -> None:
        """Look whether parameters that have no gradient, as none was missing before, are in the model still."""
        absent = set() if present.all() else set(np.flatnonzero(~present).tolist())
        if absent - self._absent:
            refuse_replaced(self._replicas.model, self._exchanged(), absent - self._absent)
        self._absent = absent

    def _look_at(self, news: News) -> None:
        """Act on what a rank did with gradients or parameters of its own. Collective where parameters moved."""
        if News.CHANGED in news and not self._told_of_change:
            self._told_of_change = True
            if self.comm.rank == 0 and self.comm.size > 1:
                self._replicas.say(
                    "gradients were changed between backward() and the exchange, so that each rank changed its own: "
                    "if that was clipping, the mean has another norm and direction. Use "
                    "DistributedOptimizer(clip_norm=...), or change the mean, between synchronize() and step()"
                )
        if News.MOVED in news and not self._skip:
            self._replicas.moved(self.exchange.step)

    def _skip_exchange(self) -> None:
        self.skipped += 1
        self.traffic = self.exchange.no_traffic()
        self.flat.clear()
        self.rows.clear()

    def _average(self, clearance: Clearance, overlaps: bool, unscaled: bool) -> None:
        """Replace the gradients by their mean. Messages that left early are weighed already."""
        if clearance.share != 1.0:
            self.flat.buffer[self.flat.sparse_numel if overlaps else 0 :] *= clearance.share
            self.rows.weigh(clearance.share)
        untouched = self.exchange.changes_nothing and unscaled
        try:
            self.traffic = self.exchange.average(self._early.sender.received() if overlaps else None)
        except MpiSparseError:
            self._early.sender.break_off(all_have_sent=False)
            raise
        dense_ones = len(self.flat.slots)
        with self.phases("apply"):
            if not untouched:
                self.flat.publish(clearance.present[:dense_ones])
            self.rows.publish(clearance.present[dense_ones:])

    def _clear(self, present: NDArray[np.bool_], samples: int | None, nonfinite: NonFinite, news: News) -> Clearance:
        """Return what all ranks decided about this step, or raise on all of them why it cannot be taken."""
        sender, exchange = self._early.sender, self.exchange
        failure = sender.failure or wrong_groups(exchange.memory, exchange.sparsifier, self.optimizer.param_groups)
        if failure is not None:
            news |= News.FAILED
        if self._stop_requested:
            news |= News.STOP
        if self._moves() != self._versions:
            news |= News.MOVED
        with self.phases("agree"):
            # What left early was looked at before.
            looked_at = News.OVERLAPS in news and News.RECALLED not in news
            bad = self.flat.first_bad_entry(slice(self.flat.sparse_numel if looked_at else 0, None))
            bad_table = self.rows.first_bad_table() if bad is None else None
            bad = bad if bad_table is None else self.flat.buffer.numel() + bad_table
            try:
                clearance = clear_for_exchange(
                    self.comm,
                    self._where,
                    present,
                    step=exchange.step,
                    samples=samples,
                    options=options_of(self.optimizer),
                    nonfinite=nonfinite,
                    bad_entry=bad if sender.bad_entry is None else sender.bad_entry,
                    news=news,
                )
                if News.FAILED in clearance.news:
                    exchange.collective.raise_everywhere(failure)
            except MpiSparseError as error:
                sender.break_off(all_have_sent=error.on_all_ranks and not isinstance(error, RankMismatchError))
                raise
        return clearance

    def _watch(self) -> None:
        """Have backward tell which gradients are final, as long as there is something to make of it."""
        self.flat.on_final = weakly(self._final) if self._early.may_overlap else None

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
        """Take up a state that this rank saved, or a plain optimizer's, which leaves the exchange as it is.

        Raises:
            ConfigError: it brings options that do not go with the memory, such as a momentum; nothing changed.
            CheckpointError: the exchange's part is of another rank, memory or model.
        """
        self._early.refuse_while_in_the_air("load_state_dict()")
        plain = {key: value for key, value in state_dict.items() if key != STATE_KEY}
        self.exchange.memory.check(self.exchange.sparsifier, plain.get("param_groups", []))
        self.optimizer.load_state_dict(plain)
        if STATE_KEY in state_dict:
            self.exchange.load_state_dict(state_dict[STATE_KEY])

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Refuse: the buffer is laid out already."""
        raise ConfigError("add parameter groups to the optimizer before it is wrapped: the gradient buffer is laid out")

    def close(self) -> None:
        """Let go of buffer, memory and communicators; the wrapped optimizer and the model can be wrapped again.

        Not collective: MPI gets the communicators back when the ranks next make some together. Once is enough. What is
        called afterwards, but for what the wrapped optimizer knows, is an error.

        Raises:
            MpiSparseError: between `backward` and the exchange, when messages are on their way.
        """
        if not self._closed:
            self._early.refuse_while_in_the_air("close()")
            self._let_go()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close it; after an error also where messages are on their way."""
        if error is None:
            self.close()
        elif not self._closed:
            self._let_go()

    def _let_go(self) -> None:
        self._closed = True
        self.flat.release()
        self.rows.release()
        for name in _HELD:
            del self.__dict__[name]

    def __getattr__(self, name: str) -> Any:
        # Only for what is not found here, such as the hook tables that torch looks up on every optimizer.
        if name == "optimizer" or name.startswith("__"):
            raise AttributeError(name)
        if name in _HELD and self.__dict__.get("_closed"):
            raise MpiSparseError(
                "this DistributedOptimizer is closed: step on the optimizer that it wrapped, or wrap that again"
            )
        found = getattr(self.optimizer, name)
        own = ismethod(found) and found.__self__ is self.optimizer and not name.startswith("_")
        return self._guarded(name, found) if own else found

    def _guarded(self, name: str, method: Callable[..., Any]) -> Callable[..., Any]:
        """Return a method of the wrapped optimizer that may step by the mean gradient, and not by this rank's own."""

        @wraps(method)
        def call(*args: Any, **kwargs: Any) -> Any:
            # Once closed, nothing here is concerned.
            if self._closed:
                return method(*args, **kwargs)
            own = self._skip or (not self._synchronized and self._holds_unaveraged())
            looks = own or self._synchronized
            before, bits = self._moves(), self._bits() if looks else []
            result = method(*args, **kwargs)
            # What is changed through `.data`, or by a fused kernel, counts no version.
            if self._moves() == before and (not looks or self._bits() == bits):
                return result
            if own and self.comm.size > 1:
                raise MpiSparseError(
                    f"{type(self.optimizer).__name__}.{name}() changed parameters by gradients that no exchange "
                    "averaged, so that ranks have different models now: call synchronize() of this optimizer between "
                    f"each backward() and {name}(), and go on from a checkpoint"
                )
            if self._synchronized:
                self._applied()
            return result

        return call

    def _bits(self) -> list[int]:
        return [bits_of(parameter) for _, parameter in self._exchanged()]

    def _holds_unaveraged(self) -> bool:
        """Return True when there is a gradient, of autograd or the user, that no exchange averaged."""
        return self.flat.holds_unaveraged() or self.rows.holds_unaveraged()

    def __reduce_ex__(self, protocol: SupportsIndex) -> NoReturn:
        """Refuse to be copied or pickled: a copy would share the communicators, and feed on the same gradients."""
        raise ConfigError(
            "a DistributedOptimizer cannot be copied or pickled, as it holds communicators of this process and the "
            "buffer of the model's gradients: copy the model and the optimizer that it wraps together, "
            "copy.deepcopy((model, optimizer.optimizer)), and wrap the copies; or save its state_dict()"
        )

    @property
    def mended(self) -> list[Divergence]:
        """Return what `check_replicas` found, and replaced by what most ranks held."""
        return self._replicas.mended

    def describe(self) -> str:
        """Return one line for people: what is trained, what is sent, and what is kept."""
        whole = self.flat.buffer.numel() - self.flat.sparse_numel
        parameters, buckets = self.flat.buffer.numel() + self.rows.numel, len(self.flat.buckets)
        rows = f", {self.rows.numel} sent by rows" if self.rows.tables else ""
        return (
            f"{counted(parameters, 'parameter')} ({whole} always dense{rows}) in {counted(buckets, 'bucket')}, "
            f"{self.exchange.sparsifier!r}, {self.exchange.memory!r}, {self.exchange.wire!r}, "
            f"{counted(self.comm.size, 'rank')}"
        )

    def __repr__(self) -> str:
        if self._closed:
            return f"DistributedOptimizer({self.optimizer!r}: closed)"
        return f"DistributedOptimizer({self.optimizer!r}: {self.describe()})"

"""Early: what an optimizer needs to send messages early: who sends, whether to, and what does not go with it."""

from __future__ import annotations

from collections.abc import Callable
from typing import get_args

from mpisparse.arguments import is_one_of, short
from mpisparse.collectives import Flights
from mpisparse.comm import Communicator, gather_json
from mpisparse.errors import ConfigError, MpiSparseError
from mpisparse.exchange import GradientExchange
from mpisparse.overlap.choice import Choice, Overlap
from mpisparse.overlap.sender import Sender
from mpisparse.preflight import News, NonFinite, share_ahead
from mpisparse.sparsifiers import Dense

#: What a program may do without overlap alone, and what to say when "auto" finds that it does.
_REASONS = {
    News.CHANGED: "as gradients are changed between backward() and the exchange",
    News.REPEATED: "as backward passes add up outside no_sync()",
    News.DISCARDED: "as backward passes are thrown away",
    News.UNANNOUNCED: "as samples= come after backward(): announce them before it, with expect(samples=)",
    News.RECALLED: "as messages that had left were taken back",
}


class Early:
    """Joins a sender and a choice for one optimizer, step after step."""

    def __init__(
        self,
        exchange: GradientExchange,
        comm: Communicator,
        *,
        mode: Overlap,
        limit: int,
        nonfinite: NonFinite,
        say: Callable[[str], None] | None,
    ) -> None:
        """Collective: make the communicators on which messages leave early, if they may.

        Args:
            comm: where the ranks agree on things.
            limit: entries of a group of buckets.
            say: takes the line that tells what "auto" chose; standard error if there is none.
        """
        self.exchange = exchange
        self.sender = Sender(exchange, None, limit, recallable=mode == "auto")
        self.choice = Choice(mode, comm, say)
        self._comm = comm
        #: How many samples `expect` announced; empty when it was not called in this step.
        self._expected: list[int | None] = []
        #: Whether the last exchange was of messages that left early, and whether it had messages at all.
        self._overlapped = self._had_messages = False
        #: Whether a backward pass was thrown away since the last exchange.
        self._discarded = False
        if mode == "auto":
            self._look_before_trying(nonfinite)
        if self.may_overlap:
            self.sender.flights = Flights(comm)
        self.sender.wanted = self.choice.overlaps

    @property
    def may_overlap(self) -> bool:
        """Return True while this step or a later one may overlap, so that gradients have to be watched."""
        return self.choice.overlaps or not self.choice.settled

    def expect(self, samples: int | None) -> None:
        """Take in how many samples stand behind this step's gradient, and agree on their weight if it overlaps."""
        if self.sender.has_begun and not self.sender.recallable:
            raise MpiSparseError("expect() after messages were sent: call it before the last backward() of a step")
        if self.sender.active and self.sender.recallable and (self.sender.has_begun or self._expected):
            # A batch was thrown away, perhaps on this rank alone: the others are not here to agree once more.
            self.sender.recall()
        self._expected = [samples]
        if self.sender.active and not self.sender.recalled:
            with self.exchange.phases("agree"):
                self.sender.share = share_ahead(self._comm, self.exchange.step, samples)

    def samples(self, given: int | None) -> int | None:
        """Return how many samples stand behind this step's gradient: the count given now, or else the one expected."""
        return self._expected[0] if given is None and self._expected else given

    def news(self, given: int | None) -> News:
        """Return what the other ranks have to know of this step. To be asked before gradients are collected.

        Args:
            given: samples, as given with the exchange.
        """
        active, sender = self.sender.active, self.sender
        changed = self.exchange.changed(cleared=active)
        if active and sender.recallable and changed:
            sender.recall()
        found = {
            News.OVERLAPS: active,
            News.UNANNOUNCED: given is not None and not self._expected,
            News.RECOUNTED: given is not None and self._expected not in ([], [given]),
            News.CHANGED: changed,
            News.REPEATED: sender.repeated,
            News.DISCARDED: self._discarded,
            News.RECALLABLE: active and sender.recallable,
            News.RECALLED: sender.recalled,
        }
        return News(sum(news for news, true in found.items() if true))

    def reconsider(self, news: News) -> None:
        """Stop trying where a program does what fails with overlap. Every rank brings the same news, of all ranks."""
        for word, reason in _REASONS.items():
            if word in news and (not self.choice.settled or News.RECALLED in news):
                self.choice.settle(False, reason)
                return

    def exchanged(self, overlaps: bool, had_messages: bool) -> None:
        """Note that a step's exchange is over, one way or another, and be ready for the next step."""
        self._overlapped, self._had_messages = overlaps, had_messages
        self._expected = []
        self._discarded = False
        self.sender.share = 1.0
        self.sender.start_afresh()
        self.exchange.forget()

    def step_ended(self) -> None:
        """Choose for the next step. Collective where a trial comes to its end."""
        self.choice.step_ended(counts=self._had_messages)
        self.sender.wanted = self.choice.overlaps

    def refuse_scaler(self, exchanged: bool) -> None:
        """Raise ConfigError if a step of a GradScaler overlaps; stop trying otherwise.

        Args:
            exchanged: whether this step's exchange is over already.
        """
        if self.sender.active and self.sender.recallable and not exchanged:
            self.sender.recall()
        elif self._overlapped if exchanged else self.sender.active:
            raise ConfigError(
                "a GradScaler skips steps that overflow, and messages that left during backward() cannot be taken "
                'back: use overlap="off" with it'
            )
        if not self.choice.settled:
            self.choice.settle(False, "as a GradScaler skips steps, and messages on their way cannot be taken back")

    def discard(self) -> None:
        """Throw away what backward made since the last exchange; with "auto" messages that left are taken back.

        Raises:
            MpiSparseError: messages are on their way with overlap="on". Nothing changes then.
        """
        self.sender.refuse_if_broken()
        self.refuse_while_in_the_air("zero_grad()")
        self._discarded = self._discarded or self.exchange.flat.fresh
        self.sender.throw_away()
        self.exchange.forget()

    def refuse_while_in_the_air(self, what: str) -> None:
        """Raise MpiSparseError between the first message of a step and its exchange, if it cannot be taken back."""
        if self.sender.has_begun and self.sender.recallable:
            self.sender.recall()
        elif self.sender.has_begun and not self.sender.broken:
            raise MpiSparseError(
                f"{what} after backward(), whose messages are on their way to the other ranks, and memories count them "
                "as sent: call step() first. Backward passes that no step follows belong in no_sync()"
            )

    def _look_before_trying(self, nonfinite: NonFinite) -> None:
        nothing = len(self.sender.groups) < 2 or isinstance(self.exchange.sparsifier, Dense)
        if nothing or self._comm.size == 1 or nonfinite == "skip":
            self.choice.settle(False)
            return
        short = [level for level in gather_json(self._comm, self._comm.thread_level) if level != "multiple"]
        if short:
            self.choice.settle(False, f"as MPI's thread level is {short[0]}, and a thread has to move messages")


def check_overlap(overlap: Overlap, nonfinite: NonFinite, thread_level: str) -> None:
    """Raise ConfigError, with the way out, if messages are to leave early and cannot."""
    if not is_one_of(overlap, get_args(Overlap)):
        raise ConfigError(f"overlap {short(overlap)} does not exist: use auto, on or off")
    if overlap == "on" and nonfinite == "skip":
        raise ConfigError(
            'overlap="on" and nonfinite="skip" do not go together: a step cannot be skipped once messages of it have '
            'left during backward(). Use overlap="off", or nonfinite="raise"'
        )
    if overlap == "on" and thread_level != "multiple":
        raise ConfigError(
            f'overlap="on" needs MPI\'s thread level multiple, and this one gives {thread_level}, as a thread has to '
            "move messages: do not set mpi4py.rc.thread_level or MPI4PY_RC_THREAD_LEVEL, use an MPI library that was "
            'built with threads, or overlap="off"'
        )

"""Sender: watches backward finish gradients, and sends what is complete."""

from __future__ import annotations

from collections.abc import Iterator

from mpisparse.collectives import Flight, Flights
from mpisparse.collectives.base import Bytes
from mpisparse.errors import MpiSparseError
from mpisparse.exchange import GradientExchange
from mpisparse.flat import Bucket


class Sender:
    """Compresses a group of buckets as soon as backward has finished its gradients, and sends it.

    Surprises first:

    - Groups leave in one order on all ranks, last layers first: one that is complete waits for those before it.
    - A gradient that was sent cannot be taken back: the memory counts it as sent. So a backward pass that adds to one
      is an error, in that backward; and after an error the exchange is `broken`.
    - An MpiSparseError on the way is kept until the ranks meet, as the others wait for this rank's messages.
    - Unless `active`, nothing is sent, and the sender only watches.
    """

    def __init__(
        self, exchange: GradientExchange, flights: Flights | None, limit: int, *, recoverable: bool = False
    ) -> None:
        """Watch the gradients of `exchange`.

        Args:
            flights: how messages travel; None if they never do so early.
            limit: entries of a group.
            recoverable: copy the memory before the first message of a step leaves, so that `take_back` can put it back.
        """
        self.recoverable = recoverable
        self.exchange = exchange
        self.flat = exchange.flat
        self.flights = flights
        self.wanted = False
        self.broken = False
        #: This rank's weight in the mean over samples, as all ranks agreed before backward.
        self.share = 1.0
        self.groups = group_buckets([bucket for bucket in reversed(self.flat.buckets) if not bucket.dense], limit)
        self._group_of = {
            number: place
            for place, group in enumerate(self.groups)
            for number, slot in enumerate(self.flat.slots)
            if any(bucket.start <= slot.start < bucket.stop for bucket in group)
        }
        self.start_afresh()

    def start_afresh(self) -> None:
        """Be ready for the next step."""
        self._unfinished = [{n for n, place in self._group_of.items() if place == i} for i in range(len(self.groups))]
        self._finished: set[int] = set()
        self._sent = 0
        self._flight: Flight | None = None
        self._before: dict[str, object] = {}
        self.repeated = False
        self.failure: MpiSparseError | None = None
        self.bad_entry: int | None = None

    @property
    def active(self) -> bool:
        """Return True when this step's messages are to leave early: it is wanted, and there are any."""
        return self.wanted and bool(self.groups) and bool(self.exchange.sparse_buckets())

    @property
    def has_begun(self) -> bool:
        """Return True when something of this step is on its way."""
        return self._flight is not None

    def sent_slots(self) -> set[int]:
        """Return the numbers of the slots whose gradients are on their way."""
        return {number for number, place in self._group_of.items() if place < self._sent}

    def final(self, number: int, last: bool) -> None:
        """Note that backward has finished the gradient of a slot, and send every group that is complete now.

        Args:
            last: whether no backward pass of this step is to add to it.
        """
        place = self._group_of.get(number)
        if place is not None and place < self._sent:
            raise MpiSparseError(
                f"backward() adds to the gradient of {self.flat.slots[number].name}, which is on its way to the other "
                "ranks: put all backward passes of a step but the last into no_sync(), call step() before the next "
                'one, or use overlap="off"'
            )
        if not last:
            return
        self.repeated = self.repeated or number in self._finished
        self._finished.add(number)
        if place is not None:
            self._unfinished[place].discard(number)
            while self.active and self._sent < len(self.groups) and not self._unfinished[self._sent]:
                self._send()

    def send_rest(self) -> None:
        """Send the groups that backward did not complete: with gradients of zero where none came. Not collective."""
        while self._sent < len(self.groups):
            self._send()

    def take_back(self) -> None:
        """Undo a step whose messages have begun to leave: memories are as before it, and what came in is not read.

        Collective: every rank sends what is left of the step, as all messages have to land.
        """
        self.send_rest()
        assert self._flight is not None
        for place in range(len(self.groups)):
            self._flight.wait(place)
        self.exchange.load_state_dict(self._before)

    def received(self) -> Iterator[list[Bytes]]:
        """Yield all ranks' messages of each bucket, in the order in which buckets are sent, waiting as need be."""
        assert self._flight is not None
        for place in range(len(self.groups)):
            with self.exchange.phases("exchange"):
                messages = self._flight.wait(place)
            assert messages is not None, "a failure that no rank told of"
            yield from messages

    def break_off(self, all_have_sent: bool) -> None:
        """Refuse everything from now on, if something of this step was sent; wait for its landing where it is sure."""
        self.broken = self.broken or self.has_begun
        if self._flight is not None and all_have_sent:
            for place in range(len(self.groups)):
                self._flight.wait(place)

    def refuse_if_broken(self) -> None:
        """Raise MpiSparseError after an exchange that broke off."""
        if self.broken:
            raise MpiSparseError(
                "an earlier exchange broke off after messages were sent, and memories count them as sent: go on from "
                "a checkpoint, in a new DistributedOptimizer"
            )

    def seconds_before(self, moment: int) -> float:
        """Return how long messages were in the air before a moment of `perf_counter_ns`. To be asked after landing."""
        return 0.0 if self._flight is None else self._flight.seconds_before(moment)

    def _send(self) -> None:
        assert self.flights is not None
        if self._flight is None:
            self.refuse_if_broken()
            if self.recoverable:
                self._before = self.exchange.state_dict()
            self._flight = self.flights.begin(len(self.groups))
        group = self.groups[self._sent]
        self._sent += 1
        self._flight.send(self._messages(group), len(group))

    def _messages(self, group: tuple[Bucket, ...]) -> list[Bytes] | None:
        """Return the messages of a group, or None when this rank has none worth sending in this step."""
        with self.exchange.phases("agree"):
            bad = [self.flat.first_bad_entry(bucket.place) for bucket in group]
        found = [entry for entry in bad if entry is not None]
        if found:
            self.bad_entry = min([*found, *([] if self.bad_entry is None else [self.bad_entry])])
        if self.bad_entry is not None or self.failure is not None:
            return None
        try:
            return [self._message(bucket) for bucket in group]
        except MpiSparseError as failure:
            self.failure = failure
            return None

    def _message(self, bucket: Bucket) -> Bytes:
        if self.share != 1.0:
            self.flat.buffer[bucket.place] *= self.share
        return self.exchange.compress(bucket)


def group_buckets(buckets: list[Bucket], limit: int) -> tuple[tuple[Bucket, ...], ...]:
    """Return `buckets` in groups of consecutive ones, of at most `limit` entries where one bucket is not more."""
    groups: list[tuple[Bucket, ...]] = []
    numel = 0
    for bucket in buckets:
        if groups and numel + bucket.numel <= limit:
            groups[-1] = (*groups[-1], bucket)
            numel += bucket.numel
        else:
            groups.append((bucket,))
            numel = bucket.numel
    return tuple(groups)

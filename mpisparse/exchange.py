"""GradientExchange: from each rank's gradient to the mean over all ranks, by sparse messages."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mpisparse import random, wire
from mpisparse.collectives import Collective, DenseMean
from mpisparse.errors import CheckpointError, MpiSparseError, NonFiniteError, WireError, alike
from mpisparse.faults import Faults
from mpisparse.flat import Bucket, FlatGradients
from mpisparse.kernels.anywhere import Anywhere, copy_of, forgotten, mean_into, on_host, put
from mpisparse.kernels.source import HostSource
from mpisparse.memory import Memory
from mpisparse.names import fitted
from mpisparse.phases import Phases
from mpisparse.rows import RowGradients, Table, mean_rows
from mpisparse.sparse import Indices, SparseVector
from mpisparse.sparsifiers import Sparsifier, Tracked
from mpisparse.wire import Expectation, Wire
from mpisparse.words import counted

Bytes = NDArray[np.uint8]
Vector = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Traffic:
    """What one exchange moved, seen from this rank.

    payload: bytes of this rank's own messages; tensors sent whole count 4 bytes an entry, 2 in bfloat16.
    received: bytes that came in from other ranks: their messages, and whole tensors as a ring moves them.
    dense: bytes that would have come in if the whole gradient had been averaged in float32 by a ring.
    count: entries this rank sent, of `numel` in the gradient.
    messages: how many messages this rank made.
    squares: squared norms of the vectors that the rule chose from, and of what was sent of them, where a gauge is on;
        whole tensors count in both.
    """

    payload: int
    received: int
    dense: int
    count: int
    numel: int
    messages: int = 0
    squares: tuple[float, float] | None = None

    @property
    def coding(self) -> int:
        """Return the bytes of `payload` without the messages' headers: what the paper calls the coding length."""
        return self.payload - self.messages * wire.HEADER_SIZE


class GradientExchange:
    """Averages the flat gradient over the ranks: remember, select, encode, gather, decode, sum, divide.

    Over any number of steps and summed over the ranks, what went in equals size times what came out plus what the
    memories hold. All ranks get the same bits: messages are summed in rank order.
    """

    def __init__(
        self,
        flat: FlatGradients,
        *,
        sparsifier: Sparsifier,
        memory: Memory,
        wire: Wire,
        collective: Collective,
        dense_mean: DenseMean,
        phases: Phases,
        seed: int = 0,
        resparsifier: Sparsifier | None = None,
        gauge: bool = False,
        faults: Faults | None = None,
        rows: RowGradients | None = None,
    ) -> None:
        self.flat = flat
        self.rows = rows or RowGradients([], flat)
        self.sparsifier = sparsifier
        self.memory = memory
        self.kept = memory.start(flat.buffer.numel(), flat.sparse_numel, like=flat.vector)
        self.tracked = [Tracked() for _ in flat.buckets]
        self.wire = wire
        self.collective = collective
        self.dense_mean = dense_mean
        self.phases = phases
        self.seed = seed
        self.resparsifier = resparsifier
        self.gauge = gauge
        self.faults = faults
        self._step = 0
        self._squares = (0.0, 0.0)

    @property
    def step(self) -> int:
        """Return how many exchanges there were."""
        return self._step

    @step.setter
    def step(self, step: int) -> None:
        self._step = step
        self.collective.comm.lane.recorder.step = step

    @property
    def changes_nothing(self) -> bool:
        """Return True when the mean is this rank's own gradient: it is alone, sends everything and keeps nothing."""
        alone = self.collective.comm.size == 1
        return alone and self.sparsifier.at(self.step).sends_everything and not self.kept.vectors()

    def sparse_buckets(self) -> list[Bucket]:
        """Return what this step sends as messages, last layers first: backward finishes their gradients first."""
        if self.sparsifier.at(self.step).sends_everything:
            return []
        return [bucket for bucket in reversed(self.flat.buckets) if not bucket.dense]

    def average(self, received: Iterable[list[Bytes]] | None = None) -> Traffic:
        """Replace the flat gradient by its mean over the ranks, and return what that moved. Collective.

        Args:
            received: all ranks' messages of each of `sparse_buckets()`, where those travelled already. The gradients
                of these buckets are in the messages, then, and are not looked at.
        """
        sparse = self.sparse_buckets()
        if received is None:
            received = self._gather(*self._compress_all(sparse))
        whole = [bucket for bucket in self.flat.buckets if bucket not in sparse]
        payload = incoming = count = 0
        for bucket, theirs in zip(sparse, received, strict=True):
            count += self._add_up(bucket, theirs)
            sent = theirs[self.collective.comm.rank].size
            payload += sent
            incoming += sum(message.size for message in theirs) - sent
        incoming += sum(self._average_whole(bucket) for bucket in whole)
        rows_sent, rows_received, rows_count = self._average_rows()
        self.step += 1
        entries = sum(bucket.numel for bucket in whole)
        return replace(
            self.no_traffic(),
            payload=payload + self.dense_mean.width * entries + rows_sent,
            received=incoming + rows_received,
            count=count + entries + rows_count,
            messages=len(sparse) + len(self.rows.tables),
            squares=self._take_squares(),
        )

    def no_traffic(self) -> Traffic:
        """Return what a step moves that is skipped: nothing, where a dense exchange would have moved the gradient."""
        size, numel = self.collective.comm.size, self.flat.buffer.numel() + self.rows.numel
        return Traffic(payload=0, received=0, dense=2 * (size - 1) * 4 * numel // size, count=0, numel=numel)

    def compress(self, bucket: Bucket, gradient: Anywhere = None) -> Bytes:
        """Return this rank's message of one of `sparse_buckets()`, and remember what it leaves out.

        Args:
            gradient: what to take for the bucket's part of the flat gradient, and to clear instead of it.
        """
        place = self.flat.vector[bucket.place] if gradient is None else gradient
        return self._compress(bucket, self.sparsifier.at(self.step), place)

    def remember(self, bucket: Bucket) -> Callable[[], None]:
        """Return what puts the memory of a bucket back to what it is now, as if nothing had been compressed since."""
        kept = [(vector[bucket.place], copy_of(vector[bucket.place])) for vector in self.kept.vectors().values()]
        tracked, squares = self.tracked[bucket.index].state_dict(), self._squares

        def restore() -> None:
            for vector, values in kept:
                vector[:] = values
            self.tracked[bucket.index].load_state_dict(tracked)
            self._squares = squares

        return restore

    def _compress_all(self, buckets: list[Bucket]) -> tuple[list[Bytes], MpiSparseError | None]:
        """Return this rank's messages, or why it has none: the others, on their way to the exchange, must hear."""
        try:
            return [self.compress(bucket) for bucket in buckets], None
        except MpiSparseError as error:
            return [np.empty(0, np.uint8) for _ in buckets], error

    def _compress(self, bucket: Bucket, rule: Sparsifier, gradient: Anywhere) -> Bytes:
        """Return this rank's message of one bucket, and remember what it leaves out."""
        rank = self.collective.comm.rank
        with self.phases("sparsify"):
            source = self.kept.source(gradient, bucket.place)
            before = source.square() if self.gauge else 0.0
            generator = random.generator(self.seed, rank, self.step, bucket.index)
            selected = rule.choose(source, generator, self.tracked[bucket.index])
        with self.phases("encode"):
            message = wire.encode(selected, self.wire, step=self.step, bucket=bucket.index, rank=rank)
            decoded = wire.rounded(selected, self.wire)
        with self.phases("sparsify"):
            source.sent(decoded)
            if self.gauge:
                self._note_squares(before, HostSource(decoded.values).square())
        return message if self.faults is None else self.faults.message(self.step, bucket.index, message)

    def _note_squares(self, before: float, after: float) -> None:
        self._squares = (self._squares[0] + before, self._squares[1] + after)

    def _take_squares(self) -> tuple[float, float] | None:
        squares, self._squares = self._squares, (0.0, 0.0)
        return squares if self.gauge else None

    def _gather(self, messages: list[Bytes], failure: MpiSparseError | None) -> list[list[Bytes]]:
        with self.phases("exchange"):
            return self.collective.gather(messages, failure) if messages else []

    def _refuse_overflow(self, name: str) -> None:
        """Raise NonFiniteError, on all ranks as all hold the same mean: finite gradients add up to infinity."""
        raise alike(
            NonFiniteError(
                f"after {counted(self.step, 'step')} the sum over ranks overflows float32 in {name}: "
                "lower the learning rate, or scale the loss down"
            )
        )

    def _add_up(self, bucket: Bucket, messages: list[Bytes]) -> int:
        """Put the mean of all ranks' messages into the bucket, and return how many entries this rank's own has."""
        with self.phases("decode"):
            comm = self.collective.comm
            sparse = [self._decode(message, bucket, rank) for rank, message in enumerate(messages)]
            # The memory left zeros here.
            bad = mean_into(self.flat.vector[bucket.place], sparse, comm.size)
            if bad is not None:
                self._refuse_overflow(self.flat.where(bucket.start + bad))
            if self.resparsifier is not None:
                self._resparsify(bucket, self.resparsifier.at(self.step))
            return sparse[comm.rank].count

    def _decode(self, message: Bytes, bucket: Bucket, rank: int) -> SparseVector:
        """Return what a rank's message holds, or raise WireError with all that is known of where it came from."""
        try:
            return wire.decode(message, Expectation(self.step, bucket.index, rank, bucket.numel))
        except WireError as error:
            raise self._unusable(rank, f"bucket {bucket.index}", error) from error

    def _unusable(self, rank: int, what: str, error: WireError) -> WireError:
        """Return the error for a message of `rank` that cannot be used."""
        comm = self.collective.comm
        return WireError(
            f"rank {comm.rank} of {comm.size} cannot use what came from rank {rank} for {what} "
            f"after {counted(self.step, 'step')}: {error}. No parameter changed, but memories count the step as "
            "sent: go on from a checkpoint, and if it comes again look at that node's memory and network"
        )

    def _average_rows(self) -> tuple[int, int, int]:
        """Average row-sparse gradients, and return the bytes sent, the bytes that came in, and the entries sent."""
        tables = self.rows.tables
        if not tables:
            return 0, 0, 0
        if self.gauge:
            square = self.rows.square()
            self._note_squares(square, square)
        received = self._gather(*self._encode_rows())
        sent = incoming = count = 0
        means = []
        with self.phases("decode"), np.errstate(over="ignore", invalid="ignore"):
            for table, messages in zip(tables, received, strict=True):
                own = messages[self.collective.comm.rank].size
                sent += own
                incoming += sum(message.size for message in messages) - own
                parts = [self._decode_rows(table, message, rank) for rank, message in enumerate(messages)]
                count += parts[self.collective.comm.rank][1].size
                means.append(mean_rows(parts))
                if not np.isfinite(means[-1][1]).all():
                    self._refuse_overflow(table.name)
        self.rows.keep_means(means)
        return sent, incoming, count

    def _encode_rows(self) -> tuple[list[Bytes], MpiSparseError | None]:
        """Return this rank's messages of rows, or why it has none: the others, on their way here, must hear."""
        with self.phases("encode"):
            try:
                messages = self.rows.encode(self.step, self.collective.comm.rank)
            except MpiSparseError as error:
                return [np.empty(0, np.uint8) for _ in self.rows.tables], error
        if self.faults is not None:
            faults, tables = self.faults, self.rows.tables
            pairs = zip(tables, messages, strict=True)
            messages = [faults.message(self.step, table.bucket, message) for table, message in pairs]
        return messages, None

    def _decode_rows(self, table: Table, message: Bytes, rank: int) -> tuple[Indices, NDArray[np.float32]]:
        """Return the rows that a rank sent, or raise WireError with all that is known of where they came from."""
        try:
            return self.rows.decode(table, message, self.step, rank)
        except WireError as error:
            raise self._unusable(rank, f"the rows of {table.name}", error) from error

    def changed(self, cleared: bool) -> bool:
        """Return True when gradients were changed after backward had finished them.

        Args:
            cleared: whether one that was set to None counts.
        """
        return self.flat.changed(cleared) or self.rows.changed(cleared)

    def forget(self) -> None:
        """Begin a step: no backward pass has finished a gradient in it."""
        self.flat.forget()
        self.rows.forget()

    def _resparsify(self, bucket: Bucket, rule: Sparsifier) -> None:
        """Replace the mean by a sparser one, the same on all ranks: their one random stream is no rank's own."""
        if rule.sends_everything:
            return
        mean = self.flat.vector[bucket.place]
        source = forgotten(mean)
        chosen = rule.choose(source, random.generator(self.seed, random.EVERYBODY, self.step, bucket.index))
        source.sent(chosen)
        bad = mean_into(mean, [chosen], 1)
        if bad is not None:
            self._refuse_overflow(self.flat.where(bucket.start + bad))

    def _average_whole(self, bucket: Bucket) -> int:
        """Average a bucket that is sent whole, and return the bytes that came in."""
        vector = self.flat.vector[bucket.place]
        with self.phases("sparsify"):
            if bucket.dense:
                self.kept.dense(vector, bucket.place)
            else:
                self.kept.whole(vector, bucket.place)
            if self.gauge:
                square = HostSource(on_host(vector)).square()
                self._note_squares(square, square)
        incoming = 0
        if self.collective.comm.size > 1:
            # A sum that overflows is an error below, with the tensor's name.
            with self.phases("exchange"), np.errstate(over="ignore"):
                host = on_host(vector)
                incoming = self.dense_mean.average(host)
                put(vector, host)
        with self.phases("decode"):
            bad = self.flat.first_bad_entry(bucket.place)
        if bad is not None:
            self._refuse_overflow(self.flat.where(bad))
        return incoming

    def state_dict(self) -> dict[str, object]:
        """Return the step, the seed, what the rule tracks, and this rank's memory by parameter name, as copies."""
        memory: dict[str, dict[str, Tensor]] = {}
        for name, vector in self.kept.vectors().items():
            host = on_host(vector)
            slots = [slot for slot in self.flat.slots if slot.stop <= host.size]
            memory[name] = {
                # Row after row, whatever the parameter's own order: it may be another one where this is loaded.
                slot.name: slot.view(torch.from_numpy(host)).clone(memory_format=torch.contiguous_format)
                for slot in slots
            }
        comm = self.collective.comm
        return {
            "step": self.step,
            "seed": self.seed,
            "rank": comm.rank,
            "size": comm.size,
            "memory": memory,
            "tracked": [tracked.state_dict() for tracked in self.tracked],
        }

    def load_state_dict(self, state: dict[str, object]) -> None:
        """Take up the state that `state_dict` returned on this rank, whatever torch.compile and the like were around.

        Raises:
            CheckpointError: it belongs to another rank, another memory or another model.
        """
        ours = [self.collective.comm.rank, self.collective.comm.size]
        if [state["rank"], state["size"]] != ours:
            raise CheckpointError(
                f"a state that rank {state['rank']} of {state['size']} saved was given to rank {ours[0]} of {ours[1]}: "
                "residuals differ from rank to rank, so save and load on each"
            )
        memory, vectors = state["memory"], self.kept.vectors()
        assert isinstance(memory, dict)
        _require_same_names("memory", set(vectors), set(memory))
        found: list[tuple[Tensor, Tensor]] = []
        for name, vector in vectors.items():
            slots = {slot.name: slot for slot in self.flat.slots if slot.stop <= len(vector)}
            kept = fitted(slots, memory[name])
            _require_same_names(f"memory {name!r}", set(slots), set(kept))
            for key, slot in slots.items():
                saved = kept[key]
                _require_same_shape(f"memory {name!r} of {key}", slot.parameter, saved)
                whole = vector if isinstance(vector, Tensor) else torch.from_numpy(vector)
                found.append((slot.view(whole), saved))
        self._load_tracked(state)
        for place, saved in found:
            place.copy_(saved)
        self.step, self.seed = int(str(state["step"])), int(str(state["seed"]))

    def _load_tracked(self, state: dict[str, object]) -> None:
        """Take up what the rule tracks; states saved before rules tracked anything have none."""
        saved = state.get("tracked", [tracked.state_dict() for tracked in self.tracked])
        assert isinstance(saved, list)
        if len(saved) != len(self.tracked):
            raise CheckpointError(
                f"the saved state is of {counted(len(saved), 'bucket')}, this exchange has {len(self.tracked)}: "
                "resume with the layout that saved it"
            )
        for tracked, theirs in zip(self.tracked, saved, strict=True):
            tracked.load_state_dict(theirs)


def _require_same_names(what: str, ours: set[str], theirs: set[str]) -> None:
    if ours != theirs:
        raise CheckpointError(
            f"the {what} in the saved state does not fit: it lacks {sorted(ours - theirs)} and brings "
            f"{sorted(theirs - ours)}. Resume with the model, memory and layout that saved it"
        )


def _require_same_shape(what: str, ours: Tensor, theirs: Tensor) -> None:
    if ours.shape != theirs.shape:
        raise CheckpointError(
            f"the {what} in the saved state has shape {tuple(theirs.shape)}, the parameter {tuple(ours.shape)}: resume "
            "with the model that saved it"
        )

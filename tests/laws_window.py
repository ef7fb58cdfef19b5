"""The laws of windows, on any number of ranks: nothing that anybody adds is lost. See `laws` for how they are run."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from mpisparse.comm import Communicator, SharedWindow, Window, WindowKind, agreed
from mpisparse.errors import CommError, ConfigError, NonFiniteError
from mpisparse.kernels import linear
from mpisparse.kernels.linear import Choice, Samples

NUMEL = 65
ROUNDS = 600


def kinds(comm: Communicator) -> list[WindowKind]:
    """Return the kinds of window that these ranks can open: threads have no MPI to add for them."""
    return ["shared"] if comm.describe().standard == "no MPI" else ["shared", "accumulate"]


def whole(comm: Communicator, window: Window) -> tuple[int, list[float]]:
    """Return the number of updates and the vector, once all ranks have done what they wanted to do. Collective."""
    out = np.empty(NUMEL, np.float32)
    comm.barrier()
    return window.read(out), out.tolist()


def law_no_addition_is_lost(comm: Communicator) -> None:
    """Ranks add ones at overlapping places, and to every entry, as fast as they can: the sums are exact."""
    rounds = 5 * ROUNDS
    for kind in kinds(comm):
        with comm.open_window(NUMEL, kind) as window:
            assert window.kind == kind
            places = np.arange(0, NUMEL, comm.rank + 1)
            ones, all_ones = np.ones(places.size, np.float32), np.ones(NUMEL, np.float32)
            for _ in range(rounds):
                window.add(places, ones)
                window.add_dense(all_ones)
            everywhere = np.arange(NUMEL)
            expected = sum(rounds * (everywhere % (rank + 1) == 0) + rounds for rank in range(comm.size))
            assert whole(comm, window) == (2 * rounds * comm.size, np.asarray(expected).tolist())
            done = window.counters
            assert (done.updates, done.entries) == (2 * rounds, rounds * (places.size + NUMEL))
            assert (done.conflicts is None) == (kind == "accumulate")
            comm.barrier()


def law_compiled_updates_add_up(comm: Communicator) -> None:
    """Each update adds minus its sample, and every sample stays on the wrong side of its margin: the sum is exact."""
    rows = np.random.default_rng(0).integers(0, 2, (20 * ROUNDS, NUMEL)).astype(np.float32)
    samples = Samples(rows, np.ones(len(rows), np.float32), True, np.float32(0))
    dense = Choice(linear.DENSE, 1.0, 0, linear.make_draws(NUMEL, np.random.default_rng(0)))
    scratch, tally = linear.make_scratch(NUMEL), linear.make_tally()
    with comm.open_window(NUMEL, "shared") as window:
        assert isinstance(window, SharedWindow)
        memory = window.parameters, window.updates
        comm.barrier()
        end = linear.update(*memory, samples, np.arange(len(rows)), 1, np.float32(-1), dense, 0, scratch, tally)
        assert end == 0
        assert whole(comm, window) == (comm.size * len(rows), (-comm.size * rows.sum(axis=0)).tolist())
        comm.barrier()


def law_opposite_additions_cancel(comm: Communicator) -> None:
    """What one rank adds another takes away, in small whole numbers, so that any order gives zero."""
    for kind in kinds(comm):
        with comm.open_window(NUMEL, kind) as window:
            generator = np.random.default_rng(0)
            for _ in range(ROUNDS):
                places = generator.permutation(NUMEL)[: generator.integers(0, NUMEL)].astype(np.uint32)
                values = generator.integers(-3, 4, places.size).astype(np.float32)
                # All ranks draw alike: the sum of their weights is zero.
                window.add(places, np.float32(2 * comm.rank - comm.size + 1) * values)
            assert whole(comm, window)[1] == [0.0] * NUMEL
            comm.barrier()


def law_every_number_is_claimed_once(comm: Communicator) -> None:
    """Claims of all ranks together are 0, 1, 2, ... without gap or repetition; each rank's own rise."""
    for kind in kinds(comm):
        with comm.open_window(NUMEL, kind) as window:
            own = [window.claim() for _ in range(ROUNDS)]
            assert own == sorted(own)
            assert sorted(comm.allgather(own).ravel().tolist()) == list(range(ROUNDS * comm.size))


def law_updates_are_numbered(comm: Communicator) -> None:
    """An update returns how many came before it, all ranks' together: each number once."""
    for kind in kinds(comm):
        with comm.open_window(NUMEL, kind) as window:
            one = np.ones(1, np.float32)
            own = [window.add(np.array([comm.rank]), one) for _ in range(ROUNDS)]
            assert sorted(comm.allgather(own).ravel().tolist()) == list(range(ROUNDS * comm.size))
            assert window.add(np.arange(0), one[:0]) >= ROUNDS
            comm.barrier()


def law_misuse_adds_nothing(comm: Communicator) -> None:
    """Arrays that do not fit are refused before anything is added, and the window goes on."""
    for kind in kinds(comm):
        with comm.open_window(NUMEL, kind) as window:
            one, two = np.ones(1, np.float32), np.ones(2, np.float32)
            for place in (-1, NUMEL):
                with pytest.raises(CommError, match="do not all lie in the window"):
                    window.add(np.array([0, place]), two)
            with pytest.raises(CommError, match="2 values were to be added at 1 indices"):
                window.add(np.array([0]), two)
            with pytest.raises(CommError, match="float64"):
                window.add(np.array([0]), np.ones(1))  # type: ignore[arg-type]
            with pytest.raises(CommError, match=f"holds {NUMEL} entries"):
                window.add_dense(one)
            with pytest.raises(CommError, match=f"holds {NUMEL} entries"):
                window.read(two)
            assert whole(comm, window) == (0, [0.0] * NUMEL)
            comm.barrier()


def law_an_error_of_all_ranks_closes_the_window(comm: Communicator) -> None:
    """So that a program which catches it can open another."""
    for kind in kinds(comm):
        for _ in range(3):
            with pytest.raises(NonFiniteError), comm.open_window(NUMEL, kind), agreed(comm):
                raise NonFiniteError("diverged")


def law_impossible_windows_are_refused(comm: Communicator) -> None:
    """No window is empty; and threads cannot accumulate."""
    for numel in (0, 2**31):
        with pytest.raises(ConfigError, match=f"window of {numel} entries"):
            comm.open_window(numel)
    if "accumulate" not in kinds(comm):
        with pytest.raises(ConfigError, match="no MPI to accumulate with"):
            comm.open_window(NUMEL, "accumulate")
    with comm.open_window(NUMEL) as window:
        assert window.kind == "shared"


LAWS: dict[str, Callable[[Communicator], None]] = {
    name.removeprefix("law_"): law for name, law in sorted(globals().items()) if name.startswith("law_")
}

"""The laws of what is made and let go again: communicators, windows, optimizers. See `laws` for how they are run."""

from __future__ import annotations

import gc
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

import mpisparse as ms
from mpisparse.comm import Communicator
from mpisparse.errors import CommError, ConfigError, MpiSparseError
from tests.laws import Net, Vector, everyone, parameters, train, wrap

#: More duplicates than any MPI library has room for, MPICH's being about 2,000; and as many as threads are to make.
MANY, SOME = 2200, 150


def alive(comm: Communicator) -> int:
    """Return how many duplicates and windows of `comm` have not been given back."""
    return len(comm._handles)


def ranks_meet(comm: Communicator) -> bool:
    """Return True if the communicator carries every rank's number to all. Collective."""
    return bool((comm.allgather([7 * comm.rank + 1])[:, 0] == 7 * np.arange(comm.size) + 1).all())


def law_more_duplicates_than_mpi_has_room_for(comm: Communicator) -> None:
    """Each is dropped before the next but one is made: at most three are there at a time."""
    on_mpi = comm.describe().standard != "no MPI"
    for number in range(MANY if on_mpi and comm.size < 3 else SOME):
        fresh = comm.duplicate("short-lived")
        inner = fresh.duplicate() if number % 3 == 0 else fresh
        if number % 100 == 0:
            assert ranks_meet(fresh)
            assert ranks_meet(inner)
        assert alive(comm) <= 3, number
    assert len(comm.lane.recorder.lanes) < 20


def law_dropped_in_any_order_and_given_back_once_all_have(comm: Communicator) -> None:
    """What one rank still has works on; ranks that drop in different orders agree all the same."""
    held = {number: comm.duplicate(f"number {number}") for number in range(6)}
    order = list(held) if comm.rank % 2 else list(reversed(held))
    for number in order:
        if number != 2 or comm.rank != comm.size - 1:
            del held[number]
    other = comm.duplicate()
    assert alive(comm) == 2, "number 2 lives on the last rank, so that it is given back on none"
    if comm.size == 1:
        assert ranks_meet(held[2])
    held.clear()
    other.free()
    assert alive(comm) == 1
    last = comm.duplicate()
    assert alive(comm) == 1
    assert ranks_meet(last)


def law_a_duplicate_keeps_what_it_duplicates(comm: Communicator) -> None:
    """A duplicate of a duplicate works after that was dropped, and both go when it goes."""
    inner = comm.duplicate("outer").duplicate("inner")
    comm.duplicate()
    assert ranks_meet(inner)
    assert inner.root is comm.root
    del inner
    fresh = comm.duplicate()
    assert alive(comm) == 1
    assert ranks_meet(fresh)


def law_use_after_free_is_refused(comm: Communicator) -> None:
    """Of a duplicate and of what was duplicated from it, by every call; freeing it again does nothing."""
    outer = comm.duplicate("outer")
    inner = outer.duplicate("inner")
    outer.free()
    outer.free()
    inner.free()
    calls: list[Callable[[Communicator], Any]] = [
        lambda c: c.allgather([1]),
        lambda c: c.start_allgather([1]),
        lambda c: c.barrier(),
        lambda c: c.duplicate(),
        lambda c: c.broadcast(np.zeros(1, np.uint8)),
        lambda c: c.describe(),
    ]
    for call in calls:
        for gone, name in ((outer, "outer"), (inner, "inner")):
            with pytest.raises(CommError, match=f"rank {comm.rank}: .* the communicator '{name}.*was given back"):
                call(gone)
    assert alive(comm) == 0
    assert ranks_meet(comm)


def law_windows_that_were_dropped_are_given_back(comm: Communicator) -> None:
    """Unless an array of theirs is still held; closing twice is once; a closed one is no longer shared."""
    kept: list[Vector] = []
    for number in range(20):
        window = comm.open_window(5)
        window.add(np.array([1]), np.ones(1, np.float32))
        assert alive(comm) <= 4 + len(kept), number
        if number == 7:
            kept.append(window.parameters)  # type: ignore[attr-defined]
    window.close()
    window.close()
    comm.duplicate("unused")
    comm.barrier()
    assert kept[0].tolist() == [0, comm.size, 0, 0, 0]
    kept.clear()
    comm.barrier()
    comm.duplicate("unused")
    last = comm.duplicate()
    assert alive(comm) <= 2
    assert ranks_meet(last)


def law_optimizers_come_and_go(comm: Communicator) -> None:
    """Closed, left by `with`, dropped, replaced, or ended by an error: their communicators are given back."""
    layout = ms.Layout(granularity="tensor", bucket_mib=1e-6)
    most = 0
    for number in range(24):
        model = Net()
        if number % 6 == 5:
            with pytest.raises(ConfigError, match="bfloat17"):
                wrap(comm, model, ms.TopK(0.1), dense="bfloat17")
            continue
        rule = ms.TopK(0.1)
        optimizer = wrap(comm, model, rule, layout=layout, overlap="on" if number % 2 else "off")
        train(comm, model, optimizer, 2)
        if number % 6 == 1:
            optimizer.close()
            optimizer.close()
        elif number % 6 == 2:
            with optimizer:
                train(comm, model, optimizer, 1)
        elif number % 6 == 3:
            with pytest.raises(ZeroDivisionError), optimizer:
                raise ZeroDivisionError
        elif number % 6 == 4:
            del optimizer
        most = max(most, alive(comm))
    gc.collect()
    assert most <= 10, "errors hold what failed until garbage is collected"
    last = comm.duplicate()
    assert alive(comm) <= 2
    assert ranks_meet(last)


def law_a_model_is_wrapped_again_after_closing(comm: Communicator) -> None:
    """Half the steps before and half after give the bits of all of them in one optimizer; no hook is left behind."""
    for rule in (ms.Dense(), ms.TopK(1.0)):
        once, twice = Net(), Net()
        train(comm, once, wrap(comm, once, rule), 6)
        first = wrap(comm, twice, rule)
        train(comm, twice, first, 3)
        plain = first.optimizer
        first.close()
        assert not any(hooks(parameter) for parameter in twice.parameters())
        twice(torch.ones(2, 11)).sum().backward()  # goes to nobody's buffer
        second = ms.DistributedOptimizer(plain, twice, sparsifier=rule, comm=comm)
        train(comm, twice, second, 3, start=3)
        np.testing.assert_array_equal(parameters(once), parameters(twice))
        assert all(np.array_equal(parameters(twice), other) for other in everyone(comm, parameters(twice)))
        for use in (first.step, first.zero_grad, first.synchronize, first.state_dict, first.describe):
            with pytest.raises(MpiSparseError, match="is closed"):
                use()
        assert "closed" in repr(first)


def hooks(parameter: torch.Tensor) -> int:
    """Return how many hooks see a parameter's gradient when it is final."""
    return len(getattr(parameter, "_post_accumulate_grad_hooks", None) or {})


LAWS: dict[str, Callable[[Communicator], None]] = {
    name.removeprefix("law_"): law for name, law in sorted(globals().items()) if name.startswith("law_")
}

"""The laws of metrics and of what a communicator takes, each a function of the communicator. Data encodes the rank."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

import mpisparse as ms
from mpisparse.comm import Communicator
from mpisparse.errors import CommError, ConfigError, MpiSparseError, RankMismatchError


def alike(comm: Communicator, number: float) -> bool:
    """Return whether all ranks hold the same bits."""
    return len(set(comm.allgather_bytes(np.float64(number).tobytes()))) == 1


def refused(comm: Communicator, kind: type[MpiSparseError], action: Callable[[], object]) -> str:
    """Return what an error says that all ranks raise, in one line; the communicator goes on afterwards."""
    with pytest.raises(kind) as raised:
        action()
    assert raised.value.on_all_ranks
    assert "\n" not in str(raised.value)
    comm.barrier()
    return str(raised.value)


def law_mean_is_that_in_rank_order(comm: Communicator) -> None:
    """A mean is the sum in rank order over the number of ranks, in float64, the same bits on all."""
    losses = [0.1 + math.sqrt(number) for number in range(comm.size)]
    expected = sum(losses[1:], losses[0]) / comm.size
    found = ms.mean(losses[comm.rank], comm=comm)
    assert type(found) is float
    assert found == expected
    assert alike(comm, found)
    for value in (np.float64(losses[comm.rank]), torch.tensor(losses[comm.rank], dtype=torch.float64)):
        assert ms.mean(value, comm=comm) == expected
    assert ms.mean(comm.rank, comm=comm) == (comm.size - 1) / 2
    assert ms.mean(comm.rank == 0, comm=comm) == 1 / comm.size
    assert (ms.rank(comm), ms.size(comm)) == (comm.rank, comm.size)
    assert ms.is_main(comm) == comm.is_main == (comm.rank == 0)


def law_mean_takes_what_programs_hold(comm: Communicator) -> None:
    """Tensors of any real type, strided, with a gradient, and arrays come back as float64 of their shape."""
    table = torch.arange(6.0).reshape(2, 3) + comm.rank
    expected = np.arange(6.0).reshape(2, 3) + (comm.size - 1) / 2
    for value in (
        table, table.bfloat16(), table.half(), table.int(), table.double(), table.T.contiguous().T, table.numpy(),
        table.clone().requires_grad_(), table.numpy()[:, ::-1][:, ::-1], table.tolist(),
    ):  # fmt: skip
        found = ms.mean(value, comm=comm)
        assert found.dtype == np.float64
        np.testing.assert_array_equal(found, expected)
    assert ms.mean(np.empty((0, 3)), comm=comm).shape == (0, 3)
    assert ms.mean({}, comm=comm) == {}


def law_mean_of_a_dict(comm: Communicator) -> None:
    """Keys may come in any order; each rank gets its own order back."""
    values = {"loss": 0.5 + comm.rank, "hits": np.array([comm.rank, 1]), 3: torch.tensor(2.0)}
    if comm.rank % 2:
        values = dict(reversed(values.items()))
    found = ms.mean(values, comm=comm)
    assert list(found) == list(values)
    assert found["loss"] == 0.5 + (comm.size - 1) / 2
    assert found["hits"].tolist() == [(comm.size - 1) / 2, 1.0]
    assert found[3] == 2.0


def law_mean_weighs_samples(comm: Communicator) -> None:
    """With samples the mean is over samples; a rank without any counts for nothing, though its value be NaN."""
    counts = [3 * number for number in range(comm.size)] if comm.size > 1 else [2]
    value = 1.0 + comm.rank if counts[comm.rank] else math.nan
    found = ms.mean({"loss": value}, samples=counts[comm.rank], comm=comm)["loss"]
    assert found == sum(count * (1.0 + number) for number, count in enumerate(counts)) / sum(counts)
    assert ms.mean(value, samples=float(counts[comm.rank]), comm=comm) == found
    assert ms.mean(value, samples=torch.tensor(counts[comm.rank]), comm=comm) == found  # type: ignore[arg-type]
    assert alike(comm, found)


def law_mean_passes_nan(comm: Communicator) -> None:
    """NaN and infinity of one rank are those of all."""
    last = comm.size - 1
    assert math.isnan(ms.mean(math.nan if comm.rank == last else 1.0, comm=comm))
    assert ms.mean(math.inf if comm.rank == last else 1.0, comm=comm) == math.inf
    assert math.isnan(ms.mean([math.nan if comm.rank == last else 1.0], samples=4, comm=comm)[0])


def law_wrong_means_are_errors_on_all_ranks(comm: Communicator) -> None:
    """Whatever one rank gives that has no mean is an error on all of them, and leaves nobody waiting."""
    last = comm.rank == comm.size - 1
    wrong: list[object] = ["0.5", None, 1j, [[1.0], [1.0, 2.0]], {"a": {"b": 1.0}}, np.array(["x"]), object()]
    wrong += [torch.empty(2, device="meta"), torch.tensor([1j]), np.ma.array([1.0, 2.0], mask=[True, False])]
    for value in wrong:
        said = refused(comm, ConfigError, lambda value=value: ms.mean(value if last else 1.0, comm=comm))  # type: ignore[misc]
        assert "means are of numbers" in said
    for samples in (-1, math.nan, math.inf, "3", [1, 2]):
        said = refused(comm, ConfigError, lambda n=samples: ms.mean(1.0, samples=n if last else 1, comm=comm))  # type: ignore[misc]
        assert "samples is" in said
    assert "0 on every rank" in refused(comm, ConfigError, lambda: ms.mean(1.0, samples=0, comm=comm))
    if comm.size > 1:
        keys = {"loss": 1.0, "accuracy": 1.0} if last else {"loss": 1.0}
        said = refused(comm, RankMismatchError, lambda: ms.mean(keys, comm=comm))
        assert f"rank {comm.size - 1} lacks nothing of rank 0's and brings 'accuracy' of shape ()" in said
        shapes = [np.zeros(2), np.zeros(3)]
        assert "of shape (2,)" in refused(comm, RankMismatchError, lambda: ms.mean(shapes[last], comm=comm))
        refused(comm, RankMismatchError, lambda: ms.mean({"a": 1.0} if last else 1.0, comm=comm))
        some = None if last else 3
        assert "on all ranks, or on none" in refused(comm, ConfigError, lambda: ms.mean(1.0, samples=some, comm=comm))


def _objects(rank: int) -> dict[object, object]:
    return {
        "settings": {"lr": 0.1, "betas": (0.9, 0.999), "layers": [1, 2, None], "on": True, 7: "", (1, 2): b"\0\xff"},
        "numbers": [math.inf, -0.0, 2**80, 1 - 2j, rank, {"a", "b"}, frozenset({1}), Path("x") / "y"],
        "scalars": [np.float32(0.1), np.int8(-3), np.bool_(True), np.datetime64("2020-01-01")],
        "text": "§ \udc80 \n",
    }  # fmt: skip


def law_broadcast_object(comm: Communicator) -> None:
    """Every type comes back as itself, from any root, and what comes back is a copy."""
    for root in range(comm.size):
        sent = _objects(root)
        found = ms.broadcast_object(sent if comm.rank == root else object(), root, comm=comm)
        assert repr(found).replace("'b', 'a'", "'a', 'b'") == repr(sent).replace("'b', 'a'", "'a', 'b'")
        assert found is not sent
    arrays: list[NDArray[np.generic]] = [np.arange(6, dtype=np.int16).reshape(2, 3).T, np.zeros((0, 2)), np.array("x")]
    for array in arrays:
        found = ms.broadcast_object(array, comm=comm)
        assert (found.dtype, found.shape, found.tolist()) == (array.dtype, array.shape, array.tolist())
        assert found.flags.writeable
    tensors = [
        torch.arange(6.0).bfloat16().view(2, 3).T,
        torch.tensor(1 - 2j).conj(),
        torch.empty(0, 3),
        torch.tensor(3),
    ]
    for tensor in [*tensors, torch.nn.Parameter(torch.ones(2))]:
        found = ms.broadcast_object(tensor, comm=comm)
        assert (type(found), found.dtype, found.requires_grad) == (torch.Tensor, tensor.dtype, False)
        assert torch.equal(found, tensor)


def law_wrong_objects_are_errors_on_all_ranks(comm: Communicator) -> None:
    """An object that cannot be sent, and a root that is none, are errors on all ranks."""
    endless: list[object] = []
    endless.append(endless)
    for value in (object(), {"a": [print]}, np.array([object()]), torch.nn.Linear(1, 1), endless, ms.TopK(0.1)):
        refused(comm, ConfigError, lambda value=value: ms.broadcast_object(value, comm=comm))  # type: ignore[misc]
    said = refused(comm, ConfigError, lambda: ms.broadcast_object({"a": {"b": print}}, comm=comm))
    assert "the object['a']['b'] is builtin_function_or_method" in said
    for root in (comm.size, -1, 0.0, "0", True):
        refused(comm, ConfigError, lambda root=root: ms.broadcast_object(1, root, comm=comm))  # type: ignore[misc]
    if comm.size > 1:
        # Each rank names itself.
        refused(comm, CommError, lambda: ms.broadcast_object(1, comm.rank, comm=comm))


#: What is no vector of whole numbers, as programs have tried to gather it.
NO_INTEGERS = [
    0.75, [0.75], [1, 2.0], np.array([0.75]), np.float32(0.75), np.array([3.0]), torch.tensor([0.75]),
    torch.tensor(0.5), torch.ones(2, dtype=torch.bfloat16), torch.ones(2, requires_grad=True), [torch.tensor(0.5)],
    "12", ["1"], [None], None,
    [2**63], [-(2**63) - 1], np.array([2**63], np.uint64), [2**70], [[1, 2], [3]], [[1, 2], [3, 4]], 1j, b"x", object(),
    np.array(["2020"], "datetime64[Y]"), {"a": 1}, torch.empty(1, dtype=torch.int64, device="meta"),
]  # fmt: skip


def law_allgather_takes_whole_numbers(comm: Communicator) -> None:
    """Whole numbers arrive exactly, whatever holds them; everything else is refused in one line, before MPI."""
    far = 2**63 - 1
    expected = [[number, -number, far] for number in range(comm.size)]
    own = expected[comm.rank]
    for values in (
        own,
        tuple(own),
        np.array(own),
        torch.tensor(own),
        np.array(own)[::-1][::-1],
        np.array([own] * 2).T[:, 0],
    ):
        assert comm.allgather(values).tolist() == expected  # type: ignore[arg-type]
    assert comm.allgather(np.array([comm.rank, 255], np.uint8)).tolist() == [[n, 255] for n in range(comm.size)]
    assert comm.allgather([comm.rank == 0, True]).tolist() == [[int(n == 0), 1] for n in range(comm.size)]
    assert comm.allgather(comm.rank).tolist() == [[n] for n in range(comm.size)]  # type: ignore[arg-type]
    assert comm.allgather([]).shape == (comm.size, 0)
    for wrong in NO_INTEGERS:
        for method in (comm.allgather, comm.start_allgather):
            with pytest.raises(CommError, match=r"^rank \d+: (start_)?allgather takes .*ms\.mean\(value\)[^\n]*$"):
                method(wrong)  # type: ignore[arg-type]
    comm.barrier()


#: What `allreduce` cannot put a sum into.
NO_SUMS = [
    0.75, np.float32(0.75), [0.75], np.array([0.75]), torch.ones(2), torch.ones(2).double(),
    np.zeros((4, 4), np.float32).T,
    np.zeros(4, np.float32)[::2], np.frombuffer(bytes(8), np.float32), None, 3, torch.ones(1, requires_grad=True),
]  # fmt: skip


def law_other_calls_refuse_what_they_do_not_send(comm: Communicator) -> None:
    """Every other call of a communicator says in one line what it takes, and goes on working."""
    for values in NO_SUMS:
        with pytest.raises(CommError, match=r"^rank \d+: allreduce replaces[^\n]*ms\.mean"):
            comm.allreduce(values)  # type: ignore[arg-type]
    counts = np.full(comm.size, 8, np.int64)
    for payload in (
        b"12345678",
        [1] * 8,
        np.zeros(1),
        np.zeros(8, np.int8),
        torch.zeros(8, dtype=torch.uint8),
        None,
        0.5,
    ):
        for call in (
            lambda p: comm.allgatherv(p, counts),
            lambda p: comm.start_allgatherv(p, counts),
            lambda p: comm.alltoallv(p, np.where(np.arange(comm.size) == 0, 8, 0), counts),
        ):
            with pytest.raises(CommError, match="give a contiguous uint8 vector"):
                call(payload)
    for bad in ([8] * comm.size, counts.astype(float), counts[:0], None, 8):
        with pytest.raises(CommError, match="counts are"):
            comm.allgatherv(np.zeros(8, np.uint8), bad)  # type: ignore[arg-type]
    for text in ("text", 0.5, [1], np.zeros(3), None, torch.zeros(1)):
        with pytest.raises(CommError, match=r"takes bytes, and was given .*ms\.broadcast_object"):
            comm.allgather_bytes(text)  # type: ignore[arg-type]
    for buffer in (b"xx", np.zeros(2), torch.zeros(2), [0, 0], 0.5, np.frombuffer(b"xx", np.uint8)):
        with pytest.raises(CommError, match=r"the receive buffer is .*ms\.broadcast_object"):
            comm.broadcast(buffer)  # type: ignore[arg-type]
    for root in (comm.size, -1, 0.5, True, "0"):
        with pytest.raises(ConfigError, match="root is"):
            comm.broadcast(np.zeros(2, np.uint8), root)  # type: ignore[arg-type]
        with pytest.raises(ConfigError, match="root is"):
            comm.broadcast_bytes(b"", root)  # type: ignore[arg-type]
    assert "gave None" in refused(comm, CommError, lambda: comm.broadcast_bytes(None))
    for numel in (0, -1, 2.5, True, "4", 2**31):
        refused(comm, ConfigError, lambda numel=numel: comm.open_window(numel))  # type: ignore[misc]
    refused(comm, ConfigError, lambda: comm.open_window(4, "share"))  # type: ignore[arg-type]


def law_sums_reach_every_shape(comm: Communicator) -> None:
    """A sum fills arrays of no dimension, of two, and empty ones."""
    for shape in ((), (2, 3), (0,)):
        array = np.full(shape, comm.rank + 1, np.float32)
        comm.allreduce(array)
        np.testing.assert_array_equal(array, np.full(shape, comm.size * (comm.size + 1) / 2, np.float32))


def law_different_lengths_are_errors_on_all_ranks(comm: Communicator) -> None:
    """Where all ranks have to give as much, one that gives more is an error on all: MPI would not say a word."""
    if comm.size == 1:
        return
    more = int(comm.rank == comm.size - 1)
    for size in (1, 200, 200_000):
        said = refused(comm, CommError, lambda size=size: comm.allgather([7] * (size + more)))  # type: ignore[misc]
        assert f"{size} on rank 0 and {size + 1} on rank {comm.size - 1} (numbers)" in said
    refused(comm, CommError, lambda: comm.allreduce(np.ones(3 + more, np.float32)))
    refused(comm, CommError, lambda: comm.broadcast(np.ones(3 + more, np.uint8)))
    assert "(root)" in refused(comm, CommError, lambda: comm.broadcast(np.ones(3, np.uint8), more))
    refused(comm, CommError, lambda: comm.broadcast_bytes(b"x", more))
    refused(comm, CommError, lambda: comm.open_window(3 + more))
    assert comm.allgather_bytes(b"x" * comm.rank) == [b"x" * number for number in range(comm.size)]


LAWS = {name.removeprefix("law_"): law for name, law in list(globals().items()) if name.startswith("law_")}

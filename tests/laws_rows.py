"""The laws of gradients that hold some rows of a table: exchanged as rows, they are the mean of whole tables."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import mpisparse as ms
from mpisparse.comm import Communicator
from mpisparse.faults import Fault, Faults

ROWS, WIDTH = 40, 6


class Words(nn.Module):
    """A table, a bag and a dense layer, of which the first two may have row-sparse gradients."""

    def __init__(self, sparse: bool, seed: int = 5) -> None:
        super().__init__()
        self.table = nn.Embedding(ROWS, WIDTH, sparse=sparse)
        self.bag = nn.EmbeddingBag(ROWS // 2, WIDTH, sparse=sparse, mode="sum")
        self.last = nn.Linear(WIDTH, 3)
        # A generator of its own: ranks that are threads share torch's.
        generator = torch.Generator().manual_seed(seed)
        for parameter in self.parameters():
            nn.init.normal_(parameter, generator=generator)

    def loss(self, ids: Tensor, weights: Tensor) -> Tensor:
        """Return a loss whose gradients are sums of eighths: exact in any order."""
        bags = self.bag(ids.view(1, -1) % (ROWS // 2)) if ids.numel() else self.bag.weight.new_zeros(1, WIDTH)
        loss: Tensor = (self.table(ids) * weights).sum() + (bags * 0.25).sum() + self.last.weight.sum() * ids.numel()
        return loss


def sgd(comm: Communicator, model: nn.Module, **options: Any) -> ms.DistributedOptimizer:
    return ms.DistributedOptimizer(torch.optim.SGD(model.parameters(), lr=0.5), model, comm=comm, **options)


def batch(rank: int, step: int, count: int = 9) -> tuple[Tensor, Tensor]:
    """Return row numbers, many of them several times and shared with other ranks, and weights in eighths."""
    generator = torch.Generator().manual_seed(100 * step + rank)
    ids = torch.randint(0, 15, (count,), generator=generator) + rank
    return ids, torch.randint(-8, 9, (count, WIDTH), generator=generator) / 8


def backward(model: Words, rank: int, step: int) -> None:
    """Go backward once, or twice, or with no row, or not at all, by rank and step."""
    kind = (rank + step) % 4
    if kind == 3:
        return
    model.loss(*batch(rank, step, 0 if kind == 2 else 9)).backward()  # type: ignore[no-untyped-call]
    if kind == 1:
        model.loss(*batch(rank, step + 50)).backward()  # type: ignore[no-untyped-call]


def whole(parameter: Tensor) -> Tensor:
    grad = parameter.grad
    if grad is None:
        return torch.zeros_like(parameter)
    return grad.to_dense() if grad.is_sparse else grad


def require_equal_everywhere(comm: Communicator, model: nn.Module) -> None:
    bits = np.concatenate([p.detach().numpy().reshape(-1) for p in model.parameters()]).tobytes()
    assert set(comm.allgather_bytes(bits)) == {bits}


def law_rows_are_the_mean_of_whole_tables(comm: Communicator) -> None:
    """The same values at the same rows as the dense path gives, bit for bit, and the same parameters after steps."""
    for counted in (False, True):
        for clip_norm in (None, 1.5):
            models = [Words(sparse) for sparse in (True, False)]
            optimizers = [sgd(comm, model, clip_norm=clip_norm) for model in models]
            for step in range(5):
                for model, optimizer in zip(models, optimizers, strict=True):
                    optimizer.zero_grad()
                    backward(model, comm.rank, step)
                    optimizer.synchronize(samples=comm.rank + 1 if counted else None)
                for (name, ours), theirs in zip(models[0].named_parameters(), models[1].parameters(), strict=True):
                    assert torch.equal(whole(ours), whole(theirs)), (name, step)
                for parameter in (models[0].table.weight, models[0].bag.weight):
                    assert parameter.grad is None or (parameter.grad.is_sparse and parameter.grad.is_coalesced())
                for optimizer in optimizers:
                    optimizer.step()
                if clip_norm:
                    assert optimizers[0].grad_norm == pytest.approx(optimizers[1].grad_norm, rel=1e-6)
                    for ours, theirs in zip(models[0].parameters(), models[1].parameters(), strict=True):
                        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)
                        theirs.data.copy_(ours.data)
                else:
                    assert all(torch.equal(a, b) for a, b in zip(*(m.parameters() for m in models), strict=True))
                require_equal_everywhere(comm, models[0])


def law_sparse_adam_and_adam_side_by_side(comm: Communicator) -> None:
    """SparseAdam trains the tables and Adam the rest, as both do on one process with the mean gradient."""
    model, alone = Words(True), Words(True)

    def optimizers(of: Words) -> tuple[torch.optim.Optimizer, torch.optim.Optimizer]:
        tables = [of.table.weight, of.bag.weight]
        return torch.optim.SparseAdam(tables, lr=0.1), torch.optim.Adam(of.last.parameters(), lr=0.1)

    wrapped = [ms.DistributedOptimizer(plain, model, comm=comm) for plain in optimizers(model)]
    plain = optimizers(alone)
    for step in range(6):
        for optimizer in (*wrapped, *plain):
            optimizer.zero_grad()
        backward(model, comm.rank, step)
        for rank in range(comm.size):
            backward(alone, rank, step)
        for parameter in alone.parameters():
            if parameter.grad is not None:
                parameter.grad = parameter.grad / comm.size
        for optimizer in (*wrapped, *plain):
            optimizer.step()
        for ours, theirs in zip(model.parameters(), alone.parameters(), strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)
        require_equal_everywhere(comm, model)
    state = deepcopy(wrapped[0].state_dict())
    assert (state["mpisparse"]["memory"], state["mpisparse"]["step"]) == ({}, 6)
    again = Words(True)
    again.load_state_dict(model.state_dict())
    resumed = ms.DistributedOptimizer(optimizers(again)[0], again, comm=comm)
    resumed.load_state_dict(state)
    for of, optimizer in ((model, wrapped[0]), (again, resumed)):
        of.zero_grad()
        backward(of, comm.rank, 6)
        optimizer.step()
    assert torch.equal(model.table.weight, again.table.weight)
    assert resumed.exchange.step == 7


def law_rows_move_their_own_bytes_alone(comm: Communicator) -> None:
    """What travels are the rows in use, each once from a rank: counted so, beside what the table would have taken."""
    model = nn.Embedding(10_000, 8, sparse=True)
    optimizer = sgd(comm, model)
    ids = torch.arange(10) + 3 * comm.rank
    model(torch.cat([ids, ids])).sum().backward()
    optimizer.step()
    traffic, message = optimizer.traffic, 48 + 10 * (4 + 4 * 8)
    assert (traffic.payload, traffic.received) == (message, (comm.size - 1) * message)
    assert traffic.dense == 2 * (comm.size - 1) * 4 * 80_000 // comm.size
    assert (traffic.count, traffic.numel, traffic.coding) == (80, 80_000, message - 48)
    assert optimizer.flat.buffer.numel() == 0
    assert not optimizer.exchange.kept.vectors()
    assert "80000 sent by rows" in optimizer.describe()


def law_bad_rows_stop_every_rank(comm: Communicator) -> None:
    """NaN in a row of any rank ends or skips the step on all, names the table, and moves nothing."""
    for nonfinite in ("raise", "skip"):
        model = Words(True)
        optimizer = sgd(comm, model, nonfinite=nonfinite)
        before = model.table.weight.detach().clone()
        ids, weights = batch(comm.rank, 0)
        bad = comm.size - 1
        model.loss(ids, weights * (float("nan") if comm.rank == bad else 1)).backward()  # type: ignore[no-untyped-call]
        if nonfinite == "raise":
            with pytest.raises(ms.NonFiniteError, match=f"rank {bad} in table.weight"):
                optimizer.step()
        else:
            optimizer.step()
            assert optimizer.skipped == 1
            assert f"rank {bad} in table.weight" in optimizer.skipped_because
            assert model.table.weight.grad is None
        assert torch.equal(model.table.weight, before)
    if comm.size > 1:
        table = nn.Embedding(5, 2, sparse=True)
        optimizer = sgd(comm, table)
        (table(torch.tensor([2])) * 3e38).sum().backward()
        with pytest.raises(ms.NonFiniteError, match="overflows float32 in weight"):
            optimizer.step()


def law_a_scaler_unscales_rows(comm: Communicator) -> None:
    """With a GradScaler the step is that without, and an overflow on one rank skips it on all."""
    for overflow in (False, True):
        models = [Words(True) for _ in range(2)]
        scaled, plain = (sgd(comm, model) for model in models)
        scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
        ids, weights = batch(comm.rank, 1)
        factor = float("inf") if overflow and comm.rank == 0 else 1.0
        scaler.scale(models[0].loss(ids, weights * factor)).backward()  # type: ignore[no-untyped-call]
        scaler.step(scaled)
        scaler.update()
        if not overflow:
            models[1].loss(ids, weights).backward()  # type: ignore[no-untyped-call]
            plain.step()
        assert torch.equal(models[0].table.weight, models[1].table.weight)
        assert scaled.skipped == int(overflow)


def law_damaged_rows_are_refused(comm: Communicator) -> None:
    """A message that was changed, cut or lengthened, or is an old one, is a WireError on all ranks; nothing moves."""
    for kind in ("corrupt", "short", "long", "stale"):
        table = nn.Embedding(50, 4, sparse=True)
        optimizer = sgd(comm, table)
        if comm.rank == 0:
            optimizer.exchange.faults = Faults([Fault(kind, 0, 1)])
        for step in range(2):
            optimizer.zero_grad()
            before = table.weight.detach().clone()
            table(torch.arange(3) + comm.rank).sum().backward()
            if step == 0:
                optimizer.step()
                continue
            with pytest.raises(ms.WireError, match=r"from rank 0 for the rows of weight after 1 step"):
                optimizer.step()
            assert torch.equal(table.weight, before)


def law_rows_go_at_the_end_of_an_overlapped_step(comm: Communicator) -> None:
    """With overlap the buckets leave early and the rows last: the same bits as without."""
    models = [Words(True) for _ in range(2)]
    options = {"sparsifier": ms.TopK(0.3), "layout": ms.Layout(granularity="tensor")}
    optimizers = [sgd(comm, m, overlap=how, **options) for m, how in zip(models, ("on", "off"), strict=True)]
    for step in range(4):
        for model, optimizer in zip(models, optimizers, strict=True):
            optimizer.zero_grad()
            optimizer.expect(samples=comm.rank + 1)
            model.loss(*batch(comm.rank, step)).backward()  # type: ignore[no-untyped-call]
            optimizer.step()
        assert all(torch.equal(a, b) for a, b in zip(*(m.parameters() for m in models), strict=True))
        require_equal_everywhere(comm, models[0])


def law_other_optimizers_take_the_whole_table(comm: Communicator) -> None:
    """Where torch wants dense gradients, or a table is shared with another layer, the gradient is dense as it was."""
    for make in (
        lambda p: torch.optim.Adam(p, lr=0.1),
        lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9),
        lambda p: torch.optim.SGD(p, lr=0.1, weight_decay=0.01),
    ):
        models = [Words(sparse) for sparse in (True, False)]
        for model in models:
            optimizer = ms.DistributedOptimizer(make(model.parameters()), model, comm=comm)
            assert not optimizer.rows.tables
            for step in range(3):
                optimizer.zero_grad()
                backward(model, comm.rank, step)
                optimizer.step()
        assert all(torch.equal(a, b) for a, b in zip(*(m.parameters() for m in models), strict=True))
    model = Words(True)
    model.last = nn.Linear(WIDTH, ROWS)
    model.last.weight = model.table.weight
    assert [table.name for table in sgd(comm, model).rows.tables] == ["bag.weight"]
    with pytest.raises(ms.ConfigError, match=r"that of table\.weight is dense"):
        ms.DistributedOptimizer(torch.optim.SparseAdam([model.table.weight]), model, comm=comm)


def law_a_dense_gradient_of_a_table_counts_as_rows(comm: Communicator) -> None:
    """A table that a function uses as a matrix, on some ranks only, gets the mean all the same."""
    table = nn.Embedding(6, 2, sparse=True)
    optimizer = sgd(comm, table)
    rank = comm.rank
    ((table.weight[1] * 2).sum() if rank % 2 else table(torch.tensor([4, 4])).sum()).backward()
    optimizer.synchronize()
    expected = torch.zeros(6, 2)
    expected[1], expected[4] = 2.0 * (comm.size // 2) / comm.size, 2.0 * ((comm.size + 1) // 2) / comm.size
    assert table.weight.grad is not None
    assert table.weight.grad.is_sparse
    assert torch.equal(table.weight.grad.to_dense(), expected)


def law_ranks_agree_on_which_tables_are_sparse(comm: Communicator) -> None:
    """A table that is sparse on one rank alone is a mismatch, and nothing hangs."""
    if comm.size > 1:
        with pytest.raises(ms.RankMismatchError, match="row-sparse"):
            sgd(comm, nn.Embedding(6, 2, sparse=comm.rank == 1))


def law_gradients_of_rows_are_not_changed_in_silence(comm: Communicator) -> None:
    """A backward after synchronize() is refused, and a gradient that a rank changed before it is told of."""
    lines: list[str] = []
    table = nn.Embedding(6, 2, sparse=True)
    optimizer = sgd(comm, table, say=lines.append)
    table(torch.tensor([1])).sum().backward()
    optimizer.synchronize()
    table(torch.tensor([2])).sum().backward()
    with pytest.raises(ms.MpiSparseError, match=r"changed after synchronize"):
        optimizer.step()
    optimizer.zero_grad()
    table(torch.tensor([1])).sum().backward()
    (grad,) = [parameter.grad for parameter in table.parameters()]
    assert grad is not None
    assert grad.coalesce().indices().tolist() == [[1]]
    table.weight.grad = grad * 0.5
    optimizer.step()
    told = any("changed between backward() and the exchange" in line for line in lines)
    assert told == (comm.size > 1 and comm.rank == 0)


class TwoSteps(torch.optim.SparseAdam):
    """An optimizer with a step of its own, as those for sharpness have."""

    def second_step(self) -> None:
        """Step once more."""
        self.step()  # type: ignore[no-untyped-call]


def law_own_steps_on_rows_take_the_mean(comm: Communicator) -> None:
    """A method that steps by rows is refused before the exchange, after it is one step, and only one."""
    for given in (False, True):
        table = nn.Embedding(6, 2, sparse=True)
        optimizer = ms.DistributedOptimizer(TwoSteps(table.parameters(), lr=0.1), table, comm=comm)
        for exchanged in (True, False):
            optimizer.zero_grad()
            table(torch.tensor([comm.rank])).sum().backward()
            if given:
                assert table.weight.grad is not None
                table.weight.grad = table.weight.grad * 2
            if exchanged:
                optimizer.synchronize()
            if exchanged or comm.size == 1:
                optimizer.second_step()
                require_equal_everywhere(comm, table)
            else:
                with pytest.raises(ms.MpiSparseError, match=r"second_step\(\) changed parameters by gradients that no"):
                    optimizer.second_step()


def law_rules_without_anything_to_select_are_refused(comm: Communicator) -> None:
    """A rule beside nothing but tables is refused, with the way out."""
    table = nn.Embedding(6, 2, sparse=True)
    with pytest.raises(ms.ConfigError, match="all gradients are row-sparse"):
        sgd(comm, table, sparsifier=ms.TopK(0.1))


LAWS: dict[str, Callable[[Communicator], None]] = {
    name.removeprefix("law_"): law for name, law in list(globals().items()) if name.startswith("law_")
}

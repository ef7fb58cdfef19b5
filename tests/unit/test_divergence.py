"""Replicas that part: named with tensor and rank, or mended by what most ranks hold."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn

import mpisparse as ms
from mpisparse.comm import Communicator, run_ranks, solo
from mpisparse.divergence import Divergence


def make() -> nn.Sequential:
    """Return a model with the same bits whoever calls it."""
    model = nn.Sequential(nn.Linear(5, 4), nn.BatchNorm1d(4), nn.Linear(4, 3, bias=False))
    with torch.no_grad():
        for number, parameter in enumerate(model.parameters()):
            parameter.copy_(torch.arange(parameter.numel()).view(parameter.shape) / 7 + number)
    return model


def flip(model: nn.Module, name: str, bit: int = 0) -> None:
    flip_tensor(model.get_parameter(name), bit)


def flip_tensor(tensor: torch.Tensor, bit: int = 0) -> None:
    with torch.no_grad():
        tensor.view(-1).view(torch.int32)[-1] ^= 1 << bit


def compare(size: int, spoil: Callable[[int, nn.Sequential], object], **options: object) -> list[Divergence | None]:
    """Return what each rank found, after asserting that all found the same and hold the same bits if it was mended."""

    def one(comm: Communicator) -> tuple[Divergence | None, list[torch.Tensor]]:
        model = make()
        spoil(comm.rank, model)
        found = ms.check_replicas(model, comm, **options)  # type: ignore[arg-type]
        return found, [parameter.detach() for parameter in model.parameters()]

    results = run_ranks(size, one)
    for found, parameters in results:
        assert found == results[0][0]
        assert all(torch.equal(a, b) for a, b in zip(parameters, results[0][1], strict=True))
    return [found for found, _ in results]


def test_equal_replicas_are_left_alone() -> None:
    assert compare(3, lambda rank, model: None) == [None] * 3
    assert ms.check_replicas(make(), solo()) is None


def test_buffers_may_differ() -> None:
    assert compare(2, lambda rank, model: model.get_buffer("1.running_mean").fill_(rank)) == [None, None]


def test_the_lowest_bit_of_one_entry_is_found_and_named() -> None:
    with pytest.raises(ms.RankMismatchError, match=r"rank 2 of 4 held other bits than most in 2\.weight \(checksums"):
        compare(4, lambda rank, model: flip(model, "2.weight") if rank == 2 else None)


def test_most_ranks_are_right_and_of_two_the_lower() -> None:
    def spoil(rank: int, model: nn.Sequential) -> None:
        if rank == 0:
            flip(model, "0.weight")
        if rank in (1, 3):
            flip(model, "0.bias", bit=rank)

    found = compare(4, spoil, diverged="broadcast")[0]
    assert found == Divergence(("0.weight", "0.bias"), (0, 1, 3))
    assert found.describe(4) == "ranks 0, 1, 3 of 4 held other bits than most in 0.weight, 0.bias"
    two = compare(2, lambda rank, model: flip(model, "0.weight") if rank == 0 else None, diverged="broadcast")[0]
    assert two == Divergence(("0.weight",), (1,))


def test_the_optimizers_state_counts_where_it_is_given() -> None:
    def one(comm: Communicator) -> tuple[str, bool]:
        model = make()
        plain = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
        model(torch.ones(2, 5)).square().sum().backward()
        plain.step()
        momentum = plain.state[model.get_parameter("2.weight")]["momentum_buffer"]
        if comm.rank == 1:
            flip_tensor(momentum)
        assert ms.check_replicas(model, comm) is None
        with pytest.raises(ms.RankMismatchError) as raised:
            ms.check_replicas(model, comm, optimizer=plain)
        mended = ms.check_replicas(model, comm, optimizer=plain, diverged="broadcast")
        assert mended is not None
        return str(raised.value), ms.check_replicas(model, comm, optimizer=plain) is None

    for message, well in run_ranks(3, one):
        assert "rank 1 of 3 held other bits than most in momentum_buffer of 2.weight" in message
        assert well


def test_different_tensors_are_an_error_and_not_a_difference_of_bits() -> None:
    def one(comm: Communicator) -> None:
        model = nn.Linear(3, 2 + comm.rank)
        with pytest.raises(ms.RankMismatchError, match=r"the replicas' tensors differ.*weight: \(2, 3\)"):
            ms.check_replicas(model, comm, diverged="broadcast")

    run_ranks(2, one)


@pytest.mark.parametrize(("seen", "expected"), [(False, 6), (True, 4)])
def test_the_optimizer_looks_every_so_many_steps(seen: bool, expected: int) -> None:
    """And at once where torch notes that a parameter changed."""

    def one(comm: Communicator) -> list[int]:
        model = make()
        said: list[str] = []
        optimizer = ms.DistributedOptimizer(
            torch.optim.SGD(model.parameters(), lr=0.1),
            model,
            comm=comm,
            check_replicas=3,
            diverged="broadcast",
            say=said.append,
        )
        found: list[int] = []
        for step in range(1, 8):
            if comm.rank == 1 and step == 4:
                parameter = model.get_parameter("0.weight")
                flip_tensor(parameter if seen else parameter.data)
            optimizer.zero_grad()
            model(torch.ones(2, 5)).sum().backward()
            optimizer.step()
            if len(optimizer.mended) > len(found):
                found.append(step)
        assert len([line for line in said if "held other bits" in line]) == (comm.rank == 0)
        return found

    assert run_ranks(2, one) == [[expected], [expected]]


@pytest.mark.parametrize("options", [{"check_replicas": -1}, {"check_replicas": 1.5}, {"diverged": "abort"}])
def test_options_that_do_not_exist_are_refused(options: dict[str, object]) -> None:
    model = make()
    plain = torch.optim.SGD(model.parameters(), lr=0.1)
    with pytest.raises(ms.ConfigError, match=r"check_replicas|diverged"):
        ms.DistributedOptimizer(plain, model, comm=solo(), **options)  # type: ignore[arg-type]

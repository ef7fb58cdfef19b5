"""Options that do not go together are refused, also when they come to be so while a program runs."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import CyclicLR, OneCycleLR

import mpisparse as ms
from mpisparse.comm import run_ranks, solo

GUILTY = r"momentum would count twice: .*{} in parameter group {}\b.*cycle_momentum=False"


def wrapped(comm: ms.Communicator) -> tuple[nn.Sequential, ms.DistributedOptimizer]:
    """Return a net of two parameter groups, and an optimizer whose momentum is corrected."""
    net, generator = nn.Sequential(nn.Linear(6, 6), nn.Linear(6, 2)), torch.Generator().manual_seed(0)
    for parameter in net.parameters():
        nn.init.normal_(parameter, generator=generator)
    plain = torch.optim.SGD([{"params": layer.parameters()} for layer in net], lr=0.05)
    memory = ms.MomentumCorrection(momentum=0.5)
    return net, ms.DistributedOptimizer(plain, net, sparsifier=ms.TopK(0.5), memory=memory, comm=comm)


def backward(net: nn.Module, rank: int) -> None:
    net(torch.full((3, 6), float(rank + 1))).sum().backward()


def values(net: nn.Module) -> list[Tensor]:
    return [p.detach().clone() for p in net.parameters()]


def set_momentum(optimizer: ms.DistributedOptimizer) -> None:
    optimizer.param_groups[1]["momentum"] = 0.7


def load_momentum_past_the_wrapper(optimizer: ms.DistributedOptimizer) -> None:
    state = optimizer.optimizer.state_dict()
    state["param_groups"][1]["momentum"] = 0.7
    optimizer.optimizer.load_state_dict(state)


CHANGES: dict[str, tuple[Callable[[ms.DistributedOptimizer], object], str]] = {
    "OneCycleLR": (lambda o: OneCycleLR(o, max_lr=0.1, total_steps=10), r"momentum=0\.95 in parameter group 0"),
    "CyclicLR": (lambda o: CyclicLR(o, base_lr=0.01, max_lr=0.1), r"momentum=0\.9 in parameter group 0"),
    "by hand, in one group": (set_momentum, r"momentum=0\.7 in parameter group 1"),
    "a state": (load_momentum_past_the_wrapper, r"momentum=0\.7 in parameter group 1"),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_momentum_that_comes_later_is_refused_on_all_ranks_before_anything_moves(change: str) -> None:
    """And the step can be taken once it is gone."""
    act, words = CHANGES[change]

    def one(comm: ms.Communicator) -> list[Tensor]:
        net, optimizer = wrapped(comm)
        backward(net, comm.rank)
        before = values(net)
        act(optimizer)
        with pytest.raises(ms.ConfigError, match=f"momentum would count twice: .*{words}.*cycle_momentum=False") as got:
            optimizer.step()
        assert got.value.on_all_ranks
        assert all(torch.equal(a, b) for a, b in zip(before, values(net), strict=True))
        for group in optimizer.param_groups:
            group.update(momentum=0, lr=0.05)
        optimizer.step()
        return values(net)

    def untouched(comm: ms.Communicator) -> list[Tensor]:
        net, optimizer = wrapped(comm)
        backward(net, comm.rank)
        optimizer.step()
        return values(net)

    for found, expected in zip(run_ranks(2, one), run_ranks(2, untouched), strict=True):
        assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


def test_schedulers_that_leave_momentum_alone_are_taken() -> None:
    net, optimizer = wrapped(solo())
    schedulers = (
        OneCycleLR(optimizer, max_lr=0.1, total_steps=10, cycle_momentum=False),
        CyclicLR(optimizer, base_lr=0.01, max_lr=0.1, cycle_momentum=False),
    )
    for _ in range(3):
        optimizer.zero_grad()
        backward(net, 0)
        optimizer.step()
        for scheduler in schedulers:
            scheduler.step()
    assert optimizer.exchange.step == 3


def test_a_scheduler_made_before_wrapping_is_noticed_when_wrapping() -> None:
    net = nn.Linear(6, 6)
    plain = torch.optim.SGD(net.parameters(), lr=0.1)
    OneCycleLR(plain, max_lr=0.1, total_steps=10)
    with pytest.raises(ms.ConfigError, match=GUILTY.format(r"momentum=0\.95", 0)):
        ms.DistributedOptimizer(plain, net, sparsifier=ms.TopK(0.5), memory=ms.MomentumCorrection(), comm=solo())


def test_a_state_with_momentum_is_refused_before_it_is_loaded() -> None:
    net, optimizer = wrapped(solo())
    other = torch.optim.SGD([{"params": layer.parameters()} for layer in net], lr=0.4, momentum=0.3)
    before = copy.deepcopy(optimizer.optimizer.state_dict())
    with pytest.raises(ms.ConfigError, match=GUILTY.format(r"momentum=0\.3", 0)):
        optimizer.load_state_dict(other.state_dict())
    assert optimizer.optimizer.state_dict() == before


def test_an_option_that_one_rank_changes_is_named() -> None:
    """Also one that no memory minds: replicas would part."""

    def one(comm: ms.Communicator) -> None:
        for name, value in (("momentum", 0.7), ("weight_decay", 0.25), ("nesterov", True), ("dampening", 0.125)):
            net, optimizer = wrapped(comm)
            if comm.rank == 1:
                optimizer.param_groups[1][name] = value
            backward(net, comm.rank)
            with pytest.raises(ms.RankMismatchError, match=f"options differ .* but group 1, {name}={value} on rank 1"):
                optimizer.step()

    run_ranks(2, one)


def test_betas_and_beta1_are_momentum_too() -> None:
    net = nn.Linear(6, 6)
    for name, value in (("betas", (0.9, 0.999)), ("beta1", 0.8)):
        plain = torch.optim.SGD(net.parameters(), lr=0.1)
        optimizer = ms.DistributedOptimizer(
            plain, net, sparsifier=ms.TopK(0.5), memory=ms.MomentumCorrection(), comm=solo()
        )
        plain.param_groups[0][name] = value
        backward(net, 0)
        with pytest.raises(ms.ConfigError, match=f"optimizer's {name}="):
            optimizer.step()

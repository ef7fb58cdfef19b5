"""Copies: of an optimizer there is none, and one of a wrapped model goes its own way."""

from __future__ import annotations

import copy
import gc
import io
import pickle
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

import mpisparse as ms
from mpisparse.comm import run_ranks, solo


def wrap(net: nn.Module, comm: ms.Communicator | None = None, **options: Any) -> ms.DistributedOptimizer:
    plain = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.5)
    return ms.DistributedOptimizer(plain, net, comm=comm or solo(), **options)


def through_pickle(net: nn.Module) -> nn.Module:
    copied: nn.Module = pickle.loads(pickle.dumps(net))
    return copied


def through_a_file(net: nn.Module) -> nn.Module:
    buffer = io.BytesIO()
    torch.save(net, buffer)
    buffer.seek(0)
    copied: nn.Module = torch.load(buffer, weights_only=False)
    return copied


@pytest.mark.parametrize("act", [copy.copy, copy.deepcopy, pickle.dumps])
def test_an_optimizer_is_not_copied(act: Callable[[object], object]) -> None:
    optimizer = wrap(nn.Linear(3, 3))
    with pytest.raises(ms.ConfigError, match=r"cannot be copied or pickled.*copy\.deepcopy\(\(model, optimizer"):
        act(optimizer)
    if act is not copy.copy:
        with pytest.raises(ms.ConfigError, match="cannot be copied"):
            act({"inside": [optimizer]})
    optimizer.close()
    with pytest.raises(ms.ConfigError, match="cannot be copied"):
        act(optimizer)


def test_a_wrapped_optimizer_that_brings_a_copy_of_its_own_is_not_asked() -> None:
    class Copying(torch.optim.SGD):
        def __deepcopy__(self, memo: object) -> Copying:
            return self

    net = nn.Linear(3, 3)
    optimizer = ms.DistributedOptimizer(Copying(net.parameters(), lr=0.1), net, comm=solo())
    with pytest.raises(ms.ConfigError, match="cannot be copied"):
        copy.deepcopy(optimizer)


def test_model_and_plain_optimizer_are_copied_together_and_wrapped() -> None:
    """As the error says: both train on, alike where they see the same."""

    def one(comm: ms.Communicator) -> None:
        net = nn.Linear(3, 3)
        optimizer = wrap(net, comm)
        step(net, optimizer, comm.rank)
        copied, plain = copy.deepcopy((net, optimizer.optimizer))
        other = ms.DistributedOptimizer(plain, copied, comm=comm)
        step(net, optimizer, comm.rank + 1)
        assert not torch.equal(net.weight, copied.weight)
        step(copied, other, comm.rank + 1)
        assert torch.equal(net.weight, copied.weight)

    run_ranks(2, one)


def step(net: nn.Module, optimizer: torch.optim.Optimizer, number: int) -> None:
    optimizer.zero_grad()
    net(torch.full((2, 3), float(number))).square().sum().backward()
    optimizer.step()


@pytest.mark.parametrize("overlap", ["off", "on"])
@pytest.mark.parametrize("act", [copy.deepcopy, through_pickle, through_a_file])
def test_a_copy_of_the_model_feeds_nothing_to_the_optimizer(
    act: Callable[[nn.Module], nn.Module], overlap: str
) -> None:
    net = nn.Linear(3, 3)
    optimizer = wrap(net, sparsifier=ms.TopK(0.5), overlap=overlap)
    step(net, optimizer, 1)
    optimizer.zero_grad()
    copied = act(net)
    optimizer.flat.buffer.zero_()
    copied(torch.ones(2, 3)).sum().backward()
    assert not optimizer.flat.buffer.any()
    assert not optimizer.flat.fresh
    assert all(p.grad is None for p in net.parameters())
    assert all(p.grad is not None for p in copied.parameters())
    net(torch.ones(2, 3)).sum().backward()
    optimizer.step()


def test_nothing_but_its_holder_keeps_an_optimizer() -> None:
    """No cycle: letting go is enough, without a collection of garbage."""
    choices: list[dict[str, Any]] = [{}, {"sparsifier": ms.TopK(0.5), "overlap": "on"}, {"sparsifier": ms.TopK(0.5)}]
    for options in choices:
        net = nn.Linear(3, 3)
        optimizer = wrap(net, **options)
        step(net, optimizer, 1)
        gone: list[weakref.ref[Any]] = [
            weakref.ref(optimizer),
            weakref.ref(optimizer.comm),
            weakref.ref(optimizer.flat),
        ]
        gc.collect()
        gc.disable()
        try:
            del optimizer
            assert [reference() for reference in gone] == [None] * 3
        finally:
            gc.enable()
        assert all(not parameter._post_accumulate_grad_hooks for parameter in net.parameters())

"""State fits a model whatever torch.compile, DataParallel and the like are around it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper

import mpisparse as ms
from mpisparse.comm import run_ranks, solo
from mpisparse.names import fitted, plain_name

pytestmark = pytest.mark.filterwarnings("ignore")


def compiled(net: nn.Module) -> nn.Module:
    wrapped: Any = torch.compile(net, backend="eager")
    assert isinstance(wrapped, nn.Module)
    return wrapped


def compiled_inside(net: nn.Sequential) -> nn.Module:
    net[0] = compiled(net[0])
    net[2] = compiled(net[2])
    return net


def checkpointed(net: nn.Sequential) -> nn.Module:
    net[0] = checkpoint_wrapper(net[0])
    return net


class Wrapper(nn.Module):
    """As AveragedModel and users' own wrappers hold a model."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, inputs: Tensor) -> Tensor:
        outputs: Tensor = self.module(inputs)
        return outputs


AROUND: dict[str, Callable[[Any], nn.Module]] = {
    "nothing": lambda net: net,
    "compile": compiled,
    "compile inside": compiled_inside,
    "compile of what is compiled inside": lambda net: compiled(compiled_inside(net)),
    "activation checkpoints": checkpointed,
    "DataParallel": nn.DataParallel,
    "a wrapper": Wrapper,
    "a wrapper, compiled": lambda net: compiled(Wrapper(net)),
}


def made(around: str, comm: ms.Communicator) -> tuple[nn.Module, ms.DistributedOptimizer]:
    generator = torch.Generator().manual_seed(4)
    net = nn.Sequential(nn.Linear(5, 7), nn.Tanh(), nn.Linear(7, 3))
    for parameter in net.parameters():
        nn.init.normal_(parameter, generator=generator)
    model = AROUND[around](net)
    plain = torch.optim.SGD(model.parameters(), lr=0.1)
    memory = ms.MomentumCorrection(momentum=0.5)
    return model, ms.DistributedOptimizer(
        plain, model, sparsifier=ms.TopK(0.2), memory=memory, comm=comm, overlap="off"
    )


def train(model: nn.Module, optimizer: ms.DistributedOptimizer, steps: range, rank: int) -> None:
    for step in steps:
        optimizer.zero_grad()
        model(torch.linspace(-1, step + rank, 10).view(2, 5)).square().mean().backward()
        optimizer.step()


@pytest.mark.parametrize("after", AROUND)
@pytest.mark.parametrize("before", ["nothing", "compile", "compile inside", "DataParallel", "a wrapper"])
def test_half_the_steps_before_and_half_after_give_the_bits_of_all(before: str, after: str) -> None:
    model, optimizer = made("nothing", solo())
    train(model, optimizer, range(4), 0)
    first, saving = made(before, solo())
    train(first, saving, range(2), 0)
    second, loading = made(after, solo())
    for ours, theirs in zip(second.parameters(), first.parameters(), strict=True):
        ours.data.copy_(theirs)
    loading.load_state_dict(saving.state_dict())
    train(second, loading, range(2, 4), 0)
    for ours, expected in zip(second.parameters(), model.parameters(), strict=True):
        assert torch.equal(ours, expected)


def test_ranks_of_which_one_compiles_train_together() -> None:
    def one(comm: ms.Communicator) -> list[Tensor]:
        model, optimizer = made("activation checkpoints" if comm.rank else "nothing", comm)
        train(model, optimizer, range(2), comm.rank)
        assert ms.check_replicas(model, comm, optimizer=optimizer) is None
        assert list(optimizer.state_dict()["mpisparse"]["memory"]["accumulated"]) == ["0.weight", "2.weight"]
        return list(model.parameters())

    first, second = run_ranks(2, one)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_names_saved_by_earlier_versions_are_understood() -> None:
    model, optimizer = made("compile", solo())
    train(model, optimizer, range(2), 0)
    state = optimizer.state_dict()
    memory = state["mpisparse"]["memory"]
    state["mpisparse"]["memory"] = {
        kind: {f"_orig_mod.{name}": value for name, value in vectors.items()} for kind, vectors in memory.items()
    }
    for around in ("nothing", "compile"):
        _, other = made(around, solo())
        other.load_state_dict(state)
        again = other.state_dict()["mpisparse"]["memory"]["velocity"]
        assert all(torch.equal(again[name], memory["velocity"][name]) for name in memory["velocity"])


def test_states_that_do_not_fit_change_nothing() -> None:
    model, optimizer = made("nothing", solo())
    train(model, optimizer, range(2), 0)
    state = optimizer.state_dict()
    for change, words in (
        (lambda vectors: {f"other.{n}": v for n, v in vectors.items()}, "lacks .*brings"),
        (lambda vectors: {n: v.T for n, v in vectors.items()}, r"memory 'velocity' of 0.weight .*shape \(5, 7\)"),
        (lambda vectors: {n: v.sum() for n, v in vectors.items()}, r"has shape \(\), the parameter"),
    ):
        broken = {**state["mpisparse"], "memory": {k: change(v) for k, v in state["mpisparse"]["memory"].items()}}
        with pytest.raises(ms.CheckpointError, match=words):
            optimizer.load_state_dict({**state, "mpisparse": broken})
    after = optimizer.state_dict()["mpisparse"]["memory"]
    for kind, vectors in state["mpisparse"]["memory"].items():
        assert all(torch.equal(after[kind][name], value) for name, value in vectors.items())


def test_plain_names() -> None:
    assert plain_name("_orig_mod.a._checkpoint_wrapped_module.b._orig_mod.weight") == "a.b.weight"
    assert plain_name("module.a") == "module.a"
    assert fitted(["a", "b"], {"module.a": 1, "module.b": 2}) == {"a": 1, "b": 2}
    assert fitted(["module.a"], {"_orig_mod.a": 1}) == {"module.a": 1}
    assert fitted(["module.a", "b"], {"module.a": 1, "b": 2}) == {"module.a": 1, "b": 2}
    assert fitted(["a"], {"c": 1}) == {"c": 1}

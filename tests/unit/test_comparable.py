"""Texts by which ranks compare options: the same for equal values in any process, others for other values."""

from __future__ import annotations

import functools
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import mpisparse as ms
from mpisparse.comm import run_ranks
from mpisparse.comparable import comparable


@dataclass(repr=False)
class Quiet:
    """A dataclass whose text is object's own."""

    rate: float
    note: str = ""
    cache: dict[str, int] = field(default_factory=dict, compare=False)


class Plain:
    """An object with neither text nor equality; `calls` is what no call looks at."""

    def __init__(self, rate: float) -> None:
        self.rate, self.calls = rate, 0

    def __call__(self, step: int) -> float:
        return self.rate

    def method(self, step: int) -> float:
        return self.rate / 2


class Bag:
    """An object that holds a value, and cannot be called."""

    def __init__(self, content: object) -> None:
        self.content = content


def constant(rate: float) -> Callable[[int], float]:
    return lambda step: rate


def with_default(rate: float) -> Callable[[int], float]:
    def schedule(step: int, rate: float = rate) -> float:
        return rate

    return schedule


#: Makers of a value: what two calls with the same number return is alike, with two numbers is not.
MAKERS: dict[str, Callable[[float], Any]] = {
    "float": lambda x: x,
    "numpy scalar": lambda x: np.float64(x),
    "one-entry tensor": lambda x: torch.tensor(x),
    "one-entry tensor of one dimension": lambda x: torch.tensor([x]),
    "vector": lambda x: torch.tensor([x, 1.0]),
    "long vector": lambda x: torch.full((100,), x),
    "bfloat16": lambda x: torch.full((3, 3), x, dtype=torch.bfloat16),
    "complex": lambda x: torch.tensor([1j * x, 1.0]).conj(),
    "sparse": lambda x: torch.tensor([[0, x], [2.0, 0]]).to_sparse(),
    "array": lambda x: np.array([x, 2.0]),
    "long array": lambda x: np.full(100, x)[::2],
    "array of objects": lambda x: np.array([{x}, None], dtype=object),
    "NaN beside": lambda x: [float("nan"), x],
    "set": lambda x: {"alpha", "beta", "gamma", f"delta {x}"},
    "frozenset of tuples": lambda x: frozenset({("a", x), ("b", 2)}),
    "mapping": lambda x: {"b": {"deep": [1, x]}, "a": 1},
    "function": constant,
    "function with a default": with_default,
    "partial": lambda x: functools.partial(pow, x),
    "bound method": lambda x: Plain(x).method,
    "callable object": Plain,
    "other object": Bag,
    "object in an object": lambda x: Bag([1, {"x": x}]),
    "dataclass": Quiet,
    "rule": lambda x: ms.TopK(density=constant(x)),
    "size": lambda x: torch.Size([int(10 * x)]),
}


@pytest.mark.parametrize("name", MAKERS)
def test_equal_values_have_equal_texts_and_others_do_not(name: str) -> None:
    make = MAKERS[name]
    assert comparable(make(0.25)) == comparable(make(0.25))
    assert comparable(make(0.25)) != comparable(make(0.5))
    assert "0x" not in comparable(make(0.25))


def test_texts_are_the_same_in_processes_that_hash_differently() -> None:
    program = (
        "from tests.unit.test_comparable import MAKERS, comparable\n"
        "for name, make in MAKERS.items(): print(name, comparable(make(0.25)))"
    )
    texts = {
        subprocess.run(
            [sys.executable, "-c", program],
            env={**os.environ, "PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
            timeout=120,
        ).stdout
        for seed in ("1", "2")
    }
    (text,) = texts
    assert len(text.splitlines()) == len(MAKERS)


def test_what_python_calls_equal_is_alike() -> None:
    for one, other in (
        (1, 1.0),
        (0, -0.0),
        (0.1, np.float64(0.1)),
        (3, np.int64(3)),
        ({"a": 1, "b": 2}, {"b": 2, "a": 1}),
        ({1, 2}, frozenset({2, 1})),
        (float("nan"), -float("nan")),
        (torch.tensor([1.0, 2.0]), torch.tensor([1.0, 0.0, 2.0])[::2]),
    ):
        assert comparable(one) == comparable(other), (one, other)


def test_different_code_is_told_apart_and_its_place_is_not() -> None:
    def source(text: str, name: str) -> Callable[[int], float]:
        scope: dict[str, Any] = {}
        exec(compile(text, name, "exec"), scope)
        made: Callable[[int], float] = scope["f"]
        return made

    one = source("f = lambda step: 0.5 if step < 3 else 0.1", "/home/one/a.py")
    assert comparable(one) == comparable(source("\n\nf = lambda step: 0.5 if step < 3 else 0.1", "/home/two/b.py"))
    assert comparable(one) != comparable(source("f = lambda step: 0.5 if step < 4 else 0.1", "/home/one/a.py"))


def test_what_no_call_reads_and_what_is_no_value_does_not_count() -> None:
    one, other = Plain(0.25), Plain(0.25)
    other.calls = 7
    assert comparable(one) == comparable(other)
    assert comparable(one.method) == comparable(other.method)
    assert comparable(Quiet(0.25, cache={"a": 1})) == comparable(Quiet(0.25))

    def reading(thing: object) -> Callable[[], object]:
        return lambda: thing

    assert comparable(reading(Bag(1))) == comparable(reading(Bag(2)))


def test_values_that_hold_themselves_have_a_text() -> None:
    endless: list[object] = [1]
    endless.append(endless)
    assert comparable(endless) == comparable(endless)


def options_mid_training(extra: Callable[[int], Any], size: int = 2) -> None:
    """Wrap an optimizer whose group holds a value, and take two steps; on every rank `extra(rank)` is that value."""

    def one(comm: ms.Communicator) -> None:
        net = nn.Linear(4, 2)
        plain = torch.optim.SGD([{"params": net.parameters(), "extra": extra(comm.rank)}], lr=0.1)
        optimizer = ms.DistributedOptimizer(plain, net, comm=comm)
        for _ in range(2):
            optimizer.zero_grad()
            net(torch.ones(2, 4)).sum().backward()
            optimizer.step()

    run_ranks(size, one)


@pytest.mark.parametrize("name", MAKERS)
def test_parameter_groups_may_hold_any_value(name: str) -> None:
    options_mid_training(lambda rank: MAKERS[name](0.25))


@pytest.mark.parametrize("name", ["vector", "set", "function", "bound method", "dataclass", "array"])
def test_a_value_that_differs_between_ranks_is_refused(name: str) -> None:
    with pytest.raises(ms.RankMismatchError, match=r"the optimizers differ between ranks: .*group 0, extra="):
        options_mid_training(lambda rank: MAKERS[name](0.25 * (rank + 1)))


def test_a_vector_that_one_rank_changes_is_noticed_in_the_next_step() -> None:
    def one(comm: ms.Communicator) -> None:
        net = nn.Linear(4, 2)
        plain = torch.optim.SGD([{"params": net.parameters(), "scale": torch.ones(3)}], lr=0.1)
        optimizer = ms.DistributedOptimizer(plain, net, comm=comm)
        net(torch.ones(2, 4)).sum().backward()
        optimizer.step()
        plain.param_groups[0]["scale"][comm.rank] = 5.0
        with pytest.raises(
            ms.RankMismatchError, match=r"scale=tensor \(3,\) torch.float32 \[5.0, 1.0, 1.0\] on rank 0"
        ):
            optimizer.step()

    run_ranks(2, one)


def test_a_second_rule_may_have_a_schedule_of_its_own_on_each_rank() -> None:
    def one(comm: ms.Communicator) -> None:
        net = nn.Linear(4, 4)
        first, second = ms.GSpar(density=constant(0.5)), ms.GSpar(density=constant(0.25))
        plain = torch.optim.SGD(net.parameters(), lr=0.1)
        ms.DistributedOptimizer(plain, net, sparsifier=first, resparsify=second, comm=comm)

    run_ranks(2, one)


def test_schedules_that_differ_between_ranks_are_refused() -> None:
    def one(comm: ms.Communicator) -> None:
        net = nn.Linear(4, 4)
        rule = ms.TopK(density=constant(0.25 * (comm.rank + 1)))
        with pytest.raises(ms.RankMismatchError, match=r"the settings differ .*TopK"):
            ms.DistributedOptimizer(torch.optim.SGD(net.parameters(), lr=0.1), net, sparsifier=rule, comm=comm)

    run_ranks(2, one)

"""Mistakes in calls: each is one line that says what came and what to give, raised where it was made."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import mpisparse as ms
from mpisparse.arguments import short
from mpisparse.comm import run_ranks, solo


def wrap(comm: Any = None, **options: Any) -> ms.DistributedOptimizer:
    net = nn.Linear(4, 4)
    comm = solo() if comm is None else comm
    return ms.DistributedOptimizer(torch.optim.SGD(net.parameters(), lr=0.1), net, comm=comm, **options)


def swapped() -> object:
    net = nn.Linear(3, 3)
    plain: Any = torch.optim.SGD(net.parameters(), lr=0.1)
    return ms.DistributedOptimizer(net, plain, comm=solo())  # type: ignore[arg-type]


def of_optimizer(optimizer: Any) -> Callable[[], object]:
    return lambda: ms.DistributedOptimizer(optimizer, nn.Linear(3, 3), comm=solo())


def of_model(model: Any) -> Callable[[], object]:
    return lambda: ms.DistributedOptimizer(torch.optim.SGD([nn.Parameter(torch.ones(3))]), model, comm=solo())


def foreign() -> Any:
    """Return something like a communicator of mpi4py, without starting MPI."""
    return type("Intracomm", (), {"__module__": "mpi4py.MPI"})()


any_: Any = ms  # calls that type checkers would refuse

MISTAKES: dict[str, tuple[Callable[[], object], str]] = {
    "swapped": (swapped, r"model came first.*DistributedOptimizer\(optimizer, model\), here the SGD, then the Linear"),
    "optimizer class": (of_optimizer(torch.optim.SGD), r"optimizer is the class SGD itself: give an instance"),
    "parameters as optimizer": (of_optimizer([1]), r"optimizer is \[1\], a list: give a torch optimizer"),
    "parameters as model": (
        of_model(iter([1])),
        r"model is .*iterator.*: give the nn.Module that the optimizer trains",
    ),
    "model class": (of_model(nn.Linear), r"model is the class Linear itself: give an instance"),
    "rule by name": (
        lambda: wrap(sparsifier="topk"),
        r"sparsifier is 'topk', a str: give a rule, .*TopK\(0\.01\)",
    ),
    "rule by another name": (lambda: wrap(sparsifier="GSpar"), r"such as GSpar\(density=0\.01\)"),
    "empty rule": (lambda: wrap(sparsifier=""), r"sparsifier is '', a str"),
    "density as rule": (
        lambda: wrap(sparsifier=0.05),
        r"sparsifier is 0\.05, a float: .* TopK\(0\.05\)",
    ),
    "rule class": (lambda: wrap(sparsifier=ms.TopK), r"sparsifier is the class TopK itself: give an instance"),
    "second rule": (lambda: wrap(resparsify="gspar"), r"resparsify is 'gspar', a str"),
    "memory class": (lambda: wrap(memory=ms.ErrorFeedback), r"memory is the class ErrorFeedback itself"),
    "memory by name": (lambda: wrap(memory="error_feedback"), r"memory is 'error_feedback', a str: give a memory"),
    "no memory": (lambda: wrap(memory=False), r"memory is False, a bool: give a memory"),
    "wire by name": (lambda: wrap(wire="float16"), r"wire is 'float16', a str: .*such as Wire\('float16'\)"),
    "wire type": (lambda: wrap(wire=torch.float16), r"wire is torch.float16, a dtype"),
    "layout by name": (lambda: wrap(layout="tensor"), r"layout is 'tensor', a str: .*such as Layout\('tensor'\)"),
    "foreign communicator": (lambda: wrap(comm=foreign()), r"comm is an mpi4py communicator: give what ms.init\(\)"),
    "number of ranks": (lambda: wrap(comm=4), r"comm is of type int: give what ms.init"),
    "dense rule": (lambda: wrap(dense=ms.Dense()), r"dense Dense\(\) does not exist: use pieces, bfloat16, allreduce"),
    "dense list": (lambda: wrap(dense=["pieces"]), r"dense \['pieces'\] does not exist"),
    "overlap flag": (lambda: wrap(overlap=True), r"overlap True does not exist: use auto, on or off"),
    "nonfinite flag": (lambda: wrap(nonfinite=True), r"nonfinite True does not exist"),
    "say": (lambda: wrap(say="print"), r"say is 'print', a str: give a function of a line"),
    "gauge": (lambda: wrap(gauge="no"), r"gauge is 'no', a str: give True or False"),
    "phases": (lambda: wrap(phases={}), r"phases is \{\}, a dict: give Phases\(\)"),
    "negative seed": (lambda: wrap(seed=-1), r"seed -1 is outside 0 to 2\*\*64 - 1"),
    "seed of another kind": (lambda: wrap(seed="a"), r"seed 'a' is outside"),
    "seed with a point": (lambda: wrap(seed=1.0), r"seed 1.0 is outside"),
    "check_replicas flag": (lambda: wrap(check_replicas=True), r"check_replicas True is no number of steps"),
    "diverged": (lambda: wrap(diverged=[]), r"diverged \[\] does not exist"),
    "per cent": (lambda: ms.TopK(5), r"density 5 is outside \(0, 1\].*\(5 per cent are 0\.05\)"),
    "schedule class": (lambda: ms.TopK(any_.DenseWarmup), r"density is the class DenseWarmup itself: give an instance"),
    "density of another kind": (lambda: any_.GSpar(density="1%"), r"density '1%' is outside"),
    "per cent warm-up": (lambda: ms.DenseWarmup(10, steps=5), r"10 per cent are 0\.1"),
    "values type": (lambda: any_.Wire(torch.float16), r"wire values torch.float16 do not exist: use auto"),
    "speed": (lambda: any_.Wire(gigabits="10"), r"wire gigabits '10' is no speed"),
    "bucket": (lambda: any_.Layout("bucket", bucket_mib="25"), r"bucket_mib is '25': it must be above 0"),
    "vectors": (lambda: any_.Layout(dense_vectors="no"), r"dense_vectors is 'no', a str: give True or False"),
    "below": (lambda: any_.Layout(dense_below=None), r"dense_below is None: give a number of entries"),
    "momentum": (lambda: any_.MomentumCorrection(momentum="0.9"), r"momentum '0.9' is outside \(0, 1\)"),
    "masking": (lambda: any_.MomentumCorrection(masking="yes"), r"masking is 'yes', a str"),
    "checkpointer swapped": (lambda: any_.Checkpointer(solo(), "x"), r"give Checkpointer\(directory, comm=comm\)"),
    "checkpointer in order": (lambda: any_.Checkpointer("x", solo()), r"give Checkpointer\(directory, comm=comm\)"),
    "checkpointer of a model": (lambda: any_.Checkpointer(nn.Linear(2, 2)), r"directory is Linear.*: give a path"),
    "checkpointer of foreign ranks": (lambda: ms.Checkpointer("x", comm=foreign()), "comm is an mpi4py communicator"),
    "kept": (lambda: any_.Checkpointer("x", "3"), r"keep '3' is not a positive integer"),
    "restoring into": (lambda: any_.Checkpointer("x").restore(nn.Linear(2, 2)), r"which is Linear.*: give 'auto'"),
    "reshaping": (lambda: any_.Checkpointer("x").restore(reshape=True), r"reshape is True, a bool: give a function"),
    "time": (lambda: any_.Preemption("1h"), r"the time limit is '1h' s: give seconds"),
    "preempting": (lambda: any_.Preemption(nn.Linear(2, 2)), r"the time limit is Linear.* s: give seconds"),
    "limit": (lambda: any_.Watchdog(solo(), limit="600", directory="crash"), r"the watchdog's limit is '600' s"),
    "watched": (lambda: any_.Watchdog("crash", limit=6, directory="x"), r"comm is 'crash', a str: give what ms.init"),
    "dumps": (lambda: any_.Watchdog(solo(), limit=6, directory=None), r"directory is None, a NoneType"),
    "last words": (lambda: any_.Watchdog(solo(), limit=6, directory="x", say=3), r"say is 3, an? int: give a function"),
    "starting": (lambda: ms.init(comm=foreign()), "comm is an mpi4py communicator"),
    "crashes": (lambda: any_.init(comm=solo(), crash_directory=3), r"crash_directory is 3, an? int"),
    "comparing": (
        lambda: any_.check_replicas(solo(), nn.Linear(2, 2)),
        r"model is .*check_replicas\(model, comm\)",
    ),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_one_line_with_the_way_out(mistake: str) -> None:
    act, words = MISTAKES[mistake]
    with pytest.raises(ms.ConfigError, match=words) as got:
        act()
    assert "\n" not in str(got.value)
    assert len(str(got.value)) < 400


def test_a_mistake_of_one_rank_is_that_of_all() -> None:
    def one(comm: ms.Communicator) -> None:
        with pytest.raises(ms.ConfigError, match=r"^rank 1 of 2: memory is 'none', a str") as got:
            wrap(comm, memory="none" if comm.rank else None)
        assert got.value.on_all_ranks

    run_ranks(2, one)


@pytest.mark.parametrize(
    "samples", [torch.tensor(3), np.int64(3), True, -1, 2.0, "3", [3]], ids=lambda value: type(value).__name__
)
def test_samples_are_a_count(samples: Any) -> None:
    optimizer = wrap()
    for call in (optimizer.step, optimizer.synchronize, optimizer.expect):
        with pytest.raises(ms.ConfigError, match="is no count: give how many samples this rank used, an int") as got:
            call(samples=samples)
        assert ("int(samples)" in str(got.value)) == isinstance(samples, torch.Tensor | np.integer)


def test_samples_in_the_place_of_the_closure_are_noticed() -> None:
    optimizer: Any = wrap()
    with pytest.raises(ms.ConfigError, match=r"closure is 32, an? int: .*step\(samples=\.\.\.\)"):
        optimizer.step(32)


def test_a_state_in_the_place_of_the_step_is_noticed(tmp_path: Path) -> None:
    checkpointer: Any = ms.Checkpointer(tmp_path)
    state = nn.Linear(300, 300).state_dict()
    with pytest.raises(ms.CheckpointError, match=r"is not a step: give the .*, before the state") as got:
        checkpointer.save(state, 10)
    assert len(str(got.value)) < 400


#: Whatever a caller may give, by mistake or for want of something better.
ODD: list[Any] = [
    None, True, -1, 0, 0.5, 5, 1e400, float("nan"), 1j, "", "x", b"x", [], {}, (), set(), object(), int, ms.TopK,
    torch.ones(2), torch.tensor(0.5), np.ones(2), np.float32(0.5), np.int64(3), nn.Linear(2, 2), lambda: 0, Path("x"),
]  # fmt: skip

CONSTRUCTORS: dict[str, tuple[Callable[..., object], list[str]]] = {
    "TopK": (ms.TopK, ["density"]),
    "TrackedTopK": (lambda **k: ms.TrackedTopK(**{"density": 0.1, **k}), ["density", "band", "every"]),
    "Threshold": (ms.Threshold, ["threshold"]),
    "GSpar": (ms.GSpar, ["density", "variance"]),
    "GSpar iterations": (lambda **k: ms.GSpar(density=0.1, **k), ["iterations"]),
    "Uniform": (ms.Uniform, ["density"]),
    "QSGD": (ms.QSGD, ["bits", "bucket"]),
    "TernGrad": (ms.TernGrad, ["clip"]),
    "DenseWarmup": (lambda **k: ms.DenseWarmup(**{"density": 0.1, "steps": 3, **k}), ["density", "steps"]),
    "Exponential": (
        lambda **k: ms.Exponential(**{"start": 0.2, "density": 0.1, "steps": 3, **k}),
        ["start", "density", "steps", "stages"],
    ),
    "Layout": (ms.Layout, ["granularity", "bucket_mib", "dense_vectors", "dense_below"]),
    "Wire": (ms.Wire, ["values", "indices", "gigabits"]),
    "MomentumCorrection": (ms.MomentumCorrection, ["momentum", "masking", "nesterov"]),
    "Preemption": (ms.Preemption, ["time_limit"]),
    "Checkpointer": (lambda **k: ms.Checkpointer(**{"directory": "x", **k}), ["directory", "keep", "comm"]),
    "Watchdog": (
        lambda **k: ms.Watchdog(**{"comm": solo(), "limit": 5, "directory": "x", **k}),
        ["comm", "limit", "directory", "say"],
    ),
    "DistributedOptimizer": (
        wrap,
        [
            "sparsifier", "memory", "wire", "layout", "dense", "nonfinite", "overlap", "resparsify", "gauge",
            "check_replicas", "diverged", "seed", "comm", "phases",
        ],
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", CONSTRUCTORS)
def test_odd_values_are_taken_or_refused_and_never_crash(name: str) -> None:
    make, arguments = CONSTRUCTORS[name]
    refused = 0
    for argument, value in itertools.product(arguments, ODD):
        with suppress(ms.ConfigError):
            make(**{argument: value})
            continue
        refused += 1
    assert refused > len(ODD) // 2


def test_long_values_are_shown_short() -> None:
    for value in (
        "x" * 1000,
        list(range(10_000)),
        dict.fromkeys(range(1000), "y" * 50),
        torch.ones(500, 500),
        nn.Linear(3, 3),
    ):
        text = short(value)
        assert len(text) <= 80
        assert "\n" not in text

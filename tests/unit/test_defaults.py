"""What a program sets as torch's default type and device changes nothing of what is exchanged."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from torch import Tensor

import mpisparse as ms
from mpisparse.comm import run_ranks
from tests.laws import Net

CASES: dict[str, dict[str, Any]] = {
    "dense": {},
    "dense in bfloat16": {"dense": "bfloat16"},
    "top-k": {"sparsifier": ms.TopK(0.1)},
    "top-k overlapping": {"sparsifier": ms.TopK(0.1), "overlap": "on", "layout": ms.Layout("tensor", bucket_mib=1e-6)},
    "momentum": {"sparsifier": ms.TopK(0.1), "memory": ms.MomentumCorrection()},
    "gspar": {"sparsifier": ms.GSpar(density=0.1), "resparsify": ms.GSpar(density=0.5), "gauge": True},
    "qsgd": {"sparsifier": ms.QSGD()},
    "signs": {"sparsifier": ms.TopK(0.1), "wire": ms.Wire("sign"), "check_replicas": 1},
}
DEFAULTS = {"float64": torch.float64, "bfloat16": torch.bfloat16, "float16": torch.float16}


@pytest.fixture(autouse=True)
def _defaults_come_back() -> Iterator[None]:
    before = torch.get_default_dtype()
    yield
    torch.set_default_dtype(before)


def trained(options: dict[str, Any], device: str | None = None) -> list[list[Tensor]]:
    """Return every rank's parameters, and its gradients, after some steps."""

    def one(comm: ms.Communicator) -> list[Tensor]:
        model = Net()
        with torch.no_grad():
            for number, parameter in enumerate(model.parameters()):
                values = torch.linspace(-1, 1 + number, parameter.numel(), dtype=torch.float32)
                parameter.data = values.view(parameter.shape)
        with torch.device(device) if device else nullcontext():
            plain = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.0 if "memory" in options else 0.5)
            optimizer = ms.DistributedOptimizer(plain, model, comm=comm, **options)
            for step in range(3):
                optimizer.zero_grad()
                inputs = torch.linspace(-1, comm.rank + step, 33, dtype=torch.float32, device="cpu").view(3, 11)
                model(inputs).square().mean().backward()
                optimizer.step()
            kept = optimizer.state_dict()["mpisparse"]["memory"]
        assert optimizer.flat.buffer.dtype == torch.float32
        assert all(t.dtype == torch.float32 for vectors in kept.values() for t in vectors.values())
        return [p.detach().clone() for p in model.parameters()] + [p.grad.clone() for p in model.parameters()]  # type: ignore[union-attr]

    return run_ranks(2, one)


@pytest.mark.parametrize("case", CASES)
def test_the_default_type_and_device_change_no_bit(case: str) -> None:
    expected = trained(CASES[case])
    found = {"meta device": trained(CASES[case], "meta")}
    for name, dtype in DEFAULTS.items():
        torch.set_default_dtype(dtype)
        found[name] = trained(CASES[case])
    for name, ranks in found.items():
        for theirs, ours in zip(expected, ranks, strict=True):
            assert all(torch.equal(a, b) for a, b in zip(theirs, ours, strict=True)), name


@pytest.mark.parametrize("dtype", DEFAULTS.values(), ids=str)
def test_a_model_made_in_another_type_trains_and_replicas_stay_equal(dtype: torch.dtype) -> None:
    torch.set_default_dtype(dtype)

    def one(comm: ms.Communicator) -> list[Tensor]:
        net = torch.nn.Linear(11, 30)
        optimizer = ms.DistributedOptimizer(
            torch.optim.SGD(net.parameters(), lr=0.1), net, sparsifier=ms.TopK(0.1), comm=comm, check_replicas=1
        )
        for step in range(3):
            optimizer.zero_grad()
            net(torch.full((2, 11), float(comm.rank + step + 1))).square().mean().backward()
            optimizer.step()
        assert optimizer.flat.buffer.dtype == torch.float32
        assert all(p.dtype == dtype and bool(p.isfinite().all()) for p in net.parameters())
        return list(net.parameters())

    first, *others = run_ranks(3, one)
    assert all(torch.equal(a, b) for other in others for a, b in zip(first, other, strict=True))

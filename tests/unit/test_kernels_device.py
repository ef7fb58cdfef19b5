"""Sources on a device answer as those on the host do: with tensors of the CPU, and on CUDA where there is a device."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

import mpisparse as ms
from mpisparse import random
from mpisparse.comm import Communicator, run_ranks, solo
from mpisparse.errors import NonFiniteError
from mpisparse.kernels import device, sums
from mpisparse.kernels.device import DeviceAdded, DeviceAdvanced, DeviceForgotten, DeviceSource
from mpisparse.kernels.source import Added, Advanced, Forgotten, HostSource
from mpisparse.sparse import SparseVector
from mpisparse.sparsifiers import QSGD, GSpar, Sparsifier, TernGrad, Threshold, TopK, TrackedTopK, Uniform
from mpisparse.training.evaluate import averaged_buffers
from tests.laws import LAWS
from tests.unit.hard_vectors import HARD, Vector, draw

CUDA = pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"))
where = pytest.mark.parametrize("place", ["cpu", CUDA])

#: Laws that compare tosses with those of the host.
NEEDS_ARRAYS = {"sum_is_that_of_the_messages"}

Pair = tuple[HostSource, DeviceSource]
MOMENTUM = {"momentum": 0.9, "masking": True}

#: Makes the same source on the host and on a device, of a residual and a gradient.
PAIRS: dict[str, Callable[[Vector, Vector, Tensor, Tensor], Pair]] = {
    "added": lambda r, g, dr, dg: (Added(r, g), DeviceAdded(dr, dg)),
    "advanced": lambda r, g, dr, dg: (
        Advanced(r * 2, r, g, nesterov=False, momentum=0.9, masking=True),
        DeviceAdvanced(dr * 2, dr, dg, nesterov=False, momentum=0.9, masking=True),
    ),
    "nesterov": lambda r, g, dr, dg: (
        Advanced(r * 2, r, g, nesterov=True, momentum=0.9, masking=True),
        DeviceAdvanced(dr * 2, dr, dg, nesterov=True, momentum=0.9, masking=True),
    ),
    "forgotten": lambda r, g, dr, dg: (Forgotten(g), DeviceForgotten(dg)),
}
RULES: list[Sparsifier] = [TopK(0.05), TrackedTopK(0.05), Threshold(1.0), QSGD(), Uniform(0.1)]


def check_same(ours: SparseVector, theirs: SparseVector) -> None:
    assert ours.indices.dtype == theirs.indices.dtype
    assert np.array_equal(ours.indices, theirs.indices)
    assert np.array_equal(ours.values.view(np.uint32), theirs.values.view(np.uint32))
    assert ours.numel == theirs.numel


@where
@pytest.mark.parametrize("kind", PAIRS)
@pytest.mark.parametrize("rule", RULES, ids=repr)
def test_choices_and_what_is_left_are_those_of_the_host(place: str, kind: str, rule: Sparsifier) -> None:
    residual, gradient = draw(0, 30_000), np.round(draw(1, 30_000) * 8)
    far, farther = torch.from_numpy(residual.copy()).to(place), torch.from_numpy(gradient.copy()).to(place)
    host, there = PAIRS[kind](residual, gradient, far, farther)
    chosen = rule.choose(host, random.generator(1, 0, 0, 0))
    check_same(chosen, rule.choose(there, random.generator(1, 0, 0, 0)))
    for source in (host, there):
        source.sent(chosen)
    assert np.array_equal(residual, far.cpu().numpy())
    assert not farther.any()
    assert not gradient.any()


@where
@pytest.mark.parametrize("name", HARD)
def test_hard_vectors(place: str, name: str) -> None:
    tensor = torch.from_numpy(HARD[name].copy()).to(place)
    for rule in RULES[:4]:
        check_same(rule.select(HARD[name]), rule.choose(DeviceSource(tensor), None))
    for density in (0.1, 0.9):
        rule = GSpar(density=density)
        ours = HostSource(HARD[name]).level(target=density * tensor.numel() or 1.0, variance=None, iterations=None)
        theirs = DeviceSource(tensor).level(target=density * tensor.numel() or 1.0, variance=None, iterations=None)
        assert theirs == pytest.approx(ours, rel=1e-12)
        assert rule.choose(DeviceSource(tensor), random.generator(0, 0, 0, 0)).numel == tensor.numel()


@where
def test_tosses_are_unbiased_and_share_a_magnitude(place: str) -> None:
    # Nothing so small that a few draws of it say nothing.
    vector = draw(2, 2000)
    vector += np.copysign(np.float32(0.5), vector)
    tensor, rule, draws = torch.from_numpy(vector).to(place), GSpar(density=0.1), 400
    total, count = np.zeros(2000), 0
    for step in range(draws):
        sparse = rule.choose(DeviceSource(tensor), random.generator(0, 0, step, 0))
        total += sparse.to_dense()
        count += sparse.count
        sampled = rule.probabilities(vector)[sparse.indices] < 1
        assert np.all(np.abs(sparse.values[sampled]) == sparse.magnitude)
        assert np.array_equal(sparse.values[~sampled], vector[sparse.indices[~sampled]])
    chances = rule.probabilities(vector)
    sigma = np.sqrt(vector.astype(float) ** 2 * (1 / chances - 1) / draws)
    assert (np.abs(total / draws - vector) <= 5 * sigma + 1e-6).all()
    assert abs(count - 200 * draws) < 5 * np.sqrt(200 * draws)


@where
@pytest.mark.parametrize("name", HARD)
def test_peaks_and_norms_are_those_of_the_host(place: str, name: str) -> None:
    host, there = HostSource(HARD[name]), DeviceSource(torch.from_numpy(HARD[name].copy()).to(place))
    assert there.peak() == host.peak() == np.abs(HARD[name]).max(initial=0)
    assert there.norm() == pytest.approx(host.norm(), rel=1e-12)
    for rule in (TernGrad(), TernGrad(clip=1.0)):
        sparse = rule.choose(there, random.generator(0, 0, 0, 0))
        assert np.all(np.abs(sparse.values) == sparse.magnitude) if sparse.count else not HARD[name].any()


@where
def test_means_are_those_of_the_host(place: str) -> None:
    sparse = [TopK(0.1).select(draw(seed, 5000)) for seed in range(5)]
    ours, theirs = np.zeros(5000, np.float32), torch.zeros(5000, device=place)
    assert sums.mean_into(ours, sparse, 3) is None
    assert device.mean_into(theirs, sparse, 3) is None
    assert np.array_equal(ours, theirs.cpu().numpy())
    huge = SparseVector(np.array([7], np.uint32), np.array([3e38], np.float32), 5000)
    assert device.mean_into(torch.zeros(5000, device=place), [huge, huge], 2) == 7


@where
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_bad_entries_are_refused(place: str, bad: float) -> None:
    vector = draw(3, 100)
    vector[41] = bad
    for rule in (TopK(0.1), GSpar(density=0.1), QSGD(), TernGrad(), TernGrad(clip=2.5)):
        with pytest.raises(NonFiniteError, match="entry 41 of 100"):
            rule.choose(DeviceSource(torch.from_numpy(vector).to(place)), None)


@pytest.mark.parametrize("law", [name for name in LAWS if name not in NEEDS_ARRAYS])
def test_the_laws_hold_where_vectors_are_tensors(law: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The whole exchange as on a device, on two ranks, with the CPU's tensors in the place of a device's."""
    monkeypatch.setattr("mpisparse.flat.see", lambda tensor: tensor)
    assert run_ranks(2, LAWS[law]) == [None] * 2


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_training_on_a_device_stays_on_it() -> None:
    model = torch.nn.Linear(300, 20).cuda()
    plain = torch.optim.SGD(model.parameters(), lr=0.1)
    optimizer = ms.DistributedOptimizer(plain, model, sparsifier=ms.TopK(0.01), comm=solo())
    for _ in range(3):
        optimizer.zero_grad()
        model(torch.ones(4, 300, device="cuda")).square().sum().backward()
        optimizer.step()
    assert optimizer.flat.buffer.is_cuda
    assert all(vector.is_cuda for vector in optimizer.exchange.kept.vectors().values())
    assert optimizer.traffic.count == round(0.01 * 6000) + 20


class NoHostScalars(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Refuses to divide a tensor by a number on the host: CUDA multiplies by its reciprocal, and rounds otherwise."""

    def __torch_dispatch__(  # type: ignore[no-untyped-def]
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ):
        if "div" in str(func) and isinstance(args[0], Tensor):
            assert isinstance(args[1], Tensor), func
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("size", [1, 2, 3, 5, 7, 24])
@where
def test_means_are_divided_on_the_device(size: int, place: str) -> None:
    numel = 5000
    vectors = [draw(100 + rank, numel) for rank in range(size)]
    sparse = [SparseVector(np.flatnonzero(v > 0).astype(np.uint32), v[v > 0], numel) for v in vectors]
    ours, theirs = np.zeros(numel, np.float32), torch.zeros(numel, device=place)
    sums.mean_into(ours, sparse, size)
    with NoHostScalars():  # type: ignore[no-untyped-call]
        device.mean_into(theirs, sparse, size)
    np.testing.assert_array_equal(ours, theirs.cpu().numpy())
    with pytest.raises(AssertionError), NoHostScalars():  # type: ignore[no-untyped-call]
        theirs /= size


class OnDevice(Tensor):
    """A tensor as one on a device: numpy cannot see it before it was brought to the host."""

    def numpy(self, *options: Any, **more: Any) -> Any:
        raise TypeError("can't convert cuda:0 device type tensor to numpy")

    def cpu(self, *options: Any, **more: Any) -> Tensor:
        return self.as_subclass(Tensor)


def test_a_state_on_a_device_is_loaded() -> None:
    model = torch.nn.Linear(40, 30)
    plain = torch.optim.SGD(model.parameters(), 0.1)
    optimizer = ms.DistributedOptimizer(plain, model, sparsifier=TopK(0.1), comm=solo())
    model(torch.ones(1, 40)).sum().backward()
    optimizer.step()
    state = optimizer.state_dict()
    memory = state["mpisparse"]["memory"]
    kept = {name: {key: value.clone() for key, value in parts.items()} for name, parts in memory.items()}
    assert any(bool(value.any()) for parts in kept.values() for value in parts.values())
    for parts in memory.values():
        for key, value in parts.items():
            parts[key] = value.as_subclass(OnDevice).requires_grad_()
    for vector in optimizer.exchange.kept.vectors().values():
        vector[:] = 0
    optimizer.load_state_dict(state)
    found = optimizer.state_dict()["mpisparse"]["memory"]
    for name, parts in kept.items():
        for key, value in parts.items():
            assert torch.equal(found[name][key], value)


@pytest.mark.parametrize("size", [1, 2, 3])
def test_buffers_on_a_device_are_averaged(size: int) -> None:
    def one(comm: Communicator) -> None:
        model = torch.nn.Module()
        model.register_buffer("mean", torch.full((2, 3), comm.rank + 0.1).as_subclass(OnDevice))
        expected = sum(float(np.float32(rank + 0.1)) for rank in range(size)) / size
        with averaged_buffers(comm, model):
            assert torch.equal(next(model.buffers()).cpu(), torch.full((2, 3), expected))
        assert torch.equal(next(model.buffers()).cpu(), torch.full((2, 3), comm.rank + 0.1))

    run_ranks(size, one)

"""The laws of programs: whatever a program does between backward and step, ranks use the mean gradient or say why not.

Run as those of tests/laws.py are.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Any, TypeVar

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import mpisparse as ms
from mpisparse.comm import Communicator
from tests.laws import everyone, wrap

Module = TypeVar("Module", bound=nn.Module)


def ignore(line: str) -> None:
    """Take a line for people, and drop it."""


class Shapes(nn.Module):
    """Parameters whose entries lie in memory in several orders, with and without gaps."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(5)

        def normal(*shape: int) -> Tensor:
            return torch.randn(*shape, generator=generator)

        self.rows = nn.Parameter(normal(6, 4))
        self.columns = nn.Parameter(normal(4, 6).t())
        self.channels_last = nn.Parameter(normal(3, 2, 2, 2).to(memory_format=torch.channels_last))
        self.volume = nn.Parameter(normal(2, 2, 2, 2, 2).to(memory_format=torch.channels_last_3d))
        self.permuted = nn.Parameter(normal(2, 3, 4).permute(2, 0, 1))
        self.gaps = nn.Parameter(normal(6, 8)[:, 1:5])
        self.line = nn.Parameter(normal(5, 1).t())
        self.wide = nn.Parameter(normal(3, 4).t().double())
        self.bias = nn.Parameter(normal(7))


def seeded(model: Module, seed: int = 1) -> Module:
    """Return the model with values of a generator of its own: ranks that are threads share torch's."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) / 2)
    return model


def same_everywhere(comm: Communicator, parameter: Tensor) -> bool:
    """Return True when all ranks hold the same bits."""
    rows = everyone(comm, parameter.detach().float().reshape(-1).numpy())
    return all(np.array_equal(row, rows[0]) for row in rows)


@torch.no_grad()
def set_rank_gradients(model: nn.Module, rank: int, step: int = 0) -> dict[str, Tensor]:
    """Give each parameter, row after row, a gradient that tells the rank, the step and the place; return them."""
    for number, parameter in enumerate(model.parameters()):
        entries = torch.arange(parameter.numel(), dtype=parameter.dtype).view(parameter.shape)
        parameter.grad = (entries - 3) * (rank + 1) + 100 * number + 1000 * step
        if parameter.dtype == torch.float64:
            # A gradient of its own, as autograd lays it out.
            parameter.grad = torch.empty_like(parameter).copy_(parameter.grad)
    return {name: parameter.grad.clone() for name, parameter in model.named_parameters() if parameter.grad is not None}


def law_gradients_lie_like_their_parameters(comm: Communicator) -> None:
    """The mean of a parameter's gradient is at its entries, in its own order where memory has no gaps."""
    model = Shapes()
    optimizer = wrap(comm, model, ms.Dense())
    for step in range(3):
        gradients = [set_rank_gradients(model, rank, step) for rank in range(comm.size)]
        set_rank_gradients(model, comm.rank, step)
        optimizer.synchronize()
        for name, parameter in model.named_parameters():
            mean = torch.stack([of[name] for of in gradients]).sum(0) / comm.size
            assert parameter.grad is not None
            torch.testing.assert_close(parameter.grad, mean)
            assert parameter.grad.stride() == (mean.stride() if name == "gaps" else parameter.stride()), name
        optimizer.step()


@torch.no_grad()
def _twins(optimizer: Callable[..., torch.optim.Optimizer], comm: Communicator, **options: Any) -> None:
    plain, ours = Shapes(), Shapes()
    reference = optimizer(plain.parameters(), lr=0.01, **options)
    wrapped = ms.DistributedOptimizer(optimizer(ours.parameters(), lr=0.01, **options), ours, comm=comm, say=ignore)
    for step in range(4):
        # Of all ranks alike, so that the mean is exactly each rank's own.
        for model in (plain, ours):
            set_rank_gradients(model, 1, step)
        for parameter in plain.parameters():
            # As autograd lays out gradients.
            if parameter.grad is not None and parameter.grad.stride() != parameter.stride():
                parameter.grad = torch.empty_like(parameter).copy_(parameter.grad)
        reference.step()
        wrapped.step()
    for (name, mine), theirs in zip(ours.named_parameters(), plain.parameters(), strict=True):
        if comm.size in (1, 2, 4) and name != "gaps":
            assert torch.equal(mine, theirs), (name, optimizer, options)


def law_fused_optimizers_step_as_plain_torch(comm: Communicator) -> None:
    """Kernels that read gradient and parameter as memory, element after element, find them in the same order."""
    for optimizer in (torch.optim.SGD, torch.optim.Adam, torch.optim.AdamW, torch.optim.Adagrad):
        for options in ({"fused": True}, {"foreach": False}, {"foreach": True}):
            _twins(optimizer, comm, **options)


def law_memory_is_saved_row_after_row(comm: Communicator) -> None:
    """A state saved by parameters in one order in memory fits the same parameters in another."""
    found = []
    for order in (torch.contiguous_format, torch.channels_last):
        model = seeded(nn.Conv2d(3, 4, 2).to(memory_format=order))  # type: ignore[call-overload]
        optimizer = wrap(comm, model, ms.TopK(density=0.3))
        gradient = torch.randn(4, 3, 2, 2, generator=torch.Generator().manual_seed(comm.rank))
        model.weight.grad, model.bias.grad = gradient.clone(), torch.ones(4)
        optimizer.step()
        found.append((model, optimizer, optimizer.state_dict()["mpisparse"]["memory"]["residual"]["weight"]))
    (plain, first, saved), (other, second, there) = found
    assert saved.is_contiguous()
    assert torch.equal(saved, there)
    assert torch.count_nonzero(saved) > 0
    second.exchange.load_state_dict(first.exchange.state_dict())
    for model, optimizer in ((plain, first), (other, second)):
        model.weight.grad, model.bias.grad = torch.zeros(4, 3, 2, 2), torch.zeros(4)
        optimizer.step()
    assert torch.equal(plain.weight, other.weight)


def law_orders_in_memory_have_to_agree(comm: Communicator) -> None:
    if comm.size == 1:
        return
    order = torch.channels_last if comm.rank else torch.contiguous_format
    model = nn.Conv2d(3, 4, 2).to(memory_format=order)  # type: ignore[call-overload]
    with pytest.raises(ms.RankMismatchError, match="strides"):
        wrap(comm, model, ms.Dense())


def _train(model: nn.Module, optimizer: ms.DistributedOptimizer, rank: int, between: Callable[[], object]) -> None:
    for step in range(4):
        optimizer.zero_grad()
        inputs = torch.randn(3, 5, generator=torch.Generator().manual_seed(10 * step + rank))
        inputs = inputs.to(next(model.parameters()).dtype)
        model(inputs).square().mean().backward()
        optimizer.synchronize()
        if step == 1:
            between()
        optimizer.step()


def _halve_data(model: nn.Module) -> None:
    for parameter in model.parameters():
        if parameter.grad is not None:
            parameter.grad.data = parameter.grad.data * 0.5


def _halve(model: nn.Module) -> None:
    for parameter in model.parameters():
        if parameter.grad is not None:
            parameter.grad.mul_(0.5)


def law_gradients_whose_data_is_replaced_stay_means(comm: Communicator) -> None:
    """Replacing the data of p.grad, or the gradient, changes this step, and cuts nothing off the steps after it."""
    found = []
    for halve in (_halve, _halve_data):
        model = seeded(nn.Linear(5, 5))
        optimizer = wrap(comm, model, ms.TopK(density=0.4))
        _train(model, optimizer, comm.rank, lambda halve=halve, model=model: halve(model))  # type: ignore[misc]
        found.append(model.weight.detach().clone())
    assert torch.equal(*found)
    assert same_everywhere(comm, found[0])


def _transpose(model: nn.Module) -> None:
    for parameter in model.parameters():
        if parameter.dim() == 2:
            parameter.data = parameter.data.t().contiguous().t()


def law_models_may_be_converted_while_they_train(comm: Communicator) -> None:
    conversions: dict[str, Callable[[nn.Module], object]] = {
        "double": lambda model: model.double(),
        "there and back": lambda model: model.double().float(),
        "half": lambda model: model.to(torch.bfloat16),
        "other memory": _transpose,
    }
    for name, convert in conversions.items():
        model = seeded(nn.Linear(5, 5))
        optimizer = wrap(comm, model, ms.TopK(density=0.4))
        before = model.weight.detach().clone()
        _train(model, optimizer, comm.rank, lambda convert=convert, model=model: convert(model))  # type: ignore[misc]
        assert same_everywhere(comm, model.weight), name
        assert not torch.equal(before, model.weight.detach().float())


def law_reshaped_parameters_are_refused(comm: Communicator) -> None:
    model = nn.Linear(5, 5, bias=False)
    optimizer = wrap(comm, model, ms.Dense())
    model.weight.data = torch.ones(1, 5)
    model(torch.ones(2, 5)).sum().backward()
    with pytest.raises(ms.MpiSparseError, match=r"weight has shape \(1, 5\), and the parameter had \(5, 5\)"):
        optimizer.step()


def law_clip_norm_clips_the_mean(comm: Communicator) -> None:
    """As torch clips, but the mean of all ranks, however they part; the norm is that of the mean before."""
    for rule in (ms.Dense(), ms.TopK(density=0.5)):
        reference, ours, loose = (seeded(nn.Linear(6, 6)) for _ in range(3))
        by_hand = wrap(comm, reference, rule, lr=1.0)
        clipped = wrap(comm, ours, rule, lr=1.0, clip_norm=0.25)
        unclipped = wrap(comm, loose, rule, lr=1.0, clip_norm=1e9)
        for step in range(3):
            norms = []
            for model, optimizer in ((reference, by_hand), (ours, clipped), (loose, unclipped)):
                optimizer.zero_grad()
                inputs = torch.randn(4, 6, generator=torch.Generator().manual_seed(7 * step + comm.rank))
                (model(inputs).square().sum() * (1 + 50 * comm.rank)).backward()
                if optimizer is by_hand:
                    optimizer.synchronize()
                    norms.append(float(nn.utils.clip_grad_norm_(model.parameters(), 0.25)))
                optimizer.step()
            assert clipped.grad_norm == pytest.approx(norms[0], rel=1e-5)
            gradients = [parameter.grad for parameter in ours.parameters() if parameter.grad is not None]
            assert float(torch.cat([g.reshape(-1) for g in gradients]).norm()) == pytest.approx(0.25, rel=1e-4)
            torch.testing.assert_close(ours.weight, reference.weight)
            assert unclipped.grad_norm > 0.25
            loose.load_state_dict(reference.state_dict())
        assert same_everywhere(comm, ours.weight)


def law_clip_norm_knows_a_grad_scaler(comm: Communicator) -> None:
    model = seeded(nn.Linear(6, 6))
    optimizer = wrap(comm, model, ms.Dense(), lr=0.0, clip_norm=0.5)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    scaler.scale(model(torch.ones(2, 6)).square().sum()).backward()
    plain = copy.deepcopy(model)
    plain.zero_grad()
    plain(torch.ones(2, 6)).square().sum().backward()
    norm = float(nn.utils.clip_grad_norm_(plain.parameters(), math.inf))
    scaler.step(optimizer)
    assert optimizer.grad_norm == pytest.approx(norm, rel=1e-5)


def law_gradients_changed_before_the_exchange_are_reported_once(comm: Communicator) -> None:
    def clip(model: nn.Module) -> None:
        nn.utils.clip_grad_norm_(model.parameters(), 0.1)

    def clip_value(model: nn.Module) -> None:
        nn.utils.clip_grad_value_(model.parameters(), 0.1)

    def replace(model: nn.Module) -> None:
        for parameter in model.parameters():
            parameter.grad = parameter.grad * 2 if parameter.grad is not None else None

    def one_rank(model: nn.Module) -> None:
        if comm.rank == comm.size - 1:
            clip(model)

    for change in (clip, clip_value, replace, one_rank):
        said: list[str] = []
        model = seeded(nn.Linear(4, 4))
        optimizer = wrap(comm, model, ms.TopK(density=0.5), say=said.append)
        said.clear()
        for _ in range(3):
            optimizer.zero_grad()
            model(torch.ones(2, 4)).square().sum().backward()
            change(model)
            optimizer.step()
        expected = comm.rank == 0 and comm.size > 1
        assert [line for line in said if "use distributedoptimizer(clip_norm=" in line.lower()] == said
        assert len(said) == expected, (change, said)


def law_ordinary_programs_are_no_alarm(comm: Communicator) -> None:
    """Accumulation, unscaling, cleared and unused gradients, and clipping the mean, are nobody's fault."""

    def accumulate(model: nn.Module, optimizer: ms.DistributedOptimizer) -> None:
        with optimizer.no_sync():
            model(torch.ones(2, 4)).square().sum().backward()
        model(torch.ones(2, 4)).square().sum().backward()
        optimizer.step()

    def repeat(model: nn.Module, optimizer: ms.DistributedOptimizer) -> None:
        for _ in range(3):
            model(torch.ones(2, 4)).square().sum().backward()
        optimizer.step()

    def unscale(model: nn.Module, optimizer: ms.DistributedOptimizer) -> None:
        scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
        scaler.scale(model(torch.ones(2, 4)).square().sum()).backward()
        scaler.unscale_(optimizer)
        scaler.step(optimizer)

    def clear(model: nn.Module, optimizer: ms.DistributedOptimizer) -> None:
        model(torch.ones(2, 4)).square().sum().backward()
        model.zero_grad()
        torch.autograd.backward(next(model.parameters()).square().sum())
        optimizer.step()

    def clip_mean(model: nn.Module, optimizer: ms.DistributedOptimizer) -> None:
        model(torch.ones(2, 4)).square().sum().backward()
        optimizer.synchronize()
        nn.utils.clip_grad_norm_(model.parameters(), 0.1)
        optimizer.step()

    def discard(model: nn.Module, optimizer: ms.DistributedOptimizer) -> None:
        model(torch.ones(2, 4)).square().sum().backward()
        nn.utils.clip_grad_norm_(model.parameters(), 0.1)
        optimizer.zero_grad()
        model(torch.ones(2, 4)).square().sum().backward()
        optimizer.step()

    for program in (accumulate, repeat, unscale, clear, clip_mean, discard):
        said: list[str] = []
        model = seeded(nn.Linear(4, 4))
        optimizer = wrap(comm, model, ms.TopK(density=0.5), say=said.append)
        said.clear()
        for _ in range(3):
            optimizer.zero_grad()
            program(model, optimizer)
        assert said == [], program


class Climber(torch.optim.SGD):
    """Climbs by the gradient, and descends by the one that it finds there, as sharpness-aware minimisation does."""

    @torch.no_grad()
    def climb(self) -> None:
        for parameter in self.param_groups[0]["params"]:
            self.state[parameter]["old"] = parameter.clone()
            parameter.add_(parameter.grad, alpha=0.05)

    @torch.no_grad()
    def descend(self) -> None:
        for parameter in self.param_groups[0]["params"]:
            parameter.copy_(self.state[parameter]["old"])
        torch.optim.SGD.step(self)

    def words(self) -> str:
        return "touches nothing"


def law_methods_that_step_need_the_mean(comm: Communicator) -> None:
    def loss(model: nn.Module, step: int) -> Tensor:
        inputs = torch.randn(4, 5, generator=torch.Generator().manual_seed(100 * step + comm.rank))
        found: Tensor = model(inputs).square().mean()
        return found

    model = seeded(nn.Linear(5, 5))
    optimizer = ms.DistributedOptimizer(Climber(model.parameters(), lr=0.1), model, comm=comm, say=ignore)
    climber: Any = optimizer
    assert climber.words() == "touches nothing"
    for step in range(3):
        for move in (climber.climb, climber.descend):
            optimizer.zero_grad()
            torch.autograd.backward(loss(model, step))
            optimizer.synchronize()
            move()
    assert same_everywhere(comm, model.weight)
    assert optimizer.exchange.step == 6
    if comm.size == 1:
        return
    optimizer.zero_grad()
    torch.autograd.backward(loss(model, 9))
    with pytest.raises(ms.MpiSparseError, match=r"Climber.climb\(\) changed parameters .* call synchronize\(\)"):
        climber.climb()


def law_parameters_that_one_rank_moved_are_found(comm: Communicator) -> None:
    """At the next step, and not at the next look at the replicas; what all ranks do alike is no fault."""
    model = seeded(nn.Linear(5, 5))
    optimizer = wrap(comm, model, ms.Dense(), check_replicas=1000)
    for step in range(12):
        optimizer.zero_grad()
        model(torch.ones(1, 5)).sum().backward()
        if step in (3, 4, 5):
            with torch.no_grad():
                model.weight.clamp_(-0.1, 0.1)
        if step == 11 and comm.rank == comm.size - 1:
            with torch.no_grad():
                model.weight.add_(1e-3)
        if step == 11 and comm.size > 1:
            with pytest.raises(ms.RankMismatchError, match="replicas differ: rank"):
                optimizer.step()
        else:
            optimizer.step()


def law_lbfgs_steps_as_on_all_samples(comm: Communicator) -> None:
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(12 * comm.size, 4, generator=generator)
    targets = inputs @ torch.tensor([[1.0], [-2.0], [0.5], [3.0]])

    def fit(rows: slice, wrapped: bool) -> Tensor:
        model = nn.Linear(4, 1)
        nn.init.zeros_(model.weight)
        nn.init.zeros_(model.bias)
        optimizer: Any = torch.optim.LBFGS(model.parameters(), max_iter=8, line_search_fn="strong_wolfe")
        if wrapped:
            optimizer = ms.DistributedOptimizer(optimizer, model, comm=comm, say=ignore)

        def closure() -> Tensor:
            optimizer.zero_grad()
            loss: Tensor = (model(inputs[rows]) - targets[rows]).square().mean()
            torch.autograd.backward(loss)
            return loss

        for _ in range(2):
            optimizer.step(closure)
        return model.weight.detach().clone()

    whole = fit(slice(None), wrapped=False)
    ours = fit(slice(12 * comm.rank, 12 * (comm.rank + 1)), wrapped=True)
    torch.testing.assert_close(ours, whole, rtol=1e-3, atol=1e-3)
    assert same_everywhere(comm, ours)


def law_overlap_auto_takes_back_what_is_thrown_away(comm: Communicator) -> None:
    """A backward pass that no step follows leaves memories as they were, wherever in a trial it comes."""
    layout = ms.Layout(granularity="tensor", bucket_mib=1e-6)
    for period in (2, 3, 4, 5, 7):
        found = []
        for overlap in ("off", "auto"):
            model = seeded(nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 2)))
            optimizer = wrap(comm, model, ms.TopK(density=0.2), layout=layout, overlap=overlap)
            for step in range(18):
                optimizer.zero_grad()
                inputs = torch.randn(3, 6, generator=torch.Generator().manual_seed(100 * step + comm.rank))
                model(inputs).square().mean().backward()
                if step % period != period - 1:
                    optimizer.step()
            optimizer.zero_grad()
            found.append(
                [*model.parameters(), *optimizer.state_dict()["mpisparse"]["memory"].get("residual", {}).values()]
            )
            assert not optimizer._early.choice.overlaps
        assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


LAWS: dict[str, Callable[[Communicator], None]] = {
    name.removeprefix("law_"): law for name, law in globals().items() if name.startswith("law_")
}

"""DistributedOptimizer as a torch optimizer: alone it is plain torch, bit for bit; whatever models do, it survives."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import mpisparse as ms
from mpisparse.comm import run_ranks, solo


class Odd(nn.Module):
    """Tied weights, a frozen tensor, a tensor that only some steps use, one that none uses, and a buffer."""

    def __init__(self, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.embed = nn.Parameter(torch.randn(6, 5, dtype=dtype))
        self.tied = self.embed
        self.frozen = nn.Parameter(torch.randn(5, 5, dtype=dtype), requires_grad=False)
        self.sometimes = nn.Parameter(torch.randn(5, 5, dtype=dtype))
        self.never = nn.Parameter(torch.randn(4, dtype=dtype))
        self.bias = nn.Parameter(torch.randn(6, dtype=dtype))
        self.norm = nn.BatchNorm1d(5).to(dtype)

    def forward(self, inputs: Tensor, use: bool) -> Tensor:
        hidden = self.norm(inputs @ self.embed) @ self.frozen
        if use:
            hidden = hidden + hidden @ self.sometimes
        outputs: Tensor = hidden @ self.tied.T + self.bias
        return outputs


def groups(model: Odd) -> list[dict[str, Any]]:
    return [
        {"params": [model.embed, model.frozen, model.never], "lr": 0.0005},
        {"params": [model.sometimes, model.bias, *model.norm.parameters()], "weight_decay": 0.01},
    ]


def sgd(model: Odd) -> torch.optim.Optimizer:
    return torch.optim.SGD(groups(model), lr=0.001, momentum=0.9, nesterov=True)


def adam(model: Odd) -> torch.optim.Optimizer:
    return torch.optim.AdamW(groups(model), lr=0.01)


def train(
    model: Odd, optimizer: torch.optim.Optimizer, steps: int, *, set_to_none: bool = True, accumulate: int = 1
) -> list[Tensor]:
    """Take steps, and return all parameters and the gradients' presence at the end."""
    schedule = torch.optim.lr_scheduler.StepLR(optimizer, 3)
    dtype = model.embed.dtype
    for step in range(steps):
        optimizer.zero_grad(set_to_none)
        for part in range(accumulate):
            generator = torch.Generator().manual_seed(100 * step + part)
            inputs = torch.randn(8, 6, generator=generator).to(dtype)
            model(inputs, use=step % 2 == 0).square().mean().backward()
        optimizer.step()
        schedule.step()
    return [p.detach().clone() for p in model.parameters()] + [b.clone() for b in model.buffers()]


@pytest.mark.parametrize("make", [sgd, adam])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("set_to_none", [True, False])
def test_alone_and_dense_it_is_plain_torch_bit_for_bit(
    make: Callable[[Odd], torch.optim.Optimizer], dtype: torch.dtype, set_to_none: bool
) -> None:
    plain, model = Odd(dtype), Odd(dtype)
    expected = train(plain, make(plain), 7, set_to_none=set_to_none, accumulate=2)
    optimizer = ms.DistributedOptimizer(make(model), model, comm=solo())
    found = train(model, optimizer, 7, set_to_none=set_to_none, accumulate=2)
    for a, b in zip(expected, found, strict=True):
        assert torch.equal(a, b)
    assert torch.equal(plain.never, model.never)
    for (name, p), (_, q) in zip(plain.named_parameters(), model.named_parameters(), strict=True):
        assert (p.grad is None) == (q.grad is None), name


@pytest.mark.parametrize("make", [sgd, adam])
def test_density_one_with_error_feedback_is_plain_torch_too(make: Callable[[Odd], torch.optim.Optimizer]) -> None:
    plain, model = Odd(), Odd()
    optimizer = ms.DistributedOptimizer(
        make(model), model, sparsifier=ms.TopK(density=1.0), memory=ms.ErrorFeedback(), comm=solo()
    )
    for a, b in zip(train(plain, make(plain), 7), train(model, optimizer, 7), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_dtypes_are_exchanged_in_float32(dtype: torch.dtype) -> None:
    """The mean over ranks is the float32 mean of the gradients, brought back to the parameter's type."""

    def one(comm: ms.Communicator) -> Tensor:
        model = nn.Linear(4, 3).to(dtype)
        optimizer = ms.DistributedOptimizer(torch.optim.SGD(model.parameters(), lr=0.0), model, comm=comm)
        model.weight.grad = torch.full_like(model.weight, 0.1 * (comm.rank + 1))
        optimizer.synchronize()
        assert model.weight.grad.dtype == dtype
        assert model.bias.grad is None
        return model.weight.grad

    total = sum(torch.full((3, 4), 0.1 * (rank + 1), dtype=dtype).float() for rank in range(3))
    assert isinstance(total, Tensor)
    for found in run_ranks(3, one):
        assert torch.equal(found, (total / 3).to(dtype))


def test_gradients_are_views_of_one_buffer_after_every_kind_of_reset() -> None:
    model = Odd()
    optimizer = ms.DistributedOptimizer(sgd(model), model, comm=solo())
    start, stop = optimizer.flat.buffer.data_ptr(), optimizer.flat.buffer.data_ptr() + optimizer.flat.buffer.nbytes
    for reset in (optimizer.zero_grad, model.zero_grad, lambda: optimizer.zero_grad(set_to_none=False)):
        reset()  # type: ignore[no-untyped-call]
        model(torch.randn(8, 6), use=True).sum().backward()
        for name, parameter in model.named_parameters():
            if parameter.grad is not None:
                assert start <= parameter.grad.data_ptr() < stop, name
        optimizer.step()


def test_clipping_between_synchronize_and_step_acts_on_the_mean() -> None:
    def one(comm: ms.Communicator) -> tuple[float, Tensor]:
        model = nn.Linear(4, 3, bias=False)
        optimizer = ms.DistributedOptimizer(torch.optim.SGD(model.parameters(), lr=1.0), model, comm=comm)
        before = model.weight.detach().clone()
        (model(torch.ones(2, 4)) * (comm.rank + 1)).sum().backward()
        optimizer.synchronize()
        norm = float(torch.nn.utils.clip_grad_norm_(model.parameters(), 0.5))
        optimizer.step()
        return norm, before - model.weight.detach()

    mean = torch.full((3, 4), 2.0 * (1 + 2 + 3) / 3)
    for norm, moved in run_ranks(3, one):
        assert norm == pytest.approx(float(mean.norm()))
        assert float(moved.norm()) == pytest.approx(0.5, rel=1e-4)


def test_accumulation_exchanges_once_and_refuses_to_step_inside() -> None:
    model = nn.Linear(4, 3)
    optimizer = ms.DistributedOptimizer(torch.optim.SGD(model.parameters(), lr=0.1), model, comm=solo())
    with optimizer.no_sync():
        model(torch.ones(2, 4)).sum().backward()
        with pytest.raises(ms.MpiSparseError, match="inside no_sync"):
            optimizer.step()
    model(torch.ones(2, 4)).sum().backward()
    assert model.weight.grad is not None
    assert torch.equal(model.weight.grad, torch.full((3, 4), 4.0))
    optimizer.step()
    assert optimizer.exchange.step == 1


def test_synchronizing_twice_is_refused_and_zero_grad_forgives() -> None:
    model = nn.Linear(4, 3)
    optimizer = ms.DistributedOptimizer(torch.optim.SGD(model.parameters(), lr=0.1), model, comm=solo())
    optimizer.synchronize()
    with pytest.raises(ms.MpiSparseError, match="twice"):
        optimizer.synchronize()
    optimizer.zero_grad()
    optimizer.synchronize()
    assert optimizer.exchange.step == 2


def test_a_closure_is_run_and_its_result_returned() -> None:
    plain, model = Odd(), Odd()
    optimizer = ms.DistributedOptimizer(sgd(model), model, comm=solo())
    reference = sgd(plain)

    def closure(net: Odd, held: torch.optim.Optimizer) -> Callable[[], float]:
        def run() -> float:
            held.zero_grad()
            loss = net(torch.ones(8, 6), use=True).square().mean()
            loss.backward()
            return float(loss.detach())

        return run

    assert optimizer.step(closure(model, optimizer)) == reference.step(closure(plain, reference))
    assert torch.equal(model.embed, plain.embed)


def test_state_dict_has_the_plain_state_and_takes_one() -> None:
    model = Odd()
    optimizer = ms.DistributedOptimizer(adam(model), model, sparsifier=ms.TopK(density=0.1), comm=solo())
    train(model, optimizer, 4)
    state = optimizer.state_dict()
    assert set(state) == {"state", "param_groups", "mpisparse"}
    residual = state["mpisparse"]["memory"]["residual"]
    assert set(residual) == {"embed", "sometimes"}
    assert any(bool(tensor.any()) for tensor in residual.values())
    other = Odd()
    plain = adam(other)
    plain.load_state_dict({key: state[key] for key in ("state", "param_groups")})
    fresh = ms.DistributedOptimizer(adam(other), other, sparsifier=ms.TopK(density=0.1), comm=solo())
    fresh.load_state_dict(plain.state_dict())
    assert fresh.exchange.step == 0
    fresh.load_state_dict(state)
    assert fresh.exchange.step == 4


def test_a_state_of_another_memory_is_refused() -> None:
    model = Odd()
    with_residual = ms.DistributedOptimizer(sgd(model), model, sparsifier=ms.TopK(density=0.1), comm=solo())
    without = ms.DistributedOptimizer(sgd(model), model, comm=solo())
    with pytest.raises(ms.CheckpointError, match=r"brings \['residual'\]"):
        without.load_state_dict(with_residual.state_dict())


def test_signs_are_accepted_where_their_error_is_kept_and_where_none_are_sent() -> None:
    for sparsifier in (ms.TopK(0.1), ms.Dense()):
        model = Odd()
        ms.DistributedOptimizer(sgd(model), model, sparsifier=sparsifier, wire=ms.Wire("sign"), comm=solo())


def test_wrong_uses_are_refused_with_the_way_out() -> None:
    model = Odd()
    wrapped = ms.DistributedOptimizer(sgd(model), model, comm=solo())
    frozen = nn.Linear(2, 2).requires_grad_(False)
    for make, words in (
        (lambda: ms.DistributedOptimizer(wrapped, model, comm=solo()), "wrap it once"),
        (lambda: ms.DistributedOptimizer(torch.optim.SparseAdam([model.never]), model, comm=solo()), "SparseAdam"),
        (
            lambda: ms.DistributedOptimizer(
                sgd(model), model, sparsifier=ms.TopK(0.1), wire=ms.Wire("hybrid"), comm=solo()
            ),
            "hybrid",
        ),
        (
            lambda: ms.DistributedOptimizer(
                sgd(model), model, sparsifier=ms.TernGrad(), wire=ms.Wire("levels"), comm=solo()
            ),
            "levels need the grid that QSGD's entries lie on",
        ),
        (
            lambda: ms.DistributedOptimizer(
                sgd(model), model, sparsifier=ms.TopK(0.1), memory=ms.NoMemory(), wire=ms.Wire("sign"), comm=solo()
            ),
            "use ErrorFeedback or MomentumCorrection",
        ),
        (lambda: ms.DistributedOptimizer(sgd(model), model, dense="ring", comm=solo()), "pieces, bfloat16, allreduce"),
        (lambda: ms.DistributedOptimizer(torch.optim.SGD(frozen.parameters()), frozen, comm=solo()), "nothing to"),
        (lambda: wrapped.add_param_group({"params": []}), "before it is wrapped"),
    ):
        with pytest.raises(ms.ConfigError, match=words):
            make()


def test_memories_that_do_not_fit_the_rule_are_refused() -> None:
    model = Odd()
    correction = ms.MomentumCorrection(momentum=0.9)
    plain = torch.optim.SGD(model.parameters(), lr=0.1)
    for optimizer, rule, memory, words in (
        (plain, ms.GSpar(density=0.1), ms.ErrorFeedback(), "grow without bound"),
        (plain, ms.Uniform(density=0.1), ms.ErrorFeedback(), "grow without bound"),
        (plain, ms.QSGD(), ms.ErrorFeedback(), "grow without bound"),
        (plain, ms.TernGrad(clip=2.5), ms.ErrorFeedback(), "grow without bound"),
        (plain, ms.GSpar(density=0.1), correction, "grow without bound"),
        (sgd(model), ms.TopK(density=0.1), correction, "momentum=0.9 in parameter group 0"),
        (adam(model), ms.TopK(density=0.1), correction, "betas"),
    ):
        with pytest.raises(ms.ConfigError, match=words):
            ms.DistributedOptimizer(optimizer, model, sparsifier=rule, memory=memory, comm=solo())


def test_a_parameter_that_thaws_after_wrapping_is_noticed() -> None:
    model = Odd()
    optimizer = ms.DistributedOptimizer(sgd(model), model, comm=solo())
    model.frozen.requires_grad_(True)
    model(torch.ones(8, 6), use=True).sum().backward()
    with pytest.raises(ms.ConfigError, match=r"parameter 1 of group 0, of shape \(5, 5\).*wrap it again"):
        optimizer.step()


def test_sparse_gradients_of_embeddings_are_taken_in() -> None:
    embedding = nn.Embedding(10, 4, sparse=True)
    optimizer = ms.DistributedOptimizer(torch.optim.SGD(embedding.parameters(), lr=1.0), embedding, comm=solo())
    before = embedding.weight.detach().clone()
    embedding(torch.tensor([3, 3, 7])).sum().backward()
    optimizer.step()
    moved = (before - embedding.weight.detach()).sum(dim=1)
    assert moved.tolist() == pytest.approx([0, 0, 0, 8, 0, 0, 0, 4, 0, 0], abs=1e-5)


def test_a_parameter_outside_the_model_is_trained_and_made_equal() -> None:
    def one(comm: ms.Communicator) -> Tensor:
        model = nn.Linear(3, 1)
        scale = nn.Parameter(torch.tensor([[float(comm.rank + 1)]]))
        plain = torch.optim.SGD([*model.parameters(), scale], lr=0.1)
        optimizer = ms.DistributedOptimizer(plain, model, comm=comm)
        (model(torch.ones(2, 3)) * scale).sum().backward()
        optimizer.step()
        return torch.cat([scale.detach().reshape(-1), model.weight.detach().reshape(-1)])

    first, *others = run_ranks(3, one)
    assert all(torch.equal(first, other) for other in others)


def test_momentum_correction_at_density_one() -> None:
    """Masked in full it is SGD without momentum; unmasked, or sent whole, it is SGD with momentum."""

    class Everything(ms.TopK):
        sends_everything = False

    def train_linear(rule: ms.TopK | None, memory: ms.Memory | None, momentum: float) -> np.ndarray[Any, Any]:
        torch.manual_seed(0)
        model = nn.Linear(4, 3)
        optimizer: torch.optim.Optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=momentum)
        if rule is not None:
            layout = ms.Layout(dense_vectors=False)
            optimizer = ms.DistributedOptimizer(
                optimizer, model, sparsifier=rule, memory=memory, layout=layout, comm=solo()
            )
        for step in range(6):
            optimizer.zero_grad()
            model(torch.full((2, 4), float(step))).square().sum().backward()
            optimizer.step()
        return model.weight.detach().numpy()

    masked = ms.MomentumCorrection(momentum=0.5)
    unmasked = ms.MomentumCorrection(momentum=0.5, masking=False)
    without, with_momentum = train_linear(None, None, 0.0), train_linear(None, None, 0.5)
    assert not np.allclose(without, with_momentum)
    np.testing.assert_allclose(train_linear(Everything(1.0), masked, 0.0), without, rtol=1e-5)
    np.testing.assert_allclose(train_linear(Everything(1.0), unmasked, 0.0), with_momentum, rtol=1e-5)
    np.testing.assert_allclose(train_linear(ms.TopK(1.0), masked, 0.0), with_momentum, rtol=1e-5)


def test_a_schedule_may_be_any_function_on_any_number_of_ranks() -> None:
    def one(comm: ms.Communicator) -> int:
        model = nn.Linear(10, 10)
        rule = ms.TopK(density=lambda step: 1.0 if step < 1 else 0.1)
        optimizer = ms.DistributedOptimizer(
            torch.optim.SGD(model.parameters(), lr=0.1), model, sparsifier=rule, comm=comm
        )
        counts = []
        for _ in range(2):
            optimizer.zero_grad()
            model(torch.randn(3, 10)).sum().backward()
            optimizer.step()
            counts.append(optimizer.traffic.count)
        assert counts[0] == 110
        return counts[1]

    assert run_ranks(2, one) == [20, 20]


def test_a_model_wrapped_again_leaves_the_first_buffer() -> None:
    model = nn.Linear(4, 3)
    first = ms.DistributedOptimizer(torch.optim.SGD(model.parameters(), lr=0.1), model, comm=solo())
    old = weakref.ref(first.flat)
    del first
    second = ms.DistributedOptimizer(torch.optim.SGD(model.parameters(), lr=0.1), model, comm=solo())
    gc.collect()
    assert old() is None
    model(torch.ones(2, 4)).sum().backward()
    assert model.weight.grad is not None
    assert model.weight.grad.data_ptr() == second.flat.buffer.data_ptr()


def test_gradients_that_change_after_the_exchange_are_noticed() -> None:
    model = nn.Linear(4, 3)
    optimizer = ms.DistributedOptimizer(torch.optim.SGD(model.parameters(), lr=0.1), model, comm=solo())
    for reset in (model.zero_grad, lambda: None):
        optimizer.zero_grad()
        model(torch.ones(2, 4)).sum().backward()
        optimizer.synchronize()
        reset()  # type: ignore[no-untyped-call]
        model(torch.ones(2, 4)).sum().backward()
        with pytest.raises(ms.MpiSparseError, match="gradients changed after synchronize"):
            optimizer.step()


def test_a_scaled_gradient_is_not_stepped_on() -> None:
    model = nn.Linear(4, 3)
    optimizer = ms.DistributedOptimizer(torch.optim.SGD(model.parameters(), lr=0.1), model, comm=solo())
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    scaler.scale(model(torch.ones(2, 4)).sum()).backward()
    optimizer.synchronize()
    with pytest.raises(ms.MpiSparseError, match="unscale_"):
        scaler.step(optimizer)


def test_complex_parameters_and_wrong_counts_are_refused() -> None:
    model = nn.Module()
    model.phase = nn.Parameter(torch.zeros(3, 3, dtype=torch.complex64))
    with pytest.raises(ms.ConfigError, match=r"phase is torch\.complex64"):
        ms.DistributedOptimizer(torch.optim.SGD(model.parameters(), lr=0.1), model, comm=solo())
    real = nn.Linear(4, 3)
    optimizer = ms.DistributedOptimizer(torch.optim.SGD(real.parameters(), lr=0.1), real, comm=solo())
    for samples in (-1, 0.5):
        with pytest.raises(ms.ConfigError, match="is no count"):
            optimizer.synchronize(samples=samples)  # type: ignore[arg-type]
    with pytest.raises(ms.ConfigError, match="seed -1"):
        ms.DistributedOptimizer(torch.optim.SGD(real.parameters(), lr=0.1), real, seed=-1, comm=solo())


@pytest.mark.parametrize("name", ["AcceleratedOptimizer", "LightningOptimizer", "FP16_Optimizer"])
def test_wrappers_of_frameworks_are_refused_with_the_right_order(name: str) -> None:
    """Each steps, or not, on terms of its own: the sums of microbatches would be exchanged."""
    model = nn.Linear(2, 2)
    outer = type(name, (torch.optim.SGD,), {"__module__": "framework.optimizer"})(model.parameters(), lr=0.1)
    with pytest.raises(ms.ConfigError, match=rf"framework.optimizer.{name}.*(W|w)rap|configure_optimizers"):
        ms.DistributedOptimizer(outer, model, comm=solo())


def test_optimizers_that_only_look_like_wrappers_are_taken() -> None:
    """Lookahead and SAM hold an optimizer, too, and step it by the gradients that are there."""

    class Lookahead(torch.optim.SGD):
        def __init__(self, optimizer: torch.optim.Optimizer) -> None:
            super().__init__(optimizer.param_groups[0]["params"], lr=0.1)
            self.optimizer = optimizer

    model = nn.Linear(2, 2)
    optimizer = ms.DistributedOptimizer(Lookahead(torch.optim.SGD(model.parameters(), lr=0.1)), model, comm=solo())
    model(torch.ones(1, 2)).sum().backward()
    optimizer.step()


@pytest.mark.parametrize("value", [0, -1.0, float("nan"), float("inf"), "1.0", True])
def test_clip_norms_that_are_none_are_refused(value: Any) -> None:
    model = nn.Linear(2, 2)
    with pytest.raises(ms.ConfigError, match=r"clip_norm .* is no norm: give a number above 0"):
        ms.DistributedOptimizer(torch.optim.SGD(model.parameters(), lr=0.1), model, comm=solo(), clip_norm=value)


def test_a_closure_reaches_the_optimizer_that_needs_one() -> None:
    class Needs(torch.optim.SGD):
        def step(self, closure: Any = None) -> Any:
            losses.append(closure())
            super().step()
            return losses[-1]

    losses: list[Tensor] = []
    model = nn.Linear(2, 1)
    optimizer = ms.DistributedOptimizer(Needs(model.parameters(), lr=0.1), model, comm=solo())

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss: Tensor = model(torch.ones(1, 2)).sum()
        torch.autograd.backward(loss)
        return loss

    before = model.weight.detach().clone()
    result = optimizer.step(closure)
    assert losses == [result]
    torch.testing.assert_close(before - model.weight.detach(), torch.full((1, 2), 0.1))


def test_a_closure_that_is_called_twice_is_refused() -> None:
    class Twice(torch.optim.SGD):
        def step(self, closure: Any = None) -> Any:
            closure()
            return closure()

    model = nn.Linear(2, 1)
    optimizer = ms.DistributedOptimizer(Twice(model.parameters(), lr=0.1), model, comm=solo())
    with pytest.raises(ms.ConfigError, match=r"Twice.step\(closure\) calls the closure more than once"):
        optimizer.step(lambda: torch.tensor(1.0))


def test_lbfgs_takes_dense_alone() -> None:
    model = nn.Linear(20, 20)
    plain = torch.optim.LBFGS(model.parameters())
    with pytest.raises(ms.ConfigError, match=r"use it with Dense\(\)"):
        ms.DistributedOptimizer(plain, model, sparsifier=ms.TopK(density=0.1), comm=solo())
    ms.DistributedOptimizer(plain, model, comm=solo())

"""Losses are means, metrics are sums that ranks may add, and penalties are what they state."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.autograd import backward

from mpisparse.errors import ConfigError
from mpisparse.training.models import CrossEntropy, HingeLoss, LogisticLoss, Loss, Penalty


def margins(loss: Loss, score: float, target: int) -> float:
    return loss(torch.tensor([score]), torch.tensor([target])).item()


def test_values_known_from_the_formulas() -> None:
    assert margins(LogisticLoss(), 0.0, 1) == pytest.approx(math.log(2))
    assert margins(LogisticLoss(), 2.0, 1) == pytest.approx(math.log1p(math.exp(-2)))
    assert margins(LogisticLoss(), 2.0, 0) == pytest.approx(math.log1p(math.exp(2)))
    assert margins(HingeLoss(), 0.25, 1) == 0.75
    assert margins(HingeLoss(), 0.25, 0) == 1.25
    assert margins(HingeLoss(), -3.0, 0) == 0.0
    assert CrossEntropy()(torch.zeros(1, 8), torch.tensor([3])).item() == pytest.approx(math.log(8))


@pytest.mark.parametrize("score", [1e4, -1e4])
def test_the_logistic_loss_does_not_overflow(score: float) -> None:
    scores = torch.tensor([score], requires_grad=True)
    loss = LogisticLoss()(scores, torch.tensor([0]))
    backward(loss)
    assert loss.item() == pytest.approx(max(score, 0.0))
    assert scores.grad is not None
    assert scores.grad.item() == pytest.approx(1.0 if score > 0 else 0.0)


def penalised(loss_type: type[LogisticLoss] | type[HingeLoss]) -> Loss:
    return loss_type(Penalty(nn.Parameter(torch.tensor([1.0, -2.0])), 0.3))


LOSSES = [
    (CrossEntropy(), (7, 4), (7,), 4),
    (CrossEntropy(), (7, 5, 4), (7, 5), 4),
    (LogisticLoss(), (7,), (7,), 2),
    (HingeLoss(), (7,), (7,), 2),
    (penalised(LogisticLoss), (7,), (7,), 2),
    (penalised(HingeLoss), (7,), (7,), 2),
]


def example(outputs_shape: tuple[int, ...], targets_shape: tuple[int, ...], classes: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return (
        torch.randn(outputs_shape, generator=generator, requires_grad=True),
        torch.randint(classes, targets_shape, generator=generator),
    )


@pytest.mark.parametrize(("loss", "outputs_shape", "targets_shape", "classes"), LOSSES)
def test_the_mean_is_the_sum_over_the_count(
    loss: Loss, outputs_shape: tuple[int, ...], targets_shape: tuple[int, ...], classes: int
) -> None:
    outputs, targets = example(outputs_shape, targets_shape, classes)
    metrics = loss.metrics(outputs, targets)
    assert metrics["count"] == math.prod(targets_shape)
    assert loss(outputs, targets).item() == pytest.approx(metrics["loss"] / metrics["count"], rel=1e-6)
    assert {type(value) for value in metrics.values()} == {float}


@pytest.mark.parametrize(("loss", "outputs_shape", "targets_shape", "classes"), LOSSES)
@given(cut=st.integers(0, 7))
def test_sums_over_parts_add_up_and_means_do_when_weighed(
    loss: Loss, outputs_shape: tuple[int, ...], targets_shape: tuple[int, ...], classes: int, cut: int
) -> None:
    outputs, targets = example(outputs_shape, targets_shape, classes)
    whole = loss.metrics(outputs, targets)
    first, second = loss.metrics(outputs[:cut], targets[:cut]), loss.metrics(outputs[cut:], targets[cut:])
    for key, value in whole.items():
        assert first[key] + second[key] == pytest.approx(value, rel=1e-12)
    weighed = cut / 7 * loss(outputs[:cut], targets[:cut]) + (7 - cut) / 7 * loss(outputs[cut:], targets[cut:])
    assert weighed.item() == pytest.approx(loss(outputs, targets).item(), rel=1e-5)
    (gradient,) = torch.autograd.grad(loss(outputs, targets), outputs)
    (parts,) = torch.autograd.grad(weighed, outputs)
    torch.testing.assert_close(parts, gradient)


@pytest.mark.parametrize(("loss", "outputs_shape", "targets_shape", "classes"), LOSSES)
def test_no_samples_have_loss_zero_and_gradients_of_zero(
    loss: Loss, outputs_shape: tuple[int, ...], targets_shape: tuple[int, ...], classes: int
) -> None:
    weight = torch.ones((), requires_grad=True)
    outputs = weight * torch.zeros(0, *outputs_shape[1:])
    targets = torch.zeros((0, *targets_shape[1:]), dtype=torch.int64)
    value = loss(outputs, targets)
    backward(value)
    assert value.item() == 0.0
    assert weight.grad is not None
    assert weight.grad.item() == 0.0
    assert loss.metrics(outputs, targets) == {"loss": 0.0, "correct": 0.0, "count": 0.0}


def test_correct_counts_each_target() -> None:
    logits = torch.tensor([[[2.0, 1.0], [0.0, 1.0]], [[0.0, 3.0], [5.0, 1.0]]])
    targets = torch.tensor([[0, 0], [1, 0]])
    assert CrossEntropy().metrics(logits, targets)["correct"] == 3.0
    # A score of 0 is no vote for target 1.
    assert LogisticLoss().metrics(torch.tensor([0.0, 0.0, 1.0]), torch.tensor([0, 1, 1]))["correct"] == 2.0


def test_penalties_are_as_stated_in_value_and_gradient() -> None:
    for halved, factor in ((True, 0.5), (False, 1.0)):
        weight = nn.Parameter(torch.tensor([3.0, -4.0]))
        loss = LogisticLoss(Penalty(weight, 0.1, halved))
        scores, targets = torch.zeros(2), torch.tensor([0, 1])
        value = loss(scores, targets)
        backward(value)
        assert value.item() == pytest.approx(math.log(2) + factor * 0.1 * 25)
        assert weight.grad is not None
        torch.testing.assert_close(weight.grad, 2 * factor * 0.1 * weight.detach())
        assert loss.metrics(scores, targets)["loss"] == pytest.approx(2 * value.item())


def test_smoothing_changes_the_loss_and_not_the_metrics() -> None:
    logits, targets = torch.tensor([[3.0, 0.0, -1.0]]), torch.tensor([0])
    plain, smooth = CrossEntropy(), CrossEntropy(smoothing=0.1)
    assert smooth(logits, targets).item() > plain(logits, targets).item()
    assert smooth.metrics(logits, targets) == plain.metrics(logits, targets)


def test_metrics_leave_no_gradient_and_the_outputs_as_they_are() -> None:
    outputs, targets = example((7, 4), (7,), 4)
    before = outputs.detach().clone()
    CrossEntropy().metrics(outputs, targets)
    assert outputs.grad is None
    assert torch.equal(outputs.detach(), before)


@pytest.mark.parametrize("strength", [-1.0, float("nan"), float("inf")])
def test_a_strength_that_is_none_is_refused(strength: float) -> None:
    with pytest.raises(ConfigError, match="is not a strength of a penalty"):
        Penalty(torch.ones(1), strength)


@pytest.mark.parametrize("smoothing", [-0.1, 1.0, float("nan")])
def test_a_smoothing_outside_its_range_is_refused(smoothing: float) -> None:
    with pytest.raises(ConfigError, match=r"outside \[0, 1\)"):
        CrossEntropy(smoothing=smoothing)

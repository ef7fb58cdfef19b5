"""The transformer looks back only, and its options do what they state."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.autograd import backward

from mpisparse.errors import ConfigError
from mpisparse.training.models import CharacterTransformer, CrossEntropy


@pytest.fixture(autouse=True, scope="module")
def _one_thread() -> Iterator[None]:
    """Small models are slower on many threads, the more so beside other work."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def small(**options: bool | int | None) -> CharacterTransformer:
    torch.manual_seed(0)
    return CharacterTransformer((10,), 7, **({"layers": 2, "width": 16, "heads": 4} | options))  # type: ignore[arg-type]


@given(position=st.integers(0, 9))
def test_later_characters_change_no_earlier_logits_and_do_change_their_own(position: int) -> None:
    model = small()
    tokens = torch.randint(7, (3, 10), generator=torch.Generator().manual_seed(position))
    changed = tokens.clone()
    changed[:, position] = (changed[:, position] + 1) % 7
    before, after = model(tokens), model(changed)
    torch.testing.assert_close(before[:, :position], after[:, :position], atol=1e-6, rtol=1e-5)
    assert (before[:, position:] - after[:, position:]).abs().amax(-1).min() > 1e-6


def test_logits_at_a_position_have_no_gradient_from_later_ones() -> None:
    model = small()
    positions = model.position
    logits = model(torch.arange(10).remainder(7)[None])
    (gradient,) = torch.autograd.grad(logits[0, 4].sum(), positions)
    assert (gradient[5:] == 0).all()
    assert (gradient[:5].abs().amax(1) > 0).all()


def test_order_of_the_characters_matters() -> None:
    model = small()
    first, second = model(torch.tensor([[1, 2, 3]])), model(torch.tensor([[2, 1, 3]]))
    assert (first[0, 2] - second[0, 2]).abs().max() > 1e-6


def test_windows_may_be_shorter_than_the_context_and_not_longer() -> None:
    model = small(context=12)
    tokens = torch.randint(7, (2, 12))
    torch.testing.assert_close(model(tokens[:, :5]), model(tokens)[:, :5], atol=1e-6, rtol=1e-5)
    with pytest.raises(ConfigError, match="windows of 13 characters exceed context 12"):
        model(torch.zeros(1, 13, dtype=torch.int64))


def test_tied_logits_are_products_with_the_embedding() -> None:
    tied, free = small(), small(tied=False)
    assert sum(p.numel() for p in free.parameters()) - sum(p.numel() for p in tied.parameters()) == 7 * 16
    with torch.no_grad():
        tied.embedding.weight[3] = 0
    assert (tied(torch.zeros(1, 4, dtype=torch.int64))[..., 3] == 0).all()


def test_it_starts_near_uniform_and_learns_a_repeating_text() -> None:
    model, loss = small(), CrossEntropy()
    tokens = torch.arange(55).remainder(5).unfold(0, 11, 1)
    inputs, targets = tokens[:, :-1], tokens[:, 1:]
    assert loss(model(inputs), targets).item() == pytest.approx(1.946, abs=0.05)
    optimizer = torch.optim.Adam(model.parameters(), 0.01)
    for _ in range(30):
        optimizer.zero_grad()
        backward(loss(model(inputs), targets))
        optimizer.step()
    assert loss.metrics(model(inputs), targets)["correct"] == targets.numel()

"""The optimum of logistic regression: its certificate holds, sparse samples give the same, and failure is said."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.sparse import csr_matrix

from mpisparse.comm import run_ranks, solo
from mpisparse.errors import MpiSparseError
from mpisparse.training.config import LogisticModel
from mpisparse.training.config.model import CnnModel, SvmModel
from mpisparse.training.data import TensorDataset
from mpisparse.training.data.libsvm import SparseDataset
from mpisparse.training.data.synthetic import load
from mpisparse.training.evaluate import objective
from mpisparse.training.models import LogisticRegression
from mpisparse.training.optimum import find_optimum, has_optimum

_TRAIN = load(samples=40, features=7, test_samples=5).train
assert isinstance(_TRAIN, TensorDataset)
DATA: TensorDataset = _TRAIN


def section(l2: float, *, halved: bool = True, bias: bool = False) -> LogisticModel:
    return LogisticModel(name="logistic", l2=l2, halved=halved, bias=bias)


def newton(l2: float) -> float:
    """Return the least objective by plain Newton steps on dense matrices, as a second opinion."""
    inputs = DATA.inputs.double().numpy()
    signed = inputs * np.where(DATA.targets.numpy() == 1, 1.0, -1.0)[:, None]
    weights = np.zeros(7)
    for _ in range(60):
        chance = 1 / (1 + np.exp(signed @ weights))
        gradient = l2 * weights - signed.T @ chance / 40
        curvature = (signed.T * (chance * (1 - chance))) @ signed / 40 + l2 * np.eye(7)
        weights -= np.linalg.solve(curvature, gradient)
    return float(np.log1p(np.exp(-signed @ weights)).mean() + l2 / 2 * weights @ weights)


@pytest.mark.parametrize("l2", [1.0, 1e-2])
def test_is_what_newton_finds(l2: float) -> None:
    found = find_optimum(section(l2), DATA)
    assert found.objective == pytest.approx(newton(l2), abs=1e-12)
    assert 0 <= found.gap <= 1e-10
    assert find_optimum(section(l2 / 2, halved=False), DATA).objective == pytest.approx(found.objective, abs=1e-12)


def test_no_weights_are_better() -> None:
    found = find_optimum(section(0.05), DATA)
    model = LogisticRegression((7,))
    loss = model.loss(l2=0.05)
    generator = torch.Generator().manual_seed(0)
    for _ in range(50):
        with torch.no_grad():
            model.weight.copy_(torch.randn(1, 7, generator=generator))
        assert objective(solo(), model, loss, DATA) >= found.objective - found.gap


def test_sparse_samples_give_the_same() -> None:
    kept = csr_matrix(DATA.inputs.numpy())
    sparse = SparseDataset(name="sparse", num_classes=2, targets=DATA.targets, inputs=kept)
    assert find_optimum(section(0.1), sparse).objective == pytest.approx(find_optimum(section(0.1), DATA).objective)


def test_newton_ends_what_the_first_solver_left(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mpisparse.training.optimum._LBFGS", {"maxiter": 2})
    found = find_optimum(section(0.01), DATA)
    assert found.objective == pytest.approx(newton(0.01), abs=1e-10)
    assert found.gap <= 1e-10


def test_a_gap_that_cannot_be_closed_is_an_error() -> None:
    """Next to no penalty on separable samples: the optimum lies far out, and float64 does not get there."""
    with pytest.raises(MpiSparseError, match=r"raise model\.l2"):
        find_optimum(section(1e-32), DATA)


def test_models_whose_optimum_nobody_certifies() -> None:
    assert has_optimum(section(0.1))
    assert not has_optimum(section(0.0))
    assert not has_optimum(section(0.1, bias=True))
    assert not has_optimum(SvmModel(name="svm", l2=0.1))
    assert not has_optimum(CnnModel(name="cnn"))


@pytest.mark.parametrize("size", [1, 2, 3])
def test_objective_is_exact_on_any_number_of_ranks(size: int) -> None:
    """To far more digits than float32 has, with the penalty counted once, and the model left in float32."""
    model = LogisticRegression((7,))
    with torch.no_grad():
        model.weight.copy_(torch.linspace(-1, 1, 7))
    inputs, weights = DATA.inputs.double().numpy(), model.weight.detach().double().numpy()[0]
    margins = np.where(DATA.targets.numpy() == 1, 1.0, -1.0) * (inputs @ weights)
    expected = np.log1p(np.exp(-margins)).mean() + 0.3 * weights @ weights
    for sent in (True, False):
        loss = model.loss(l2=0.3, halved=False, sent=sent)
        for value in run_ranks(size, lambda comm, loss=loss: objective(comm, model, loss, DATA)):  # type: ignore[misc]
            assert value == pytest.approx(expected, rel=1e-14)
    assert model.weight.dtype == torch.float32

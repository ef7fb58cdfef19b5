"""The optimum of an l2-regularised logistic regression, found by scipy and certified by its own gradient."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from mpisparse.comm import Communicator, from_root
from mpisparse.errors import MpiSparseError
from mpisparse.training.config import LogisticModel, RunConfig
from mpisparse.training.data import Dataset
from mpisparse.training.data.libsvm import SparseDataset

Weights = NDArray[np.float64]

#: How far the objective found may lie above the least one, at most.
_GAP = 1e-10


@dataclass(frozen=True, slots=True)
class Optimum:
    """The least value of an objective.

    objective: what was found, in float64. gradient_norm: there. gap: how far it can be above the least value: with a
    penalty of curvature m, no more than gradient_norm^2 / (2 m).
    """

    objective: float
    gradient_norm: float
    gap: float


def has_optimum(section: object) -> bool:
    """Return True for a model whose optimum `find_optimum` can certify: logistic, with a penalty, without a bias."""
    return isinstance(section, LogisticModel) and section.name == "logistic" and section.l2 > 0 and not section.bias


def find_optimum(section: LogisticModel, data: Dataset) -> Optimum:
    """Return the optimum over the train samples, to 1e-10 at least.

    L-BFGS comes near it, Newton's steps in a trust region end it. Takes seconds for 2,048 features.

    Raises:
        MpiSparseError: the solver stopped before that, as with a penalty too small for float64.
    """
    # Here, as every start of a run would wait for it.
    from scipy.optimize import minimize

    problem = _Problem(section, data)
    near = minimize(problem.value, np.zeros(problem.features), jac=True, method="L-BFGS-B", options=_LBFGS)
    best = problem.certify(near.x)
    if best.gap > _GAP:
        options = {"gtol": problem.tolerance}
        exact = minimize(problem.value, near.x, jac=True, hessp=problem.curve, method="trust-ncg", options=options)
        best = min(best, problem.certify(exact.x), key=lambda found: found.gap)
    if best.gap > _GAP:
        raise MpiSparseError(
            f"the optimum of {data.name} with l2 {section.l2} is known to {best.gap:.1e} only, and {_GAP} is needed: "
            "raise model.l2, or leave training.objective out"
        )
    return best


def shared_optimum(comm: Communicator, config: RunConfig, data: Dataset) -> Optimum | None:
    """Return the least value of the objective, found by rank 0, where it is to be known and can be. Collective."""
    section = config.model
    if not (config.training.objective and has_optimum(section)):
        return None
    assert isinstance(section, LogisticModel)
    found = from_root(comm, lambda: asdict(find_optimum(section, data)))
    return Optimum(**found)


def _sigmoid(values: Weights) -> Weights:
    """Return 1 / (1 + exp(-x)), which nothing overflows in."""
    sigmoid: Weights = np.exp(-np.logaddexp(0.0, -values))
    return sigmoid


_LBFGS = {"maxiter": 20_000, "maxfun": 40_000, "ftol": 0.0, "gtol": 1e-12, "maxcor": 30}


class _Problem:
    """mean log(1 + exp(-y x.w)) + curvature / 2 ||w||^2, with its derivatives, in float64."""

    def __init__(self, section: LogisticModel, data: Dataset) -> None:
        from scipy.sparse import diags_array

        signs = np.where(data.targets.numpy() == 1, 1.0, -1.0)
        #: Each sample times its label, sparse where the samples are kept so.
        self.signed = diags_array(signs) @ _whole(data)
        self.count, self.features = self.signed.shape
        self.curvature = section.l2 if section.halved else 2 * section.l2
        #: The norm of the gradient that makes certain of half the gap that is allowed.
        self.tolerance = float(np.sqrt(_GAP * self.curvature))

    def value(self, weights: Weights) -> tuple[float, Weights]:
        margins = self.signed @ weights
        loss = float(np.logaddexp(0.0, -margins).mean()) + self.curvature / 2 * float(weights @ weights)
        return loss, self.curvature * weights - self.signed.T @ _sigmoid(-margins) / self.count

    def curve(self, weights: Weights, direction: Weights) -> Weights:
        """Return the second derivative times a direction."""
        chance = _sigmoid(self.signed @ weights)
        bend = chance * (1 - chance) * (self.signed @ direction)
        curved: Weights = self.signed.T @ bend / self.count + self.curvature * direction
        return curved

    def certify(self, weights: Weights) -> Optimum:
        objective, gradient = self.value(weights)
        norm = float(np.linalg.norm(gradient))
        return Optimum(objective, norm, norm**2 / (2 * self.curvature))


def _whole(data: Dataset) -> Any:
    """Return all samples in float64, of shape (samples, features), sparse where they are kept so."""
    if isinstance(data, SparseDataset):
        return data.inputs.astype(np.float64)
    inputs, _ = data.batch(torch.arange(len(data), device="cpu"))
    return inputs.flatten(1).numpy().astype(np.float64)

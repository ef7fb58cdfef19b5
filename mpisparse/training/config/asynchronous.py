"""The section `asynchronous`: ranks that share their parameters and never wait for each other."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pydantic import PositiveInt

from mpisparse.comm import WindowKind
from mpisparse.training.config.exchange import Exchange
from mpisparse.training.config.model import LogisticModel
from mpisparse.training.config.sparsifier import DenseSparsifier, GsparSparsifier, UniformSparsifier
from mpisparse.training.section import Section

if TYPE_CHECKING:
    from mpisparse.training.config.run import RunConfig, Training

#: Keys of `training` that an asynchronous run has no use for, and why.
_UNUSED = {
    "global_batch": "an update is made of one rank's samples: give training.batch",
    "microbatch": "an update is made in one piece",
    "clip_norm": "updates are not clipped",
    "smoothing": "its models take none",
    "evaluate": "asynchronous.snapshots says how often parameters are looked at",
    "log_every": "there are no steps to be logged",
}


class Asynchronous(Section):
    """Asynchronous training, as in the GSpar paper's last experiment, of linear models of two classes.

    Each rank reads the shared parameters, computes the gradient of its next `training.batch` samples, sparsifies it and
    adds it, times the learning rate. `training.length` is that of all ranks together: epochs, or updates.

    window: where the parameters are: "shared" memory of one node, MPI's "accumulate" on any, or "auto".
    snapshots: how many times in the run rank 0 copies the parameters; their objectives are computed afterwards.
    """

    window: WindowKind = "auto"
    snapshots: PositiveInt = 50


def refuse_useless(config: RunConfig) -> None:
    """Raise ValueError, saying why, for settings that an asynchronous run cannot follow."""
    problems = [*_model_problems(config), *_rule_problems(config), *_training_problems(config.training)]
    if config.optimizer.name != "SGD" or config.optimizer.options:
        problems.append("optimizer: only plain SGD can be shared, with nothing beside lr")
    if config.memory.name in ("error_feedback", "momentum_correction"):
        problems.append(f"memory {config.memory.name}: its rules are unbiased, and keep nothing")
    if config.exchange != Exchange():
        problems.append("exchange: there is no exchange, leave this section out")
    problems += [f"{name}: leave this section out" for name in ("svrg", "resparsify") if getattr(config, name)]
    if problems:
        raise ValueError("asynchronous training cannot follow these settings: " + "; ".join(problems))


def _model_problems(config: RunConfig) -> list[str]:
    model = config.model
    if not isinstance(model, LogisticModel):
        return [f"model {model.name}: only logistic and svm are trained so"]
    problems = []
    if model.bias:
        problems.append("model.bias: leave it out, or give the data a feature that is always 1")
    if model.penalty == "local":
        problems.append("model.penalty local: it would be written whole in every update, and shared all the same")
    return problems


def _rule_problems(config: RunConfig) -> list[str]:
    rule: Any = config.sparsifier
    if not isinstance(rule, DenseSparsifier | GsparSparsifier | UniformSparsifier):
        return [f"sparsifier {rule.name}: only dense, gspar and uniform are unbiased without a memory"]
    if isinstance(rule, GsparSparsifier) and rule.density is None:
        return ["sparsifier.variance: give density"]
    if not isinstance(rule, DenseSparsifier) and rule.schedule is not None:
        return ["sparsifier.schedule: the density stays the same"]
    return []


def _training_problems(training: Training) -> list[str]:
    # As text, since a default length is text, too.
    defaults = {key: str(type(training).model_fields[key].default) for key in _UNUSED}
    return [f"training.{key}: {why}" for key, why in _UNUSED.items() if str(getattr(training, key)) != defaults[key]]

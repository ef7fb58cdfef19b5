"""Options that go together, and the reasons why others do not."""

from __future__ import annotations

import inspect
import math
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from mpisparse.arguments import is_number, is_one_of, require_kind, short
from mpisparse.collectives import DENSE_MEANS
from mpisparse.errors import ConfigError
from mpisparse.flat import FlatGradients, Layout
from mpisparse.memory import Memory, NoMemory
from mpisparse.names import plain_names
from mpisparse.phases import Phases
from mpisparse.preflight import NonFinite
from mpisparse.sparsifiers import Sparsifier
from mpisparse.wire import Wire


def check_kinds(
    optimizer: object,
    model: object,
    *,
    sparsifier: object,
    memory: object,
    wire: object,
    layout: object,
    resparsify: object,
    phases: object,
) -> None:
    """Raise ConfigError, saying what to give, for an argument of another kind; None is one that was left out."""
    if isinstance(optimizer, nn.Module) and isinstance(model, Optimizer):
        raise ConfigError(
            f"the model came first and the optimizer second: give DistributedOptimizer(optimizer, model), here the "
            f"{type(model).__name__}, then the {type(optimizer).__name__}"
        )
    require_kind("optimizer", optimizer, Optimizer, "a torch optimizer, such as SGD(model.parameters(), lr=0.1)")
    require_kind("model", model, nn.Module, "the nn.Module that the optimizer trains, not its parameters")
    for name, rule in (("sparsifier", sparsifier), ("resparsify", resparsify)):
        if rule is not None:
            require_kind(name, rule, Sparsifier, f"a rule, such as {_suggestion(rule)}")
    for name, value, kind, give in (
        ("memory", memory, Memory, "a memory, such as ErrorFeedback() or NoMemory()"),
        ("wire", wire, Wire, f"how messages are written, such as Wire({wire if isinstance(wire, str) else 'auto'!r})"),
        ("layout", layout, Layout, f"a layout, such as Layout({layout if isinstance(layout, str) else 'model'!r})"),
        ("phases", phases, Phases, "Phases()"),
    ):
        if value is not None:
            require_kind(name, value, kind, give)


def _suggestion(rule: object) -> str:
    """Return the rule that was probably meant."""
    if is_number(rule):
        return f"TopK({rule})"
    name = "".join(letter for letter in str(rule).lower() if letter.isalpha())
    known = {"gspar": "GSpar(density=0.01)", "qsgd": "QSGD()", "terngrad": "TernGrad()", "dense": "Dense()"}
    return known.get(name, "TopK(0.01)")


def check_options(
    optimizer: Optimizer,
    sparsifier: Sparsifier,
    memory: Memory,
    wire: Wire,
    dense: object,
    nonfinite: NonFinite,
    seed: object,
) -> None:
    """Raise ConfigError, saying why, for an optimizer that cannot be distributed or options that are wrong together."""
    _refuse_wrapped(optimizer)
    if isinstance(optimizer, torch.optim.LBFGS) and not (sparsifier.sends_everything and nonfinite == "raise"):
        raise ConfigError(
            "LBFGS compares several gradients per step, which have to be exact and finite: use it with Dense() and "
            'nonfinite="raise", or use SGD or Adam'
        )
    if not is_one_of(dense, DENSE_MEANS):
        raise ConfigError(f"dense {short(dense)} does not exist: use {', '.join(DENSE_MEANS)}")
    if not is_one_of(nonfinite, ("raise", "skip")):
        raise ConfigError(f"nonfinite {short(nonfinite)} does not exist: use raise or skip")
    if isinstance(seed, bool) or not isinstance(seed, int | np.integer) or not 0 <= int(seed) < 2**64:
        raise ConfigError(f"seed {short(seed)} is outside 0 to 2**64 - 1: give another whole number")
    if wire.values == "hybrid" and not sparsifier.shares_magnitude:
        raise ConfigError(
            f"wire values hybrid need the magnitude that GSpar's entries share, not {sparsifier!r}: use auto"
        )
    if wire.values == "levels" and not sparsifier.shares_grid:
        raise ConfigError(f"wire values levels need the grid that QSGD's entries lie on, not {sparsifier!r}: use auto")
    if wire.values == "sign" and isinstance(memory, NoMemory) and not sparsifier.sends_everything:
        raise ConfigError(
            f"wire values sign send every entry of {sparsifier!r} with the mean magnitude of all, and {memory!r} keeps "
            "nothing of the difference, so that the gradient would be biased for good: use ErrorFeedback or "
            "MomentumCorrection, or other wire values"
        )
    memory.check(sparsifier, optimizer.param_groups)


def wrong_groups(memory: Memory, sparsifier: Sparsifier, param_groups: list[dict[str, Any]]) -> ConfigError | None:
    """Return why options of the optimizer do not go with the memory any more: schedulers and users change them."""
    try:
        memory.check(sparsifier, param_groups)
    except ConfigError as error:
        return error
    return None


#: Classes of frameworks that wrap an optimizer and decide when it steps or exchanges, and what to do instead.
_WRAPPERS = {
    "AcceleratedOptimizer": "Wrap first and prepare then: accelerator.prepare(ms.DistributedOptimizer(optimizer, ...))",
    "LightningOptimizer": "Give configure_optimizers() an optimizer that is wrapped already",
    "FP16_Optimizer": "Wrap the plain optimizer, and use torch.amp.GradScaler",
    "DeepSpeedZeroOptimizer": "Wrap the plain optimizer, and train without DeepSpeed's engine",
    "DeepSpeedOptimizer": "Wrap the plain optimizer, and train without DeepSpeed's engine",
    "_DistributedOptimizer": "Wrap the plain optimizer, without Horovod",
    "ZeroRedundancyOptimizer": "Wrap the optimizer that it shards: every rank has to step all parameters",
}


def _refuse_wrapped(optimizer: Optimizer) -> None:
    """Raise ConfigError for a wrapper that steps, unscales or exchanges on terms of its own."""
    for kind in type(optimizer).__mro__:
        if kind.__name__ in _WRAPPERS:
            raise ConfigError(
                f"the optimizer is a {kind.__module__}.{kind.__name__}, whose step() is not a step of the "
                f"optimizer inside it: gradients would be exchanged at the wrong time. {_WRAPPERS[kind.__name__]}"
            )


def evaluates_closures(optimizer: Optimizer) -> bool:
    """Return True when `step` decides when to evaluate a closure: LBFGS's, and any that is not torch's own."""
    if isinstance(optimizer, torch.optim.LBFGS):
        return True
    if str(getattr(optimizer.step, "__module__", "")).partition(".")[0] == "torch":
        return False
    try:
        inspect.signature(optimizer.step).bind(None)
    except (TypeError, ValueError):
        return False
    return True


def check_clip_norm(clip_norm: float | None) -> None:
    """Raise ConfigError unless `clip_norm` is a norm or None."""
    number = isinstance(clip_norm, (int, float)) and not isinstance(clip_norm, bool)
    if clip_norm is not None and not (number and 0 < clip_norm < math.inf):
        raise ConfigError(f"clip_norm {clip_norm!r} is no norm: give a number above 0, such as 1.0, or None")


def check_resparsify(rule: Sparsifier | None) -> None:
    """Raise ConfigError for a rule that would lose a part of the average for good."""
    if rule is not None and not (rule.amplifies or rule.sends_everything):
        raise ConfigError(
            f"resparsify {rule!r} is biased, and nothing keeps what it leaves out of the average: use GSpar or Uniform"
        )


def check_samples(samples: object) -> None:
    """Raise ConfigError unless `samples` is a count or None."""
    if samples is not None and (not isinstance(samples, int) or isinstance(samples, bool) or samples < 0):
        hint = ", such as int(samples)" if isinstance(samples, Tensor | np.integer) else ""
        raise ConfigError(
            f"samples {short(samples)} is no count: give how many samples this rank used, an int of 0 or more{hint}"
        )


def check_sparse_adam(optimizer: Optimizer, flat: FlatGradients) -> None:
    """Raise ConfigError when SparseAdam is to train a parameter whose gradient is dense."""
    if isinstance(optimizer, torch.optim.SparseAdam) and flat.slots:
        raise ConfigError(
            f"SparseAdam takes row-sparse gradients alone, and that of {flat.slots[0].name} is dense: give it the "
            "weights of nn.Embedding and nn.EmbeddingBag with sparse=True that no other module shares, and train the "
            "other parameters by an optimizer of their own, such as Adam, wrapped too"
        )


def check_anything_sparse(flat: FlatGradients, sparsifier: Sparsifier) -> None:
    """Raise ConfigError when a rule is to select and the layout leaves it nothing."""
    if not flat.slots and not sparsifier.sends_everything:
        raise ConfigError(
            f"{sparsifier!r} has nothing to select from: all gradients are row-sparse (nn.Embedding with sparse=True), "
            "and those are exchanged whole. Leave the sparsifier out"
        )
    if flat.sparse_numel == 0 and not sparsifier.sends_everything:
        raise ConfigError(
            f"{sparsifier!r} has nothing to select from: every tensor has one dimension or is small, and the layout "
            "sends those whole. Use Layout(dense_vectors=False, dense_below=0)"
        )


def refuse_strangers(optimizer: Optimizer, exchanged: Iterable[Tensor]) -> None:
    """Raise ConfigError for a gradient that no exchange would average, so that replicas would part silently."""
    known = {id(parameter) for parameter in exchanged}
    for number, group in enumerate(optimizer.param_groups):
        for place, parameter in enumerate(group["params"]):
            if parameter.grad is not None and id(parameter) not in known:
                raise ConfigError(
                    f"parameter {place} of group {number}, of shape {tuple(parameter.shape)}, has a gradient but "
                    "was frozen or absent when the optimizer was wrapped: wrap it again after unfreezing or adding"
                )


def refuse_replaced(model: nn.Module, exchanged: Sequence[tuple[str, Tensor]], absent: set[int]) -> None:
    """Raise ConfigError where the model trains another parameter than the optimizer, which would train no more.

    Args:
        exchanged: names and parameters whose gradients are exchanged.
        absent: places of those that have no gradient.
    """
    names, known = plain_names(model), {id(parameter) for _, parameter in exchanged}
    now = {names[name]: parameter for name, parameter in model.named_parameters()}
    for name in (exchanged[number][0] for number in sorted(absent)):
        parameter = now.get(name)
        if parameter is not None and parameter.grad is not None and id(parameter) not in known:
            raise ConfigError(
                f"parameter {name} of the model was replaced by another after the optimizer was wrapped, and the "
                "optimizer would go on with the old one: convert and change the model first, then make the optimizer "
                "and wrap it"
            )

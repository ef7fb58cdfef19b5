"""From a configuration to the objects that train: data, model, loss, optimizer, schedule."""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn
from torch.optim.lr_scheduler import LambdaLR

from mpisparse import memory as memories
from mpisparse import sparsifiers
from mpisparse.comm import Communicator, agreed
from mpisparse.errors import ConfigError
from mpisparse.flat import Layout
from mpisparse.optim import DistributedOptimizer
from mpisparse.phases import Phases
from mpisparse.sampler import Sampler
from mpisparse.training import config as schema
from mpisparse.training.data import HOMES, LOADERS, Dataset, Split
from mpisparse.training.data.files import missing
from mpisparse.training.models import MODELS, CrossEntropy, LinearSVM, LogisticRegression, Loss
from mpisparse.training.svrg import SVRG
from mpisparse.training.trainer import Trainer
from mpisparse.wire import Wire

#: Options of a data section that are paths.
_PATHS = ("path", "train", "test")


def build_data(section: schema.Data) -> Split:
    """Return the train and test sets. DataError says what is wrong with a file."""
    options = section.model_dump(exclude={"name"}, exclude_none=True)
    options |= {key: _find(options[key], section.name, key) for key in _PATHS if key in options}
    return LOADERS[section.name](**options)


def build_model(section: schema.Model, data: Split, smoothing: float) -> tuple[nn.Module, Loss]:
    """Return the model, its parameters drawn from torch's global generator, and the loss it is trained on."""
    options = section.model_dump(exclude={"name", "l2", "halved", "penalty"})
    model = MODELS[section.name](data.train.input_shape, data.train.num_classes, **options)
    if isinstance(section, schema.LogisticModel):
        assert isinstance(model, LogisticRegression | LinearSVM)
        if smoothing:
            raise ConfigError(f"training.smoothing {smoothing} does nothing with model {section.name}: leave it out")
        return model, model.loss(l2=section.l2, halved=section.halved, sent=section.penalty == "sent")
    return model, CrossEntropy(smoothing=smoothing)


def build_trainer(
    config: schema.RunConfig,
    data: Split,
    comm: Communicator,
    phases: Phases,
    say: Callable[[str], None] | None = None,
) -> Trainer:
    """Return the trainer of a run on `data`, the model drawn from torch's global generator. Collective.

    Args:
        say: takes what `DistributedOptimizer` has to say while it is made.
    """
    with agreed(comm):
        model, loss = build_model(config.model, data, config.training.smoothing)
        sampler = build_sampler(config, data.train, comm)
    optimizer = build_optimizer(config, model, comm, phases, say)
    steps = config.training.length.steps(sampler.steps_per_epoch)
    return Trainer(
        model=model,
        loss=loss,
        data=data.train,
        sampler=sampler,
        optimizer=optimizer,
        schedule=build_schedule(config.schedule, optimizer, steps, sampler.steps_per_epoch),
        options=config.training,
        phases=phases,
        svrg=build_svrg(config, model, loss, data.train, optimizer, sampler, phases),
    )


def build_svrg(
    config: schema.RunConfig,
    model: nn.Module,
    loss: Loss,
    data: Dataset,
    optimizer: DistributedOptimizer,
    sampler: Sampler,
    phases: Phases,
) -> SVRG | None:
    """Return what reduces the variance of this run's gradients, if anything is to."""
    if config.svrg is None:
        return None
    with agreed(optimizer.comm):
        return SVRG(
            model,
            loss,
            data,
            mean=optimizer.exchange.dense_mean,
            comm=optimizer.comm,
            form=config.svrg.form,
            every=config.svrg.every.steps(sampler.steps_per_epoch),
            phases=phases,
        )


def build_plain_optimizer(section: schema.Optimizer, model: nn.Module) -> torch.optim.Optimizer:
    """Return torch's own optimizer that an optimizer section names."""
    kind: type[torch.optim.Optimizer] = getattr(torch.optim, section.name)
    try:
        return kind(model.parameters(), lr=section.lr, **section.options)  # type: ignore[call-arg]
    except (TypeError, ValueError) as error:
        raise ConfigError(f"optimizer {section.name} does not take these options: {error}") from error


def build_optimizer(
    config: schema.RunConfig,
    model: nn.Module,
    comm: Communicator,
    phases: Phases,
    say: Callable[[str], None] | None = None,
) -> DistributedOptimizer:
    """Return the optimizer that exchanges sparsified gradients. Collective."""
    plain = build_plain_optimizer(config.optimizer, model)
    exchange = config.exchange
    sparsifier = build_sparsifier(config.sparsifier)
    return DistributedOptimizer(
        plain,
        model,
        sparsifier=sparsifier,
        memory=build_memory(config.memory, sparsifier),
        wire=Wire(exchange.values, exchange.indices, exchange.gigabits),
        layout=Layout(
            granularity=exchange.granularity,
            bucket_mib=exchange.bucket_mib,
            dense_vectors=exchange.dense_vectors,
            dense_below=exchange.dense_below,
        ),
        dense=exchange.dense,
        nonfinite=exchange.nonfinite,
        clip_norm=config.training.clip_norm or None,
        overlap=exchange.overlap,
        resparsify=None if config.resparsify is None else build_sparsifier(config.resparsify),
        gauge=exchange.gauge,
        check_replicas=config.training.check_replicas,
        diverged=config.training.diverged,
        say=say,
        seed=config.seed,
        comm=comm,
        phases=phases,
    )


def build_sampler(config: schema.RunConfig, data: Dataset, comm: Communicator) -> Sampler:
    """Return what deals this rank its samples."""
    batch = rank_batch(config.training, comm.size)
    return Sampler(len(data), batch, config.seed, comm.rank, comm.size, shuffle=config.training.shuffle)


def rank_batch(section: schema.Training, size: int) -> int:
    """Return the samples of one rank in a step."""
    if section.batch is not None:
        return section.batch
    assert section.global_batch is not None
    batch, rest = divmod(section.global_batch, size)
    if rest or not batch:
        raise ConfigError(
            f"training.global_batch {section.global_batch} cannot be divided by {size} ranks: use a multiple of {size}"
        )
    return batch


def build_sparsifier(section: schema.Sparsifier) -> sparsifiers.Sparsifier:
    """Return the rule that a sparsifier section names."""
    if isinstance(section, schema.DenseSparsifier):
        return sparsifiers.Dense()
    if isinstance(section, schema.ThresholdSparsifier):
        return sparsifiers.Threshold(section.threshold)
    if isinstance(section, schema.GsparSparsifier):
        density = None if section.density is None else _density(section.density, section.schedule)
        return sparsifiers.GSpar(density=density, variance=section.variance, iterations=section.iterations)
    if isinstance(section, schema.QsgdSparsifier):
        return sparsifiers.QSGD(section.bits, section.bucket or None)
    if isinstance(section, schema.TerngradSparsifier):
        return sparsifiers.TernGrad(clip=section.clip)
    if isinstance(section, schema.TrackedTopkSparsifier):
        density = _density(section.density, section.schedule)
        return sparsifiers.TrackedTopK(density, band=section.band, every=section.every)
    rule = sparsifiers.Uniform if isinstance(section, schema.UniformSparsifier) else sparsifiers.TopK
    return rule(_density(section.density, section.schedule))


def build_memory(section: schema.Memory, sparsifier: sparsifiers.Sparsifier) -> memories.Memory:
    """Return the memory that a memory section names."""
    if section.name == "none":
        return memories.NoMemory()
    if section.name == "error_feedback":
        return memories.ErrorFeedback()
    if section.name == "momentum_correction":
        return memories.MomentumCorrection(
            momentum=section.momentum, masking=section.masking, nesterov=section.nesterov
        )
    return memories.default_memory(sparsifier)


def build_schedule(
    section: schema.Schedule, optimizer: DistributedOptimizer, steps: int, steps_per_epoch: int
) -> LambdaLR:
    """Return the learning-rate schedule of a run of `steps` optimizer steps."""
    return LambdaLR(optimizer, learning_rate_factor(section, steps, steps_per_epoch))


def learning_rate_factor(section: schema.Schedule, steps: int, steps_per_epoch: int) -> Callable[[int], float]:
    """Return the function from the steps done to the factor on the learning rate of the next one."""
    period = max(1, section.period.steps(steps_per_epoch))

    def factor(step: int) -> float:
        if step < section.warmup:
            return (step + 1) / (section.warmup + 1)
        share = min(1.0, (step - section.warmup) / max(1, steps - section.warmup))
        if section.name == "cosine":
            return section.final + (1 - section.final) * 0.5 * (1 + math.cos(math.pi * share))
        if section.name == "step":
            return section.factor ** sum(step >= milestone * steps for milestone in section.milestones)
        if section.name == "inverse":
            return 1 / (1 + (step - section.warmup) / period)
        return 1.0

    return factor


def _density(target: float, section: schema.DensitySchedule | None) -> sparsifiers.Density:
    if section is None:
        return target
    if isinstance(section, schema.DenseWarmupSchedule):
        return sparsifiers.DenseWarmup(density=target, steps=section.steps)
    return sparsifiers.Exponential(start=section.start, density=target, steps=section.steps, stages=section.stages)


def _find(path: str, name: str, key: str) -> Path:
    """Return `path`, looked for in $MPISPARSE_DATA when it is relative and not here.

    Raises:
        DataError: it is nowhere.
    """
    here = Path(path).expanduser()
    root = os.environ.get("MPISPARSE_DATA")
    tried = [here] if here.is_absolute() or not root else [here, Path(root).expanduser() / here]
    found = next((place for place in tried if place.exists()), None)
    if found is not None:
        return found
    unset = "" if root or here.is_absolute() else ", or have MPISPARSE_DATA name the folder that holds it"
    home = f" (it comes from {HOMES[name]})" if name in HOMES else ""
    raise missing(f"data.{key} {path!r} of {name} does not exist: give the path of the data{home}{unset}", tried)

"""The contender that is not ours: torch's DistributedDataParallel on the same model, batches and optimizer."""

from __future__ import annotations

from contextlib import nullcontext

import torch
from torch.nn.parallel import DistributedDataParallel
from torch.nn.utils import clip_grad_norm_
from torch.optim.lr_scheduler import LambdaLR

from mpisparse.bench.timing import Contender
from mpisparse.comm import Communicator, agreed
from mpisparse.sampler import Sampler
from mpisparse.training.build import build_model, build_plain_optimizer, build_sampler, learning_rate_factor
from mpisparse.training.config import RunConfig
from mpisparse.training.data import Dataset, Split
from mpisparse.training.models import Loss


def ddp_contender(name: str, comm: Communicator, run: RunConfig, data: Split) -> Contender:
    """Return a contender that takes the run's steps over torch.distributed's default group. Collective."""
    torch.manual_seed(run.seed)
    with agreed(comm):
        model, loss = build_model(run.model, data, run.training.smoothing)
        sampler = build_sampler(run, data.train, comm)
        optimizer = build_plain_optimizer(run.optimizer, model)
    steps = _Steps(DistributedDataParallel(model), loss, data.train, sampler, optimizer, run)

    def inspect(samples: int) -> dict[str, float]:
        numel = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
        # Gloo tells no bytes: those of a ring.
        return {"sent": 4.0 * numel, "received": float(2 * (comm.size - 1) * 4 * numel // comm.size), "density": 1.0}

    return Contender(name=name, run=steps.take, inspect=inspect)


class _Steps:
    """Takes the steps that `training.trainer.Trainer` takes, by torch's own means."""

    def __init__(
        self,
        model: DistributedDataParallel,
        loss: Loss,
        data: Dataset,
        sampler: Sampler,
        optimizer: torch.optim.Optimizer,
        run: RunConfig,
    ) -> None:
        self.model, self.loss, self.data, self.sampler = model, loss, data, sampler
        self.optimizer, self.options = optimizer, run.training
        length = run.training.length.steps(sampler.steps_per_epoch)
        self.schedule = LambdaLR(optimizer, learning_rate_factor(run.schedule, length, sampler.steps_per_epoch))

    def take(self) -> int:
        """Take one step, and return this rank's samples in it. Collective."""
        indices = self.sampler.next().indices
        if indices.numel() == 0:
            # Without a backward pass the other ranks would wait for this one.
            indices = torch.zeros(1, dtype=torch.int64, device="cpu")
        self.optimizer.zero_grad()
        parts = torch.split(indices, self.options.microbatch or indices.numel())
        for number, part in enumerate(parts, start=1):
            inputs, targets = self.data.batch(part)
            with nullcontext() if number == len(parts) else self.model.no_sync():
                loss = self.loss(self.model(inputs), targets) * (part.numel() / indices.numel())
                loss.backward()  # type: ignore[no-untyped-call]
        if self.options.clip_norm:
            clip_grad_norm_(self.model.parameters(), self.options.clip_norm)
        self.optimizer.step()
        self.schedule.step()
        return indices.numel()

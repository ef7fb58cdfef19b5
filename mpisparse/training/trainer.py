"""Trainer: the loop. Everything it changes is state that a checkpoint holds."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import replace
from typing import Any

import torch
from torch import nn
from torch.optim.lr_scheduler import LambdaLR

from mpisparse.errors import CheckpointError
from mpisparse.exchange import Traffic
from mpisparse.optim import DistributedOptimizer
from mpisparse.phases import Phases
from mpisparse.runtime.runlog import StepRecord
from mpisparse.sampler import Sampler, Share
from mpisparse.training.config import Training
from mpisparse.training.data import Dataset
from mpisparse.training.models import Loss
from mpisparse.training.section import Duration
from mpisparse.training.svrg import SVRG, Refreshed


class Trainer:
    """Takes optimizer steps on this rank's samples, and knows its own state."""

    def __init__(
        self,
        *,
        model: nn.Module,
        loss: Loss,
        data: Dataset,
        sampler: Sampler,
        optimizer: DistributedOptimizer,
        schedule: LambdaLR,
        options: Training,
        phases: Phases,
        svrg: SVRG | None = None,
    ) -> None:
        self.model = model
        self.loss = loss
        self.data = data
        self.sampler = sampler
        self.optimizer = optimizer
        self.schedule = schedule
        self.options = options
        self.phases = phases
        self.svrg = svrg
        self.steps_done = 0
        #: Sample gradients computed so far, by all ranks together.
        self.gradients_done = 0

    def step(self) -> StepRecord:
        """Take one optimizer step, and return what this rank did in it. Collective."""
        refreshed = self.svrg.refresh() if self.svrg is not None and self.svrg.due(self.position) else None
        with self.phases("data"):
            share = self.sampler.next()
        with self.phases("compute"):
            self.optimizer.zero_grad()
        samples = share.indices.numel()
        # Here the ranks have just met, at the end of the last step: to agree costs the least.
        self.optimizer.expect(samples=samples)
        loss_sum = self._accumulate(share)
        learning_rate = float(self.optimizer.param_groups[0]["lr"])
        skipped_before = self.optimizer.skipped
        self.optimizer.synchronize(samples=samples)
        self._add_unsent()
        self.optimizer.step()
        self.schedule.step()
        self.steps_done += 1
        gradients = share.global_count * (1 if self.svrg is None else 2) + len(self.data) * (refreshed is not None)
        self.gradients_done += gradients
        return StepRecord(
            step=self.steps_done,
            epoch=share.epoch,
            learning_rate=learning_rate,
            loss_sum=loss_sum,
            samples=samples,
            gradients=gradients,
            traffic=_with(refreshed, self.optimizer.traffic),
            seconds=self.phases.take(),
            hidden=self.optimizer.hidden_seconds,
            skipped=self.optimizer.skipped_because if self.optimizer.skipped > skipped_before else "",
        )

    @property
    def progress(self) -> int:
        """Return how many of the run's steps are behind it: `steps_done`, unless epochs had other numbers of them.

        A run whose length is in epochs ends with an epoch, and its schedule follows the epochs, whatever number of
        ranks did the steps so far.
        """
        return self.position if self.options.length.unit == "epochs" else self.steps_done

    @property
    def position(self) -> int:
        """Return the steps to where the data is now, all by as many ranks as there are."""
        return (self.sampler.epoch + 1) * self.sampler.steps_per_epoch - self.sampler.steps_left

    def is_due(self, every: Duration) -> bool:
        """Return True when another length of training has passed with the last step; never for a length of 0."""
        steps = every.steps(self.sampler.steps_per_epoch)
        return steps > 0 and (self.position if every.unit == "epochs" else self.steps_done) % steps == 0

    def _accumulate(self, share: Share) -> float:
        """Add up the gradient of this rank's mean loss, a microbatch at a time, and return the sum of the losses."""
        samples = share.indices.numel()
        loss_sum = 0.0
        if samples == 0:
            return loss_sum
        *first, last = torch.split(share.indices, self.options.microbatch or samples)
        for part in (*first, last):
            with self.phases("data"):
                inputs, targets = self.data.batch(part)
            with self.phases("compute"), nullcontext() if part is last else self.optimizer.no_sync():
                loss = self.loss(self.model(inputs), targets)
                whole = loss if self.svrg is None else loss + self.svrg.correction(inputs, targets)
                weighted = whole if part.numel() == samples else whole * (part.numel() / samples)
                weighted.backward()  # type: ignore[no-untyped-call]
                loss_sum += float(loss.detach()) * part.numel()
        if self.loss.local_penalty is not None:
            loss_sum += float(self.loss.local_penalty.exact()) * samples
        return loss_sum

    def _add_unsent(self) -> None:
        """Add to the averaged gradient what all ranks know without an exchange."""
        with self.phases("apply"):
            if self.svrg is not None:
                self.svrg.add_full()
            if self.loss.local_penalty is not None:
                self.loss.local_penalty.add_gradient()

    def replicated_state(self) -> dict[str, Any]:
        """Return what is the same on every rank."""
        return {
            "model": dict(self.model.state_dict()),
            "optimizer": self.optimizer.optimizer.state_dict(),
            "sampler": self.sampler.state_dict(),
            "steps_done": self.steps_done,
            "gradients_done": self.gradients_done,
            "svrg": {} if self.svrg is None else self.svrg.state_dict(),
        }

    def rank_state(self) -> dict[str, Any]:
        """Return what is this rank's own: memory, random state, and the running statistics of its samples."""
        return {
            "exchange": self.optimizer.exchange.state_dict(),
            "random": torch.get_rng_state(),
            "buffers": dict(self.model.named_buffers()),
        }

    def load_state(self, replicated: dict[str, Any], own: dict[str, Any]) -> None:
        """Take up the state that was saved on this rank.

        Raises:
            CheckpointError: it belongs to another model.
        """
        try:
            self.model.load_state_dict(replicated["model"])
        except RuntimeError as error:
            raise CheckpointError(f"the saved model is not this one: {error}") from error
        with torch.no_grad():
            for name, buffer in self.model.named_buffers():
                buffer.copy_(own["buffers"][name])
        self._load_optimizer(replicated["optimizer"])
        self.optimizer.exchange.load_state_dict(own["exchange"])
        self.sampler.load_state_dict(replicated["sampler"])
        self.steps_done = replicated["steps_done"]
        # Checkpoints of version 0.1.0 have no count, and no svrg: a gradient a sample.
        dealt = replicated["sampler"]["epoch"] * len(self.data) + replicated["sampler"]["consumed"]
        self.gradients_done = replicated.get("gradients_done", dealt)
        if self.svrg is not None:
            self.svrg.load_state_dict(replicated["svrg"])
        self._schedule_from(self.progress)
        torch.set_rng_state(own["random"])

    def _load_optimizer(self, state: dict[str, Any]) -> None:
        """Take up the optimizer's state, but not its options: those of this run's configuration count."""
        options = [{k: v for k, v in group.items() if k != "params"} for group in self.optimizer.param_groups]
        self.optimizer.optimizer.load_state_dict(state)
        for group, ours in zip(self.optimizer.param_groups, options, strict=True):
            group.update(ours)

    def _schedule_from(self, progress: int) -> None:
        """Set the learning rates to those of the next step, which the run's length may have changed."""
        self.schedule.last_epoch = progress
        schedule = zip(self.optimizer.param_groups, self.schedule.base_lrs, self.schedule.lr_lambdas, strict=True)
        for group, base, factor in schedule:
            group["lr"] = base * factor(progress)


def _with(refreshed: Refreshed | None, traffic: Traffic) -> Traffic:
    """Return the traffic of a step with that of a new reference. The density of messages does not count the latter."""
    if refreshed is None:
        return traffic
    return replace(
        traffic,
        payload=traffic.payload + refreshed.payload,
        received=traffic.received + refreshed.received,
        dense=traffic.dense + refreshed.dense,
    )

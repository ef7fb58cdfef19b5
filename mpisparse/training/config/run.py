"""A whole run: how long, what is kept of it, and every other section."""

from __future__ import annotations

from typing import Annotated, Any, Literal, get_args

from pydantic import Field, NonNegativeInt, PositiveInt, model_validator

from mpisparse.divergence import Diverged
from mpisparse.training.config.asynchronous import Asynchronous, refuse_useless
from mpisparse.training.config.data import Data
from mpisparse.training.config.exchange import Exchange, Memory
from mpisparse.training.config.model import Model
from mpisparse.training.config.optimizer import Optimizer, Schedule
from mpisparse.training.config.sparsifier import DenseSparsifier, Sparsifier
from mpisparse.training.config.types import Seed
from mpisparse.training.section import DurationField, Section


class Svrg(Section):
    """Stochastic variance-reduced gradients (Johnson and Zhang 2013), for convex problems.

    every: length of training after which the reference is taken anew, and its full gradient exchanged, dense.
    form: "whole" sparsifies the difference of the two gradients together with the full gradient; "difference" the
        difference alone, and the full gradient, which all ranks hold, is added afterwards.
    """

    every: DurationField = Field(default="2 epochs")  # type: ignore[assignment]
    form: Literal["whole", "difference"] = "difference"


class Training(Section):
    """Length, batches and evaluation.

    batch: samples of one rank in a step; or
    global_batch: samples of all ranks together, which stays the same on any number of ranks. One of the two.
    microbatch: at most so many samples a backward pass; a step adds up several.
    clip_norm: largest norm of the averaged gradient; 0 leaves it alone.
    objective: evaluate the training objective too, over all train samples in float64, at step 0 as well, and its
        distance from the least value, where model and penalty allow to find that.
    log_every: steps between writes to the run log (every step is in it all the same).
    watchdog: seconds that a rank may wait for the others, whatever for, before the job ends; 0 is for ever.
    time_limit: seconds from the start of the program after which it will be ended from outside; it saves and ends by
        itself before. 0 is no limit.
    check_replicas: steps after which all ranks compare their models; 0 never does.
    diverged: what to do when a model differs: end the run, or give all ranks what most of them hold.
    """

    length: DurationField
    batch: PositiveInt | None = None
    global_batch: PositiveInt | None = None
    microbatch: PositiveInt | None = None
    shuffle: bool = True
    clip_norm: Annotated[float, Field(ge=0)] = 0.0
    smoothing: Annotated[float, Field(ge=0, lt=1)] = 0.0
    evaluate: DurationField = Field(default="1 epoch")  # type: ignore[assignment]
    objective: bool = False
    log_every: PositiveInt = 20
    watchdog: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 600.0
    time_limit: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.0
    check_replicas: NonNegativeInt = 100
    diverged: Diverged = "raise"

    @model_validator(mode="after")
    def _one_batch(self) -> Training:
        if (self.batch is None) == (self.global_batch is None):
            raise ValueError("give batch (of one rank) or global_batch (of all ranks), one of the two")
        return self


class Checkpoint(Section):
    """When state is saved, and how many checkpoints are kept. Length 0 saves only at the end.

    asynchronous: copy the state, which takes as much memory again on the host, and write it while training goes on;
        else training waits until it is on the disk.
    shared: one file for what all ranks alone hold, through parallel HDF5 where h5py has it, for file systems that
        prefer few files; training waits until it is on the disk.
    on_failure: when a save fails, as on a full disk: "warn" and go on to the next one, or "raise". The last save of a
        run always raises.
    reshape: what to do with a checkpoint of another number of ranks: "redistribute" what they held back, so that its
        mean over ranks is conserved, "drop" it, or "refuse" to go on.
    """

    every: DurationField = Field(default="5 epochs")  # type: ignore[assignment]
    keep: PositiveInt = 3
    asynchronous: bool = True
    shared: bool = False
    on_failure: Literal["warn", "raise"] = "warn"
    reshape: Literal["redistribute", "drop", "refuse"] = "redistribute"


class RunConfig(Section):
    """A whole run."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]
    seed: Seed = 0
    data: Data
    model: Model
    training: Training
    optimizer: Optimizer = Field(default_factory=Optimizer)
    schedule: Schedule = Field(default_factory=Schedule)
    sparsifier: Sparsifier = Field(default_factory=lambda: DenseSparsifier(name="dense"))
    memory: Memory = Field(default_factory=Memory)
    exchange: Exchange = Field(default_factory=Exchange)
    resparsify: Sparsifier | None = None
    svrg: Svrg | None = None
    asynchronous: Asynchronous | None = None
    checkpoint: Checkpoint = Field(default_factory=Checkpoint)

    @model_validator(mode="after")
    def _asynchronous_is_possible(self) -> RunConfig:
        if self.asynchronous is not None:
            refuse_useless(self)
        return self


def _by_name(choice: Any) -> dict[str, type[Section]]:
    kinds = get_args(get_args(choice)[0])
    return {get_args(kind.model_fields["name"].annotation)[0]: kind for kind in kinds}


#: Sections that have the keys of what their `name` names, and what each name stands for.
CHOICES: dict[str, dict[str, type[Section]]] = {
    "data": _by_name(Data),
    "model": _by_name(Model),
    "sparsifier": _by_name(Sparsifier),
}

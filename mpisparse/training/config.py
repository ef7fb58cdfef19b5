"""The run configuration: every key that a TOML file may hold, with its type, default and meaning.

A run is one file of about twenty lines. Sections with a `name` have the keys of what they name.
"""

from __future__ import annotations

import inspect
from typing import Annotated, Any, Literal, get_args

import torch
from pydantic import ConfigDict, Field, PositiveInt, model_validator

from mpisparse.training.section import DurationField, Section, unknown_key
from mpisparse.wire import IndexCoding, ValueCoding

Density = Annotated[float, Field(gt=0, le=1)]
Seed = Annotated[int, Field(ge=0, lt=2**63)]

# What is trained on -------------------------------------------------------------------------------------------------


class DigitsData(Section):
    """The UCI handwritten digits, 8x8, that come with the package."""

    name: Literal["digits"]


class MnistData(Section):
    """MNIST idx files in the folder `path`, plain or .gz."""

    name: Literal["mnist"]
    path: str
    train_limit: PositiveInt | None = None
    test_limit: PositiveInt | None = None


class Cifar10Data(Section):
    """CIFAR-10: a folder of original batches, or a file of JPEG images in HDF5."""

    name: Literal["cifar10"]
    path: str
    train_limit: PositiveInt | None = None
    test_limit: PositiveInt | None = None


class LibsvmData(Section):
    """LIBSVM text files, plain or compressed; without `test` a fifth of `train` is held out."""

    name: Literal["libsvm"]
    train: str
    test: str | None = None
    features: PositiveInt | None = None


class TextData(Section):
    """A text file by characters, in windows of `length`; the last tenth is held out."""

    name: Literal["text"]
    path: str
    length: PositiveInt = 64
    stride: PositiveInt | None = None


class SyntheticData(Section):
    """The GSpar paper's generator: Gaussian samples whose coordinates differ in size, the more the smaller c1 is."""

    name: Literal["synthetic"]
    samples: PositiveInt = 1024
    features: PositiveInt = 2048
    c1: float = 0.6
    c2: float = 0.25
    seed: Seed = 0
    label_from: Literal["raw", "scaled"] = "raw"
    test_samples: PositiveInt = 1024


class SyntheticSvmData(Section):
    """The generator of the paper's asynchronous experiment."""

    name: Literal["synthetic_svm"]
    samples: PositiveInt = 51_200
    features: PositiveInt = 256
    c1: float = 0.01
    c2: float = 0.9
    seed: Seed = 0
    noise: float = 1.0
    test_samples: PositiveInt = 1024


Data = Annotated[
    DigitsData | MnistData | Cifar10Data | LibsvmData | TextData | SyntheticData | SyntheticSvmData,
    Field(discriminator="name"),
]

# What is trained ----------------------------------------------------------------------------------------------------


class LogisticModel(Section):
    """l2-regularised logistic regression; `halved` writes the penalty as l2 / 2 * ||w||^2."""

    name: Literal["logistic"]
    l2: Annotated[float, Field(ge=0)] = 0.0
    halved: bool = True
    bias: bool = False


class SvmModel(LogisticModel):
    """A linear support vector machine with hinge loss."""

    name: Literal["svm"]  # type: ignore[assignment]


class MlpModel(Section):
    """A multilayer perceptron with ReLU."""

    name: Literal["mlp"]
    hidden: Annotated[tuple[PositiveInt, ...], Field(strict=False)] = (256,)


class SmallCnnModel(Section):
    """Two convolutions and a hidden layer, for small grey images."""

    name: Literal["small_cnn"]
    channels: PositiveInt = 16
    hidden: PositiveInt = 64


class CnnModel(Section):
    """The GSpar paper's CIFAR network: three convolutions of `channels` each, batch norm, one hidden layer."""

    name: Literal["cnn"]
    channels: PositiveInt = 32
    hidden: PositiveInt = 256


class ResnetModel(Section):
    """A residual network for CIFAR; `depth` is 6 n + 2."""

    name: Literal["resnet"]
    depth: PositiveInt = 20
    width: PositiveInt = 16


class TransformerModel(Section):
    """A decoder-only transformer over characters."""

    name: Literal["transformer"]
    layers: PositiveInt = 4
    width: PositiveInt = 128
    heads: PositiveInt = 4
    tied: bool = True


Model = Annotated[
    LogisticModel | SvmModel | MlpModel | SmallCnnModel | CnnModel | ResnetModel | TransformerModel,
    Field(discriminator="name"),
]


def optimizer_options() -> dict[str, set[str]]:
    """Return the names of torch's optimizers, and the options of each."""
    return {
        name: set(inspect.signature(kind).parameters) - {"params"}
        for name, kind in vars(torch.optim).items()
        if inspect.isclass(kind) and issubclass(kind, torch.optim.Optimizer) and kind is not torch.optim.Optimizer
    }


class Optimizer(Section):
    """Any optimizer of torch.optim by name, with its own options beside `name` and `lr`."""

    model_config = ConfigDict(extra="allow", frozen=True, strict=True)

    name: str = "SGD"
    lr: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 0.1

    @model_validator(mode="after")
    def _check_options(self) -> Optimizer:
        kinds = optimizer_options()
        if self.name not in kinds:
            raise ValueError(
                unknown_key(self.name, kinds).replace("unknown key", "no optimizer").replace("keys", "names")
            )
        for key in self.options:
            if key not in kinds[self.name]:
                raise ValueError(f"{self.name}: {unknown_key(key, kinds[self.name])}")
        return self

    @property
    def options(self) -> dict[str, Any]:
        """Return the options beside name and lr."""
        return dict(self.model_extra or {})


class Schedule(Section):
    """The learning rate: linear warm-up over `warmup` steps, then constant, cosine to `final`, or steps.

    final: share of the learning rate that cosine ends at.
    milestones: shares of the run after which "step" multiplies by `factor`.
    """

    name: Literal["constant", "cosine", "step"] = "constant"
    warmup: Annotated[int, Field(ge=0)] = 0
    final: Annotated[float, Field(ge=0, le=1)] = 0.0
    milestones: Annotated[tuple[Annotated[float, Field(gt=0, lt=1)], ...], Field(strict=False)] = (0.5, 0.75)
    factor: Annotated[float, Field(gt=0, le=1)] = 0.1


# What is sent -------------------------------------------------------------------------------------------------------


class DenseWarmupSchedule(Section):
    """Everything is sent for `steps` steps, the target density afterwards."""

    name: Literal["dense_warmup"]
    steps: PositiveInt


class ExponentialSchedule(Section):
    """Density falls geometrically from `start` to the target within `steps` steps, in `stages` plateaus if given."""

    name: Literal["exponential"]
    steps: PositiveInt
    start: Density = 0.25
    stages: PositiveInt | None = None


DensitySchedule = Annotated[DenseWarmupSchedule | ExponentialSchedule, Field(discriminator="name")]


class DenseSparsifier(Section):
    """Send everything."""

    name: Literal["dense"]


class TopkSparsifier(Section):
    """Send the share `density` of entries that are largest."""

    name: Literal["topk"]
    density: Density = 0.01
    schedule: DensitySchedule | None = None


class TrackedTopkSparsifier(TopkSparsifier):
    """Send about the share `density` of entries that are largest, by a threshold that follows them.

    band: largest deviation of the count; every: steps after which the threshold is taken anew, 0 for never.
    """

    name: Literal["tracked_topk"]  # type: ignore[assignment]
    band: Annotated[float, Field(gt=0, lt=1)] = 0.2
    every: Annotated[int, Field(ge=0)] = 100


class UniformSparsifier(TopkSparsifier):
    """Send each entry with probability `density`, scaled up."""

    name: Literal["uniform"]  # type: ignore[assignment]


class ThresholdSparsifier(Section):
    """Send the entries of absolute value `threshold` and more."""

    name: Literal["threshold"]
    threshold: Annotated[float, Field(gt=0)]


class GsparSparsifier(Section):
    """GSpar: send entries with probability in proportion to their size, scaled up.

    density: expected share of entries, or
    variance: how much the second moment may grow, the paper's epsilon; one of the two.
    iterations: rescalings of the greedy form (the paper uses 2); exact when left out.
    """

    name: Literal["gspar"]
    density: Density | None = None
    variance: Annotated[float, Field(ge=0)] | None = None
    iterations: Annotated[int, Field(ge=0)] | None = None
    schedule: DensitySchedule | None = None

    @model_validator(mode="after")
    def _one_target(self) -> GsparSparsifier:
        if (self.density is None) == (self.variance is None):
            raise ValueError("give density or variance, one of the two")
        return self


Sparsifier = Annotated[
    DenseSparsifier
    | TopkSparsifier
    | TrackedTopkSparsifier
    | UniformSparsifier
    | ThresholdSparsifier
    | GsparSparsifier,
    Field(discriminator="name"),
]


class Memory(Section):
    """What is kept of the rest: "auto" is error feedback for biased rules, nothing for unbiased ones."""

    name: Literal["auto", "none", "error_feedback", "momentum_correction"] = "auto"
    momentum: Annotated[float, Field(gt=0, lt=1)] = 0.9
    masking: bool = True
    nesterov: bool = False


class Exchange(Section):
    """How messages are cut, written and averaged.

    granularity, bucket_mib, dense_vectors, dense_below: what is selected from as one, and what is never sparsified.
    values: value coding of messages.
    dense: how whole tensors are averaged: "pieces" gives the same bits on every MPI, "bfloat16" rounds them and halves
        their bytes, "allreduce" is the library's own.
    indices: index coding of messages.
    gigabits: speed of the network in Gbit/s, from which indices "auto" judges what bytes are worth.
    nonfinite: what to do when a gradient holds NaN or infinity.
    overlap: send buckets while backward still runs: "on", "off", or "auto", which tries both; the bits are the same.
    """

    granularity: Literal["model", "tensor", "bucket"] = "model"
    bucket_mib: Annotated[float, Field(gt=0)] = 25.0
    dense_vectors: bool = True
    dense_below: Annotated[int, Field(ge=0)] = 0
    dense: Literal["pieces", "bfloat16", "allreduce"] = "pieces"
    values: ValueCoding = "auto"
    indices: IndexCoding = "auto"
    gigabits: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 1.0
    nonfinite: Literal["raise", "skip"] = "raise"
    overlap: Literal["auto", "on", "off"] = "auto"


# How long, and what is kept of it -----------------------------------------------------------------------------------


class Training(Section):
    """Length, batches and evaluation.

    batch: samples of one rank in a step; or
    global_batch: samples of all ranks together, which stays the same on any number of ranks. One of the two.
    microbatch: at most so many samples a backward pass; a step adds up several.
    clip_norm: largest norm of the averaged gradient; 0 leaves it alone.
    log_every: steps between writes to the run log (every step is in it all the same).
    """

    length: DurationField
    batch: PositiveInt | None = None
    global_batch: PositiveInt | None = None
    microbatch: PositiveInt | None = None
    shuffle: bool = True
    clip_norm: Annotated[float, Field(ge=0)] = 0.0
    smoothing: Annotated[float, Field(ge=0, lt=1)] = 0.0
    evaluate: DurationField = Field(default="1 epoch")  # type: ignore[assignment]
    log_every: PositiveInt = 20

    @model_validator(mode="after")
    def _one_batch(self) -> Training:
        if (self.batch is None) == (self.global_batch is None):
            raise ValueError("give batch (of one rank) or global_batch (of all ranks), one of the two")
        return self


class Checkpoint(Section):
    """When state is saved, and how many checkpoints are kept. Length 0 saves only at the end."""

    every: DurationField = Field(default="5 epochs")  # type: ignore[assignment]
    keep: PositiveInt = 3


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
    checkpoint: Checkpoint = Field(default_factory=Checkpoint)


def _by_name(choice: Any) -> dict[str, type[Section]]:
    kinds = get_args(get_args(choice)[0])
    return {get_args(kind.model_fields["name"].annotation)[0]: kind for kind in kinds}


#: Sections that have the keys of what their `name` names, and what each name stands for.
CHOICES: dict[str, dict[str, type[Section]]] = {
    "data": _by_name(Data),
    "model": _by_name(Model),
    "sparsifier": _by_name(Sparsifier),
}

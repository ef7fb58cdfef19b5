"""The run configuration: every key that a TOML file may hold, with its type, default and meaning.

A run is one file of about twenty lines. Sections with a `name` have the keys of what they name.
"""

from mpisparse.training.config.asynchronous import Asynchronous
from mpisparse.training.config.data import Data, DigitsData, SyntheticData
from mpisparse.training.config.exchange import Exchange, Memory
from mpisparse.training.config.model import LogisticModel, Model, SvmModel
from mpisparse.training.config.optimizer import Optimizer, Schedule, optimizer_options
from mpisparse.training.config.run import CHOICES, Checkpoint, RunConfig, Training
from mpisparse.training.config.sparsifier import (
    DenseSparsifier,
    DenseWarmupSchedule,
    DensitySchedule,
    ExponentialSchedule,
    GsparSparsifier,
    QsgdSparsifier,
    Sparsifier,
    TerngradSparsifier,
    ThresholdSparsifier,
    TrackedTopkSparsifier,
    UniformSparsifier,
)

__all__ = [
    "CHOICES",
    "Asynchronous",
    "Checkpoint",
    "Data",
    "DenseSparsifier",
    "DenseWarmupSchedule",
    "DensitySchedule",
    "DigitsData",
    "Exchange",
    "ExponentialSchedule",
    "GsparSparsifier",
    "LogisticModel",
    "Memory",
    "Model",
    "Optimizer",
    "QsgdSparsifier",
    "RunConfig",
    "Schedule",
    "Sparsifier",
    "SvmModel",
    "SyntheticData",
    "TerngradSparsifier",
    "ThresholdSparsifier",
    "TrackedTopkSparsifier",
    "Training",
    "UniformSparsifier",
    "optimizer_options",
]

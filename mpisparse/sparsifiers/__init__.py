"""What to send: one rule a file behind one contract."""

from __future__ import annotations

from mpisparse.sparsifiers.base import Sparsifier, Tracked
from mpisparse.sparsifiers.dense import Dense
from mpisparse.sparsifiers.density import Density, Schedule
from mpisparse.sparsifiers.gspar import GSpar
from mpisparse.sparsifiers.qsgd import QSGD
from mpisparse.sparsifiers.schedules import DenseWarmup, Exponential
from mpisparse.sparsifiers.terngrad import TernGrad
from mpisparse.sparsifiers.threshold import Threshold
from mpisparse.sparsifiers.topk import TopK
from mpisparse.sparsifiers.tracked import TrackedTopK
from mpisparse.sparsifiers.uniform import Uniform

__all__ = [
    "QSGD",
    "Dense",
    "DenseWarmup",
    "Density",
    "Exponential",
    "GSpar",
    "Schedule",
    "Sparsifier",
    "TernGrad",
    "Threshold",
    "TopK",
    "Tracked",
    "TrackedTopK",
    "Uniform",
]

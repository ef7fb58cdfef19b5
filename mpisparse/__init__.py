"""Data-parallel PyTorch training over MPI with sparsified gradients.

Five lines make a plain PyTorch program distributed:

    import mpisparse as ms

    ms.init()
    optimizer = ms.DistributedOptimizer(optimizer, model, sparsifier=ms.TopK(density=0.01))
    for inputs, targets in ms.shard(loader):
        ...
"""

from mpisparse import wire
from mpisparse.checkpoint import Checkpointer
from mpisparse.comm import Communicator, world
from mpisparse.divergence import Divergence, check_replicas
from mpisparse.errors import (
    CheckpointError,
    CommError,
    ConfigError,
    DataError,
    HangError,
    LaunchError,
    MpiSparseError,
    NonFiniteError,
    RankMismatchError,
    WireError,
)
from mpisparse.flat import Layout
from mpisparse.memory import ErrorFeedback, Memory, MomentumCorrection, NoMemory
from mpisparse.metrics import broadcast_object, is_main, mean, rank, size
from mpisparse.optim import DistributedOptimizer
from mpisparse.runtime import Preemption, Watchdog, init
from mpisparse.shard import shard
from mpisparse.sparse import SparseVector
from mpisparse.sparsifiers import (
    QSGD,
    Dense,
    DenseWarmup,
    Exponential,
    GSpar,
    TernGrad,
    Threshold,
    TopK,
    TrackedTopK,
    Uniform,
)
from mpisparse.version import __version__
from mpisparse.wire import Wire

__all__ = [
    "QSGD",
    "CheckpointError",
    "Checkpointer",
    "CommError",
    "Communicator",
    "ConfigError",
    "DataError",
    "Dense",
    "DenseWarmup",
    "DistributedOptimizer",
    "Divergence",
    "ErrorFeedback",
    "Exponential",
    "GSpar",
    "HangError",
    "LaunchError",
    "Layout",
    "Memory",
    "MomentumCorrection",
    "MpiSparseError",
    "NoMemory",
    "NonFiniteError",
    "Preemption",
    "RankMismatchError",
    "SparseVector",
    "TernGrad",
    "Threshold",
    "TopK",
    "TrackedTopK",
    "Uniform",
    "Watchdog",
    "Wire",
    "WireError",
    "__version__",
    "broadcast_object",
    "check_replicas",
    "init",
    "is_main",
    "mean",
    "rank",
    "shard",
    "size",
    "wire",
    "world",
]

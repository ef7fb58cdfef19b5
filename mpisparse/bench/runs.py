"""Which runs `mpisparse bench step` compares: one from a file or built in, and what is made of it."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from pathlib import Path

from mpisparse.errors import ConfigError
from mpisparse.optim import DistributedOptimizer
from mpisparse.training.config import DenseSparsifier, Exchange, Memory, RunConfig
from mpisparse.training.configfile import read_config, read_text

_OPTIONS = inspect.signature(DistributedOptimizer.__init__).parameters

#: The run that is measured when none is given: jobs/bench-mlp.toml.
BUILT_IN = """
name = "bench-mlp"

[data]
name = "digits"

[model]
name = "mlp"
hidden = [3200, 3200]

[training]
length = "100 steps"
batch = 8
evaluate = "100 steps"

[optimizer]
name = "SGD"
lr = 0.01
momentum = 0.9

[sparsifier]
name = "topk"
density = 0.01
"""


def read_run(path: Path | None, settings: Sequence[str]) -> RunConfig:
    """Return the run to measure: a file's or the built-in one, with settings over it, at its target density.

    Raises:
        ConfigError: see `read_config`; or the run sends everything, so that there is nothing to compare.
    """
    run = read_text(BUILT_IN, "the built-in run", settings) if path is None else read_config(path, settings)
    if run.sparsifier.name == "dense":
        raise ConfigError(
            "the configuration sends everything, as its dense baseline does: give --set sparsifier.name=topk"
        )
    if getattr(run.sparsifier, "schedule", None) is not None:
        # The first steps of a schedule are denser than those that a run consists of.
        run = run.model_copy(update={"sparsifier": run.sparsifier.model_copy(update={"schedule": None})})
    return run


def dense_of(run: RunConfig) -> RunConfig:
    """Return the same run with everything sent."""
    exchange = run.exchange.model_copy(update={"values": "auto"})
    changes = {"sparsifier": DenseSparsifier(name="dense"), "memory": Memory(), "exchange": exchange}
    return run.model_copy(update=changes)


def with_overlap(run: RunConfig, overlap: str) -> RunConfig | None:
    """Return the same run that exchanges while backward runs, or after it; None where this version has no choice."""
    if "overlap" not in Exchange.model_fields or "overlap" not in _OPTIONS:
        return run if overlap == "off" else None
    return run.model_copy(update={"exchange": run.exchange.model_copy(update={"overlap": overlap})})

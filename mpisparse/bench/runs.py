"""Which runs `mpisparse bench step` compares: one from a file or built in, and what is made of it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from mpisparse.errors import ConfigError
from mpisparse.training.config import DenseSparsifier, Memory, RunConfig
from mpisparse.training.configfile import read_config, read_text

#: The run that is measured when none is given: jobs/bench-mlp.toml.
BUILT_IN = """
name = "bench-mlp"

[data]
name = "digits"

[model]
name = "mlp"
hidden = [1600, 1600, 1600, 1600, 1600]

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

[exchange]
granularity = "bucket"
bucket_mib = 10
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


def without_overlap(run: RunConfig) -> RunConfig:
    """Return the same run, exchanging after `backward`."""
    return _with(run, "off")


def with_overlap(run: RunConfig, size: int) -> tuple[RunConfig | None, str]:
    """Return the same run, exchanging while `backward` still runs; or None, and why that cannot be measured.

    Args:
        size: ranks.
    """
    if size == 1:
        return None, "not measured with overlap: one rank exchanges nothing"
    if run.exchange.granularity == "model":
        reason = "the selection is over the whole model, so no message can leave before backward ends"
        return None, f"not measured with overlap: {reason}. Try --set exchange.granularity=bucket"
    return _with(run, "on"), ""


def _with(run: RunConfig, overlap: str) -> RunConfig:
    return run.model_copy(update={"exchange": run.exchange.model_copy(update={"overlap": overlap})})

"""check_run: what a run would refuse before its first step, found without ranks and without writing anything."""

from __future__ import annotations

from mpisparse.comm import solo
from mpisparse.phases import Phases
from mpisparse.training.asynchronous.run import check_asynchronous
from mpisparse.training.build import build_trainer, rank_batch
from mpisparse.training.config import RunConfig
from mpisparse.training.console import ignore
from mpisparse.training.kept import Kept


def check_run(config: RunConfig, ranks: int | None = None) -> str:
    """Return the run's data in words, having loaded it and built all that `run_training` would build of it.

    Args:
        ranks: how many the run is to have, if that is known: it must divide a `global_batch`.

    Raises:
        MpiSparseError: what the run would raise, in the same words.
    """
    comm = solo()
    if ranks is not None:
        rank_batch(config.training, ranks)
    data = Kept().data(comm, config.data)
    if config.asynchronous is not None:
        check_asynchronous(comm, config, data)
    else:
        build_trainer(config, data, comm, Phases(), say=ignore)
    return data.train.describe()

"""Kept: what several runs in one process need alike, made once."""

from __future__ import annotations

from mpisparse.comm import Communicator, agreed
from mpisparse.training.build import build_data
from mpisparse.training.config import Data, Model, RunConfig
from mpisparse.training.data import Split
from mpisparse.training.optimum import Optimum, shared_optimum


class Kept:
    """Keeps the last data set, and the optimum of each objective on it, from one run to the next.

    Both are read and never changed, so a run is the same with a `Kept` that has seen others and with one of its own.
    Give the same one on all ranks, for the same runs: who has something kept does not meet the others to make it.
    """

    def __init__(self) -> None:
        self._section: Data | None = None
        self._data: Split | None = None
        self._optima: dict[Model, Optimum] = {}

    def data(self, comm: Communicator, section: Data) -> Split:
        """Return the data of a section, loaded unless it is the last one's. Collective.

        Raises:
            DataError: what is wrong with a file; on all ranks.
        """
        if self._data is None or section != self._section:
            self._section, self._data = None, None  # room for the next before it is there
            self._optima.clear()
            with agreed(comm):
                self._data = build_data(section)
            self._section = section
        return self._data

    def optimum(self, comm: Communicator, config: RunConfig) -> Optimum | None:
        """Return what `shared_optimum` returns for a configuration's objective. Collective.

        Raises:
            MpiSparseError: it cannot be found; on all ranks.
        """
        data = self.data(comm, config.data)
        if not config.training.objective:
            return None
        if config.model not in self._optima:
            found = shared_optimum(comm, config, data.train)
            if found is None:
                return None
            self._optima[config.model] = found
        return self._optima[config.model]

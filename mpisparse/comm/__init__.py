"""Who is there. The only package that imports mpi4py, and only once a communicator over MPI is asked for."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from mpisparse.comm.agreement import agreed, from_root, gather_json, require_same, summarise
from mpisparse.comm.base import Communicator, Description, require_communicator
from mpisparse.comm.local import run_ranks, solo
from mpisparse.comm.pending import Pending
from mpisparse.comm.window import SharedWindow, Window, WindowKind

__all__ = [
    "Communicator",
    "Description",
    "Pending",
    "SharedWindow",
    "Window",
    "WindowKind",
    "agreed",
    "from_root",
    "gather_json",
    "place",
    "require_communicator",
    "require_same",
    "run_ranks",
    "solo",
    "summarise",
    "world",
]


def world() -> Communicator:
    """Return the communicator of all ranks that the launcher started, on a duplicate of MPI_COMM_WORLD. Collective.

    A process in which that takes more than MPISPARSE_START_LIMIT seconds, 600 if not set, says so and kills itself.

    Raises:
        ConfigError: that variable holds no number of seconds.
        LaunchError: MPI cannot be loaded, or the launcher promised more ranks than MPI knows.
    """
    from mpisparse.comm.launcher import check_promise

    with _starting():
        from mpisparse.comm.mpi import everybody

        comm = everybody().duplicate("world")
    check_promise(comm.size, comm.describe().library)
    return comm


def place() -> tuple[int, int]:
    """Return the number of this rank and how many there are, of all that the launcher started. Not collective.

    MPI is started if it was not, which waits for the other ranks to do so, too. Errors are those of `world`.
    """
    from mpisparse.comm.launcher import check_promise

    with _starting():
        from mpisparse.comm.mpi import own_place

        rank, size, library = own_place()
    check_promise(size, library)
    return rank, size


@contextmanager
def _starting() -> Iterator[None]:
    """Prepare the environment for the start of MPI, limit its time, and say what to do where there is no library."""
    from mpisparse.comm.launcher import prepare_environment
    from mpisparse.comm.limit import ended_after, start_limit, words_of
    from mpisparse.errors import LaunchError

    prepare_environment()
    limit = start_limit()
    try:
        with ended_after(limit, words_of(limit)):
            yield
    except (ImportError, RuntimeError) as error:
        raise LaunchError(
            f"no MPI library could be loaded ({error}): install one beside mpi4py with `pip install mpich`, "
            "or load your site's MPI module"
        ) from error

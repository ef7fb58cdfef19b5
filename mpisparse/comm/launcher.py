"""What the launcher promised: found in its environment variables, and compared with what MPI says."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from pathlib import Path

from mpisparse.errors import LaunchError

#: The variable in which each launcher tells a rank how many there are; nearer launchers first: an mpirun inside a
#: Slurm step inherits that step's variables, whose count is of nodes.
_PROMISES = (
    ("OMPI_COMM_WORLD_SIZE", "mpirun of Open MPI", "Open MPI"),
    ("PMI_SIZE", "mpirun of MPICH or Intel MPI, or srun --mpi=pmi2", "MPICH"),
    ("SLURM_STEP_NUM_TASKS", "srun", "Slurm"),
)


def prepare_environment(environ: dict[str, str] | os._Environ[str] = os.environ) -> None:
    """Set what MPI libraries read when they start, never over a user's own value. To be called before MPI starts."""
    # MPICH cuts Allgatherv into 32 KiB pieces that move in lock step; whole messages are 3-12 times faster.
    environ.setdefault("MPIR_CVAR_ALLGATHERV_PIPELINE_MSG_SIZE", str(2**30))


def promised_size(environ: Mapping[str, str] = os.environ) -> tuple[int, str] | None:
    """Return how many ranks the launcher promised and who promised them, or None without a launcher."""
    for variable, launcher, _ in _PROMISES:
        value = environ.get(variable, "")
        if value.isdigit():
            return int(value), f"{launcher} ({variable}={value})"
    return None


def promised_rank(environ: Mapping[str, str] = os.environ) -> str | None:
    """Return which rank the launcher says that this process is, or None without a launcher."""
    ranks = (environ.get(variable) for variable in ("OMPI_COMM_WORLD_RANK", "PMI_RANK", "SLURM_PROCID"))
    return next((rank for rank in ranks if rank is not None), None)


def speaks(environ: Mapping[str, str] = os.environ) -> bool:
    """Return True for the process that speaks for all before MPI is up: the launcher's rank 0, or one without any."""
    return promised_rank(environ) in ("0", None)


def launch_words(size: int, environ: Mapping[str, str] = os.environ) -> list[str]:
    """Return the launcher with which `size` ranks are started as this process was, options that are not known left out.

    Nothing for one rank that no srun started.
    """
    # Hydra, MPICH's mpirun, counts the ranks of a node in a variable of its own; srun gives the same PMI variables.
    mpirun = "OMPI_COMM_WORLD_SIZE" in environ or "MPI_LOCALNRANKS" in environ
    if not mpirun and environ.get("SLURM_STEP_NUM_TASKS") == str(size) and "SLURM_PROCID" in environ:
        return ["srun", "-n", str(size)]
    return ["mpirun", "-n", str(size)] if size > 1 else []


def check_promise(size: int, library: str, environ: Mapping[str, str] = os.environ) -> None:
    """Raise LaunchError when a launcher started many ranks but each of them is alone.

    Args:
        size: ranks that MPI knows of.
        library: the MPI library this process loaded.
    """
    promise = promised_size(environ)
    if promise is None or size != 1 or promise[0] <= 1:
        return
    mpirun = Path(sys.prefix) / "bin" / "mpirun"
    beside = f"start with {mpirun}" if mpirun.exists() else "start with the mpirun of that same library"
    raise LaunchError(
        f"{promise[0]} ranks were promised by {promise[1]}, but this process is alone: it loaded {library}, "
        f"which does not understand that launcher. Without this check {promise[0]} copies would train side by side. "
        f"Under mpirun: {beside}. Under srun: use --mpi=pmi2 with MPICH and Intel MPI, --mpi=pmix with Open MPI"
    )

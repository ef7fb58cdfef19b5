"""init: start a program on all ranks so that it cannot fail silently."""

from __future__ import annotations

import atexit
import platform
import sys
import threading
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

from mpisparse.comm import Communicator, world
from mpisparse.comm.launcher import promised_size
from mpisparse.runtime.guard import Guard
from mpisparse.runtime.machines import Machine, gather_places, machines_among
from mpisparse.runtime.threads import share_cores
from mpisparse.runtime.watchdog import DEFAULT_LIMIT, Watchdog
from mpisparse.runtime.workers import shield_workers


@dataclass(frozen=True)
class Surroundings:
    """What a run ran on. Goes into the banner and the run directory's environment.json.

    machines: hosts that are containers of one machine have names of their own and share its cores.
    """

    mpisparse: str
    ranks: int
    nodes: int
    library: str
    standard: str
    thread_level: str
    threads: int
    threads_reason: str
    hosts: tuple[str, ...] = ()
    processors: tuple[str, ...] = ()
    machines: tuple[Machine, ...] = ()

    def banner(self) -> str:
        """Return one line for people."""
        return (
            f"mpisparse {self.mpisparse} | {_count(self.ranks, 'rank')} on {_count(self.nodes, 'node')} | "
            f"{self.library} ({self.standard}), thread level {self.thread_level} | "
            f"{_count(self.threads, 'thread')} a rank ({self.threads_reason})"
        )


def init(
    *,
    comm: Communicator | None = None,
    banner: bool = True,
    watchdog: float = DEFAULT_LIMIT,
    crash_directory: str | Path = "crash",
) -> Communicator:
    """Return the communicator of all ranks, after making the launch safe. Collective; call it first.

    - An exception that nobody catches on any rank prints its traceback and ends the whole job.
    - Copies that a launcher started side by side without knowing of each other are refused.
    - Threads are set to this rank's share of the cores, unless OMP_NUM_THREADS is set.
    - Rank 0 says on stderr what it found.
    - A rank whose launcher is gone, or that Ctrl-C finds blocked in MPI, ends within seconds (see `Guard`).
    - A rank that does not come where the others wait for it ends the job, after a time (see `Watchdog`).

    Args:
        comm: the ranks, when they are not those that the launcher started; abort hook and watchdog are theirs to
            install.
        banner: whether rank 0 prints its line.
        watchdog: seconds that a rank may wait for the others, whatever for, before the job ends with exit code 74;
            0 is for ever.
        crash_directory: where all ranks write what they were doing, when it comes to that.

    Raises:
        LaunchError: MPI cannot be loaded, or the launcher promised more ranks than MPI knows.
    """
    comm, _ = start(comm, banner, watchdog, Path(crash_directory))
    return comm


def start(
    comm: Communicator | None = None,
    banner: bool = True,
    watchdog: float = DEFAULT_LIMIT,
    crash_directory: Path = Path("crash"),
) -> tuple[Communicator, Surroundings]:
    """Return what `init` returns, and what it found."""
    if comm is None:
        shield_workers()
        comm = world()
        _end_together(comm, watchdog, crash_directory.absolute())
        Watchdog(comm, limit=watchdog, directory=crash_directory.absolute()).start()
    place = comm.describe()
    places = gather_places(comm, place.node)
    threads, reason = share_cores(places, comm.rank)
    surroundings = Surroundings(
        mpisparse=version("mpisparse"),
        ranks=comm.size,
        nodes=place.nodes,
        library=place.library,
        standard=place.standard,
        thread_level=place.thread_level,
        threads=threads,
        threads_reason=reason,
        hosts=_each_once(comm, place.node),
        processors=_each_once(comm, processor()),
        machines=machines_among(places),
    )
    if banner and comm.rank == 0:
        print(surroundings.banner(), file=sys.stderr, flush=True)
    return comm, surroundings


def _end_together(comm: Communicator, limit: float, directory: Path) -> None:
    """Have this process end the job if it fails, and wait for the others if it does not. Collective."""
    from mpisparse.comm.abort import install_abort_hook, install_goodbye

    # Twice: it may be left alone for the limit before a rank waits for it, which takes the limit again.
    goodbye = install_goodbye(comm, 2 * (limit or DEFAULT_LIMIT)) if comm.size > 1 else None
    install_abort_hook(comm.rank, comm.size, lambda: atexit.unregister(goodbye) if goodbye else None)
    if promised_size() is not None and threading.current_thread() is threading.main_thread():
        Guard(comm, directory).start()


def processor() -> str:
    """Return the model of this machine's processor, "unknown" where the system does not tell."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    models = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(models, "") or platform.processor() or "unknown"


def _each_once(comm: Communicator, own: str) -> tuple[str, ...]:
    """Return what the ranks say, each text once, in the order of the first rank that says it. Collective."""
    return tuple(dict.fromkeys(said.decode() for said in comm.allgather_bytes(own.encode())))


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"

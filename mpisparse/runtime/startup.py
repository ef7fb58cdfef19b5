"""init: start a program on all ranks so that it cannot fail silently."""

from __future__ import annotations

import atexit
import platform
import threading
from dataclasses import dataclass
from pathlib import Path

from mpisparse.arguments import require_path
from mpisparse.comm import Communicator, require_communicator, world
from mpisparse.comm.launcher import promised_size
from mpisparse.runtime.guard import Guard, is_guarded
from mpisparse.runtime.machines import Machine, gather_places, machines_among
from mpisparse.runtime.threads import share_cores
from mpisparse.runtime.watchdog import DEFAULT_LIMIT, Watchdog
from mpisparse.runtime.workers import shield_workers
from mpisparse.terminal import say
from mpisparse.version import __version__
from mpisparse.words import counted


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
            f"mpisparse {self.mpisparse} | {counted(self.ranks, 'rank')} on {counted(self.nodes, 'node')} | "
            f"{self.library} ({self.standard}), thread level {self.thread_level} | "
            f"{counted(self.threads, 'thread')} per rank ({self.threads_reason})"
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
    - Called again, it returns another communicator of the same ranks, and its options take the place of the earlier.

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
    require_communicator(comm)
    require_path("crash_directory", crash_directory, "the path of a directory, such as 'crash'")
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
        _watch(comm, Watchdog(comm, limit=watchdog, directory=crash_directory.absolute()))
    place = comm.describe()
    places = gather_places(comm, place.node)
    threads, reason = share_cores(places, comm.rank)
    surroundings = Surroundings(
        mpisparse=__version__,
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
        say(surroundings.banner(), error=True)
    return comm, surroundings


def _end_together(comm: Communicator, limit: float, directory: Path) -> None:
    """Have this process end the job if it fails, and wait for the others if it does not. Collective."""
    from mpisparse.comm.abort import install_abort_hook, install_goodbye

    # Twice: it may be left alone for the limit before a rank waits for it, which takes the limit again.
    goodbye = install_goodbye(comm, 2 * (limit or DEFAULT_LIMIT)) if comm.size > 1 else None
    install_abort_hook(comm.rank, comm.size, lambda: atexit.unregister(goodbye) if goodbye else None)
    in_main = threading.current_thread() is threading.main_thread()
    if promised_size() is not None and in_main and not is_guarded():
        Guard(comm, directory).start()


def _watch(comm: Communicator, watchdog: Watchdog) -> None:
    """Have a watchdog watch this rank instead of the one that an earlier call started."""
    recorder = comm.lane.recorder
    if recorder.guard is not None:
        recorder.guard.stop()
    recorder.guard = watchdog.start()


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

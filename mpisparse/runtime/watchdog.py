"""Watchdog: ends a job in which a rank does not come where the others wait for it, and says which and where."""

from __future__ import annotations

import os
import secrets
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from threading import Event, Thread
from time import monotonic, monotonic_ns, sleep
from types import TracebackType

from mpisparse.arguments import is_number, require_callable, require_kind, require_path, short
from mpisparse.comm import Communicator, gather_json
from mpisparse.errors import CommError, ConfigError, HangError, MpiSparseError
from mpisparse.files import read_text
from mpisparse.runtime.dump import Dump, dump_path, make_dump, read_dumps, write_dump
from mpisparse.runtime.hang import summary
from mpisparse.terminal import say as say_line

#: Seconds after which a wait is a hang, where nobody says otherwise.
DEFAULT_LIMIT = 600.0

#: Seconds between looks, at most.
_PAUSE = 1.0

#: Seconds that the other ranks get to tell where they are, and between looks for what they tell.
_GRACE = 2.0
_LOOK = 0.05


class Watchdog:
    """A thread of this rank that looks, once a second, how long the rank has been waiting for others.

    Surprises first:

    - The limit is for any wait: for a rank that evaluates, saves or loads while the others wait, too. One that computes
      while nobody waits for it is left alone, however long it takes; so is one that waits, its program ended, for the
      others' end.
    - After `limit` seconds a rank that waits raises an alarm, a file in `directory`. All ranks that see it write down
      where they are: those that wait as well, and those that are missing, if they still can. A few seconds later the
      lowest rank of them says on stderr who was missing and where, and ends the job with exit code 74.
    - The thread calls MPI only to end the job. It needs the interpreter: a rank stuck in compiled code that holds the
      interpreter's lock tells nothing, and is named by the others.
    - Time in which the whole process stood still, such as a suspended job, does not count.
    - Making one is collective. It does nothing with a limit of 0 or one rank, and begins with `start`.

    Args:
        comm: the ranks; a wait on it or any of its duplicates counts.
        limit: seconds; 0 is off.
        directory: where to write when it comes to that, best on a file system that all ranks see. May be set anew.
        say: takes the last words; standard error by default.

    Raises:
        ConfigError: a limit below 0.
    """

    def __init__(
        self, comm: Communicator, *, limit: float, directory: str | Path, say: Callable[[str], object] | None = None
    ) -> None:
        require_kind("comm", comm, Communicator, "what ms.init() or ms.world() returned")
        require_path("directory", directory, "the path of a directory, such as 'crash'")
        require_callable("say", say, "a function of a text, such as print")
        if not is_number(limit) or not limit >= 0:
            raise ConfigError(
                f"the watchdog's limit is {short(limit)} s: give seconds, such as 600, or 0 to do without"
            )
        self.directory = Path(directory)
        self._comm, self._recorder, self._limit, self._say = comm, comm.lane.recorder, limit, say or _say_on_stderr
        self._pause = min(_PAUSE, limit / 10)
        self._stop = Event()
        self._resumed = monotonic_ns()
        self._thread: Thread | None = None
        if self.watches:
            mine = [os.uname().nodename, os.getpid(), secrets.token_hex(8)]
            #: Host and process number of every rank.
            self._processes = [(str(host), int(number)) for host, number, _ in gather_json(comm, mine)]
            self._job = str(gather_json(comm, mine[2])[0])

    @property
    def watches(self) -> bool:
        """Return True when it does anything at all."""
        return self._limit > 0 and self._comm.size > 1

    def start(self) -> Watchdog:
        """Begin to watch this rank, and return the watchdog."""
        if self.watches and self._thread is None:
            self._resumed = monotonic_ns()
            self._thread = Thread(target=self._watch, name="mpisparse-watchdog", daemon=True)
            self._thread.start()
        return self

    def stop(self) -> None:
        """Watch no longer. The other ranks' watchdogs go on until they are stopped, too."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join()

    def __enter__(self) -> Watchdog:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop, unless this rank alone has an error: the others may wait for it, and its program is about to end."""
        if error is None or (isinstance(error, MpiSparseError) and error.on_all_ranks):
            self.stop()

    # What follows runs in the watchdog's thread -----------------------------------------------------------------------

    def _watch(self) -> None:
        looked = monotonic_ns()
        while not self._stop.wait(self._pause):
            now = monotonic_ns()
            if (now - looked) * 1e-9 > self._pause + self._limit / 4:
                self._resumed = now
            looked = now
            if self._waited() > self._limit:
                with suppress(OSError):
                    self.directory.mkdir(parents=True, exist_ok=True)
                    self._alarm.touch()
                self._end_job("waited too long")
                return
            # Looking is only worth it for a rank that the others can have waited for.
            if (now - self._recorder.last_end) * 1e-9 > self._limit / 2 and self._alarm.exists():
                self._end_job("another rank waited too long")
                return

    @property
    def _alarm(self) -> Path:
        return self.directory / f".alarm-{self._job}"

    def _waited(self) -> float:
        """Return how many seconds this rank has been waiting."""
        call = self._recorder.longest_wait()
        return 0.0 if call is None else (monotonic_ns() - max(call.begun, self._resumed)) * 1e-9

    def _end_job(self, reason: str) -> None:
        """Write this rank's dump, hear the others out, and end the job, unless a lower rank does."""
        dump = self._dump(reason)
        trouble = self._write(dump)
        self._hear(range(self._comm.size), monotonic() + _GRACE)
        # Lower ranks that have told something end the job. Should they fail to, this one does after all.
        lower = any(_has_told(self.directory, rank, self._job) for rank in range(self._comm.rank))
        if lower and self._stop.wait(_GRACE):
            return
        dump["silent"] = self._look_at_silent()
        trouble = trouble or self._write(dump)
        with suppress(OSError):
            self._alarm.unlink()
        try:
            dumps = read_dumps(self.directory, self._job)
        except (ConfigError, OSError):
            dumps = {self._comm.rank: dump}
        self._say(f"mpisparse: HangError: {summary(dumps, str(self.directory))}{trouble}")
        with suppress(CommError):  # threads, whose job is this process, are told by an error
            self._comm.abort(HangError.exit_code)

    def _dump(self, reason: str) -> Dump:
        return make_dump(
            self._recorder,
            job=self._job,
            rank=self._comm.rank,
            size=self._comm.size,
            host=self._processes[self._comm.rank][0],
            process=os.getpid(),
            limit=self._limit,
            reason=reason,
        )

    def _write(self, dump: Dump) -> str:
        """Write the dump, and return what to say if that does not go."""
        try:
            write_dump(self.directory, dump)
        except OSError as error:
            return f". Nothing could be written to {self.directory}: {error}"
        return ""

    def _hear(self, ranks: range, until: float) -> None:
        """Return when all of these ranks have told where they are, or at a moment of `monotonic`."""
        missing = set(ranks)
        while missing and monotonic() < until:
            missing = {rank for rank in missing if not _has_told(self.directory, rank, self._job)}
            sleep(_LOOK)

    def _look_at_silent(self) -> dict[str, str]:
        """Return what can be seen from here of the processes that told nothing."""
        host = self._processes[self._comm.rank][0]
        return {
            str(rank): f"process {number} on {where}" + (f" {_state(number)}" if where == host else "")
            for rank, (where, number) in enumerate(self._processes)
            if not _has_told(self.directory, rank, self._job)
        }


def _has_told(directory: Path, rank: int, job: str) -> bool:
    """Return True when there is a dump of this rank, and not one that an earlier job left."""
    try:
        return f'"job": "{job}"' in read_text(dump_path(directory, rank))[:200]
    except (OSError, ValueError):
        return False


def _state(process: int) -> str:
    """Return what the kernel says that a process of this machine does."""
    try:
        state = Path(f"/proc/{process}/stat").read_text(encoding="utf-8").rsplit(")", 1)[1].split()[0]
    except (OSError, IndexError):
        return "is gone"
    words = {"T": "is stopped by a signal", "t": "is stopped by a debugger", "R": "is running", "Z": "has ended"}
    return words.get(state, "sleeps, or waits for a device" if state == "D" else "sleeps")


def _say_on_stderr(text: str) -> None:
    say_line(text, error=True)

"""Guard: ends a rank that can no longer be reached: its launcher is gone, or Ctrl-C finds it blocked in MPI."""

from __future__ import annotations

import os
import select
import signal
import sys
from contextlib import suppress
from pathlib import Path
from threading import Thread
from threading import enumerate as enumerate_threads
from time import monotonic

from mpisparse.comm import Communicator
from mpisparse.errors import HangError
from mpisparse.runtime.preemption import INTERRUPTED, SAME_INTERRUPT, Preemption

_THREAD = "mpisparse-guard"

#: Seconds between looks at the parent process.
_PAUSE = 1.0

#: Seconds that a rank gets, after Ctrl-C, to come out of a call that it was in before.
_BLOCKED = 5.0


def is_guarded() -> bool:
    """Return True when this process has a guard, which knows all communicators of the family it was made for."""
    return any(thread.name == _THREAD for thread in enumerate_threads())


class Guard:
    """A thread of this rank that sees what its main thread, inside a call of MPI, does not.

    - The process that started the rank is gone: MPICH's proxy, `prted`, `slurmstepd`, or a shell between them and the
      rank. Nothing would end the rank any more, nor notice its end. It says so, also in `directory`, and ends within
      seconds.
    - Ctrl-C came, and the main thread is still in the call of MPI in which it was then: Python raises KeyboardInterrupt
      when the call returns, which it may never do. The job ends with 130. Where a `Preemption` notes the first Ctrl-C
      the second counts; where a program handles SIGINT itself, none.

    To be made in the main thread, once a process, and only under a launcher: a program under `nohup` outlives the shell
    that started it.

    Args:
        comm: the ranks; a wait on it or any of its duplicates counts.
        directory: where a rank writes that its launcher is gone.
    """

    def __init__(self, comm: Communicator, directory: Path) -> None:
        self._comm, self._recorder, self._directory = comm, comm.lane.recorder, directory
        self._parent = os.getppid()
        self._interrupts: list[float] = []
        self._woken, self._wakes = os.pipe()
        os.set_blocking(self._wakes, False)

    def start(self) -> None:
        """Begin to watch, until the process ends."""
        signal.set_wakeup_fd(self._wakes, warn_on_full_buffer=False)
        # Signals of a forked child are not this process's.
        os.register_at_fork(after_in_child=lambda: signal.set_wakeup_fd(-1))
        Thread(target=self._watch, name=_THREAD, daemon=True).start()

    # What follows runs in the guard's thread --------------------------------------------------------------------------

    def _watch(self) -> None:
        while True:
            if select.select([self._woken], [], [], _PAUSE)[0]:
                came = os.read(self._woken, 4096)
                if signal.SIGINT in came:
                    self._note(monotonic())
            if os.getppid() != self._parent:
                self._leave()
            if self._is_blocked(monotonic()):
                self._say(
                    f"rank {self._comm.rank} of {self._comm.size} is blocked in MPI after Ctrl-C: the job is ended"
                )
                self._comm.abort(INTERRUPTED)

    def _note(self, now: float) -> None:
        """Note a Ctrl-C, unless it is the last one again."""
        if not self._interrupts or now - self._interrupts[-1] >= SAME_INTERRUPT:
            self._interrupts.append(now)

    def _is_blocked(self, now: float) -> bool:
        """Return True when Ctrl-C should have ended a wait that still goes on."""
        if not self._interrupts:
            return False
        handler = signal.getsignal(signal.SIGINT)
        if handler is signal.default_int_handler:
            needed = 1
        elif isinstance(preemption := getattr(handler, "__self__", None), Preemption):
            needed = preemption.interrupts_that_end
        else:
            return False
        if len(self._interrupts) < needed:
            return False
        came, call = self._interrupts[-1], self._recorder.longest_wait()
        return call is not None and call.begun * 1e-9 < came < now - _BLOCKED

    def _leave(self) -> None:
        """Say that the launcher is gone, where somebody may read it, and end this process at once."""
        words = (
            f"{self._name()} (process {os.getpid()} on {os.uname().nodename}): the process that "
            f"started it, {self._parent}, is gone, and with it what would end the job. This rank ends itself: start "
            "the same command again, with the same run directory, to go on from the newest checkpoint"
        )
        with suppress(OSError):
            self._directory.mkdir(parents=True, exist_ok=True)
            (self._directory / f"rank-{self._comm.rank:05d}.orphan").write_text(f"{words}\n", encoding="utf-8")
        self._say(words)
        os._exit(HangError.exit_code)

    def _name(self) -> str:
        return f"rank {self._comm.rank} of {self._comm.size}"

    def _say(self, words: str) -> None:
        # Whoever read this rank's words may be gone, and the main thread may hold the lock of the stream.
        with suppress(OSError, ValueError):
            os.write(sys.__stderr__.fileno() if sys.__stderr__ else 2, f"mpisparse: {words}\n".encode())

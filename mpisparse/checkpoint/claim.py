"""Claim: one process at a time owns a directory, by a file that names it and that it touches again and again.

owner.json        who owns the directory; described in docs/run-directory.md
.owner-TOKEN      who is about to take over from the owner with that token
"""

from __future__ import annotations

import json
import os
import secrets
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, fields
from datetime import UTC, datetime
from functools import partial
from hashlib import sha256
from pathlib import Path
from threading import Event, Thread
from time import monotonic, sleep

from mpisparse import terminal
from mpisparse.comm import Communicator, from_root
from mpisparse.errors import ConfigError, RunDirectoryError

NAME = "owner.json"
_SCHEMA = 1

#: Seconds between touches; and without one after which an owner that cannot be asked for is taken for dead.
BEAT, WATCH = 5.0, 30.0

#: Seconds between looks at an owner, and for which processes that take over from the same one are waited for.
_LOOK, _SETTLED = 0.25, 60.0

#: Bytes that no claim is longer than.
_LENGTH = 2**16


@dataclass(frozen=True, slots=True)
class Owner:
    """Who owns a directory.

    token: of this claim alone. place: the kernel and the process namespace in which `process` means something; empty
    where the system does not tell. started: ticks of that kernel at which the process began.
    job, restart: Slurm's number of the job, and how often it was started again.
    """

    token: str
    host: str
    place: str
    process: int
    started: int
    job: str | None
    restart: int
    since: str

    def __str__(self) -> str:
        job = "" if self.job is None else f", Slurm job {self.job}" + f" (restart {self.restart})" * bool(self.restart)
        return f"process {self.process} on {self.host}{job}, since {self.since}"

    @staticmethod
    def this() -> Owner:
        """Return this process as an owner, with a new token."""
        restart = os.environ.get("SLURM_RESTART_COUNT", "")
        return Owner(
            token=secrets.token_hex(8),
            host=os.uname().nodename,
            place=_place(),
            process=os.getpid(),
            started=_started(os.getpid()) or 0,
            job=os.environ.get("SLURM_JOB_ID"),
            restart=int(restart) if restart.isdigit() else 0,
            since=datetime.now(UTC).isoformat(timespec="seconds"),
        )

    def is_process_of(self, other: Owner) -> bool:
        """Return True when both are claims of the same process."""
        mine, theirs = ((o.place, o.process, o.started, o.host) for o in (self, other))
        return mine == theirs

    def has_ended(self, me: Owner) -> bool | None:
        """Return whether this owner is gone, as seen by another one; None where that cannot be told from here."""
        if self.job is not None and self.job == me.job and self.restart < me.restart:
            return True  # Slurm starts a job again when the start before has ended
        if self.place and self.place == me.place:
            return _started(self.process) != self.started
        return None


class Claim:
    """The claim of this process on a directory, that no other one may write there meanwhile.

    Works by nothing but creating, replacing and touching files, which network file systems do at once or not at all. No
    clock is compared: whether an owner on another machine lives is seen by its file changing while one looks on.

    Args:
        directory: has to be there.
        beat: seconds between touches. watch: seconds without one after which an owner elsewhere is taken for dead.
        say: takes a line when that has to be waited for; standard error by default.
    """

    def __init__(
        self,
        directory: Path,
        *,
        beat: float = BEAT,
        watch: float = WATCH,
        say: Callable[[str], object] | None = None,
    ) -> None:
        self.directory = directory.absolute()
        self._path = self.directory / NAME
        self._beat, self._watch, self._say = beat, watch, say or partial(terminal.say, error=True)
        self._me = Owner.this()
        #: Whether this object made the file, and what is wrong with it now.
        self._holds, self._flaw = False, ""
        self._stop = Event()

    def take(self) -> None:
        """Own the directory, unless this process does already.

        Raises:
            ConfigError: another process owns it.
            OSError: nothing can be written there.
        """
        above = self.directory.parent
        if self.directory.name == "checkpoints" and (owner := _read(above / NAME)) is not None:
            if owner.is_process_of(self._me):
                return
            if not self._is_dead(above / NAME, owner):
                raise _refusal(above, owner)
        give_up = monotonic() + self._watch + _SETTLED
        while True:
            owner = _read(self._path)
            if owner is None:
                if self._create(self._path):
                    break
                continue
            if owner.is_process_of(self._me):
                return
            if self._is_dead(self._path, owner):
                if self._replace(owner):
                    break
            elif (now := _read(self._path)) is not None and now.token == owner.token:
                raise _refusal(self.directory, owner)
            if monotonic() > give_up:
                raise _refusal(self.directory, owner)
            sleep(_LOOK)
        self._holds, self._flaw = True, ""
        self._clear_up()
        self._stop.set()
        self._stop = Event()
        Thread(target=self._touch, args=(self._stop,), name="mpisparse-claim", daemon=True).start()

    def check(self) -> None:
        """Raise RunDirectoryError if the directory is no longer this process's. Costs nothing: a thread looks."""
        if self._flaw:
            raise RunDirectoryError(self._flaw)

    def release(self) -> None:
        """Give the directory back, if this claim holds it. May be called again, and in a forked child, where it does
        nothing."""
        if not self._holds or os.getpid() != self._me.process:
            return
        self._holds = False
        self._stop.set()
        with suppress(OSError):
            owner = _read(self._path)
            if owner is not None and owner.token == self._me.token:
                self._path.unlink()

    # Taking ----------------------------------------------------------------------------------------------------------

    def _create(self, path: Path) -> bool:
        """Write this claim to `path`, whole, unless there is a file; return whether this process did."""
        temporary = self.directory / f".{NAME}.{self._me.token}.tmp"
        try:
            _write_new(temporary, self._me)
            try:
                os.link(temporary, path)
            except FileExistsError:
                # On a network file system, the answer to the first request may have been lost.
                there = _read(path)
                return there is not None and there.token == self._me.token
            except OSError:  # no hard links here
                try:
                    _write_new(path, self._me)
                except FileExistsError:
                    return False
            return True
        finally:
            with suppress(OSError):
                temporary.unlink()

    def _replace(self, dead: Owner) -> bool:
        """Put this claim in the place of a dead owner's; of all processes that try, one succeeds.

        Who may is settled by files named after the token of the one that is replaced: the first to make it may. Should
        it die before it has, the first to make one named after *its* token may, and so on.
        """
        slot = self._slot(dead)
        while not self._create(slot):
            taker = _read(slot)
            if taker is None or not self._is_dead(slot, taker):
                return False
            slot = self._slot(taker)
        if not self._is_next():
            slot.unlink(missing_ok=True)  # another one has taken over while this one was on its way
            return False
        temporary = self.directory / f".{NAME}.{self._me.token}.tmp"
        _write_new(temporary, self._me)
        temporary.replace(self._path)
        return True

    def _clear_up(self) -> None:
        """Remove what takes over from owners that are no more, and what dead processes left on their way."""
        with suppress(OSError):
            for path in self.directory.glob(".owner-*"):
                path.unlink(missing_ok=True)
            for path in self.directory.glob(f".{NAME}.*.tmp"):
                left = _read(path)
                if left is not None and left.has_ended(self._me):
                    path.unlink(missing_ok=True)

    def _is_next(self) -> bool:
        """Return True when the files lead from the owner there is to this process."""
        owner = _read(self._path)
        while owner is not None and owner.token != self._me.token:
            owner = _read(self._slot(owner))
        return owner is not None

    def _slot(self, owner: Owner) -> Path:
        return self.directory / f".owner-{owner.token}"

    def _is_dead(self, path: Path, owner: Owner) -> bool:
        """Return True when an owner is gone; one elsewhere when its file stays as it is for a while."""
        ended = owner.has_ended(self._me)
        if ended is not None:
            return ended
        self._say(f"mpisparse: {path} is of {owner}: looking on for {self._watch:g} s whether that goes on")
        before, until = _touched(path), monotonic() + self._watch
        while monotonic() < until:
            sleep(min(_LOOK, self._watch))
            if _touched(path) != before:
                return False
        return True

    # What follows runs in the claim's thread --------------------------------------------------------------------------

    def _touch(self, stop: Event) -> None:
        while not stop.wait(self._beat):
            # A file system that does not answer for a while is not the end of a run.
            with suppress(OSError):
                flaw = self._find_flaw()
                if flaw and not stop.is_set():
                    self._flaw = flaw
                    return

    def _find_flaw(self) -> str:
        """Touch the file; return what is wrong where it is no longer this claim's."""
        try:
            file = os.open(self._path, os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK)
        except (FileNotFoundError, NotADirectoryError):
            gone = NAME if self.directory.is_dir() else "the directory"
            return (
                f"{self.directory}: {gone} was moved or removed while this run was writing there. What was saved is "
                "where it was moved to: give that as --run-dir to go on"
            )
        try:
            owner = _parse(os.read(file, _LENGTH))
            if owner.token == self._me.token:
                os.utime(file)
                return ""
        finally:
            os.close(file)
        return (
            f"{self.directory} was taken over by {owner}, while this process did not touch {NAME} for long. Only one "
            "may write there: this run ends"
        )


@contextmanager
def claimed(comm: Communicator, directory: Path) -> Iterator[Callable[[], None]]:
    """Own `directory` inside the block, for all ranks, and return what raises when it is lost. Collective to enter.

    Raises:
        ConfigError: another process owns it, or nothing can be written there; on all ranks.
    """
    claim = Claim(directory)

    def take() -> None:
        try:
            claim.take()
        except OSError as error:
            raise ConfigError(f"{directory} cannot be written to: {error}. Use another --run-dir") from error

    from_root(comm, take)
    try:
        yield claim.check
    finally:
        claim.release()


def _refusal(directory: Path, owner: Owner) -> ConfigError:
    return ConfigError(
        f"{directory} is being written to by {owner}: two runs there would delete each other's files. Wait for its "
        "end, or end it, or use another directory (--run-dir)"
    )


def _write_new(path: Path, owner: Owner) -> None:
    """Write a file that must not be there."""
    file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o644)
    with os.fdopen(file, "w", encoding="utf-8") as text:
        text.write(json.dumps({"schema": _SCHEMA, **asdict(owner)}) + "\n")
        text.flush()
        os.fsync(file)


def _read(path: Path) -> Owner | None:
    """Return whom a file names; None where there is none."""
    try:
        file = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except FileNotFoundError:
        return None
    try:
        if not stat.S_ISREG(os.fstat(file).st_mode):
            return _parse(b"")
        return _parse(os.read(file, _LENGTH))
    finally:
        os.close(file)


def _parse(content: bytes) -> Owner:
    """Return whom a claim names; one that cannot be read names an unknown process."""
    try:
        found = json.loads(content)
        owner = Owner(**{field.name: found[field.name] for field in fields(Owner)})
        numbers = all(type(number) is int for number in (owner.process, owner.started, owner.restart))
        words = all(type(word) is str for word in (owner.token, owner.host, owner.place, owner.since))
        if numbers and words and owner.token.isalnum() and isinstance(owner.job, str | None):
            return owner
    except (ValueError, KeyError, TypeError, RecursionError):
        pass
    return Owner(f"damaged{sha256(content).hexdigest()[:16]}", "an unknown host", "", 0, 0, None, 0, "an unknown time")


def _touched(path: Path) -> tuple[str, int] | None:
    """Return what changes of a claim when its owner lives; opened anew, so that no cache of attributes answers."""
    try:
        file = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError:
        return None
    try:
        return _parse(os.read(file, _LENGTH)).token, os.fstat(file).st_mtime_ns
    finally:
        os.close(file)


def _place() -> str:
    """Return what is the same for processes that see each other's numbers; empty where the system does not tell."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return ""


def _started(process: int) -> int | None:
    """Return when a process of this machine began, in ticks; None for one that has ended."""
    try:
        fields_after_name = Path(f"/proc/{process}/stat").read_text(encoding="utf-8").rsplit(")", 1)[1].split()
    except (OSError, IndexError, UnicodeDecodeError):
        return None
    return None if fields_after_name[0] in "ZX" else int(fields_after_name[19])

"""Faults: what can go wrong on one rank, made to go wrong on purpose, so that tests see how a job takes it.

    MPISPARSE_FAULTS="late:rank=1,step=3,seconds=2;corrupt:rank=0,step=5,bucket=0"

Each fault has a kind, a `rank`, and a `step`: how many exchanges there were before; it happens once. Kinds:

    kill, stop         the process gets SIGKILL, or SIGSTOP
    usr1, term         it gets SIGUSR1, or SIGTERM
    exception          an exception is raised
    leave              the program ends, with status 0, before the others do
    loop               the rank never comes back from its own code
    late               it comes `seconds` later
    nan                the first entry of its gradient is NaN
    corrupt            a byte in the middle of its message for `bucket` is changed (0 by default)
    short, long        its message lacks the last eight bytes, or has eight more, and the count says so
    stale              its message is that of the step before
    flip               bit `bit` (0) of entry `entry` (0) of tensor `parameter` (the first) changes after the step

One kind counts otherwise: what goes wrong when a checkpoint is saved.

    MPISPARSE_FAULTS="disk:rank=0,operation=7,error=ENOSPC"

    disk               operation `operation` on the disk, counted from 1, of this rank's save `save` (1) fails with
                       `error`: ENOSPC, EDQUOT, EROFS, EIO, or "kill", SIGKILL, or "short", a write of half the bytes;
                       and so do those after it, up to `times` (1) in all, or without end (0)
"""

from __future__ import annotations

import os
import signal
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from time import sleep

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mpisparse.errors import ConfigError
from mpisparse.words import counted

VARIABLE = "MPISPARSE_FAULTS"

Bytes = NDArray[np.uint8]

_SIGNALS = {"kill": signal.SIGKILL, "stop": signal.SIGSTOP, "usr1": signal.SIGUSR1, "term": signal.SIGTERM}

#: Kinds, each with the keys that it takes beside rank and step.
_KINDS: dict[str, frozenset[str]] = {
    **dict.fromkeys((*_SIGNALS, "exception", "leave", "loop", "nan"), frozenset[str]()),
    "late": frozenset({"seconds"}),
    **dict.fromkeys(("corrupt", "short", "long", "stale"), frozenset({"bucket"})),
    "flip": frozenset({"parameter", "entry", "bit"}),
    "disk": frozenset({"save", "times"}),
}
#: The keys that a fault has to have.
_REQUIRED = {**dict.fromkeys(_KINDS, frozenset({"rank", "step"})), "disk": frozenset({"rank", "operation", "error"})}

#: The keys whose values are no numbers.
_WORDS = ("parameter", "error")
_DISK_ERRORS = ("ENOSPC", "EDQUOT", "EROFS", "EIO", "kill", "short")


@dataclass(frozen=True, slots=True)
class Fault:
    """One thing that is to go wrong."""

    kind: str
    rank: int
    step: int
    seconds: float = 1.0
    bucket: int = 0
    parameter: str = ""
    entry: int = 0
    bit: int = 0


@dataclass(frozen=True, slots=True)
class DiskFault:
    """One thing that is to go wrong on the disk, while a checkpoint is saved."""

    rank: int
    operation: int
    error: str
    save: int = 1
    times: int = 1

    def is_due(self, save: int, operation: int) -> bool:
        """Return True if it happens in this operation of this save."""
        later = operation - self.operation
        return save == self.save and later >= 0 and (self.times == 0 or later < self.times)


class Faults:
    """The faults of one rank. Each happens once."""

    def __init__(self, faults: Iterable[Fault]) -> None:
        self._pending = list(faults)
        self._last: dict[int, Bytes] = {}

    def before_exchange(self, step: int) -> None:
        """Do what is to happen to this rank on its way to an exchange."""
        for fault in self._due(step, "late", *_SIGNALS, "exception", "leave", "loop"):
            _happen(fault)

    def gradient(self, step: int, *parts: Tensor) -> None:
        """Spoil the first entry of the gradient, whatever it is made of."""
        for _ in self._due(step, "nan"):
            first = next(part for part in parts if part.numel())
            first.view(-1)[0] = float("nan")

    def message(self, step: int, bucket: int, message: Bytes) -> Bytes:
        """Return what this rank is to send in place of `message`."""
        sent = message
        for fault in self._due(step, "corrupt", "short", "long", "stale", bucket=bucket):
            if fault.kind == "corrupt":
                sent = message.copy()
                sent[sent.size // 2] ^= 0x10
            elif fault.kind == "short":
                sent = message[:-8].copy()
            elif fault.kind == "long":
                sent = np.concatenate([message, np.zeros(8, np.uint8)])
            else:
                sent = self._last.get(bucket, message)
        if any(fault.kind == "stale" for fault in self._pending):
            self._last[bucket] = message.copy()
        return sent

    @torch.no_grad()
    def parameters(self, step: int, named: Iterable[tuple[str, Tensor]]) -> None:
        """Flip a bit in a tensor.

        Raises:
            ConfigError: there is none of that name.
        """
        for fault in self._due(step, "flip"):
            tensor = next((tensor for name, tensor in named if fault.parameter in ("", name)), None)
            if tensor is None:
                raise ConfigError(f"{VARIABLE}: no parameter is called {fault.parameter!r}")
            place = fault.entry * tensor.element_size() + fault.bit // 8
            tensor.view(-1).view(torch.uint8)[place] ^= 1 << fault.bit % 8

    def _due(self, step: int, *kinds: str, bucket: int | None = None) -> list[Fault]:
        """Return the faults that happen now, and forget them."""
        due = [
            fault
            for fault in self._pending
            if fault.step == step and fault.kind in kinds and bucket in (None, fault.bucket)
        ]
        self._pending = [fault for fault in self._pending if fault not in due]
        return due


def faults_of(rank: int, environ: Mapping[str, str] = os.environ) -> Faults | None:
    """Return what the environment wants to go wrong on a rank, or None, as ever.

    Raises:
        ConfigError: the variable cannot be read.
    """
    mine = [fault for fault in _all(environ) if isinstance(fault, Fault) and fault.rank == rank]
    return Faults(mine) if mine else None


def disk_faults_of(rank: int, environ: Mapping[str, str] = os.environ) -> list[DiskFault]:
    """Return what the environment wants to go wrong on the disk of a rank: nothing, as ever. ConfigError as above."""
    return [fault for fault in _all(environ) if isinstance(fault, DiskFault) and fault.rank == rank]


def _all(environ: Mapping[str, str]) -> list[Fault | DiskFault]:
    return [_parse(part.strip()) for part in environ.get(VARIABLE, "").split(";") if part.strip()]


def _happen(fault: Fault) -> None:
    if fault.kind == "late":
        sleep(fault.seconds)
    elif fault.kind in _SIGNALS:
        os.kill(os.getpid(), _SIGNALS[fault.kind])
    elif fault.kind == "exception":
        raise RuntimeError(
            f"the exception that {VARIABLE} asks of rank {fault.rank} after {counted(fault.step, 'step')}"
        )
    elif fault.kind == "leave":
        raise SystemExit(0)
    else:
        _loop()


def _loop() -> None:
    """Never return."""
    while True:
        pass


def _parse(text: str) -> Fault | DiskFault:
    kind, _, rest = text.partition(":")
    keys = dict(_pair(text, part) for part in rest.split(",") if part.strip())
    if kind not in _KINDS:
        raise ConfigError(f"{VARIABLE}: {text!r} is of no kind that there is: use one of {', '.join(_KINDS)}")
    required = _REQUIRED[kind]
    unknown, missing = keys.keys() - _KINDS[kind] - required, required - keys.keys()
    if unknown or missing:
        raise ConfigError(
            f"{VARIABLE}: {text!r} lacks {sorted(missing)} and has {sorted(unknown)} too much: give "
            f"{sorted(required)}, and of {sorted(_KINDS[kind])} what you like"
        )
    try:
        values = {key: value if key in _WORDS else _number(key, value) for key, value in keys.items()}
    except ValueError:
        raise ConfigError(f"{VARIABLE}: {text!r} has a value that is no number: give rank=1,step=5") from None
    if kind != "disk":
        return Fault(kind, **values)  # type: ignore[arg-type]
    if values["error"] not in _DISK_ERRORS:
        raise ConfigError(f"{VARIABLE}: {text!r} has no error that there is: use one of {', '.join(_DISK_ERRORS)}")
    return DiskFault(**values)  # type: ignore[arg-type]


def _pair(text: str, part: str) -> tuple[str, str]:
    key, equals, value = part.strip().partition("=")
    if not equals:
        raise ConfigError(f"{VARIABLE}: {part!r} in {text!r} has no value: write key=value")
    return key.strip(), value.strip()


def _number(key: str, value: str) -> float | int:
    return float(value) if key == "seconds" else int(value)

"""Command: how a run or a sweep was started, and the commands with which it goes on, or is made with another rule."""

from __future__ import annotations

import os
import shlex
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from mpisparse.checkpoint import list_checkpoints
from mpisparse.comm.launcher import launch_words


@dataclass(frozen=True, slots=True)
class Command:
    """What was typed to start a run, without the launcher.

    name: of the command, "train" or "sweep". file: the configuration or the study. settings: what --set gave.
    options: others that the run needs again when it goes on. size: ranks.
    """

    name: str
    file: Path
    settings: tuple[str, ...] = ()
    options: tuple[str, ...] = ()
    size: int = 1

    def going_on(self, directory: Path, environ: Mapping[str, str] = os.environ) -> str:
        """Return the command, for a shell, that goes on in the run directory or the sweep's directory `directory`."""
        return self._line(self.settings, ("--run-dir", str(directory), *self.options), environ)

    def changed(self, *settings: str, environ: Mapping[str, str] = os.environ) -> str:
        """Return the command, for a shell, that makes the same run anew with another rule."""
        kept = [setting for setting in self.settings if not setting.lstrip().startswith("sparsifier")]
        return self._line((*kept, *settings), (), environ)

    def after_failure(self, directory: Path, environ: Mapping[str, str] = os.environ) -> str:
        """Return what to say of a run that failed, one line; nothing if there is no checkpoint to go on from."""
        try:
            saved = list_checkpoints(directory / "checkpoints")
        except OSError:
            return ""
        return f"{saved[-1].name} is saved; to go on from there: {self.going_on(directory, environ)}" if saved else ""

    def _line(self, settings: Iterable[str], options: Iterable[str], environ: Mapping[str, str]) -> str:
        given = [word for setting in settings for word in ("--set", setting)]
        launch = launch_words(self.size, environ)
        return shlex.join([*launch, "mpisparse", self.name, _path(self.file), *given, *options])


def _path(file: Path) -> str:
    """Return a path that no program takes for an option."""
    return f"./{file}" if str(file).startswith("-") else str(file)

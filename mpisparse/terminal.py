"""The terminal of the person who started the job: how wide it is, and the one way for text to get there.

Launchers hide it from the ranks behind a pipe. Names, paths and messages come from files and command lines that
others wrote; so whatever is printed goes through `say` or a `Screen`, which show it as it is: no markup in it is
followed, and what would steer the terminal is escaped.
"""

from __future__ import annotations

import io
import os
import sys
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.text import Text

from mpisparse.words import visible

#: Programs between a rank and the terminal, as the kernel names them (15 characters at most).
_LAUNCHERS = frozenset(
    {"mpirun", "mpiexec", "mpiexec.hydra", "hydra_pmi_proxy", "orterun", "prterun", "prte", "prted", "orted"}
)


STDOUT, STDERR = 1, 2

#: Columns of a table where the width of a line is not known.
_PLAIN_WIDTH = 120


def say(line: str, *, error: bool = False, keep: str = "") -> None:
    """Print one line on standard output, or with `error` on standard error.

    Args:
        keep: see `visible`; "\\n" for text of several lines.
    """
    stream = sys.stderr if error else sys.stdout
    encoding = stream.encoding or "utf-8"
    text = visible(line, keep=keep).encode(encoding, "backslashreplace").decode(encoding)
    # In one piece, so that lines of different ranks do not mix.
    stream.write(f"{text}\n")
    stream.flush()


def say_usage(error: click.ClickException) -> None:
    """Print what is wrong with a command line on standard error, as click words it."""
    shown = io.StringIO()
    error.show(shown)
    say(shown.getvalue().rstrip("\n"), error=True, keep="\n")


class Screen(Console):
    """A rich console that takes all strings as plain text, and is as wide as the terminal behind the launcher.

    is_shown: whether there is such a terminal. Cells of tables are of one line, whatever is in them.
    """

    def __init__(self, stream: int = STDOUT) -> None:
        columns = terminal_columns(stream)
        super().__init__(
            stderr=stream == STDERR,
            force_terminal=columns is not None,
            width=columns or _PLAIN_WIDTH,
            markup=False,
            emoji=False,
            highlight=False,
        )
        self.is_shown = columns is not None

    def render_str(self, text: str, **options: Any) -> Text:
        """Return the text that a string becomes: rich asks for it for every string, in cells and titles, too."""
        return super().render_str(visible(text), **options)

    def say(self, line: str) -> None:
        """Print one line, which the terminal may wrap."""
        self.print(line, soft_wrap=True)


def terminal_columns(stream: int, proc: Path = Path("/proc")) -> int | None:
    """Return how wide the terminal is that a stream of this process ends up on, or None when it is no terminal.

    Launchers give their ranks a pipe, or a terminal of their own making, and pass on what comes through it. So the
    outermost launcher on this machine counts, and this process's own stream only where there is none.

    Args:
        stream: STDOUT or STDERR.
    """
    outermost, process = None, os.getppid()
    while process > 1:
        name, parent = _name_and_parent(proc / str(process))
        if name not in _LAUNCHERS:
            break
        outermost, process = process, parent
    if outermost is not None:
        return _columns_of(proc / str(outermost) / "fd" / str(stream))
    return _columns(stream) if os.isatty(stream) else None


def _name_and_parent(process: Path) -> tuple[str, int]:
    """Return a process's name and its parent's number; an empty name when it cannot be read."""
    try:
        fields = (process / "stat").read_text()
    except OSError:
        return "", 0
    name, rest = fields[fields.index("(") + 1 :].rsplit(")", 1)
    return name, int(rest.split()[1])


def _columns_of(stream: Path) -> int | None:
    try:
        handle = os.open(stream, os.O_WRONLY | os.O_NOCTTY | os.O_NONBLOCK)
    except OSError:
        return None
    try:
        return _columns(handle) if os.isatty(handle) else None
    finally:
        os.close(handle)


def _columns(handle: int) -> int:
    return os.get_terminal_size(handle).columns or 80

"""The one way for text to the terminal: it is shown as it is, no markup in it is followed, and nothing steers.

Names, paths and messages come from files that others wrote. `visible` is mpisparse's, whose packages the analysis does
not need.
"""

from __future__ import annotations

import io
import sys
from typing import Any

import click
from rich.console import Console
from rich.markdown import Markdown
from rich.text import Text


def visible(text: str, *, keep: str = "") -> str:
    """Return text in which every character that cannot be seen is an escape, as in \\u001b.

    Args:
        keep: characters that stay as they are, such as "\\n" in text of several lines.
    """
    if text.isprintable():
        return text
    return "".join(letter if letter.isprintable() or letter in keep else _escaped(ord(letter)) for letter in text)


def _escaped(code: int) -> str:
    return f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


class Screen(Console):
    """A rich console that takes all strings as plain text."""

    def __init__(self) -> None:
        super().__init__(markup=False, emoji=False, highlight=False)

    def render_str(self, text: str, **options: Any) -> Text:
        """Return the text that a string becomes: rich asks for it for every string, in cells and titles, too."""
        return super().render_str(visible(text), **options)


def say(line: str, *, error: bool = False, keep: str = "") -> None:
    """Print one line on standard output, or with `error` on standard error.

    Args:
        keep: see `visible`.
    """
    stream = sys.stderr if error else sys.stdout
    encoding = stream.encoding or "utf-8"
    stream.write(visible(line, keep=keep).encode(encoding, "backslashreplace").decode(encoding) + "\n")
    stream.flush()


def say_usage(error: click.ClickException) -> None:
    """Print what is wrong with a command line on standard error, as click words it."""
    shown = io.StringIO()
    error.show(shown)
    say(shown.getvalue().rstrip("\n"), error=True, keep="\n")


def say_markdown(text: str) -> None:
    """Print Markdown on standard output: as tables and paragraphs on a terminal, as it is elsewhere."""
    screen = Screen()
    if screen.is_terminal:
        screen.print(Markdown(visible(text, keep="\n"), hyperlinks=False))
    else:
        say(text, keep="\n")

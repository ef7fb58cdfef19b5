"""Pieces of Markdown that pages are made of, and the one way for text into them: what is not Markdown is escaped."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from analysis.terminal import visible

#: What Markdown would read as markup within a line: an underscore only beside a word, a bracket only where it may end a
#: link, an ampersand only before an entity. The rest is left alone, so that pages can be read as they are, too.
_MARKUP = re.compile(r"[\\`*<|]|~(?=~)|(?<=~)~|(?<![^\W_])_|_(?![^\W_])|\](?=[(\[:]|$)|&(?=#?\w+;)")
_MARKUP_IN_BRACKETS = re.compile(_MARKUP.pattern + r"|[\[\]]")
#: What would begin a heading, a quotation, a list or a rule at the start of a line.
_START = re.compile(r"^([#>+=-]|\d+(?=[.)]))")


class Marked(str):
    """Text that is Markdown already; any other is escaped by what takes both."""

    __slots__ = ()


def text(words: str) -> Marked:
    """Return Markdown that shows `words` as they are, on one line."""
    return words if isinstance(words, Marked) else Marked(_START.sub(_escaped_start, _inline(words).lstrip()))


def code(words: object) -> Marked:
    """Return Markdown that shows `words` as code, on one line."""
    shown = visible(str(words)) or " "
    fence = "`" * (1 + max((len(run) for run in re.findall("`+", shown)), default=0))
    room = " " if shown[0] == "`" or shown[-1] == "`" else ""
    return Marked(f"{fence}{room}{shown}{room}{fence}")


def figure(name: str, title: str) -> Marked:
    """Return a picture with links to what lies beside it: NAME.png, NAME.svg, NAME.csv."""
    return Marked(f"![{_inline(title, brackets=True)}]({name}.png)\n\n[SVG]({name}.svg) · [CSV]({name}.csv)")


def table(columns: Sequence[str], rows: Iterable[Sequence[str]], *, right: bool = False) -> Marked:
    """Return a table in Markdown; columns that are empty in all rows are left out.

    Args:
        right: whether all columns but the first are of numbers.
    """
    cells = [[_cell(value) for value in row] for row in rows]
    kept = [i for i in range(len(columns)) if any(row[i] for row in cells)]
    rules = ["---:" if right and i else "---" for i in kept]
    lines = [[_cell(columns[i]) for i in kept], rules, *([row[i] for i in kept] for row in cells)]
    return Marked("\n".join(f"| {' | '.join(line)} |" for line in lines) if cells else "")


def bullets(items: Iterable[str]) -> Marked:
    """Return a list in Markdown, an item a line."""
    return Marked("\n".join(f"- {text(item)}" for item in items))


def number(count: int, one: str, more: str = "") -> str:
    """Return a count with its noun, as in "3 runs"."""
    return f"{count:,} {one if count == 1 else more or one + 's'}"


def _inline(words: str, *, brackets: bool = False) -> str:
    """Return one line without markup; `brackets`, too, are escaped where the line is to stand between some."""
    markup = _MARKUP_IN_BRACKETS if brackets else _MARKUP
    return markup.sub(lambda found: f"\\{found[0]}", visible(words.replace("\n", " ")))


def _escaped_start(found: re.Match[str]) -> str:
    # A number is no punctuation: what follows it is what has to be escaped.
    return f"{found[0]}\\" if found[0].isdigit() else f"\\{found[0]}"


def _cell(words: str) -> str:
    return re.sub(r"(?<!\\)\|", r"\\|", words) if isinstance(words, Marked) else _inline(words)

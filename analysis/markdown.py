"""Pieces of Markdown that pages are made of."""

from __future__ import annotations

from collections.abc import Iterable, Sequence


def figure(name: str, title: str) -> str:
    """Return a picture with links to what lies beside it: NAME.png, NAME.svg, NAME.csv."""
    return f"![{title}]({name}.png)\n\n[SVG]({name}.svg) · [CSV]({name}.csv)"


def table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a table in Markdown; columns that are empty in all rows are left out."""
    cells = [[_cell(value) for value in row] for row in rows]
    kept = [i for i in range(len(columns)) if any(row[i] for row in cells)]
    lines = [[columns[i] for i in kept], ["---"] * len(kept), *([row[i] for i in kept] for row in cells)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) if cells else ""


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")


def bullets(items: Iterable[str]) -> str:
    """Return a list in Markdown, an item a line."""
    return "\n".join(f"- {' '.join(item.split())}" for item in items)


def number(count: int, one: str, more: str = "") -> str:
    """Return a count with its noun, as in "3 runs"."""
    return f"{count:,} {one if count == 1 else more or one + 's'}"

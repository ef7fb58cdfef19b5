"""Lettering: the texts of a drawing as matplotlib is to draw them: as they are, and short enough for their place."""

from __future__ import annotations

from dataclasses import replace

from analysis.drawing.drawing import Drawing, Heat, Line, Panel, Stack
from analysis.terminal import visible

#: Letters of the figure's title, of a panel's and of a legend's entry, at most. What is longer loses its middle.
_TITLE, _PANEL, _ENTRY = 100, 40, 60


def lettered(drawing: Drawing) -> Drawing:
    """Return the drawing with texts that matplotlib shows as they are: no formulas, no hidden entries of legends.

    Entries of a legend that differ still differ when they are shortened.
    """
    entries: dict[str, str] = {}
    return replace(
        drawing,
        title=_short(drawing.title, _TITLE),
        panels=tuple(_panel(panel, entries) for panel in drawing.panels),
        x_label=_short(drawing.x_label, _PANEL),
        y_label=_short(drawing.y_label, _PANEL),
        footnotes=tuple(_plain(note) for note in drawing.footnotes),
    )


def _panel(panel: Panel, entries: dict[str, str]) -> Panel:
    return replace(
        panel,
        title=_short(panel.title, _PANEL),
        x_label=_short(panel.x_label, _PANEL),
        y_label=_short(panel.y_label, _PANEL),
        lines=tuple(_line(line, entries) for line in panel.lines),
        stack=_stack(panel.stack, entries) if panel.stack is not None else None,
        heat=_heat(panel.heat) if panel.heat is not None else None,
    )


def _line(line: Line, entries: dict[str, str]) -> Line:
    return replace(line, label=_entry(line.label, entries) if line.label else "")


def _stack(stack: Stack, entries: dict[str, str]) -> Stack:
    names = {part: _entry(part, entries) for part in stack.parts}
    return replace(
        stack,
        bars=tuple(_short(bar, _PANEL) for bar in stack.bars),
        parts={names[part]: heights for part, heights in stack.parts.items()},
        colours={names.get(part, part): colour for part, colour in stack.colours.items()},
        mark=_entry(stack.mark, entries) if stack.mark else "",
    )


def _heat(heat: Heat) -> Heat:
    return replace(heat, bar=_short(heat.bar, _PANEL))


def _entry(label: str, entries: dict[str, str]) -> str:
    """Return an entry of a legend, which takes those that begin with an underscore for hidden ones."""
    if label not in entries:
        short = _short(label, _ENTRY)
        short = f"\u200a{short}" if short.startswith("_") else short
        tried = (short, *(f"{short} ({i})" for i in range(2, len(entries) + 3)))
        entries[label] = next(each for each in tried if each not in entries.values())
    return entries[label]


def _short(text: str, most: int) -> str:
    half = most // 2 - 1
    shown = visible(text)
    return _without_formulas(shown if len(shown) <= most else f"{shown[:half]} … {shown[-half:]}")


def _plain(text: str) -> str:
    return _without_formulas(visible(text))


def _without_formulas(text: str) -> str:
    """Return text in which no dollar sign begins a formula; matplotlib draws \\$ as a dollar sign where none does."""
    return text.replace("$", "\\$")

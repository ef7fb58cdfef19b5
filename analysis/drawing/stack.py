"""Bars of parts one on another."""

from __future__ import annotations

import numpy as np
from matplotlib.axes import Axes

from analysis.drawing.drawing import Stack

#: How wide a bar is, of the room that it has.
_WIDTH = 0.62


def draw_stack(axes: Axes, stack: Stack) -> None:
    """Draw the bars, with the marks on them."""
    places = np.arange(len(stack.bars), dtype=float)
    below = np.zeros(len(stack.bars))
    for part, heights in stack.parts.items():
        axes.bar(
            places,
            heights,
            _WIDTH,
            bottom=below,
            label=part,
            color=stack.colours[part],
            edgecolor="white",
            linewidth=0.4,
        )
        below = below + np.nan_to_num(heights)
    if stack.marks is not None:
        middle, low, high = stack.marks
        axes.plot(places, middle, "D", color="black", markersize=5, label=stack.mark, markeredgecolor="white")
        axes.vlines(places, low, high, color="black", linewidth=1.6)
    axes.set_xticks(places, stack.bars)
    axes.set_xlim(-0.6, len(stack.bars) - 0.4)
    axes.grid(visible=False, axis="x")
    axes.set_ylim(0, stack.top)

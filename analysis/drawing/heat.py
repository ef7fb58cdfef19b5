"""A map of values by row and by place, with its scale."""

from __future__ import annotations

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from analysis.drawing.drawing import Heat


def draw_heat(axes: Axes, heat: Heat) -> None:
    """Draw the map; its colours go to the 98th percentile, so that one long wait does not whiten all others."""
    rows, columns = heat.values.shape
    known = heat.values[np.isfinite(heat.values)]
    most = float(np.quantile(known, 0.98)) if len(known) else 1.0
    colours = matplotlib.colormaps["viridis"].with_extremes(bad="#d0d0d0")
    extent = (0.0, columns * heat.width, rows - 0.5, -0.5)
    image = axes.imshow(
        heat.values, aspect="auto", extent=extent, cmap=colours, vmin=0, vmax=most or 1.0, interpolation="nearest"
    )
    axes.yaxis.set_major_locator(MaxNLocator(8, integer=True))
    axes.grid(visible=False)
    figure = axes.figure
    box = axes.get_position()
    # The scale takes its room from the axes, whose place the layout has fixed.
    axes.set_position((box.x0, box.y0, box.width * 0.78, box.height))
    room = figure.add_axes((box.x0 + box.width * 0.80, box.y0, box.width * 0.03, box.height))
    scale = figure.colorbar(image, cax=room, extend="max")
    scale.set_label(heat.bar)
    scale.ax.yaxis.set_major_locator(MaxNLocator(5))

"""How methods and phases look: the same in all figures of a page, and told apart by all readers, in print, too."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from analysis.drawing.curve import Array, Curve
from analysis.drawing.drawing import Line
from analysis.method import Method

#: The palette of Okabe and Ito, without the yellow, which is weak on white; a marker each.
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
_MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<", ">")
_DASHES: tuple[Any, ...] = ("solid", (0, (5, 1.5)), (0, (1.2, 1.2)))

#: Phases of a stack, from below, those of one kind in one colour.
PHASES = {
    "data": "#999999",
    "compute": "#56B4E9",
    "apply": "#0072B2",
    "sparsify": "#009E73",
    "encode": "#6fcfae",
    "decode": "#b9e6d6",
    "agree": "#CC79A7",
    "exchange": "#D55E00",
}

#: Names of phases as a legend has them.
PHASE_WORDS = {"agree": "agree (waiting)"}

IDEAL: dict[str, Any] = {"color": "#888888", "linestyle": (0, (4, 3)), "marker": "", "linewidth": 1.4}


def looks(methods: Iterable[str]) -> dict[str, dict[str, Any]]:
    """Return colour, line and marker for each method: dense is black, in 16 bits grey."""
    found: dict[str, dict[str, Any]] = {}
    others = 0
    for method in methods:
        if method.startswith("dense"):
            colour, marker, dash = ("#000000", "*", "solid") if method == "dense" else ("#777777", "h", (0, (5, 1.5)))
        else:
            colour, marker = _COLOURS[others % len(_COLOURS)], _MARKERS[others % len(_MARKERS)]
            dash = _DASHES[others // len(_COLOURS) % len(_DASHES)]
            others += 1
        found[method] = {"color": colour, "marker": marker, "linestyle": dash, "linewidth": 1.9, "markersize": 6.5}
    return found


def line(method: str, look: dict[str, Any], points: Curve, **options: Any) -> Line:
    """Return a line of a method."""
    return Line(Method(method), options.pop("label", method), points, look=look, **options)


def ideal(x: Array, y: Array, label: str = "ideal") -> Line:
    """Return a line that nothing measured is on."""
    return Line(Method(label), label, Curve(x, y, y, y), look=IDEAL)

"""Method: what is compared. Its name, its legend, and how it looks, which is the same in all figures."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

#: The palette of Okabe and Ito, which all readers can tell apart; a marker tells them apart in print.
_FAMILIES: dict[str, tuple[str, str, str]] = {
    "dense": ("dense", "#000000", ""),
    "gspar": ("GSpar", "#0072B2", "o"),
    "uniform": ("uniform", "#D55E00", "s"),
    "qsgd": ("QSGD", "#009E73", "^"),
    "terngrad": ("TernGrad", "#CC79A7", "D"),
    "bound": ("Theorem 4", "#56B4E9", ""),
}
_OTHER = ("", "#E69F00", "v")

#: From which density, or with how many bits, a line is drawn in which style: thinner dashes for less sent.
_DENSITIES: tuple[tuple[float, Any], ...] = (
    (0.2, "solid"),
    (0.1, (0, (7, 1.3))),
    (0.05, (0, (4.5, 1.5))),
    (0.02, (0, (2.5, 1.3))),
    (0.01, (0, (5, 1.5, 1, 1.5))),
    (0.0, (0, (1.2, 1.2))),
)
_BITS: tuple[tuple[float, Any], ...] = ((8, "solid"), (4, (0, (5, 1.5))), (0, (0, (1.2, 1.2))))

#: How much white is mixed into the colour from one style to the next.
_LIGHTER = 0.11


@dataclass(frozen=True, order=True)
class Method:
    """A rule with its one number.

    family: the configuration's name of the rule. amount: density, bits, or variance (None: the rule has none).
    kind: which of the three `amount` is.
    """

    family: str
    amount: float | None = None
    kind: str = ""

    @property
    def name(self) -> str:
        """Return a name that tells methods of one family apart, as in "GSpar 0.1"."""
        family = _FAMILIES.get(self.family, _OTHER)[0] or self.family
        if self.amount is None:
            return family
        if self.kind == "variance":
            return f"{family} ε = {self.amount:g}"
        return f"{family} {self.amount:g}{' bits' if self.kind == 'bits' else ''}"

    def legend(self, var: float | None, spa: float | None) -> str:
        """Return the name with var (growth of the squared norm) and spa (share of entries sent), as the paper does."""
        if self.family == "dense":
            return self.name
        family = _FAMILIES.get(self.family, _OTHER)[0] or self.family
        parts = [self.name if self.kind == "bits" else family]
        parts += [f"var {short(var)}"] if var is not None and math.isfinite(var) else []
        parts += [f"spa {short(spa)}"] if spa is not None and math.isfinite(spa) else []
        return ", ".join(parts)

    @property
    def look(self) -> dict[str, Any]:
        """Return the colour, line style, marker and width for matplotlib."""
        _, colour, marker = _FAMILIES.get(self.family, _OTHER)
        steps = _BITS if self.kind == "bits" else _DENSITIES
        place = next((i for i, (least, _) in enumerate(steps) if self.amount is None or self.amount >= least), 0)
        return {
            "color": _lighter(colour, place * _LIGHTER),
            "linestyle": steps[place][1],
            "marker": marker,
            "linewidth": 2.2 if self.family in ("dense", "gspar") else 1.8,
        }

    @property
    def order(self) -> tuple[int, float]:
        """Return where the method stands in a legend: by family, and what sends most first."""
        names = list(_FAMILIES)
        place = names.index(self.family) if self.family in names else len(names)
        return place, -(self.amount or 0.0)


def method_of(config: dict[str, Any]) -> Method:
    """Return the method of a run's configuration."""
    section = config.get("sparsifier", {"name": "dense"})
    for key, kind in (("bits", "bits"), ("density", "density"), ("variance", "variance")):
        if isinstance(section.get(key), int | float):
            return Method(section["name"], float(section[key]), kind)
    return Method(section["name"])


def short(number: float) -> str:
    """Return a number in two digits without an exponent where that is shorter: 4.5, 0.10, 50, 0.0040."""
    if number == 0 or not math.isfinite(number):
        return f"{number:g}"
    if abs(number) >= 99.5:
        return f"{number:.0f}" if abs(number) < 1e5 else f"{number:.1e}"
    return f"{number:#.2g}".rstrip(".") if abs(number) >= 1e-4 else f"{number:.1e}"


def _lighter(colour: str, share: float) -> str:
    parts = (int(colour[i : i + 2], 16) for i in (1, 3, 5))
    return "#" + "".join(f"{round(part + (255 - part) * share):02x}" for part in parts)

"""The coding study: the JSON of `mpisparse bench coding`, and its figure of bits beside Theorem 4's bound."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from analysis.drawing.curve import Curve
from analysis.drawing.drawing import Drawing, Line, Panel
from analysis.files import read_json
from analysis.method import Method, short

_NEEDED = ("numel", "s", "rho", "method", "bits", "bits_with_header", "bound", "dense")


@dataclass(frozen=True)
class Coding:
    """Rows of a coding study: each says what the messages of one method took on one vector (keys: docs/bench.md)."""

    file: Path
    rows: tuple[dict[str, Any], ...]


def load_codings(files: Iterable[Path]) -> tuple[list[Coding], list[str]]:
    """Return the coding studies among JSON files, and why those that say they are one cannot be read."""
    found, problems = [], []
    for file in files:
        try:
            content = read_json(file, 2**28)
        except (OSError, ValueError) as error:
            problems.append(f"{file}: {error}")
            continue
        if not isinstance(content, dict) or content.get("study") != "coding":
            continue
        rows = content.get("rows")
        if not isinstance(rows, list) or any(not isinstance(row, dict) for row in rows):
            problems.append(f"{file}: a coding study without a list of rows")
        elif lacking := sorted({key for row in rows for key in _NEEDED if key not in row}):
            problems.append(f"{file}: a coding study whose rows lack {', '.join(lacking)}")
        else:
            found.append(Coding(file, tuple(rows)))
    return found, problems


def coding_figure(codings: Sequence[Coding]) -> Drawing | None:
    """Return bits an entry against the share of large entries: a panel for each number of entries and each rho."""
    rows = [(coding, row) for coding in codings for row in coding.rows]
    if not rows:
        return None
    sizes = sorted({row["numel"] for _, row in rows})
    rhos = sorted({row["rho"] for _, row in rows})
    panels = []
    for numel in sizes:
        for rho in rhos:
            inside = [(coding, row) for coding, row in rows if (row["numel"], row["rho"]) == (numel, rho)]
            if inside:
                title = f"{numel:,} entries, ρ = ε = {rho:g}"
                panels.append(Panel(title, rhos.index(rho), sizes.index(numel), tuple(_lines(inside))))
    return Drawing(
        name="coding",
        experiment="coding",
        title="Bits of a message beside Theorem 4's bound",
        panels=tuple(panels),
        x_label="share s / d of large entries",
        y_label="bits an entry",
        x_scale="log",
        footnotes=(
            "mean over draws, without the messages' fixed headers (with them: see page)",
            "fewer bits may come with more variance: see page",
        ),
        one_legend=True,
    )


def _lines(rows: Sequence[tuple[Coding, dict[str, Any]]]) -> list[Line]:
    """Return a line for each method, and for the bound and dense messages, which are the same for all."""
    runs = tuple(dict.fromkeys(str(coding.file) for coding, _ in rows))
    methods = sorted({_method(row["method"]) for _, row in rows}, key=lambda method: method.order)
    lines = []
    for method in methods:
        own = [row for _, row in rows if _method(row["method"]) == method]
        lines.append(Line(method, method.name, _points(own, "bits"), runs=runs))
    once = list({row["s"]: row for _, row in rows}.values())
    bound = {"linestyle": (0, (6, 1.5)), "linewidth": 2.6}
    lines.insert(0, Line(Method("bound"), "Theorem 4's bound for GSpar", _points(once, "bound"), runs=runs, look=bound))
    if all(method.family != "dense" for method in methods):
        lines.append(Line(Method("dense"), "dense, float32", _points(once, "dense"), runs=runs))
    return lines


def _points(rows: Sequence[dict[str, Any]], key: str) -> Curve:
    ordered = sorted(rows, key=lambda row: row["s"])
    x = np.array([row["s"] / row["numel"] for row in ordered], dtype=np.float64)
    y = np.array([row[key] / row["numel"] for row in ordered], dtype=np.float64)
    return Curve(x, y, y, y)


def _method(name: str) -> Method:
    family, _, bits = name.replace("_", "-").partition("-")
    return Method(family, float(bits), "bits") if bits.isdigit() else Method(family)


def coding_table(codings: Sequence[Coding]) -> list[list[str]]:
    """Return rows of text: vector, method, bits without and with header, part of the bound, dense over this, var."""
    return [
        [
            f"{row['numel']:,}",
            f"{row['s']:,}",
            f"{row['rho']:g}",
            _method(row["method"]).name,
            f"{row['bits']:,.0f}",
            f"{row['bits_with_header']:,.0f}",
            f"{row['bound']:,.0f}",
            short(row["bits"] / row["bound"]),
            short(row["dense"] / row["bits"]) if row["bits"] else "",
            short(row["variance"]) if "variance" in row else "",
        ]
        for coding in codings
        for row in coding.rows
    ]

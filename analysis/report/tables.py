"""The tables of a report."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from statistics import fmean, stdev

import numpy as np

from analysis.bootstrap import Interval
from analysis.brief import Brief
from analysis.markdown import code, number, table
from analysis.report.figures import Measured
from analysis.report.modelled import WORDS, Modelled, coefficients
from analysis.scaling import Series, Step, ratio
from analysis.study import METHOD, flat

#: What a law has to explain of the times' variation to be said to describe them.
_DESCRIBES = 0.5

#: What it takes to reach an accuracy.
_TO_TARGET = ("step", "seconds", "bytes")

_SCALING = [
    "method", "ranks", "nodes", "runs", "median step", "interval", "samples / s", "speed-up", "interval", "efficiency",
    "Karp-Flatt", "dense / this", "load balance", "comm. efficiency", "into each rank", "moved in all", "final metric",
]  # fmt: skip

#: Keys of configuration and environment that the table of settings has.
_SETTINGS = ("data.name", "model.name", "training.length", "training.batch", "training.global_batch", "optimizer.name",
             "optimizer.lr", "schedule.name", "seed")  # fmt: skip
_ENVIRONMENT = {"library": "MPI library", "hosts": "nodes", "host": "node of rank 0", "processors": "processors",
                "threads": "threads per rank", "quotas": "cores by quota", "platform": "platform", "torch": "torch",
                "mpisparse": "mpisparse"}  # fmt: skip


def scaling_table(measured: Measured) -> str:
    """Return a row for each method and number of ranks."""
    dense = {step.ranks: step for series in measured.series if series.method == "dense" for step in series.steps}
    rows = [_row(series, step, dense.get(step.ranks)) for series in measured.series for step in series.steps]
    return table(_SCALING, rows)


def _row(series: Series, step: Step, dense: Step | None) -> list[str]:
    claimed = series.kind in ("strong", "weak") and not series.refused
    first = step.ranks == series.base
    against = ratio(step, dense) if dense is not None and dense is not step else None
    return [
        series.method,
        str(step.ranks),
        str(step.nodes),
        str(len(step.briefs)),
        time_text(step.seconds.value),
        f"{time_text(step.seconds.low)} to {time_text(step.seconds.high)}",
        f"{_median(brief.means['samples'] for brief in step.briefs) / step.seconds.value:,.0f}",
        f"{step.speed_up.value:.2f}" if claimed else "",
        limits(step.speed_up) if claimed and not first else "",
        f"{step.efficiency.value:.0%}" if claimed else "",
        f"{step.serial.value:.3f} ({limits(step.serial, 3)})" if claimed and not first else "",
        f"{against.value:.2f} ({limits(against)})" if against is not None else "",
        _pop(step.briefs, "load_balance"),
        _pop(step.briefs, "communication_efficiency"),
        bytes_text(_median(brief.means["received_bytes"] / brief.ranks for brief in step.briefs)) + " a step",
        bytes_text(_median(brief.means["received_bytes"] * brief.steps for brief in step.briefs)),
        _final(step.briefs),
    ]


def target_table(measured: Measured, target: float) -> str:
    """Return what each method, on its most ranks, takes to an accuracy: medians over the repeats that reach it."""
    rows = []
    for series in measured.series:
        briefs = series.steps[-1].briefs
        found = [place for brief in briefs if (place := _reached(brief, target)) is not None]
        middle = [float(np.median([place[key] for place in found])) if found else math.nan for key in _TO_TARGET]
        shown = [f"{middle[0]:,.0f}", time_text(middle[1]), bytes_text(middle[2])] if found else ["", "", ""]
        rows.append([series.method, str(series.steps[-1].ranks), f"{len(found)} of {len(briefs)}", *shown])
    return table(["method", "ranks", "reached by", "steps", "seconds of steps", "bytes into each rank"], rows)


def target_of(measured: Measured) -> float | None:
    """Return the accuracy to reach: a percentage point less than dense's at its end, of all methods without dense."""
    dense = [series for series in measured.series if series.method == "dense"] or measured.series
    briefs = [brief for series in dense for brief in series.steps[-1].briefs]
    ends = [brief.evaluations["accuracy"][-1:] for brief in briefs]
    known = [float(end[0]) for end in ends if len(end) and math.isfinite(end[0])]
    return float(np.median(known)) - 0.01 if known else None


def _reached(brief: Brief, target: float) -> dict[str, float] | None:
    """Return steps, seconds and bytes at the first evaluation that reaches the accuracy."""
    places = np.flatnonzero(brief.evaluations["accuracy"] >= target)
    return {key: float(brief.evaluations[key][places[0]]) for key in _TO_TARGET} if len(places) else None


def _pop(briefs: Sequence[Brief], name: str) -> str:
    values = [getattr(brief.waiting, name) for brief in briefs if brief.waiting is not None]
    return f"{np.median(values):.0%}" if values and briefs[0].ranks > 1 else ""


def _final(briefs: Sequence[Brief]) -> str:
    """Return the last accuracy, or loss, of finished runs: mean and standard deviation."""
    for key, factor, unit in (("accuracy", 100, " %"), ("loss", 1, "")):
        ends = [brief.evaluations[key][-1:] for brief in briefs if brief.state == "finished"]
        values = [factor * float(end[0]) for end in ends if len(end) and math.isfinite(end[0])]
        if values:
            spread = f" ± {stdev(values):.2g}" if len(values) > 1 else ""
            return f"{key} {fmean(values):.4g}{spread}{unit}"
    return ""


def _median(values: Iterator[float]) -> float:
    return float(np.median(list(values)))


def settings_table(briefs: Sequence[Brief]) -> str:
    """Return what all runs share, and what varies."""
    configs = [flat(brief.config) for brief in briefs]
    rows = [[code(key), _values(config.get(key) for config in configs)] for key in _SETTINGS]
    keys = sorted({key for config in configs for key in config if key.startswith(tuple(f"{s}." for s in METHOD))})
    varying = [key for key in keys if len({str(config.get(key)) for config in configs}) > 1]
    rows += [[code(key), _values(config.get(key) for config in configs)] for key in varying]
    rows += [[words, _values(brief.surroundings.get(key) for brief in briefs)] for key, words in _ENVIRONMENT.items()]
    dates = sorted(str(brief.environment["started"]) for brief in briefs if "started" in brief.environment)
    rows += [["started", f"{dates[0]} to {dates[-1]}"]] if dates else []
    return table(["setting", "value"], [row for row in rows if row[1]])


def _values(values: Iterator[object]) -> str:
    texts = (", ".join(map(str, value)) if isinstance(value, list) else str(value) for value in values)
    return "; ".join(text for text in dict.fromkeys(texts) if text not in ("", "None"))


def law_rows(series: Sequence[Series]) -> str:
    """Return the fitted laws."""
    rows = [
        [each.method, each.law.name, f"{each.law.serial.value:.3f}", limits(each.law.serial, 3), _r2(each.law.r2)]
        for each in series
        if each.law is not None
    ]
    return table(["method", "law", "serial share", "interval", "r²"], rows)


def _r2(value: float) -> str:
    if not math.isfinite(value):
        return "two rank counts tell none"
    return f"{value:.2f}" + ("" if value >= _DESCRIBES else ": does not describe these times")


def coefficients_table(modelled: Modelled) -> str:
    """Return the coefficients of the model, with what they explain."""
    rows = []
    for name, phase, found in coefficients(modelled):
        text = (lambda value: f"{value:.2g}") if name == WORDS["idle"] else time_text
        between = f"{text(found.low)} to {text(found.high)}"
        rows.append([name, phase, text(found.value), between, _r2_of(modelled, phase)])
    return table(["what", "phase", "fitted", "interval", "r² of the phase"], rows)


def _r2_of(modelled: Modelled, phase: str) -> str:
    value = modelled.fitted.r2.get(phase, math.nan)
    return f"{value:.2f}" if math.isfinite(value) else ""


def held_out_table(modelled: Modelled) -> str:
    """Return what the model of smaller rank counts says of the largest."""
    rows = [
        [each.method, str(each.ranks), time_text(each.predicted.value),
         f"{time_text(each.predicted.low)} to {time_text(each.predicted.high)}", time_text(each.measured),
         f"{each.error:+.0%}"]
        for each in modelled.held_out
    ]  # fmt: skip
    return table(["method", "ranks", "predicted", "interval", "measured", "error"], rows)


def changes_table(modelled: Modelled, ranks: Sequence[int] = (2, 8, 64, 512, 4096)) -> str:
    """Return the crossover density if something were otherwise."""
    rows = [[change.words, *(density_text(density) for density in change.density)] for change in modelled.changes]
    return table(["if there were", *(number(count, "rank") for count in ranks)], rows)


def density_text(density: float) -> str:
    """Return a crossover density in words."""
    number = f"{100 * density:.2g}" if density < 0.1 else f"{100 * density:.0f}"
    return {0.0: "dense always", 1.0: "sparse always"}.get(density, f"{number} %")


def limits(found: Interval, digits: int = 2) -> str:
    """Return the limits of an interval."""
    return f"{found.low:.{digits}f} to {found.high:.{digits}f}" if math.isfinite(found.low) else ""


def time_text(seconds: float) -> str:
    """Return a time in the unit that suits it, with three digits."""
    if seconds == 0:
        return "0 s"
    for least, factor, unit in ((1.0, 1.0, "s"), (1e-3, 1e3, "ms"), (1e-6, 1e6, "µs")):
        if seconds >= least:
            return f"{_digits(seconds * factor)} {unit}"
    return f"{_digits(seconds * 1e9)} ns"


def bytes_text(count: float) -> str:
    """Return a number of bytes in the unit that suits it."""
    for least, unit in ((1e12, "TB"), (1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if count >= least:
            return f"{_digits(count / least)} {unit}"
    return f"{count:.0f} B"


def _digits(value: float) -> str:
    return f"{value:.0f}" if value >= 99.95 else f"{value:.1f}" if value >= 9.995 else f"{value:.2f}"

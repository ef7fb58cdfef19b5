"""Coverage: how much of the paper's grid the runs cover, in words for footnotes."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from analysis.find import Sweep
from analysis.paper.place import penalty
from analysis.paper.record import Record

#: The paper's grids: for each experiment the quantity, how to read it from a run, and the values.
_Axis = tuple[str, tuple[str, str], tuple[float, ...]]
_CONVEX: tuple[_Axis, ...] = (
    ("C₁", ("data", "c1"), (0.6, 0.9)),
    ("C₂", ("data", "c2"), (0.25, 0.0625, 0.015625)),
    ("λN", ("", "λN"), (0.1, 1.0)),
)
_GRIDS: dict[str, tuple[_Axis, ...]] = {
    "sgd": _CONVEX,
    "svrg": _CONVEX,
    "real": (),
    "cnn": (("channels", ("model", "channels"), (24.0, 32.0, 48.0, 64.0)), ("seeds", ("", "seeds"), (4.0,))),
    "svm": (("λ", ("", "λ"), (0.5, 0.1, 0.05)), ("ranks", ("", "ranks"), (16.0, 32.0))),
}


def footnote(experiment: str, records: Sequence[Record], sweeps: Iterable[Sweep]) -> str:
    """Return what a figure's footnote says: whether the runs are a reduced version, and of what; "" if of nothing."""
    parts = [words for axis in _GRIDS[experiment] if (words := _short_of(axis, records))]
    limits = sorted({str(_get(record, "data", "train_limit")) for record in records} - {"None"})
    parts += [f"{' or '.join(limits)} training samples"] if limits else []
    if is_reduced(records, sweeps):
        return "; ".join(["reduced version: see page", _length(records), *parts])
    return f"part of the paper's grid: {'; '.join(parts)}" if parts else ""


def is_reduced(records: Iterable[Record], sweeps: Iterable[Sweep]) -> bool:
    """Return True if one of the records comes from the reduced version of a study."""
    reduced = {sweep.directory for sweep in sweeps if sweep.reduced}
    return any(record.directory.parent in reduced for record in records)


def _short_of(axis: _Axis, records: Sequence[Record]) -> str:
    """Return which values there are, if one of the paper's is not among them."""
    words, (section, key), wanted = axis
    if key == "seeds":
        repeats = len({record.seed for record in records})
        return f"{repeats} seed{'s' * (repeats != 1)} of {wanted[0]:g}" if repeats < wanted[0] else ""
    there = sorted({round(value, 6) for record in records if (value := _number(record, section, key)) is not None})
    if all(any(abs(value - want) < 1e-3 * want for value in there) for want in wanted):
        return ""
    listed = ", ".join(f"{value:g}" for value in there)
    return f"{words} = {listed} only" if words != "ranks" else f"{listed} ranks (the paper: 16 and 32 threads)"


def _number(record: Record, section: str, key: str) -> float | None:
    if key == "λN":
        samples = _get(record, "data", "samples")
        return penalty(record.config) * float(samples) if samples else None
    if key == "λ":
        return penalty(record.config)
    if key == "ranks":
        return float(record.ranks) if record.ranks else None
    value = _get(record, section, key)
    return float(value) if value is not None else None


def _length(records: Sequence[Record]) -> str:
    lengths = sorted({str(_get(record, "training", "length")) for record in records} - {"None"})
    return " or ".join(lengths) or "length unknown"


def _get(record: Record, section: str, key: str) -> Any:
    return record.config.get(section, {}).get(key)

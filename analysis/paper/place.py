"""Place: to which experiment of the paper a run belongs, in which figure, and in which panel of it."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from pathlib import PurePath
from typing import Any

from analysis.paper.record import Record

#: Experiments by the configuration's `name`, in the order of the page, with the words for them.
EXPERIMENTS: dict[str, str] = {
    "sgd": "SGD, l2-logistic regression on synthetic data",
    "svrg": "SVRG, l2-logistic regression on synthetic data",
    "real": "l2-logistic regression on real data",
    "cnn": "Convolutional network on CIFAR-10",
    "svm": "Asynchronous support vector machine",
}

Label = tuple[float, str]


@dataclass(frozen=True, order=True)
class Place:
    """Where a curve is drawn.

    experiment: a key of EXPERIMENTS. figure: what its figures have in their names, and in words.
    row, column: of the panel, each a number to sort by and the words of it.
    """

    experiment: str
    figure: tuple[str, str]
    row: Label
    column: Label

    @property
    def panel(self) -> str:
        """Return the panel in words."""
        return ", ".join(words for _, words in (self.row, self.column) if words)


def place_of(record: Record) -> Place | None:
    """Return the place of a record, None if its name is that of no experiment."""
    name = str(record.config.get("name", ""))
    for experiment, place in _PLACES.items():
        if name == f"paper-{experiment}" or name.startswith(f"paper-{experiment}-"):
            return place(experiment, record)
    return None


def _synthetic(experiment: str, record: Record) -> Place:
    data = record.config.get("data", {})
    c1, c2 = float(data.get("c1", 0.6)), float(data.get("c2", 0.25))
    figure = (f"c1-{c1:g}", f"C₁ = {c1:g}")
    return Place(experiment, figure, _row(record), (-c2, f"C₂ = {_fraction(c2)}"))


def _real(experiment: str, record: Record) -> Place:
    file = PurePath(str(record.config.get("data", {}).get("train", "unknown"))).name
    name = re.sub(r"[^a-z0-9]+", "-", file.split(".")[0].lower()).strip("-")
    svrg = record.config.get("svrg") is not None
    return Place(experiment, (name, name), _row(record), (1.0, "SVRG") if svrg else (0.0, "SGD"))


def _cnn(experiment: str, record: Record) -> Place:
    channels = int(record.config.get("model", {}).get("channels", 32))
    return Place(experiment, (f"{channels:02d}", f"{channels} channels"), (0.0, ""), (0.0, ""))


def _svm(experiment: str, record: Record) -> Place:
    l2 = penalty(record.config)
    ranks = record.ranks
    return Place(experiment, ("", ""), (-l2, f"λ = {l2:g}"), (float(ranks), f"{ranks} rank{'s' * (ranks != 1)}"))


_PLACES: dict[str, Callable[[str, Record], Place]] = {
    "sgd": _synthetic,
    "svrg": _synthetic,
    "real": _real,
    "cnn": _cnn,
    "svm": _svm,
}


def penalty(config: dict[str, Any]) -> float:
    """Return λ of the penalty λ ||w||², however the configuration writes it."""
    model = config.get("model", {})
    return float(model.get("l2", 0.0)) / (2 if model.get("halved", True) else 1)


def _row(record: Record) -> Label:
    """Return the penalty, with the form of SVRG where there is one: 0 or 1 is added to sort by."""
    l2 = penalty(record.config)
    words = f"λ = {_in_samples(l2, record.config)}"
    svrg = record.config.get("svrg")
    if svrg is None:
        return l2, words
    whole = svrg.get("form", "difference") == "whole"
    return l2 + (0 if whole else 1), f"{words}, {'whole vector' if whole else 'difference only'}"


def _in_samples(l2: float, config: dict[str, Any]) -> str:
    """Return the penalty as the paper writes it, 1/(10N) and 1/N, where it is one of them."""
    samples = config.get("data", {}).get("samples")
    for text, times in (("1/(10N)", 0.1), ("1/N", 1.0)):
        if samples and abs(l2 * samples - times) < 1e-3 * times:
            return text
    return f"{l2:g}"


def _fraction(number: float) -> str:
    close = Fraction(number).limit_denominator(1024)
    return str(close) if abs(float(close) - number) < 1e-9 else f"{number:g}"

"""The page: claims beside measurements, figures, and how the runs were made, in Markdown."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime

from analysis.drawing.drawing import Drawing
from analysis.find import Sweep
from analysis.markdown import bullets, code, figure, number, table, text
from analysis.method import short
from analysis.paper.claims import Claim
from analysis.paper.coding import coding_table
from analysis.paper.coverage import is_reduced
from analysis.paper.curves import total_bits
from analysis.paper.evidence import Evidence, Finding
from analysis.paper.place import EXPERIMENTS
from analysis.paper.record import Record
from analysis.paper.settings import settings
from analysis.paper.tuning import Tuned, doubles


@dataclass(frozen=True)
class Content:
    """What the page tells. records: by experiment. notes: the figures' footnotes. left_out: what no figure shows."""

    records: dict[str, list[Record]]
    evidence: Evidence
    findings: Sequence[tuple[Claim, Finding]]
    drawings: Sequence[Drawing]
    notes: dict[str, str]
    sweeps: Sequence[Sweep]
    left_out: Sequence[str]
    made: datetime


def to_markdown(content: Content) -> str:
    """Return the whole page."""
    parts = [
        "# The GSpar paper's experiments: claims and measurements",
        _summary(content),
        "## Claims",
        "The last column follows from the measured numbers by the rule below; what no run tells is not measured.",
        _claims(content.findings),
        _rules(content.findings),
    ]
    for experiment, words in EXPERIMENTS.items():
        parts += [f"## {words}", *_experiment(content, experiment)]
    parts += ["## Coding length", *_coding(content)]
    parts += ["## How to read this", _READING]
    if content.left_out:
        parts += ["## Left out", bullets(content.left_out)]
    return "\n\n".join(part for part in parts if part) + "\n"


_READING = """\
- *Data passes*: sample gradients computed, in units of the training samples; SVRG computes more than one a sample.
- *var*: squared norms of what was sent over those of the gradients, summed over all steps and ranks.
- *spa*: entries sent over entries of the gradient.
- *Coding length*: bits of all messages that all ranks made in the run. The paper counts no message header, so figures
  leave fixed headers out; tables have both numbers.
- *Learning rate*: of runs that differ in nothing else, the one whose last value (suboptimality; training loss of the
  network; objective of the support vector machine) is lowest, in the mean over seeds. A run that failed, or ended in
  NaN, counts as infinite. A rate at the edge of its grid is marked: a better one may lie outside.
- Figures have the numbers they show beside them as CSV."""


def _summary(content: Content) -> str:
    runs = sum(len(records) for records in content.records.values())
    failed = sum(record.error is not None for records in content.records.values() for record in records)
    reduced = [name for name, records in content.records.items() if records and is_reduced(records, content.sweeps)]
    missing = [words for name, words in EXPERIMENTS.items() if not content.records.get(name)]
    missing += [] if content.evidence.codings else ["Coding length"]
    lines = [
        f"Made {content.made:%Y-%m-%d %H:%M} UTC from {number(runs, 'run')}"
        + (f", {failed} of which failed" if failed else "")
        + f" and {number(len(content.evidence.codings), 'coding study', 'coding studies')}."
    ]
    if reduced:
        lines.append(f"**Reduced version** of: {', '.join(reduced)}. The figures' footnotes say what is smaller.")
    if missing:
        lines.append(f"**Not there**: {'; '.join(missing)}.")
    lines += [line for sweep in content.sweeps if (line := _shortfall(sweep, content))]
    return "\n\n".join(lines)


def _shortfall(sweep: Sweep, content: Content) -> str:
    """Return a sentence on a sweep that has made only a part of its runs."""
    records = [record for each in content.records.values() for record in each]
    there = sum(record.directory.parent == sweep.directory for record in records)
    if there >= sweep.runs:
        return ""
    return f"The sweep {text(sweep.study)} has {there} of its {number(sweep.runs, 'run')} ({code(sweep.directory)})."


def _claims(findings: Iterable[tuple[Claim, Finding]]) -> str:
    rows = [
        [str(number), claim.text, finding.measured, str(finding.runs) if finding.runs else "", finding.verdict]
        for number, (claim, finding) in enumerate(findings, start=1)
    ]
    return table(["", "paper", "measured", "runs or vectors", "verdict"], rows)


def _rules(findings: Iterable[tuple[Claim, Finding]]) -> str:
    lines = [f"{number}. {claim.rule}." for number, (claim, _) in enumerate(findings, start=1)]
    return "\n".join(["A claim holds if", "", *lines])


def _experiment(content: Content, experiment: str) -> Iterator[str]:
    records = content.records.get(experiment, [])
    if not records:
        yield f"No runs: none of them is named `paper-{experiment}`."
        return
    yield table(["setting", "value"], settings(records))
    if content.notes.get(experiment):
        yield f"Coverage: {text(content.notes[experiment])}."
    yield from (figure(drawing.name, drawing.title) for drawing in content.drawings if drawing.experiment == experiment)
    curves = content.evidence.curves(experiment)
    edges = [curve for curve in curves if curve.edge and curve.records]
    if edges:
        yield (
            f"**{len(edges)} of {len(curves)} learning rates lie at the edge of their grid**; a better one may lie "
            "outside. They are marked in the table."
        )
    yield "### Learning rates and last values"
    yield table(_COLUMNS, [_row(curve) for curve in curves])
    notes = [f"{one.place.panel}: two curves of {one.method.name}, whose runs differ in {', '.join(keys) or 'ranks'}"
             for one, _, keys in doubles(curves)]  # fmt: skip
    yield bullets(notes)


_COLUMNS = ["figure", "panel", "method", "rate", "of", "var", "spa", "last value", "bits", "with headers", "runs"]


def _row(curve: Tuned) -> list[str]:
    place = curve.place
    rate = f"{curve.lr:g}" + (f" ({curve.edge} of the grid)" if curve.edge else "") if curve.records else "all failed"
    rates = ", ".join(f"{value:g}{' (failed)' if value in curve.failed else ''}" for value in sorted(curve.scores))
    bits = [_mean_bits(curve.records, headers=headers) for headers in (False, True)]
    return [
        place.figure[1],
        place.panel,
        curve.method.name,
        rate,
        rates,
        *("" if value is None else short(value) for value in (curve.var, curve.spa)),
        f"{curve.score:.4g}" if math.isfinite(curve.score) else "",
        *bits,
        str(len(curve.records)),
    ]


def _mean_bits(records: Sequence[Record], *, headers: bool) -> str:
    values = [total_bits(record, headers=headers) for record in records]
    known = [value for value in values if math.isfinite(value)]
    return f"{sum(known) / len(known):.3g}" if known else ""


def _coding(content: Content) -> Iterator[str]:
    if not content.evidence.codings:
        yield 'No coding study: a JSON file of `mpisparse bench coding` with `"study": "coding"`.'
        return
    yield from (figure(drawing.name, drawing.title) for drawing in content.drawings if drawing.experiment == "coding")
    yield table(
        [
            "entries",
            "large",
            "ρ = ε",
            "method",
            "bits",
            "with header",
            "Theorem 4",
            "bits / bound",
            "dense / this",
            "var",
        ],
        coding_table(content.evidence.codings),
    )

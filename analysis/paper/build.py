"""build_page: from paths to figures and page, whatever state the runs are in."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from analysis.drawing.draw import draw
from analysis.drawing.drawing import Drawing
from analysis.files import write_text
from analysis.find import Found, find
from analysis.load import load_run
from analysis.paper.claims import CLAIMS
from analysis.paper.coding import coding_figure, load_codings
from analysis.paper.coverage import footnote
from analysis.paper.evidence import FAILS, HOLDS, NOT_MEASURED, Evidence
from analysis.paper.figures import cnn_figures, convex_figures
from analysis.paper.figures_svm import svm_figures
from analysis.paper.page import Content, to_markdown
from analysis.paper.place import EXPERIMENTS, place_of
from analysis.paper.record import Record, record_of
from analysis.paper.tuning import tune
from analysis.web import to_html

#: How the page shows a verdict.
_VERDICTS = {HOLDS: "holds", FAILS: "fails", NOT_MEASURED: "unknown"}


@dataclass(frozen=True)
class Loaded:
    """Records that belong to the paper, and in words what else there was."""

    records: list[Record]
    left_out: list[str]


def build_page(paths: Sequence[Path], directory: Path) -> tuple[list[Path], list[str]]:
    """Write the figures of the runs below `paths`, index.md and index.html in `directory`; return these, and warnings.

    Raises:
        ValueError: there is no run, or coding study, of the paper's experiments.
    """
    found = find(paths)
    codings, problems = load_codings(found.files)
    loaded = load_records(found)
    if not loaded.records and not codings:
        words = ", ".join(str(path) for path in paths)
        raise ValueError(
            f"no run of the paper's experiments below {words}: their configurations are named "
            f"{', '.join(f'paper-{name}' for name in EXPERIMENTS)}, and {len(loaded.left_out)} others were found"
        )
    tuned = tune(loaded.records)
    evidence = Evidence(tuple(tuned), tuple(codings))
    by_experiment = {name: _of(loaded.records, name) for name in EXPERIMENTS}
    notes = {name: footnote(name, records, found.sweeps) for name, records in by_experiment.items() if records}
    drawings: list[Drawing] = [
        *convex_figures(tuned, notes),
        *cnn_figures(tuned, notes),
        *svm_figures(tuned, notes),
    ]
    coding = coding_figure(codings)
    drawings += [coding] if coding is not None else []
    left_out = [*loaded.left_out, *problems]
    content = Content(
        records=by_experiment,
        evidence=evidence,
        findings=[(claim, claim.measure(evidence)) for claim in CLAIMS],
        drawings=drawings,
        notes=notes,
        sweeps=found.sweeps,
        left_out=left_out,
        made=datetime.now(UTC),
    )
    directory.mkdir(parents=True, exist_ok=True)
    written = [path for drawing in drawings for path in draw(drawing, directory)]
    text = to_markdown(content)
    for name, body in (("index.md", text), ("index.html", to_html(text, _VERDICTS))):
        write_text(directory / name, body)
        written.append(directory / name)
    return written, left_out


def load_records(found: Found) -> Loaded:
    """Return the records of the paper's runs: those that came to an end, or failed in a sweep."""
    records, left_out = [], []
    for directory in found.runs:
        try:
            # A torn last line is that of a run still going on, which is told by its missing end.
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", UserWarning)
                run = load_run(directory)
            record = record_of(run)
            known = place_of(record) is not None
        except (ValueError, KeyError, TypeError) as error:
            left_out.append(f"{directory}: cannot be read, or has only begun ({error})")
            continue
        if not known:
            left_out.append(f"{directory}: named {run.config.get('name')!r}, no experiment of the paper")
        elif run.failed is None and not run.finished:
            left_out.append(f"{directory}: has not come to its end")
        else:
            records.append(record)
    return Loaded(records, left_out)


def _of(records: Sequence[Record], experiment: str) -> list[Record]:
    found = [(place_of(record), record) for record in records]
    return [record for place, record in found if place is not None and place.experiment == experiment]

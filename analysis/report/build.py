"""build_report: from paths to figures and page."""

from __future__ import annotations

import re
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

import numpy as np

from analysis.brief import Brief
from analysis.drawing.draw import draw
from analysis.export.extra_p import extra_p_lines
from analysis.export.mllog import mllog_lines
from analysis.files import write_text
from analysis.many import read_briefs
from analysis.markdown import number
from analysis.report.figures import Measured, figures
from analysis.report.learning import learning_figure
from analysis.report.look import looks
from analysis.report.modelled import model, model_figures
from analysis.report.page import Section, problems_of, to_markdown
from analysis.scaling import series_of
from analysis.study import Refusal, Study, studies_of
from analysis.web import folded, to_html

#: Letters of a study's name that the names of its files have, at most: file systems allow 255 bytes.
_LONGEST = 60


def build_report(
    paths: Sequence[Path], directory: Path, *, extra_p: Path | None = None, mllog: Path | None = None
) -> tuple[list[Path], list[str]]:
    """Write the report of the runs below `paths` in `directory`; return the files written, and warnings.

    Args:
        paths: run directories, or parents of them.
        directory: where index.html, index.md and the figures go.
        extra_p: a file for Extra-P. mllog: a file of MLPerf's log lines.

    Raises:
        ValueError: there is no run, or no two that may be compared: the keys that differ are in the message.
    """
    briefs, left_out = read_briefs(paths)
    studies, refusals = studies_of(briefs)
    if not studies:
        raise ValueError("nothing here may be compared: " + "; ".join(map(_in_words, refusals)))
    directory.mkdir(parents=True, exist_ok=True)
    sections = sections_of(studies)
    written = [path for section in sections for drawing in section.drawings for path in draw(drawing, directory)]
    text = to_markdown(sections, refusals, left_out, datetime.now(UTC))
    for name, body in (("index.md", text), ("index.html", folded(to_html(text), directory))):
        write_text(directory / name, body)
        written.append(directory / name)
    kept = [brief for study in studies for brief in study.briefs]
    written += _export(kept, studies, extra_p, mllog)
    return written, [*map(_in_words, refusals), *left_out, *problems_of(kept)]


def sections_of(studies: Sequence[Study]) -> list[Section]:
    """Return what the report says of each study."""
    return [_section(study, name) for study, name in zip(studies, _names(studies), strict=True)]


def _section(study: Study, name: str) -> Section:
    # The same runs make the same page.
    generator = np.random.default_rng(0)
    series = tuple(series_of(method, runs, generator) for method, runs in study.runs.items())
    measured = Measured(study, name, series, looks(study.runs))
    modelled = model(measured, generator)
    drawings = [*figures(measured), *learning_figure(measured)]
    drawings += [*model_figures(measured, modelled)] if modelled is not None else []
    return Section(measured, modelled, drawings)


def _names(studies: Sequence[Study]) -> list[str]:
    """Return names for the files of each study, no two alike."""
    names: list[str] = []
    for study in studies:
        name = re.sub(r"[^a-z0-9]+", "-", study.name.lower())[:_LONGEST].strip("-") or "study"
        tried = (name, *(f"{name}-{i}" for i in range(1, len(studies) + 1)))
        names.append(next(each for each in tried if each not in names))
    return names


def _export(briefs: Sequence[Brief], studies: Sequence[Study], extra_p: Path | None, mllog: Path | None) -> list[Path]:
    written = []
    for path, lines in ((extra_p, extra_p_lines(studies)), (mllog, mllog_lines(briefs))):
        if path is not None:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
            written.append(path)
    return written


def _in_words(refusal: Refusal) -> str:
    return f"refused: {number(refusal.runs, 'run')} named {refusal.name!r} differ in {refusal.reason}"

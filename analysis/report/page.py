"""The page of a report, in Markdown."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime

from analysis.bootstrap import DRAWS, ENOUGH, LEVEL, coverage
from analysis.brief import WARM_UP, Brief
from analysis.drawing.drawing import Drawing
from analysis.markdown import Marked, bullets, code, figure, number, text
from analysis.report.figures import Measured
from analysis.report.modelled import Modelled
from analysis.report.tables import (
    changes_table,
    coefficients_table,
    held_out_table,
    law_rows,
    scaling_table,
    settings_table,
    target_of,
    target_table,
)
from analysis.study import Refusal

#: Problems of runs that are listed of a study.
_LISTED = 20


@dataclass(frozen=True)
class Section:
    """A study with all that was made of it."""

    measured: Measured
    modelled: Modelled | None
    drawings: Sequence[Drawing]


def to_markdown(
    sections: Sequence[Section], refusals: Sequence[Refusal], left_out: Sequence[str], made: datetime
) -> str:
    """Return the whole page."""
    runs = sum(len(section.measured.study.briefs) for section in sections)
    parts = ["# Report of " + number(runs, "run"), f"Made {made:%Y-%m-%d %H:%M} UTC."]
    parts += [_refusal(refusal) for refusal in refusals]
    for section in sections:
        parts += [f"## {text(section.measured.study.name)}", *_section(section)]
    parts += ["## How this was measured", _METHOD]
    if left_out:
        parts += ["## Left out", bullets(left_out)]
    return "\n\n".join(part for part in parts if part) + "\n"


_METHOD = f"""\
- *Step*: the time of a step is the sum of its phases, the mean over ranks, which start each step together. Evaluation,
  checkpoints and the log are in none.
- *Warm-up*: of each start, the first tenth of its steps is left out, no fewer than {WARM_UP[0]} and no more than
  {WARM_UP[1]}.
- *Median step*: the median over repeats of each repeat's median steady step.
- *Interval*: {LEVEL:.0%}, bootstrap, {DRAWS:,} draws: first repeats are drawn with replacement, then steps in each. A
  ratio takes draws of both sides, which are independent. No distribution is assumed, but that steps of a run do not
  depend on each other.
- *Speed-up*: over the median step of the same method on the smallest number of ranks there is, which is not
  extrapolated to one. *Dense / this* compares with dense float32 on as many ranks.
- *Karp-Flatt*: the serial share that follows from a speed-up alone; one that grows with the ranks means overhead.
- *Load balance*, *communication efficiency* (POP): mean over maximum of the ranks' useful time (all phases but "agree"
  and "exchange"), and that maximum over the whole time. Their product is the parallel efficiency.
- *Moved in all*: what came into all ranks over the whole run.
- *Model*: α, β and γ are fitted to medians of phases by non-negative least squares, relative to whole steps and with
  Huber's weights. Long gathers count P - 1 rounds, short ones log2 P. Predictions assume that nothing else changes:
  the same network for all pairs of ranks, and the same processors.
- *Bands of loss and accuracy*: a standard deviation over seeds."""


def _refusal(refusal: Refusal) -> str:
    return (
        f"> **Refused: {text(refusal.name)}**, {number(refusal.runs, 'run')}. Their configurations differ in more than "
        f"method, batch and seed, so that they are no comparison: {text(refusal.reason)}. Give the report only "
        "those that agree, or other names to what is another study."
    )


def _section(section: Section) -> Iterator[str]:
    measured = section.measured
    study = measured.study
    yield from _banners(section)
    yield settings_table(study.briefs)
    if study.surroundings:
        yield "**Not all ran on the same**; times differ for this, too:"
        yield bullets(study.surroundings)
    yield "### Scaling"
    yield from _claims(measured)
    yield scaling_table(measured)
    yield law_rows(measured.series)
    by_name = {drawing.name.removeprefix(f"{measured.name}-"): drawing for drawing in section.drawings}
    yield from (_shown(by_name, name) for name in ("strong", "weak", "phases", "balance", "waiting"))
    yield "### Bytes and learning"
    yield from (_shown(by_name, name) for name in ("bytes", "learning"))
    target = target_of(measured)
    if target is not None:
        yield f"To an accuracy of {target:.2%}, a point less than dense's at its end, by the evaluations there are:"
        yield target_table(measured, target)
    if section.modelled is not None:
        yield "### Model"
        yield from _model(section.modelled, by_name)
    problems = [_problem(brief, problem) for brief in study.briefs for problem in brief.problems]
    if problems:
        yield "### Problems with the files"
        yield bullets([*problems[:_LISTED], *([f"and {len(problems) - _LISTED} more"] if problems[_LISTED:] else [])])


def _problem(brief: Brief, problem: str) -> Marked:
    return Marked(f"{code(brief.directory)}: {text(problem)}")


def _banners(section: Section) -> Iterator[str]:
    study = section.measured.study
    few = study.repeats
    if few < ENOUGH:
        yield (
            f"> **Fewer than {ENOUGH} repeats**: some points are of {number(few, 'run')}. Their intervals tell how "
            "steps vary within a run, and nothing of how runs vary: claim nothing from them."
        )
    elif coverage(few) < LEVEL:
        yield (
            f"> Points are of {few} repeats or more. The range of {few} runs has the median of all runs inside with a "
            f"probability of {coverage(few):.0%}, so that no interval of these can be surer; "
            f"{_enough()} repeats would do for {LEVEL:.0%}."
        )
    running = [brief for brief in study.briefs if brief.state != "finished"]
    if running:
        yield f"> **{number(len(running), 'run')} not at their end**; they count with the steps they have."


def _enough() -> int:
    return next(n for n in range(2, 100) if coverage(n) >= LEVEL)


def _claims(measured: Measured) -> Iterator[str]:
    """Yield what speed-ups are over, and which are refused."""
    lines = []
    for series in measured.series:
        if series.refused:
            lines.append(f"**Refused: a speed-up of {text(series.method)}**: {text(series.refused)}.")
        elif series.kind == "single":
            lines.append(f"{text(series.method)}: one number of ranks ({series.base}), no scaling.")
    bases = {series.base for series in measured.series if series.kind in ("strong", "weak")}
    if bases:
        base = ", ".join(map(str, sorted(bases)))
        one = (
            ""
            if bases == {1}
            else " Nothing was measured on one rank for all methods, and nothing is extrapolated to it."
        )
        ranks = "rank" if bases == {1} else "ranks"
        lines.insert(0, f"Base: {base} {ranks}, the smallest number there is of each method.{one}")
    yield "\n\n".join(lines)


def _model(modelled: Modelled, by_name: dict[str, Drawing]) -> Iterator[str]:
    yield (
        "Time of a step = computing + agreeing and waiting + looking at and writing entries + α rounds + β bytes "
        "received + adding entries received. What each costs, fitted to the medians of the phases "
        "(r² is small, too, where a phase hardly varies):"
    )
    yield coefficients_table(modelled)
    if modelled.shared:
        yield (
            "**Ranks shared cores**: there were more threads of ranks than cores of their machine, so that what they "
            "compute took so many times as long, and each exchange and byte longer for each thread more on a core. The "
            "model has that in; what it predicts for more ranks is for ranks with cores of their own."
        )
    yield _shown(by_name, "model-fit")
    if modelled.held_out:
        worst = max(abs(each.error) for each in modelled.held_out)
        yield (
            f"**Held out**: fitted without the largest number of ranks, the model predicts its steps with errors of up "
            f"to {worst:.0%}. Predictions further out can be no better than this. Measured is the sum of the "
            "phases' medians."
        )
        yield held_out_table(modelled)
    else:
        yield "No rank count can be held out: the model is not tested on what it was not fitted to."
    yield _shown(by_name, "model-prediction")
    if modelled.densities:
        yield (
            _shown(by_name, "model-crossover")
            or "By this model dense is faster at any density, on any number of ranks."
        )
        yield "Dense is faster above these densities, in the coding of the first sparse method, as it is and otherwise:"
        yield changes_table(modelled)


def _shown(by_name: dict[str, Drawing], name: str) -> str:
    drawing = by_name.get(name)
    return figure(drawing.name, drawing.title) if drawing is not None else ""


def problems_of(briefs: Sequence[Brief]) -> list[str]:
    """Return all problems of runs, each with its directory."""
    return [f"{brief.directory}: {problem}" for brief in briefs for problem in brief.problems]

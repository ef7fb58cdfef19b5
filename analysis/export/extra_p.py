"""Extra-P's JSON lines: a measurement a line, with its parameters, call path and metric.

The format is that of docs/file-formats.md of Extra-P (https://github.com/extra-p/extrap), "JSON Lines format". Its
reader takes the names of the parameters from the first line, asks every line for all of them, and every call path and
metric for the same points.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence

from analysis.brief import Brief
from analysis.columns import PHASES
from analysis.study import Study


def extra_p_lines(studies: Sequence[Study]) -> Iterator[str]:
    """Yield the lines of a file: medians of phases and steps in seconds, and bytes into each rank, of every repeat.

    The only parameter is p, the number of ranks. A call path is STUDY->METHOD->PHASE; a value is a list of repeats.
    """
    for study in studies:
        for method, by_ranks in study.runs.items():
            path = f"{_name(study.name)}->{_name(method)}"
            for ranks, briefs in sorted(by_ranks.items()):
                yield _line(ranks, path, "time", [brief.median_step for brief in briefs])
                yield _line(ranks, path, "bytes", [brief.means["received_bytes"] / brief.ranks for brief in briefs])
                for phase in PHASES:
                    yield _line(ranks, f"{path}->{phase}", "time", _of(briefs, phase))


def _of(briefs: Sequence[Brief], phase: str) -> list[float]:
    return [brief.phases[phase] for brief in briefs]


def _line(ranks: int, callpath: str, metric: str, values: list[float]) -> str:
    return json.dumps({"params": {"p": ranks}, "callpath": callpath, "metric": metric, "value": values})


def _name(text: str) -> str:
    """Return a name that cannot be taken for a path."""
    return text.replace("->", "-")

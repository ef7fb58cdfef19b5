"""Every law on real MPI ranks: one job for each number of ranks, one test for each law."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest

from tests.launch import mpirun
from tests.laws_all import LAWS, STATISTICAL, STATISTICAL_SIZE


@pytest.fixture(scope="session")
def how_laws_ended(tmp_path_factory: pytest.TempPathFactory) -> Callable[[int], dict[str, str]]:
    """Return a function from the number of ranks to how each law ended on them; each job runs once."""

    @cache
    def run(size: int) -> dict[str, str]:
        output = tmp_path_factory.mktemp(f"laws-{size}") / "laws.json"
        outcome = mpirun(size, "-m", "tests.mpi.program", str(output), timeout=800)
        ended: dict[str, str] = json.loads(output.read_text()) if output.exists() else {}
        for report in sorted(Path(output.parent).glob("laws.[0-9]*")):
            name, trace = json.loads(report.read_text())
            ended[name] = f"failed on rank {report.suffix[1:]}\n{trace}"
        missing = "not reached: the job ended before\n" + outcome.text
        return {name: ended.get(name, missing) for name in LAWS}

    return run


@pytest.mark.timeout(900)  # the first of a size makes the job
@pytest.mark.parametrize(
    ("law", "size"),
    [(law, size) for law in LAWS for size in (1, 2, 3, 4) if law not in STATISTICAL or size == STATISTICAL_SIZE],
)
def test_law_holds(law: str, size: int, how_laws_ended: Callable[[int], dict[str, str]]) -> None:
    assert how_laws_ended(size)[law] == "held"

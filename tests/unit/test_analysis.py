"""The analysis: rows from run directories, whatever state their files are in."""

from __future__ import annotations

import ast
import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from analysis.__main__ import cli
from analysis.load import load_run
from analysis.table import rows_of, to_markdown
from tests.paths import CHECKOUT

SECONDS = {"compute": 2.0, "agree": 0.5, "sparsify": 0.25, "encode": 0.0, "exchange": 1.0, "decode": 0.25}


def write_run(directory: Path, *, seed: int = 0, density: float = 0.01, accuracy: float = 0.9) -> Path:
    directory.mkdir()
    (directory / "config.toml").write_text(
        f'name = "try"\nseed = {seed}\n[sparsifier]\nname = "topk"\ndensity = {density}\n[memory]\nname = "auto"\n'
    )
    (directory / "environment.json").write_text('{"ranks": 2}')
    step = {"schema": 1, "kind": "step", "received_bytes": 2_000_000, "dense_bytes": 50_000_000, "seconds": SECONDS}
    evaluation = {"schema": 1, "kind": "evaluation", "loss": 0.5, "accuracy": accuracy}
    lines = [{**step, "step": 1}, {**step, "step": 2}, {**evaluation, "step": 2}]
    (directory / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return directory


def test_repeats_make_one_row_with_their_spread(tmp_path: Path) -> None:
    runs = [write_run(tmp_path / str(seed), seed=seed, accuracy=0.9 + 0.01 * seed) for seed in range(3)]
    runs.append(write_run(tmp_path / "other", density=0.1))
    rows = rows_of(load_run(run) for run in runs)
    assert [len(row.accuracy) for row in rows] == [3, 1]
    assert (rows[0].received, rows[0].dense_ratio, rows[0].seconds) == (2_000_000, 25.0, 8.0)
    assert rows[0].exchange_share == 0.5
    table = to_markdown(rows)
    assert "| try, topk density 0.01 | 2 | 3 | 91.00 ± 1.00 % | 0.5000 ± 0.0000 | 2.0 MB | 25.0 | 8 | 50% |" in table
    assert "| try, topk density 0.1 | 2 | 1 | 90.00 % |" in table


def test_a_torn_last_line_is_left_out_with_a_warning(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run")
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"schema":1,"kind":"st')
    with pytest.warns(UserWarning, match="torn"):
        loaded = load_run(run)
    assert len(loaded.steps) == 2


def test_what_is_no_run_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no run directory"):
        load_run(tmp_path)
    run = write_run(tmp_path / "run")
    text = (run / "metrics.jsonl").read_text()
    (run / "metrics.jsonl").write_text(text.replace('"schema": 1', '"schema": 9', 1))
    with pytest.raises(ValueError, match="schema 9, this reads 1"):
        load_run(run)
    (run / "metrics.jsonl").write_text("no json\n" + text)
    with pytest.raises(ValueError, match="line 1"):
        load_run(run)


def test_the_analysis_never_imports_the_training_code() -> None:
    for path in (CHECKOUT / "analysis").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            modules = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            modules += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            assert not any(module.split(".")[0] in ("mpisparse", "mpi4py", "torch") for module in modules), path


def test_the_table_walks_and_says_what_it_leaves_out(tmp_path: Path) -> None:
    (tmp_path / "sweep" / "deeper").mkdir(parents=True)
    for seed in range(2):
        write_run(tmp_path / "sweep" / "deeper" / str(seed), seed=seed)
    write_run(tmp_path / "alone", density=0.1)
    (tmp_path / "notes.txt").write_text("no run")
    (tmp_path / "empty").mkdir()
    begun = write_run(tmp_path / "begun")
    lines = (begun / "metrics.jsonl").read_text().splitlines(keepends=True)
    (begun / "metrics.jsonl").write_text("".join(lines[:-1]))
    torn = write_run(tmp_path / "torn", density=0.2)
    with (torn / "metrics.jsonl").open("a") as file:
        file.write('{"schema":1,"kind":"st')
    (write_run(tmp_path / "broken") / "environment.json").write_text("{")
    (write_run(tmp_path / "strange") / "metrics.jsonl").write_text('{"schema": 1}\n')
    outcome = CliRunner().invoke(cli, ["table", *map(str, sorted(tmp_path.iterdir()))])
    assert outcome.exit_code == 0, outcome.output
    assert [line.split("|")[1:4] for line in outcome.stdout.splitlines()[2:]] == [
        [" try, topk density 0.1 ", " 2 ", " 1 "],
        [" try, topk density 0.01 ", " 2 ", " 2 "],
        [" try, topk density 0.2 ", " 2 ", " 1 "],
    ]
    assert sorted(line.removeprefix("analysis: left out: ")[:60] for line in outcome.stderr.splitlines()) == sorted(
        line[:60]
        for line in (
            f"{tmp_path}/notes.txt is no run directory",
            f"{tmp_path}/empty holds no run",
            f"{tmp_path}/begun has no evaluation",
            f"{tmp_path}/torn/metrics.jsonl: the last line is torn and left out; the run may still be going on",
            f"{tmp_path}/broken is no run directory that can be read: ",
            f"{tmp_path}/strange cannot be read: KeyError('kind')",
        )
    )
    assert outcome.stdout == CliRunner().invoke(cli, ["table", str(tmp_path), str(tmp_path / "alone")]).stdout


@pytest.mark.parametrize("path", ["absent", "empty", "file"])
def test_a_table_of_nothing_is_refused(tmp_path: Path, path: str) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("x")
    outcome = CliRunner().invoke(cli, ["table", str(tmp_path / path)])
    assert outcome.exit_code == 78
    assert str(tmp_path / path) in outcome.stderr
    assert len(outcome.stderr.splitlines()) == 1

"""The whole command: figures with their numbers, the page, and runs in any state."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result
from PIL import Image

from analysis.__main__ import cli
from analysis.drawing.curve import Curve
from analysis.drawing.draw import draw
from analysis.drawing.drawing import COLUMNS, Drawing, Line, Panel, to_csv
from analysis.load import load_run
from analysis.markdown import table
from analysis.method import Method
from analysis.paper.coverage import footnote
from analysis.paper.figures import convex_figures
from analysis.paper.record import record_of
from analysis.paper.tuning import tune
from tests.unit.paper_runs import (
    DENSE,
    convex_config,
    gspar,
    qsgd,
    uniform,
    write_cnn,
    write_coding,
    write_convex,
    write_svm,
    write_sweep,
)

ALL = {"sgd-passes-c1-0.6", "sgd-bits-c1-0.6", "svrg-passes-c1-0.6", "svrg-bits-c1-0.6", "real-a9a-passes"}
ALL |= {"real-a9a-bits", "cnn-24", "svm", "svm-contention-0.05", "coding"}


def paper(*paths: Path, output: Path) -> Result:
    return CliRunner().invoke(cli, ["paper", *map(str, paths), "-o", str(output)])


def write_everything(root: Path) -> None:
    """Write a few runs of each experiment."""
    for i, rule in enumerate((DENSE, gspar(0.1), uniform(0.1), qsgd(4))):
        write_convex(root / "sgd" / f"{i}", convex_config("paper-sgd", rule, 0.1))
        real = convex_config("paper-real", rule, 0.1) | {"data": {"name": "libsvm", "train": "libsvm/a9a.bz2"}}
        write_convex(root / "real" / f"{i}", real)
        svrg = convex_config("paper-svrg", rule, 0.1, svrg_form="difference")
        write_convex(root / "svrg" / f"{i}", svrg, linear=True, epochs=4)
    for i, rule in enumerate((DENSE, gspar(0.05), uniform(0.05))):
        write_cnn(root / "cnn" / f"{i}", rule)
        for ranks in (1, 2):
            write_svm(root / f"svm-{ranks}" / f"{i}", rule, ranks)
    write_sweep(root / "sgd", "sgd", reduced=True, runs=4)
    write_coding(root / "coding.json")


def read_csv(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def test_every_experiment_has_its_figures_and_its_place_on_the_page(tmp_path: Path) -> None:
    write_everything(tmp_path / "runs")
    result = paper(tmp_path / "runs", output=tmp_path / "page")
    assert result.exit_code == 0, result.output
    assert {path.stem for path in (tmp_path / "page").glob("*.png")} == ALL
    page = (tmp_path / "page" / "index.md").read_text(encoding="utf-8")
    web = (tmp_path / "page" / "index.html").read_text(encoding="utf-8")
    for name in ALL:
        assert f"]({name}.png)" in page
        assert f'src="{name}.png"' in web
        for kind in ("png", "svg", "csv"):
            assert (tmp_path / "page" / f"{name}.{kind}").stat().st_size > 100
    for link in re.findall(r"\]\(([^)]+)\)", page):
        assert (tmp_path / "page" / link).exists(), link
    assert web.count("<table>") == page.count("| --- |\n")
    assert '<td class="holds">holds</td>' in web
    assert "**Not there**" not in page
    assert "**Reduced version** of: sgd." in page


def test_csv_and_drawing_hold_the_numbers_of_the_runs(tmp_path: Path) -> None:
    write_everything(tmp_path / "runs")
    records = [record_of(load_run(tmp_path / "runs" / "sgd" / str(i))) for i in range(4)]
    drawings = {drawing.name: drawing for drawing in convex_figures(tune(records), {})}
    draw(drawings["sgd-passes-c1-0.6"], tmp_path)
    rows = read_csv(tmp_path / "sgd-passes-c1-0.6.csv")
    assert tuple(rows[0]) == COLUMNS
    assert [row["method"] for row in rows[:: len(rows) // 3]][:3] == ["dense", "GSpar 0.1", "uniform 0.1"]
    own = [row for row in rows if row["method"] == "GSpar 0.1"]
    evaluations = load_run(tmp_path / "runs" / "sgd" / "1").evaluations
    assert [float(row["x"]) for row in own] == [line["passes"] for line in evaluations]
    assert [float(row["y"]) for row in own] == [line["suboptimality"] for line in evaluations]
    assert {(row["lr"], row["run directory"]) for row in own} == {("0.1", str(records[1].directory))}
    bits = {line.method.name for panel in drawings["sgd-bits-c1-0.6"].panels for line in panel.lines}
    assert bits == {"dense", "GSpar 0.1", "QSGD 4 bits"}


def test_pictures_are_the_same_for_the_same_numbers(tmp_path: Path) -> None:
    points = Curve(np.array([1.0, 2.0]), np.array([0.5, np.nan]), np.array([0.5, np.nan]), np.array([0.5, np.nan]))
    panel = Panel("one", 0, 0, (Line(Method("dense"), "dense", points),))
    drawing = Drawing("figure", "sgd", "title", (panel,), "x", "y", footnotes=("note",))
    (tmp_path / "again").mkdir()
    for first, second in zip(draw(drawing, tmp_path), draw(drawing, tmp_path / "again"), strict=True):
        assert first.read_bytes() == second.read_bytes()
    with Image.open(tmp_path / "figure.png") as picture:
        assert picture.info["dpi"][0] == pytest.approx(150, rel=1e-3)
    assert to_csv(drawing).splitlines()[2] == "figure,one,dense,,,2.0,nan,,,nan,nan"


def test_svm_figures_have_a_panel_a_rank_count(tmp_path: Path) -> None:
    write_everything(tmp_path / "runs")
    assert paper(tmp_path / "runs" / "svm-1", tmp_path / "runs" / "svm-2", output=tmp_path / "page").exit_code == 0
    panels = {row["panel"] for row in read_csv(tmp_path / "page" / "svm.csv")}
    assert panels == {"λ = 0.05, 1 rank", "λ = 0.05, 2 ranks"}
    contention = read_csv(tmp_path / "page" / "svm-contention-0.05.csv")
    end = load_run(tmp_path / "runs" / "svm-2" / "0").ends[-1]
    dense = {row["panel"]: float(row["y"]) for row in contention if row["method"] == "dense" and row["x"] == "2.0"}
    assert dense["conflicts: failed attempts an entry"] == end["conflicts"] / end["entries_written"]
    assert dense["staleness: largest"] == end["staleness"]["max"]


def test_without_runs_of_the_paper_there_is_one_sentence(tmp_path: Path) -> None:
    write_convex(tmp_path / "runs" / "other", convex_config("digits", DENSE, 0.1))
    result = paper(tmp_path / "runs", output=tmp_path / "page")
    assert result.exit_code == 78
    assert result.stderr.startswith("analysis: no run of the paper's experiments below")
    assert "paper-sgd" in result.stderr
    assert len(result.stderr.splitlines()) == 1
    assert not (tmp_path / "page").exists()
    assert paper(tmp_path / "nowhere", output=tmp_path / "page").exit_code == 78
    assert paper(output=tmp_path / "page").exit_code == 2


def test_runs_in_any_state_make_a_page(tmp_path: Path) -> None:
    root = tmp_path / "runs"
    runs = [write_convex(root / f"{lr}", convex_config("paper-sgd", DENSE, lr)) for lr in (0.1, 0.2, 0.4, 0.8)]
    text = (runs[0] / "metrics.jsonl").read_text()
    (runs[0] / "metrics.jsonl").write_text(text[: len(text) // 2])
    (runs[1] / "metrics.jsonl").unlink()
    (runs[3] / "failed.json").write_text(json.dumps({"error": "NonFiniteError", "message": "NaN | x", "step": 2}))
    write_convex(root / "foreign", convex_config("digits", DENSE, 0.1))
    write_sweep(root, "sgd", reduced=False, runs=9)
    (tmp_path / "runs" / "broken.json").write_text("{")
    result = paper(root, output=tmp_path / "page")
    assert result.exit_code == 0, result.output
    page = (tmp_path / "page" / "index.md").read_text(encoding="utf-8")
    assert "0.1: has not come to its end" in page
    assert "0.2: cannot be read, or has only begun" in page
    assert "named 'digits', no experiment of the paper" in page
    assert "has 2 of its 9 runs" in page
    assert "2 runs, 1 of which failed" in page
    assert "0.4, 0.8 (failed)" in page
    assert "NonFiniteError: NaN \\| x" in page
    assert "**Not there**: SVRG" in page
    assert "No runs: none of them is named `paper-cnn`." in page
    assert "not measured" in page
    for line in ("0.1: has not come", "named 'digits'"):
        assert line in result.stderr


def test_an_experiment_whose_runs_all_failed_has_no_figure_and_no_crash(tmp_path: Path) -> None:
    run = write_convex(tmp_path / "run", convex_config("paper-sgd", DENSE, 0.1))
    (run / "failed.json").write_text('{"error": "NonFiniteError", "message": "NaN", "step": 1}')
    assert paper(tmp_path, output=tmp_path / "page").exit_code == 0
    assert not list((tmp_path / "page").glob("*.png"))
    assert "all failed" in (tmp_path / "page" / "index.md").read_text(encoding="utf-8")


def test_footnotes_say_what_is_reduced(tmp_path: Path) -> None:
    from analysis.find import find

    def note(directory: Path, experiment: str) -> str:
        found = find([directory])
        return footnote(experiment, [record_of(load_run(run)) for run in found.runs], found.sweeps)

    write_convex(tmp_path / "sgd" / "0", convex_config("paper-sgd", DENSE, 0.1))
    assert note(tmp_path / "sgd", "sgd") == "part of the paper's grid: C₁ = 0.6 only; C₂ = 0.25 only; λN = 0.1 only"
    write_sweep(tmp_path / "sgd", "sgd", reduced=True, runs=1)
    assert note(tmp_path / "sgd", "sgd").startswith("reduced version: see page; 15 epochs; C₁ = 0.6 only")
    every = [(c1, c2, l2) for c1 in (0.6, 0.9) for c2 in (0.25, 0.0625, 0.015625) for l2 in (0.1, 1)]
    for i, (c1, c2, l2) in enumerate(every):
        config = convex_config("paper-sgd", DENSE, 0.1, data_c1=c1, data_c2=c2, model_l2=l2 / 1024)
        write_convex(tmp_path / "full" / str(i), config)
    assert note(tmp_path / "full", "sgd") == ""
    write_cnn(tmp_path / "cnn" / "0", DENSE)
    assert "1 seed of 4; 10000 training samples" in note(tmp_path / "cnn", "cnn")


@pytest.mark.parametrize(
    "rows",
    [[["a | b", ""], ["c\nd", ""]], []],
)
def test_tables_keep_their_shape(rows: Sequence[Sequence[str]]) -> None:
    expected = "| one |\n| --- |\n| a \\| b |\n| c d |" if rows else ""
    assert table(["one", "two"], rows) == expected

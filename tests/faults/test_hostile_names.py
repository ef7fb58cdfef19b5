"""Every command on a run whose directory, host, parameters and settings have names that were chosen to do harm."""

from __future__ import annotations

import json
import re
import shutil
import sys
from contextlib import redirect_stderr
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
import tomli_w
import torch
from click.testing import CliRunner, Result
from markdown_it import MarkdownIt
from rich.console import Console

from analysis import terminal
from analysis.__main__ import cli as analysis_cli
from analysis.load import load_run
from analysis.table import rows_of, to_markdown
from analysis.tail import follow
from jobs.__main__ import cli as jobs_cli
from mpisparse import Checkpointer
from mpisparse.cli import cli as mpisparse_cli
from mpisparse.cli import main
from mpisparse.comm import run_ranks, solo
from mpisparse.comm.base import Communicator
from mpisparse.runtime.check import _on_all
from tests import launch
from tests.hostile import EVIL, FOLDER, assert_harmless
from tests.paths import CHECKOUT
from tests.unit.report_runs import config, write_run


@pytest.fixture(scope="module")
def hostile(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the directory of a real run of two ranks; its path closes a markup of rich that nobody opened."""
    run = tmp_path_factory.mktemp("names") / "a[" / FOLDER
    run.parent.mkdir()
    settings = ["--set", "training.length=20 steps", "--set", "training.log_every=1", "--run-dir", str(run)]
    command = [launch.find_mpirun(), "-n", "2", "mpisparse", "train", str(CHECKOUT / "jobs" / "digits.toml"), *settings]
    done = launch.run(command, timeout=240, cwd=run.parent)
    assert done.code == 0, done.text
    for text in (done.stdout, done.stderr):
        assert_harmless(text)
    assert "a[/y]" in re.sub(r"[│\s]", "", done.stdout)
    return run


def call(command: object, *words: object) -> Result:
    """Return how a command ended, after asserting that it failed by an error of its own at most, and harmlessly."""
    result = CliRunner().invoke(command, [str(word) for word in words])  # type: ignore[arg-type]
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert_harmless(result.output)
    assert_harmless(result.stderr)
    return result


@pytest.mark.parametrize(
    "words",
    [
        ["list"],
        ["list", "--verify"],
        ["list", "--json"],
        ["show"],
        ["show", "--json"],
        ["verify"],
        ["prune", "--keep", "1"],
        ["export", "-o", f"x{FOLDER}"],
        ["reshape", "--ranks", "3", "-o", f"y{FOLDER}"],
    ],
)
def test_looking_at_checkpoints(
    words: list[str], hostile: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert call(mpisparse_cli, "checkpoint", words[0], hostile, *words[1:]).exit_code == 0


def test_checkpoints_with_parameters_of_any_name(tmp_path: Path) -> None:
    keep = Checkpointer(tmp_path, comm=solo())
    keep.save(1, {"model": {EVIL: torch.ones(2)}, EVIL: {EVIL: 1.0}}, {"exchange": {}, EVIL: torch.ones(1)})
    for word in ("show", "list", "verify"):
        assert call(mpisparse_cli, "checkpoint", word, tmp_path).exit_code == 0
    assert ":smile:" in call(mpisparse_cli, "checkpoint", "show", tmp_path).output


def hostile_run(directory: Path, **changes: Any) -> Path:
    """Write a run in which whatever is text is hostile."""
    settings = config(EVIL, **changes)
    settings["sparsifier"] = {"name": EVIL, "density": 0.01, EVIL: EVIL}
    settings["memory"] = {"name": EVIL}
    settings["exchange"] |= {EVIL: EVIL, "values": EVIL}
    settings[EVIL] = {EVIL: EVIL}
    about: dict[str, Any] = dict.fromkeys(
        ("library", "host", "platform", "torch", "mpisparse", "python", "started"), EVIL
    )
    return write_run(directory, settings, steps=20, hosts=[EVIL], processors=[EVIL], **about)


@pytest.fixture(scope="module")
def made_up(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a directory of runs that say the worst of themselves, two that may be compared, and some spoilt ones."""
    runs = tmp_path_factory.mktemp("made") / FOLDER
    for number in range(2):
        hostile_run(runs / f"{number}{FOLDER}", training__log_every=number)
    write_run(runs / "dense", config(EVIL) | {EVIL: {EVIL: EVIL}}, steps=20)
    other = write_run(runs / "other", config(f"another {EVIL}", optimizer__lr=EVIL), steps=20)
    write_run(runs / "another", config(f"another {EVIL}"), steps=20)
    with (other / "metrics.jsonl").open("a") as log:
        log.write(f"{EVIL}\n")
    (runs / "spoilt").mkdir()
    (runs / "spoilt" / "config.toml").write_text(tomli_w.dumps({"name": EVIL}) + EVIL.replace("\n", ""))
    write_run(runs / "long", config(300 * "long "), steps=20)
    write_run(runs / "formula", config("$x^$"), steps=20)
    return runs


def test_tables_of_runs(hostile: Path, made_up: Path) -> None:
    for runs in ([hostile], [made_up / f"0{FOLDER}"], [made_up / "long"]):
        result = call(analysis_cli, "table", *runs)
        assert result.exit_code == 0
        assert {line.count(" | ") for line in result.stdout.splitlines()} == {8}


def test_comparing_and_following(hostile: Path, made_up: Path) -> None:
    assert call(analysis_cli, "compare", hostile, hostile).exit_code == 0
    assert call(analysis_cli, "compare", made_up / f"0{FOLDER}", made_up / "dense").exit_code == 0
    for run in (hostile, made_up / f"0{FOLDER}", made_up / "dense"):
        assert call(analysis_cli, "tail", run, "--once").exit_code == 0
    failed = made_up / "dense" / "failed.json"
    failed.write_text(json.dumps({"error": EVIL, "message": EVIL, "step": None}))
    try:
        assert call(analysis_cli, "tail", made_up / "dense", "--once").exit_code == 1
    finally:
        failed.unlink()


def test_a_report_of_anything_is_whole_and_reaches_nothing(made_up: Path, hostile: Path, tmp_path: Path) -> None:
    files = ["--extra-p", tmp_path / "p.jsonl", "--mllog", tmp_path / "ml.log"]
    result = call(analysis_cli, "report", made_up, hostile, "-o", tmp_path / "page", *files)
    assert result.exit_code == 0, result.stderr
    html = (tmp_path / "page" / "index.html").read_text(encoding="utf-8")
    targets = re.findall(r'(?:src|href)\s*=\s*"([^"]*)"', html)
    assert targets
    assert all(target.startswith("data:") for target in targets)
    assert set(re.findall(r"<(\w+)", html.partition("<body>")[2])) <= {
        *("h1", "h2", "h3", "p", "ul", "li", "a", "img", "table", "thead", "tbody", "tr", "th", "td"),
        *("blockquote", "strong", "em", "code"),
    }
    assert_harmless(html)
    # A reader of the Markdown that follows all links finds those to the page's own files alone.
    reader = MarkdownIt("commonmark", {"html": True}).enable("table")
    setattr(reader, "validateLink", lambda target: True)  # noqa: B010
    page = reader.render((tmp_path / "page" / "index.md").read_text(encoding="utf-8"))
    for target in re.findall(r'(?:src|href)="([^"]*)"', str(page)):
        assert (tmp_path / "page" / target).exists()
    for path in (tmp_path / "page").iterdir():
        assert len(path.name) < 100
    for line in (tmp_path / "p.jsonl").read_text().splitlines():
        json.loads(line)
    for line in (tmp_path / "ml.log").read_text().splitlines():
        json.loads(line.removeprefix(":::MLLOG "))


def test_the_page_of_the_paper_takes_hostile_runs(made_up: Path, tmp_path: Path) -> None:
    paper = tmp_path / "paper"
    shutil.copytree(made_up / f"0{FOLDER}", paper / FOLDER)
    about = paper / FOLDER / "config.toml"
    about.write_text(re.sub(r'^name = ".*"$', 'name = "paper-sgd"', about.read_text(), count=1, flags=re.MULTILINE))
    result = call(analysis_cli, "paper", paper, "-o", tmp_path / "page")
    assert result.exit_code in (0, 78)


def test_markdown_is_tables_on_a_terminal_and_markdown_elsewhere(
    made_up: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    terminal.say_markdown("| a | b |\n| --- | --- |\n| 1 | **2** |")
    assert capsys.readouterr().out == "| a | b |\n| --- | --- |\n| 1 | **2** |\n"
    monkeypatch.setattr(Console, "is_terminal", property(lambda self: True))
    terminal.say_markdown(to_markdown(rows_of([load_run(made_up / f"0{FOLDER}")])))
    shown = re.sub(r"\x1b\[[\d;]*m", "", capsys.readouterr().out)
    assert "---" not in shown
    assert_harmless(shown)


@pytest.mark.parametrize(
    "words",
    [
        ["train", FOLDER],
        ["config", FOLDER],
        ["config", CHECKOUT / "jobs" / "digits.toml", "--set", EVIL],
        ["config", CHECKOUT / "jobs" / "digits.toml", "--set", f"name={EVIL}"],
        ["config", CHECKOUT / "jobs" / "digits.toml", "--set", f"sparsifier.name={EVIL}"],
        ["sweep", FOLDER, "--list"],
        ["sweep", CHECKOUT / "jobs" / "scaling.toml", "--list", "--only", EVIL],
        ["explain-hang", FOLDER],
        ["checkpoint", "list", FOLDER],
        ["checkpoint", FOLDER],
        [EVIL],
        [f"--{EVIL}"],
    ],
)
def test_errors_name_what_they_were_given(words: list[object], tmp_path: Path) -> None:
    code = "from mpisparse.cli import main; main()"
    if words[0] == "train":  # The others need no MPI, and all leave through the same door.
        done = launch.run([sys.executable, "-c", code, *map(str, words)], timeout=120, cwd=tmp_path)
        assert done.code == 78
        text = done.stderr
    else:
        monkey = pytest.MonkeyPatch()
        monkey.setattr(sys, "argv", ["mpisparse", *map(str, words)])
        monkey.chdir(tmp_path)
        text = _said_by_main()
        monkey.undo()
    assert_harmless(text)
    assert "Error" in text


def _said_by_main() -> str:
    with redirect_stderr(StringIO()) as said, pytest.raises(SystemExit):
        main()
    return said.getvalue()


def test_jobs_take_any_name(made_up: Path, tmp_path: Path) -> None:
    study = tmp_path / f"s{FOLDER}.toml"
    shutil.copy(CHECKOUT / "jobs" / "scaling.toml", study)
    place = tmp_path / f"d{FOLDER}"
    result = call(jobs_cli, "submit", study, "--ranks", "1", "--render", place)
    assert result.exit_code == 0, result.output
    assert call(jobs_cli, "status", place).exit_code == 0


def test_a_check_of_any_directory(tmp_path: Path) -> None:
    def program(comm: Communicator) -> str:
        return _on_all(comm, "file system", lambda: f"{FOLDER}: room").found

    assert run_ranks(2, program) == [f"{FOLDER}: room"] * 2


def test_a_torn_log_is_told_harmlessly(hostile: Path, tmp_path: Path) -> None:
    torn = tmp_path / FOLDER
    shutil.copytree(hostile, torn)
    with (torn / "metrics.jsonl").open("a") as log:
        log.write("torn")
    done = launch.run([sys.executable, "-m", "analysis", "table", str(torn)], timeout=120)
    assert done.code == 0, done.text
    assert_harmless(done.stderr)
    assert "torn" in done.stderr
    follow(torn, once=True)

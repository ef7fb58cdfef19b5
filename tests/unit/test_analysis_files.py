"""A run directory with something odd in the place of a file is a ValueError of the analysis, at once, in one line."""

from __future__ import annotations

from pathlib import Path

import pytest

from analysis.brief import read_brief
from analysis.find import find
from analysis.load import load_run
from analysis.paper.coding import load_codings
from tests.unit.test_files import LAX, ODD

CONFIG = 'name = "try"\n'
LINE = '{"schema":1,"kind":"step","step":1,"loss":NaN}\n'


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a run's directory; relative, as the path of a socket may not be long."""
    monkeypatch.chdir(tmp_path)
    directory = Path("run")
    directory.mkdir()
    (directory / "config.toml").write_text(CONFIG)
    (directory / "environment.json").write_text('{"ranks": 1}')
    (directory / "metrics.jsonl").write_text(LINE)
    return directory


def test_a_sound_run_is_read(run: Path) -> None:
    (step,) = load_run(run).steps
    assert step["step"] == 1


@pytest.mark.parametrize("kind", sorted(set(ODD) - {"a link to nothing"}))
@pytest.mark.parametrize("name", ["config.toml", "environment.json", "metrics.jsonl"])
def test_odd_files_of_a_run_are_named_errors(name: str, kind: str, run: Path) -> None:
    (run / name).unlink()
    ODD[kind](run / name)
    for read in (load_run, read_brief):
        words = "run directory that can be read: "
        if (kind, name, read) == ("a huge file", "metrics.jsonl", read_brief):
            words = "has 0 steps"
        with pytest.raises(ValueError, match=words) as caught:
            read(run)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", sorted(set(LAX) - {"NaN", "infinity"}))
def test_lax_json_of_a_run_is_a_named_error(name: str, run: Path) -> None:
    (run / "environment.json").write_bytes(LAX[name])
    with pytest.raises(ValueError, match=r"^run is no run directory that can be read: "):
        load_run(run)
    (run / "environment.json").write_text("{}")
    content = LAX[name].replace(b"\n", b" ")
    if len(content) < 10**6 and name != "UTF-16" and content:
        (run / "metrics.jsonl").write_bytes(LINE.encode() + content + b"\n")
        with pytest.raises(ValueError, match=r"run.*(line 2|can be read)"):
            load_run(run)


def test_a_line_that_is_no_object_is_a_named_error(run: Path) -> None:
    for line in ("[]", "1", "{}", '{"schema": 1}'):
        (run / "metrics.jsonl").write_text(LINE + line + "\n")
        with pytest.raises(ValueError, match=r"metrics\.jsonl, line 2: no object with schema, kind and step"):
            load_run(run)


def test_odd_sweeps_and_studies_are_named(run: Path) -> None:
    (run.parent / "study.toml").write_text("a = " + "[" * 5000)
    with pytest.raises(ValueError, match="is no sweep that can be read: it is nested deeper than"):
        find([run])
    (run / "lax.json").write_bytes(LAX["a number beyond floats"])
    found, (problem,) = load_codings([run / "lax.json"])
    assert not found
    assert "beyond the largest float" in problem

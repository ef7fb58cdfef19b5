"""Studies: their runs, in order, each checked before anything runs."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from mpisparse.errors import ConfigError, MpiSparseError, NonFiniteError
from mpisparse.training.configfile import read_config, to_toml
from mpisparse.training.study import describe, read_study
from mpisparse.training.sweepfiles import Failure, claim, forget_failure, listing, look_up, write_failure
from tests.paths import CHECKOUT

BASE = """
[base]
name = "small"
[base.data]
name = "digits"
[base.model]
name = "mlp"
hidden = [8]
[base.training]
length = "2 epochs"
batch = 50
"""
AXES = """
[axes]
"optimizer.lr" = [0.1, 0.2]
sparsifier = [{ name = "dense" }, { name = "gspar", density = 0.1 }]
seed = [3]
"""


def write(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "study.toml"
    path.write_text(text)
    return path


def test_the_last_axis_varies_fastest(tmp_path: Path) -> None:
    study = read_study(write(tmp_path, BASE + AXES))
    seen = [(run.config.optimizer.lr, run.config.sparsifier.name, run.config.seed) for run in study.runs]
    assert seen == [(0.1, "dense", 3), (0.1, "gspar", 3), (0.2, "dense", 3), (0.2, "gspar", 3)]
    assert [run.index for run in study.runs] == [0, 1, 2, 3]
    assert [run.directory for run in study.runs] == [
        "000-lr-0.1-dense",
        "001-lr-0.1-gspar-0.1",
        "002-lr-0.2-dense",
        "003-lr-0.2-gspar-0.1",
    ]
    assert describe(study.runs[1].settings) == "optimizer.lr 0.1, sparsifier gspar 0.1, seed 3"
    assert json.loads(json.dumps(listing(study)))[3]["settings"]["sparsifier"] == {"name": "gspar", "density": 0.1}


def test_a_run_is_what_train_would_make_of_it(tmp_path: Path) -> None:
    study = read_study(write(tmp_path, BASE + AXES), settings=["training.batch=10"])
    alone = tmp_path / "alone.toml"
    alone.write_text(BASE.replace("base.", "").replace("[base]", ""))
    settings = ["training.batch=10", "optimizer.lr=0.2", "sparsifier.name=gspar", "sparsifier.density=0.1", "seed=3"]
    assert study.runs[3].config == read_config(alone, settings)


def test_keys_joined_by_commas_go_together(tmp_path: Path) -> None:
    axes = '[axes]\n"sparsifier, optimizer.lr" = [[{ name = "dense" }, 0.3], [{ name = "topk", density = 0.2 }, 0.1]]\n'
    study = read_study(write(tmp_path, BASE + axes))
    assert [(run.config.sparsifier.name, run.config.optimizer.lr) for run in study.runs] == [
        ("dense", 0.3),
        ("topk", 0.1),
    ]


def test_the_reduced_version_sets_drops_and_replaces(tmp_path: Path) -> None:
    reduced = (
        '[reduced]\nset = { "training.length" = "1 epoch" }\ndrop = ["seed"]\n[reduced.axes]\n"optimizer.lr" = [0.5]\n'
    )
    path = write(tmp_path, BASE + AXES + reduced)
    study = read_study(path, reduced=True)
    assert [(run.config.optimizer.lr, run.config.sparsifier.name) for run in study.runs] == [
        (0.5, "dense"),
        (0.5, "gspar"),
    ]
    assert {str(run.config.training.length) for run in study.runs} == {"1 epoch"}
    assert {run.config.seed for run in study.runs} == {0}
    assert len(read_study(path).runs) == 4


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (BASE, "axes: this key is missing"),
        (BASE + "[axes]\nseed = []\n", "axis 'seed' has no values"),
        (BASE + '[axes]\n"optimizer.lr" = [0.1, -1]\n', r"run 1 \(optimizer.lr -1\): optimizer.lr"),
        (BASE + '[axes]\n"optimiser.lr" = [0.1]\n', "Did you mean 'optimizer'"),
        (BASE + '[axes]\n"name.lr" = [0.1]\n', "'name', which is a value"),
        (BASE + '[axes]\n"seed, name" = [1]\n', "takes lists of 2 values, not 1"),
        (BASE + "[axes]\nseed = [1]\n[other]\n", "unknown key 'other'"),
        (
            BASE + '[axes]\nsparsifier = [{ name = "dense" }]\n"sparsifier.density, seed" = [[0.1, 1]]\n',
            "sets 'sparsifier.density', and 'sparsifier' is set by an axis already",
        ),
        (BASE + '[axes]\nseed = [1]\n"optimizer.lr, seed" = [[0.1, 1]]\n', "sets 'seed', and 'seed' is set by"),
        ("[base\n", "is no TOML file"),
    ],
)
def test_what_is_wrong_is_said_with_its_place(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        read_study(write(tmp_path, text))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('[reduced]\ndrop = ["lr"]\n', "'lr' is no axis of the study. Its axes: optimizer.lr, sparsifier, seed"),
        ("[reduced]\nset = { seed = 4 }\n", "reduced.set: the study's axis 'seed' sets 'seed'"),
        ('[reduced.axes]\n"sparsifier.density" = [0.1]\n', "leave one out, in a reduced version by reduced.drop"),
    ],
)
def test_what_is_wrong_with_a_reduced_version(tmp_path: Path, text: str, message: str) -> None:
    path = write(tmp_path, BASE + AXES + text)
    assert len(read_study(path).runs) == 4
    with pytest.raises(ConfigError, match=message):
        read_study(path, reduced=True)


def test_settings_go_over_the_reduced_version_and_not_over_axes(tmp_path: Path) -> None:
    path = write(tmp_path, BASE + AXES + '[reduced]\nset = { "training.length" = "1 epoch" }\n')
    study = read_study(path, reduced=True, settings=["training.length=7 steps"])
    assert {str(run.config.training.length) for run in study.runs} == {"7 steps"}
    for setting in ("optimizer.lr=1.0", "sparsifier.density=0.5", "optimizer={ lr = 0.5 }", "seed=9"):
        with pytest.raises(ConfigError, match="choose among its runs with --only"):
            read_study(path, settings=[setting])


def test_a_sweeps_directory_is_of_one_study(tmp_path: Path) -> None:
    study, place = read_study(write(tmp_path, BASE + AXES)), tmp_path / "sweep"
    other = read_study(write(tmp_path, BASE + AXES.replace("[0.1, 0.2]", "[0.1, 0.3]")))
    claim(place, study)
    assert (place / "runs.csv").read_text().splitlines()[3].startswith("2,002-lr-0.2-dense,")
    claim(place, other)  # nothing has run yet
    (place / "000-lr-0.1-dense").mkdir()
    (place / "000-lr-0.1-dense" / "config.toml").touch()
    claim(place, other)
    with pytest.raises(ConfigError, match=r"line 4 of runs.csv is '2,002-lr-0.3-dense.* there and '2,002-lr-0.2-dense"):
        claim(place, study)
    assert json.loads((place / "sweep.json").read_text()) == {"study": "small", "reduced": False, "runs": 4}
    assert not list(place.glob(".*"))


def test_what_became_of_a_run_is_read_from_its_directory_alone(tmp_path: Path) -> None:
    run = read_study(write(tmp_path, BASE + AXES)).runs[0]
    path = tmp_path / "run"
    assert look_up(path, run.config) is None
    path.mkdir()
    (path / "config.toml").write_text(to_toml(run.config))
    log = path / "metrics.jsonl"
    assert look_up(path, run.config) is None
    log.write_text('{"kind":"step","step":7}\n{"kind":"end","step":7')
    assert look_up(path, run.config) is None, "a torn line is no line"
    log.write_text('{"kind":"step","step":7}\n{"kind":"end","step":7}\n')
    assert look_up(path, run.config) == {}
    assert look_up(path, run.config.model_copy(update={"seed": 4})) is None, "another configuration is not this run"
    log.write_text('{"kind":"step","step":7}\n')
    failure = Failure(**write_failure(path, NonFiniteError("too large"), at_a_step=True))
    assert Failure(**(look_up(path, run.config) or {})) == failure == Failure("NonFiniteError", "too large", 8)
    assert failure.diverged
    assert failure.text == "NonFiniteError at step 8"
    forget_failure(path)
    assert look_up(path, run.config) is None
    other = Failure(**write_failure(path, MpiSparseError("no optimum"), at_a_step=False))
    assert (other.step, other.diverged, other.exit_code) == (None, False, 70)


def test_a_study_that_is_not_there_or_not_reduced(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot read"):
        read_study(tmp_path / "none.toml")
    with pytest.raises(ConfigError, match="leave --reduced out"):
        read_study(write(tmp_path, BASE + AXES), reduced=True)


@pytest.mark.parametrize("path", sorted((CHECKOUT / "jobs" / "paper").glob("*.toml")), ids=lambda path: path.stem)
def test_the_papers_studies_are_sound(path: Path) -> None:
    """Every run of both versions is a configuration; the reduced one is far smaller."""
    full, reduced = read_study(path), read_study(path, reduced=True)
    assert full.name == reduced.name == f"paper-{path.stem}"
    assert len(reduced.runs) < len(full.runs) / 2
    assert len({run.directory for run in full.runs}) == len(full.runs)


@pytest.mark.parametrize("only", [range(3, 1), range(2, 9), range(-1, 1)])
def test_runs_that_are_not_there_are_refused_in_a_list_too(only: range) -> None:
    study = read_study(CHECKOUT / "jobs" / "scaling.toml")
    assert [run["index"] for run in listing(study, range(1, 3))] == [1, 2]
    with pytest.raises(ConfigError, match="names no runs of scaling: give the first"):
        listing(study, only if only.stop != 9 else range(2, len(study.runs) + 1))

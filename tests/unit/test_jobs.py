"""Studies for clusters: site files, batches, the files that are submitted, and what became of the runs."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from jobs.__main__ import cli
from jobs.plan import Batch, plan, spread
from jobs.prepare import look_around, prepare
from jobs.render import SUBMIT, render, table
from jobs.site import SITES, Site, find_site, read_site
from jobs.status import RunStatus, read_queue, read_status
from mpisparse.errors import ConfigError
from mpisparse.training.configfile import to_toml
from mpisparse.training.study import Launch, Study, read_study
from tests.paths import CHECKOUT

GOLDEN = CHECKOUT / "tests" / "golden" / "jobs"

STUDY = """
[base]
name = "try"
data.name = "digits"
model.name = "mlp"
training = { length = "4 steps", batch = 8 }
[axes]
seed = [0, 1]
sparsifier = [{ name = "dense" }, { name = "topk", density = 0.1 }]
[launch]
ranks = [4, 1]
minutes = 20
"""


@pytest.fixture
def study(tmp_path: Path) -> Study:
    (tmp_path / "try.toml").write_text(STUDY)
    return read_study(tmp_path / "try.toml")


def everything(study: Study) -> dict[int, set[int]]:
    assert study.launch is not None
    return {ranks: {run.index for run in study.runs} for ranks in study.launch.ranks}


# Sites ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", sorted(SITES.glob("*.env")), ids=lambda path: path.stem)
def test_bash_and_python_read_the_same_of_every_site(path: Path) -> None:
    environ = {"HOME": "/home/me", "USER": "me", "SCRATCH": "/scratch/me"}
    site = read_site(path, environ)
    script = f'set -au; . "{path}"; env -0'
    found = subprocess.run(["bash", "-c", script], env={**environ, "PATH": os.environ["PATH"]}, capture_output=True)
    assert found.returncode == 0, found.stderr
    said = dict(pair.split("=", 1) for pair in found.stdout.decode().split("\0") if "=" in pair)
    assert site.ranks_per_node == int(said["MPISPARSE_RANKS_PER_NODE"])
    assert str(site.scratch or "") == said.get("MPISPARSE_SCRATCH", "")
    assert str(site.cpus_per_rank or "") == said.get("MPISPARSE_CPUS_PER_RANK", "")
    for option in site.options:
        assert option.split("=", 1)[1] in " ".join(said.values())


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("MPISPARSE_SRUN_MPl=pmi2", "line 2: unknown key 'MPISPARSE_SRUN_MPl'. Did you mean 'MPISPARSE_SRUN_MPI'"),
        ("SBATCH_ACOUNT=a", "Did you mean 'SBATCH_ACCOUNT'"),
        ("MPISPARSE_SCRATCH=$NOWHERE/x", r"\$NOWHERE is not set here"),
        ("MPISPARSE_RANKS_PER_NODE=many", "no whole number from 1 on"),
        ("MPISPARSE_RANKS_PER_NODE=0", "no whole number from 1 on"),
        ("module load mpich", "no KEY=VALUE"),
        ("MPISPARSE_MODULES=python mpich", "no KEY=VALUE; put a value of several words"),
        ('MPISPARSE_MODULES="python', "No closing quotation"),
    ],
)
def test_a_wrong_line_of_a_site_is_refused(tmp_path: Path, line: str, message: str) -> None:
    (tmp_path / "my.env").write_text(f"# mine\n{line}\n")
    with pytest.raises(ConfigError, match=message):
        read_site(tmp_path / "my.env", {})


def test_a_site_is_found_by_name_or_path_and_others_are_told(tmp_path: Path) -> None:
    (tmp_path / "my.env").write_text("OMP_NUM_THREADS=4\n")
    assert find_site("lumi") == SITES / "lumi.env"
    assert find_site(str(tmp_path / "my.env")) == tmp_path / "my.env"
    with pytest.raises(ConfigError, match="give one of alps, frontier, generic, juwels, lumi, perlmutter"):
        find_site("lumo")


# Batches --------------------------------------------------------------------------------------------------------------


def test_every_run_is_made_once_on_each_number_of_ranks(study: Study) -> None:
    batches = plan(study, everything(study))
    assert [batch.ranks for batch in batches] == [1, 4]
    for batch in batches:
        assert sorted(run.index for run in batch.runs) == [0, 1, 2, 3]


def test_the_order_is_a_shuffle_that_comes_again(study: Study) -> None:
    def orders(seed: int) -> list[list[int]]:
        changed = replace(study, launch=Launch(ranks=[1, 2, 4], order=seed))
        return [[run.index for run in batch.runs] for batch in plan(changed, everything(changed))]

    assert orders(3) == orders(3)
    found = [tuple(order) for seed in range(40) for order in orders(seed)]
    # All 24 orders come up, and each run comes first about as often.
    assert len(set(found)) == 24
    assert all(15 <= sum(order[0] == run for order in found) <= 45 for run in range(4))


def test_what_is_left_keeps_its_order(study: Study) -> None:
    whole = plan(study, everything(study))[0]
    left = plan(study, {1: {0, 3}, 4: set()})
    assert [batch.ranks for batch in left] == [1]
    assert left[0].runs == tuple(run for run in whole.runs if run.index in {0, 3})


def test_a_study_without_ranks_is_refused(study: Study) -> None:
    with pytest.raises(ConfigError, match="does not say on how many ranks"):
        plan(replace(study, launch=None), {})


@pytest.mark.parametrize("launch", ["ranks = []", "ranks = [0]", "ranks = [2, 2]", "ranks = [2]\nnodes = 3"])
def test_a_wrong_launch_is_refused(tmp_path: Path, launch: str) -> None:
    (tmp_path / "try.toml").write_text(STUDY.replace("ranks = [4, 1]", launch))
    with pytest.raises(ConfigError, match="launch"):
        read_study(tmp_path / "try.toml")


@pytest.mark.parametrize(("ranks", "most", "nodes"), [(1, 8, (1, 1)), (8, 8, (1, 8)), (16, 8, (2, 8)), (5, 1, (5, 1))])
def test_nodes_are_filled_evenly(ranks: int, most: int, nodes: tuple[int, int]) -> None:
    assert spread(ranks, most) == nodes
    with pytest.raises(ConfigError, match="12 ranks do not fill nodes of 8 evenly"):
        spread(12, 8)


# What is submitted ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["allocation", "array"])
def test_the_script_that_submits_is_the_golden_one(study: Study, name: str) -> None:
    """MPISPARSE_GOLDEN=write writes the file anew: read the difference."""
    site = Site(
        path=Path("/home/me/mpisparse/jobs/sites/mine.env"),
        options=("--account=me", "--constraint=cpu&fast") if name == "array" else (),
        ranks_per_node=2,
        cpus_per_rank=16 if name == "array" else None,
    )
    assert study.launch is not None
    changed = replace(study, launch=study.launch.model_copy(update={"array": name == "array"}))
    batches = plan(changed, everything(changed))
    options = ["--set", "data.name=it's"] if name == "array" else []
    files = render("try", batches, site, Path("/scratch/me/my runs"), Path("/home/me/mpisparse"), options)
    assert set(files) == {SUBMIT, "ranks-001/table.tsv", "ranks-004/table.tsv"}
    path = GOLDEN / f"submit-{name}.sh"
    if os.environ.get("MPISPARSE_GOLDEN") == "write":
        path.write_text(files[SUBMIT])
    assert files[SUBMIT] == path.read_text()


def test_a_table_has_a_line_a_run(study: Study) -> None:
    assert table(Batch(2, study.runs[1:3], False, 60)) == "1\t001-seed-0-topk-0.1\n2\t002-seed-1-dense\n"


def fake_slurm(place: Path, queue: str = "") -> dict[str, str]:
    """Return an environment in which sbatch numbers its jobs from 100, and the queue is `queue`."""
    (place / "bin").mkdir(exist_ok=True)
    sbatch = '#!/bin/bash\nprintf "%s\\n" "$*" >>"$PLACE/sbatch"\n[[ $* == *--test-only* ]] && exit 0\n'
    sbatch += 'echo $((99 + $(wc -l <"$PLACE/sbatch")))\n'
    for name, text in {"sbatch": sbatch, "squeue": f"#!/bin/sh\nprintf '{queue}'\n"}.items():
        (place / "bin" / name).write_text(text)
        (place / "bin" / name).chmod(0o755)
    return {"PLACE": str(place), "PATH": f"{place / 'bin'}:{os.environ['PATH']}"}


def submit(place: Path, *words: str, env: dict[str, str]) -> Result:
    """Return how `submit` of the study in `place` ended, with runs/ beside it."""
    arguments = ["submit", str(place / "try.toml"), "--run-dir", str(place / "runs"), *words]
    return CliRunner().invoke(cli, arguments, env=env)


def test_submit_hands_every_batch_to_sbatch_and_the_analysis_after_them(tmp_path: Path, study: Study) -> None:
    place = tmp_path / "runs"
    done = submit(tmp_path, env=fake_slurm(tmp_path))
    assert done.exit_code == 0, done.output
    lines = (tmp_path / "sbatch").read_text().splitlines()
    assert [line.split()[-1] for line in lines] == [str(place / "ranks-001"), str(place / "ranks-004"), str(place)]
    assert "--dependency=afterany:100:101" in lines[2]
    assert [line.split("\t")[:2] for line in (place / "submitted.tsv").read_text().splitlines()] == [
        ["ranks-001", "100"], ["ranks-004", "101"],
    ]  # fmt: skip
    assert {run.state for run in read_status(place, {"100": "RUNNING", "101": "PENDING"})} == {"queued"}
    assert {run.state for run in read_status(place, {})} == {"not begun"}
    # A second time while they wait would have two jobs write to the same runs.
    again = submit(tmp_path, env=fake_slurm(tmp_path, "101 PENDING\\n"))
    assert isinstance(again.exception, ConfigError)
    assert "jobs 101 of" in str(again.exception)
    assert len((tmp_path / "sbatch").read_text().splitlines()) == 3


def test_test_only_submits_nothing(tmp_path: Path, study: Study) -> None:
    done = submit(tmp_path, "--test-only", env=fake_slurm(tmp_path))
    assert done.exit_code == 0, done.output
    assert all("--test-only" in line for line in (tmp_path / "sbatch").read_text().splitlines())
    assert not (tmp_path / "runs" / "submitted.tsv").exists()


def test_a_job_that_sbatch_refuses_is_told(tmp_path: Path, study: Study) -> None:
    env = fake_slurm(tmp_path)
    (tmp_path / "bin" / "sbatch").write_text("#!/bin/sh\necho 'invalid account' >&2\nexit 1\n")
    done = submit(tmp_path, env=env)
    assert isinstance(done.exception, ConfigError)
    assert "ended with exit code 1: what sbatch said is above" in str(done.exception)


@pytest.mark.parametrize(
    "line",
    [
        "SBATCH_ACCOUNT=CHANGE_ME",
        "SBATCH_ACCOUNT=changeme",
        "SBATCH_ACCOUNT=mXXXX",
        "SBATCH_ACCOUNT=your-project",
        'SBATCH_PARTITION="<partition>"',
        "SBATCH_QOS=TODO",
        'MPISPARSE_SBATCH_OPTIONS="--mem=0 --account=my_account"',
    ],
)
@pytest.mark.parametrize("option", [None, "--test-only"])
def test_a_site_that_was_not_filled_in_is_refused_before_sbatch(
    tmp_path: Path, study: Study, line: str, option: str | None
) -> None:
    env = fake_slurm(tmp_path)
    site = tmp_path / "here.env"
    site.write_text(f"# A site.\n{line}\n")
    words = ["submit", str(tmp_path / "try.toml"), "--site", str(site), "--run-dir", str(tmp_path / "runs")]
    done = CliRunner().invoke(cli, [*words, *([option] if option else [])], env=env)
    assert isinstance(done.exception, ConfigError)
    assert f"{site}, line 2: {line.partition('=')[0]}=" in str(done.exception)
    assert not (tmp_path / "sbatch").exists()
    assert not (tmp_path / "runs").exists()


def test_values_of_a_site_that_look_real_are_taken(tmp_path: Path) -> None:
    site = tmp_path / "here.env"
    values = ("SBATCH_ACCOUNT=g123", "SBATCH_PARTITION=exchange", "MPISPARSE_VENV=/home/me/my-project/.venv")
    site.write_text("\n".join(values))
    assert read_site(site, {}).unfilled == ()
    for path in SITES.glob("*.env"):
        known = read_site(path, {"HOME": "/home/me", "USER": "me", "SCRATCH": "/scratch/me"})
        assert len(known.unfilled) == (path.stem != "generic"), path


def test_without_slurm_there_is_a_way_out_in_one_line(tmp_path: Path, study: Study) -> None:
    command = [sys.executable, "-m", "jobs", "submit", str(tmp_path / "try.toml"), "--run-dir", str(tmp_path / "runs")]
    environ = {**os.environ, "PYTHONPATH": str(CHECKOUT), "PATH": str(tmp_path)}
    done = subprocess.run(command, cwd=CHECKOUT, env=environ, capture_output=True, text=True, timeout=120)
    assert done.returncode == 78
    assert done.stderr.startswith("jobs: ConfigError: there is no sbatch here")
    assert len(done.stderr.splitlines()) == 1
    assert "--local makes the runs on this machine" in done.stderr


def test_render_submits_nothing_and_writes_what_bash_can_read(tmp_path: Path, study: Study) -> None:
    done = CliRunner().invoke(cli, ["submit", str(tmp_path / "try.toml"), "--render", str(tmp_path / "runs")])
    assert done.exit_code == 0, done.output
    assert f"8 runs in 2 jobs or arrays; to submit them: bash {tmp_path / 'runs' / 'submit.sh'}" in done.output
    for name in ("study.toml", "runs.csv", "table.tsv"):
        assert (tmp_path / "runs" / "ranks-004" / name).exists()
    assert subprocess.run(["bash", "-n", str(tmp_path / "runs" / SUBMIT)]).returncode == 0


# What became of them --------------------------------------------------------------------------------------------------


def write_log(path: Path, study: Study, index: int, *kinds: str) -> None:
    path.mkdir(parents=True, exist_ok=True)
    (path / "config.toml").write_text(to_toml(study.runs[index].config))
    lines: list[dict[str, Any]] = [{"kind": "start", "step": 0, "ranks": 1, "steps": 4}]
    lines += [{"kind": kind, "step": number} for number, kind in enumerate(kinds, 1)]
    (path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def test_status_tells_what_became_of_each_run(tmp_path: Path, study: Study) -> None:
    place = tmp_path / "runs"
    batches = plan(study, {1: {0, 1, 2, 3}})
    prepare(study, place, batches, {f"{b.directory}/table.tsv": table(b) for b in batches})
    (place / "submitted.tsv").write_text("ranks-001\t5\tnow\n")
    paths = [place / "ranks-001" / run.directory for run in study.runs]
    state = place / "ranks-001" / "state"
    write_log(paths[0], study, 0, "step", "step", "end")
    write_log(paths[1], study, 1, "step")
    (state / "1").write_text("running 5\n")
    write_log(paths[2], study, 2, "step", "step")
    (paths[2] / "failed.json").write_text('{"error": "NonFiniteError", "message": "NaN", "step": 3}')
    (state / "3").write_text("ended 137\n")

    def found(queue: dict[str, str]) -> list[tuple[str, int, str]]:
        return [(run.state, run.steps, run.note) for run in read_status(place, queue)]

    others = [("failed", 2, "NonFiniteError at step 3"), ("failed", 0, "exit code 137")]
    assert found({"5": "RUNNING"}) == [("finished", 3, ""), ("running", 1, "job 5"), *others]
    assert found({"5": "PENDING"}) == [("finished", 3, ""), ("queued", 1, "job 5 goes on"), *others]
    assert found({}) == [("finished", 3, ""), ("stopped", 1, "job 5 is gone"), *others]
    (state / "1").write_text("ended 75\n")
    assert found({})[1] == ("stopped", 1, "saved: submit it again")
    (state / "1").write_text(f"running local-{os.getpid()}\n")
    assert found({})[1] == ("running", 1, "on this machine")
    # A run that failed by diverging is not made again unless it is asked for; one that was killed is.
    assert look_around(study, place, [1], retry=False) == {1: {1, 3}}
    assert look_around(study, place, [1], retry=True) == {1: {1, 2, 3}}


def test_tasks_of_an_array_are_known_by_their_own_names(tmp_path: Path, study: Study) -> None:
    place = tmp_path / "runs"
    prepare(study, place, plan(study, {1: {0, 1, 2, 3}}), {})
    (place / "submitted.tsv").write_text("ranks-001\t5\tnow\n")
    (place / "ranks-001" / "state" / "0").write_text("running 5_2\n")
    found = read_status(place, {"5_2": "RUNNING", "5_3": "PENDING"})
    assert [run.state for run in found] == ["running", "queued", "queued", "queued"]


def test_status_prints_a_table_and_json(tmp_path: Path, study: Study) -> None:
    prepare(study, tmp_path / "runs", plan(study, everything(study)), {})
    write_log(tmp_path / "runs" / "ranks-004" / study.runs[0].directory, study, 0, "end")
    done = CliRunner().invoke(cli, ["status", str(tmp_path / "runs")])
    assert done.exit_code == 0, done.output
    assert "8 runs: 1 finished, 7 not begun" in done.output
    done = CliRunner().invoke(cli, ["status", str(tmp_path / "runs"), "--json"])
    runs = [RunStatus(**run) for run in json.loads(done.output)]
    assert [run.ranks for run in runs] == [1] * 4 + [4] * 4
    assert runs[4].state == "finished"
    with pytest.raises(ConfigError, match="is no directory of a study"):
        read_status(tmp_path, {})


def test_a_queue_that_does_not_answer_is_no_empty_queue(
    tmp_path: Path, study: Study, monkeypatch: pytest.MonkeyPatch
) -> None:
    prepare(study, tmp_path / "runs", plan(study, everything(study)), {})
    assert read_queue(tmp_path / "runs") == {}
    (tmp_path / "runs" / "submitted.tsv").write_text("ranks-001\t5\tnow\n")
    monkeypatch.setenv("PATH", fake_slurm(tmp_path, "5 RUNNING\\n6 RUNNING\\n")["PATH"])
    assert read_queue(tmp_path / "runs") == {"5": "RUNNING"}
    (tmp_path / "bin" / "squeue").write_text("#!/bin/sh\necho no controller >&2\nexit 1\n")
    with pytest.raises(ConfigError, match="squeue failed, so that nobody knows what runs: no controller"):
        read_queue(tmp_path / "runs")


# On this machine ------------------------------------------------------------------------------------------------------

#: In the place of a launcher: notes the ranks, and writes the log of the run as the sweep would.
LAUNCHER = """\
import json, pathlib, sys
ranks, rest = int(sys.argv[1]), sys.argv[2:]
place, index = pathlib.Path(rest[rest.index("--run-dir") + 1]), int(rest[rest.index("--only") + 1])
with (place.parent / "order").open("a") as file:
    file.write(f"{ranks} {index}\\n")
code = int(pathlib.Path(__file__).with_name("code").read_text()) if index == 2 else 0
sys.exit(code)
"""


@pytest.mark.parametrize(("code", "made"), [(0, 4), (70, 4), (75, None), (78, None)])
def test_local_runs_follow_each_other(tmp_path: Path, study: Study, code: int, made: int | None) -> None:
    (tmp_path / "launch.py").write_text(LAUNCHER)
    (tmp_path / "code").write_text(str(code))
    launcher = f"{sys.executable} {tmp_path / 'launch.py'} {{ranks}}"
    words = ["submit", str(tmp_path / "try.toml"), "--local", "--ranks", "2", "--run-dir", str(tmp_path / "runs")]
    done = CliRunner().invoke(cli, [*words, "--launcher", launcher])
    assert done.exit_code == code, done.output
    order = [line.split() for line in (tmp_path / "runs" / "order").read_text().splitlines()]
    planned = [run.index for run in plan(study, {2: {0, 1, 2, 3}})[0].runs]
    assert order == [["2", str(index)] for index in (planned if made else planned[: planned.index(2) + 1])]
    assert (tmp_path / "runs" / "ranks-002" / "state" / "2").read_text() == f"ended {code}\n"
    said = done.output.splitlines()
    assert said[0].startswith(f"4 runs to make in {tmp_path / 'runs'}")
    begins = [line.split(": ")[0] for line in said if line.endswith(" begins")]
    assert begins == [f"{number}/4 on 2 ranks" for number in range(1, len(order) + 1)]
    again = ["python", "-m", "jobs", *words, "--launcher", launcher]
    if code == 0:
        assert said[-1].startswith("4/4 on 2 ranks, ")
        return
    words_said, _, command = said[-1].partition(" with: ")
    assert sorted(shlex.split(command)) == sorted([*again, *(["--retry"] if code == 70 else [])])
    made_now = f"stopped after {len(order)} of 4 runs; go on"
    assert words_said == ("1 of 4 runs failed; make them again" if code == 70 else made_now)


def test_a_study_that_is_being_made_here_is_left_alone(tmp_path: Path, study: Study) -> None:
    prepare(study, tmp_path / "runs", plan(study, everything(study)), {})
    (tmp_path / "runs" / "ranks-001" / "state" / "0").write_text(f"running local-{os.getpid()}\n")
    done = CliRunner().invoke(
        cli, ["submit", str(tmp_path / "try.toml"), "--local", "--run-dir", str(tmp_path / "runs")]
    )
    assert isinstance(done.exception, ConfigError)
    assert "ranks-001/000-seed-0-dense of" in str(done.exception)


def test_a_launcher_has_to_take_the_number_of_ranks(tmp_path: Path, study: Study) -> None:
    words = ["submit", str(tmp_path / "try.toml"), "--local", "--run-dir", str(tmp_path / "runs")]
    for launcher, message in (
        ("mpirun", "where the number of ranks goes"),
        ("no-such -n {ranks}", "cannot start no-such"),
        ("'mpirun -n {ranks}", "is no command of a shell"),
    ):
        done = CliRunner().invoke(cli, [*words, "--launcher", launcher])
        assert isinstance(done.exception, ConfigError)
        assert message in str(done.exception)


@pytest.mark.parametrize("option", ["--run-dir", "--render"])
@pytest.mark.parametrize("place", ["file", "file/below"])
def test_a_file_in_the_place_of_the_directory_is_named(tmp_path: Path, study: Study, option: str, place: str) -> None:
    (tmp_path / "file").write_text("mine")
    local = ["--local"] if option == "--run-dir" else []
    done = CliRunner().invoke(cli, ["submit", str(tmp_path / "try.toml"), *local, option, str(tmp_path / place)])
    assert isinstance(done.exception, ConfigError)
    assert f"{tmp_path / 'file'} is a file" in str(done.exception)


def test_the_scaling_study_is_what_the_readme_says() -> None:
    study = read_study(CHECKOUT / "jobs" / "scaling.toml")
    assert study.launch is not None
    assert study.launch.ranks == [1, 2, 4, 8]
    assert len(study.runs) == 15
    methods = {(run.config.sparsifier.name, run.config.exchange.dense, run.settings["seed"]) for run in study.runs}
    assert methods == {
        (name, dense, seed)
        for name, dense in [("dense", "pieces"), ("dense", "bfloat16"), ("topk", "pieces"), ("gspar", "pieces")]
        for seed in range(3)
    }

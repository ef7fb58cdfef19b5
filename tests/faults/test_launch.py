"""Launching and ending: what goes wrong on one rank ends the job, with that rank's words."""

from __future__ import annotations

import sys
import time
from pathlib import Path

import pytest

from tests.launch import mpirun, run

START = "import mpisparse as ms, sys, time, torch\ncomm = ms.init(banner=False)\n"


def seconds_since(stamp: str) -> float:
    return time.time() - float(stamp)


def test_an_exception_on_one_rank_ends_the_job_with_its_traceback() -> None:
    """Without `python -m mpi4py`, while the others wait for the rank in a collective."""
    code = START + (
        "for step in range(100):\n"
        "    if comm.rank == 1 and step == 3:\n"
        "        print(time.time(), file=sys.stderr)\n"
        "        raise KeyError('lost in step 3')\n"
        "    comm.barrier()\n"
    )
    outcome = mpirun(3, "-c", code, timeout=60)
    assert outcome.code == 1, outcome.text
    assert "[rank 1 of 3] KeyError: 'lost in step 3'" in outcome.stderr
    assert outcome.stderr.count("Traceback") == 1, outcome.text
    stamp = next(line for line in outcome.stderr.splitlines() if line.replace(".", "").isdigit())
    assert seconds_since(stamp) < 10


def test_a_start_that_waits_for_a_rank_for_ever_ends_with_words() -> None:
    late = "import time\nfrom mpisparse.comm.launcher import promised_rank\nif promised_rank() == '1': time.sleep(90)\n"
    outcome = mpirun(2, "-c", late + START, timeout=60, env={"MPISPARSE_START_LIMIT": "2"})
    assert outcome.code != 0, outcome.text
    assert outcome.stderr.count("mpisparse: HangError: MPI did not start within 2 s on rank 0") == 1, outcome.text
    assert outcome.seconds < 40


def test_an_exception_in_a_thread_ends_the_job() -> None:
    code = START + (
        "import threading\n"
        "def fail(): raise ValueError('thread of rank 0')\n"
        "if comm.rank == 0: threading.Thread(target=fail).start()\n"
        "comm.barrier(); comm.allgather_bytes(b'') if comm.rank else time.sleep(30)\n"
    )
    outcome = mpirun(2, "-c", code, timeout=60)
    assert outcome.code != 0, outcome.text
    assert "[rank 0 of 2] ValueError: thread of rank 0" in outcome.stderr


@pytest.mark.parametrize(("leave", "code"), [("sys.exit(3)", 3), ("raise KeyboardInterrupt", 130)])
def test_a_rank_that_leaves_early_ends_the_job(leave: str, code: int) -> None:
    outcome = mpirun(2, "-c", START + f"if comm.rank == 1: {leave}\ncomm.barrier()\n", timeout=60)
    assert outcome.code == code, outcome.text


def test_a_thread_that_ends_by_exit_ends_nothing_else() -> None:
    code = START + (
        "import threading\n"
        "thread = threading.Thread(target=lambda: sys.exit(5))\n"
        "thread.start(); thread.join(); comm.barrier(); print('went on')\n"
    )
    outcome = mpirun(2, "-c", code, timeout=60)
    assert outcome.code == 0, outcome.text
    assert outcome.stdout.count("went on") == 2


def test_an_error_of_all_ranks_is_printed_once_and_exits_on_all() -> None:
    code = START + (
        "model = torch.nn.Linear(3, 2 + (comm.rank == 2))\n"
        "ms.DistributedOptimizer(torch.optim.SGD(model.parameters(), lr=1), model, comm=comm)\n"
    )
    outcome = mpirun(3, "-c", code, timeout=60)
    assert outcome.code != 0, outcome.text
    assert outcome.stderr.count("errors.RankMismatchError:") == 1, outcome.text
    assert "weight: (2, 3)" in outcome.stderr
    assert "on rank 2" in outcome.stderr


def test_nan_in_the_loss_of_one_rank_names_it_and_ends_all() -> None:
    code = START + (
        "model = torch.nn.Linear(4, 4)\n"
        "optimizer = torch.optim.SGD(model.parameters(), lr=0.1)\n"
        "optimizer = ms.DistributedOptimizer(optimizer, model, sparsifier=ms.TopK(density=0.5), comm=comm)\n"
        "for step in range(9):\n"
        "    optimizer.zero_grad()\n"
        "    loss = model(torch.ones(2, 4)).sum() * (float('nan') if comm.rank == 2 and step == 4 else 1.0)\n"
        "    loss.backward()\n"
        "    optimizer.step()\n"
    )
    outcome = mpirun(3, "-c", code, timeout=60)
    assert outcome.code != 0, outcome.text
    assert outcome.stderr.count("errors.NonFiniteError:") == 1, outcome.text
    assert "after 4 steps the gradient holds NaN or infinity on rank 2 in weight" in outcome.stderr


def test_a_killed_rank_ends_the_job() -> None:
    code = START + ("import os, signal\nif comm.rank == 1: os.kill(os.getpid(), signal.SIGKILL)\ncomm.barrier()\n")
    assert mpirun(2, "-c", code, timeout=60).code != 0


@pytest.mark.parametrize("variable", ["OMPI_COMM_WORLD_SIZE", "SLURM_STEP_NUM_TASKS", "PMI_SIZE"])
def test_copies_that_do_not_know_of_each_other_are_refused(variable: str, tmp_path: Path) -> None:
    """One process that a launcher started as one of four, but whose MPI is alone."""
    code = (
        "import pytest\n"
        "from mpisparse.comm.launcher import check_promise\n"
        "from mpisparse.errors import LaunchError\n"
        "with pytest.raises(LaunchError, match='4 ranks were promised.*alone.*mpirun.*--mpi=pmi2'):\n"
        "    check_promise(1, 'MPICH 5.0.2')\n"
        "check_promise(4, 'MPICH 5.0.2')\n"
    )
    outcome = run([sys.executable, "-c", code], timeout=60, cwd=tmp_path, env={variable: "4"})
    assert outcome.code == 0, outcome.text


def test_the_command_line_refuses_a_wrong_launch(tmp_path: Path) -> None:
    """As when srun's --mpi does not fit the MPI library: every copy is alone, and rank 0 says so once."""
    command = [str(Path(sys.executable).with_name("mpisparse")), "check"]
    for rank in ("0", "1"):
        env = {"SLURM_STEP_NUM_TASKS": "4", "SLURM_PROCID": rank}
        outcome = run(command, timeout=60, cwd=tmp_path, env=env)
        assert outcome.code == 78, outcome.text
        assert ("LaunchError: 4 ranks were promised by srun" in outcome.stderr) == (rank == "0"), outcome.text

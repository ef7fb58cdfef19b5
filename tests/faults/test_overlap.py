"""Overlap when ranks fail: whatever is in the air, the job ends, in time and with the words of the rank that failed."""

from __future__ import annotations

import pytest

from tests.launch import mpirun

START = (
    "import mpisparse as ms, sys, time, torch\n"
    "comm = ms.init(banner=False)\n"
    "torch.manual_seed(0)\n"
    "model = torch.nn.Sequential(*[torch.nn.Linear(64, 64, bias=False) for _ in range(4)])\n"
    "plain = torch.optim.SGD(model.parameters(), lr=0.1)\n"
    "layout = ms.Layout(granularity='tensor', bucket_mib=1e-6)\n"
    "optimizer = ms.DistributedOptimizer(\n"
    "    plain, model, sparsifier=ms.TopK(density=0.5), layout=layout, overlap='on', comm=comm\n"
    ")\n"
    "def backward():\n"
    "    model(torch.ones(2, 64)).square().mean().backward()\n"
    "def fail(*_):\n"
    "    raise KeyError('lost in backward')\n"
)
FAIL_IN_THE_MIDDLE = "if comm.rank == 1: model[1].weight.register_post_accumulate_grad_hook(fail)\n"


def test_an_exception_in_backward_ends_the_job_while_messages_are_in_the_air() -> None:
    outcome = mpirun(2, "-c", START + FAIL_IN_THE_MIDDLE + "backward(); optimizer.step()\n", timeout=60)
    assert outcome.code == 1, outcome.text
    assert "[rank 1 of 2] KeyError: 'lost in backward'" in outcome.stderr
    assert outcome.stderr.count("Traceback") == 1, outcome.text


@pytest.mark.parametrize(("leave", "code"), [("sys.exit(3)", 3), ("raise KeyboardInterrupt", 130)])
def test_a_rank_that_leaves_after_backward_ends_the_job(leave: str, code: int) -> None:
    outcome = mpirun(2, "-c", START + f"backward()\nif comm.rank == 1: {leave}\noptimizer.step()\n", timeout=60)
    assert outcome.code == code, outcome.text


def test_an_exception_in_the_thread_is_raised_by_the_step() -> None:
    code = START + (
        "if comm.rank == 1: optimizer._early.sender.flights.payloads.start_allgatherv = fail\n"
        "backward(); optimizer.step()\n"
    )
    outcome = mpirun(2, "-c", code, timeout=60)
    assert outcome.code == 1, outcome.text
    assert "[rank 1 of 2] KeyError: 'lost in backward'" in outcome.stderr


def test_nan_on_one_rank_is_said_once_and_ends_all() -> None:
    code = START + (
        "if comm.rank == 1: model[1].weight.register_hook(lambda gradient: gradient * float('nan'))\n"
        "backward(); optimizer.step()\n"
    )
    outcome = mpirun(3, "-c", code, timeout=60)
    assert outcome.code != 0, outcome.text
    assert outcome.stderr.count("errors.NonFiniteError:") == 1, outcome.text
    assert "after 0 steps the gradient holds NaN or infinity on rank 1 in 1.weight" in outcome.stderr


def test_a_program_may_end_after_a_backward_that_no_step_follows() -> None:
    """Messages that all ranks have sent, and nobody waits for, do not keep the job from ending."""
    outcome = mpirun(2, "-c", START + "backward(); optimizer.step(); backward(); print('end')\n", timeout=60)
    assert outcome.code == 0, outcome.text
    assert outcome.stdout.count("end") == 2


def test_a_thread_level_below_multiple_is_refused_and_auto_says_so_once() -> None:
    refused = mpirun(2, "-c", START, timeout=60, env={"MPI4PY_RC_THREAD_LEVEL": "serialized"})
    assert refused.code != 0, refused.text
    assert 'overlap="on" needs MPI\'s thread level multiple, and this one gives serialized' in refused.stderr
    code = START.replace("overlap='on'", "overlap='auto'") + "backward(); optimizer.step()\n"
    auto = mpirun(2, "-c", code, timeout=60, env={"MPI4PY_RC_THREAD_LEVEL": "serialized"})
    assert auto.code == 0, auto.text
    assert auto.stderr.count("overlap: off, as MPI's thread level is serialized") == 1, auto.text

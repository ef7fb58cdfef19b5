"""compare and tail: two runs side by side, and one that goes on."""

from __future__ import annotations

import io
import os
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from rich.console import Console

from analysis.__main__ import cli
from analysis.compare import AtEqual, compare, to_text, verdicts
from analysis.tail import Progress, follow
from tests.unit.report_runs import append, config, step_line, write_run

SECONDS = {"compute": 0.010, "exchange": 0.010}


def write_pair(tmp_path: Path, *, factor: float = 0.5, repeats: int = 3) -> None:
    for seed in range(repeats):
        write_run(tmp_path / "a" / str(seed), seed=seed, seconds=SECONDS)
        faster = {phase: factor * value for phase, value in SECONDS.items()}
        write_run(tmp_path / "b" / str(seed), config(density=0.01), seed=seed, seconds=faster)


def test_a_faster_step_and_fewer_bytes_are_said_with_their_intervals(tmp_path: Path) -> None:
    write_pair(tmp_path)
    found = compare(tmp_path / "a", tmp_path / "b")
    assert found.seconds.value == pytest.approx(0.5, rel=0.05)
    assert found.seconds.low < found.seconds.value < found.seconds.high < 1
    assert found.received == pytest.approx(80048 / 4e6, rel=1e-6)
    text = to_text(found)
    assert "sparsifier.density: not set, 0.01; sparsifier.name: dense, topk" in text
    words = list(verdicts(found))
    assert words[0].startswith("B's step is faster than A's, ")
    assert words[1] == "B receives 50 times fewer bytes."
    assert not any("Fewer than 3" in word for word in words)


def test_losses_are_compared_at_equal_steps_seconds_and_bytes(tmp_path: Path) -> None:
    """B takes half the time, so that at equal seconds A is at half its steps, with twice the loss."""
    write_pair(tmp_path, repeats=1)
    steps, seconds, received = compare(tmp_path / "a", tmp_path / "b").losses
    assert steps.at == 60
    assert steps.one == pytest.approx(steps.other)
    assert seconds.one / seconds.other == pytest.approx(2.0, rel=0.15)
    assert received.at == pytest.approx(60 * 80048)
    assert received.one[0] > received.other[0]


def test_a_difference_within_the_noise_is_none(tmp_path: Path) -> None:
    write_pair(tmp_path, factor=1.0)
    words = list(verdicts(compare(tmp_path / "a", tmp_path / "b")))
    assert words[0].startswith("No difference in time can be told")


def test_one_run_each_has_a_warning(tmp_path: Path) -> None:
    write_pair(tmp_path, repeats=1)
    outcome = CliRunner().invoke(cli, ["compare", str(tmp_path / "a" / "0"), str(tmp_path / "b" / "0")])
    assert outcome.exit_code == 0
    assert "Fewer than 3 repeats" in outcome.output
    assert "one run each: seeds may do as much" in outcome.output


def test_what_are_no_repeats_is_refused(tmp_path: Path) -> None:
    write_pair(tmp_path, repeats=1)
    outcome = CliRunner().invoke(cli, ["compare", str(tmp_path), str(tmp_path / "b")])
    assert outcome.exit_code == 78
    assert "no repeats of each other" in outcome.stderr
    assert "sparsifier.name: dense, topk" in outcome.stderr


def test_the_verdict_on_losses_looks_at_their_spread() -> None:
    near, far = np.array([1.0, 1.1, 0.9]), np.array([2.0, 2.1, 1.9])
    assert AtEqual("step", 1.0, near, far).verdict == "A's is lower"
    assert AtEqual("step", 1.0, far, near).verdict == "B's is lower"
    assert AtEqual("step", 1.0, near, near + 0.05).verdict == "no difference beyond that of seeds"


def console() -> tuple[Console, io.StringIO]:
    file = io.StringIO()
    return Console(file=file, width=100), file


def test_tail_of_an_ended_run_says_so_without_a_terminal(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", config(density=0.01), ranks=2, seconds=SECONDS, noise=0.0)
    screen, file = console()
    assert follow(run, console=screen) == "ended"
    text = file.getvalue()
    assert "60 of 60 (100%), 2 ranks" in text
    assert "50.0 steps a second, 20.0 ms each" in text
    assert "density" in text
    assert "80.0 kB a step, dense 50.0 times as many; 4.80 MB so far" in text
    assert "\x1b" not in text


def test_tail_once_of_a_running_run(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", end=False, seconds=SECONDS, noise=0.0, steps=60)
    path = run / "metrics.jsonl"
    path.write_text(path.read_text().replace('"steps": 60', '"steps": 6060'))
    outcome = CliRunner().invoke(cli, ["tail", "--once", str(run)])
    assert outcome.exit_code == 0, outcome.output
    assert "running" in outcome.output
    assert "2 min 0 s" in outcome.output


def test_tail_follows_what_is_added_until_the_end(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", end=False, steps=60)
    path = run / "metrics.jsonl"
    path.write_text(path.read_text().replace('"steps": 60', '"steps": 62'))
    torn = '{"schema": 1, "kind": "ev'
    looks: list[str] = []

    def sleep(_: float) -> None:
        looks.append("")
        if len(looks) == 1:
            append(path, {**step_line(61, 2, None, False, 64, SECONDS)})
            with path.open("a") as file:
                file.write(torn)
        elif len(looks) == 2:
            path.write_text(path.read_text().removesuffix(torn))
            append(path, {**step_line(62, 2, None, False, 64, SECONDS)}, {"kind": "end", "step": 62})

    screen, file = console()
    assert follow(run, console=screen, sleep=sleep) == "ended"
    assert "step 61 of 62" in file.getvalue()
    assert "step 62 of 62" in file.getvalue()
    assert len(looks) == 2


def test_a_run_that_writes_nothing_has_stalled(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", end=False)
    os.utime(run / "metrics.jsonl", (1000.0, 1000.0))
    progress = Progress(run)
    progress.look()
    assert progress.state(1030.0) == "running"
    assert progress.state(1301.0) == "stalled or stopped: nothing was written for 5 min 1 s"
    # Where lines come every two minutes, one minute of silence is nothing.
    progress.pause = 120.0
    assert progress.state(1301.0) == "running"
    outcome = CliRunner().invoke(cli, ["tail", "--once", str(run)])
    assert outcome.exit_code == 1


def test_a_resumed_run_whose_log_was_cut_is_read_again(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", end=False)
    progress = Progress(run)
    progress.look()
    assert progress.step == 60
    lines = (run / "metrics.jsonl").read_text().splitlines(keepends=True)
    (run / "metrics.jsonl").write_text("".join(lines[:31]))
    append(run / "metrics.jsonl", {"kind": "start", "step": 30, "ranks": 2, "steps": 60})
    progress.look()
    assert progress.step == 29
    assert progress.received == pytest.approx(29 * 4e6)


def test_a_run_that_has_not_begun_is_starting(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run")
    (run / "metrics.jsonl").unlink()
    progress = Progress(run)
    progress.look()
    assert progress.state(0.0) == "starting: there is no log yet"
    outcome = CliRunner().invoke(cli, ["tail", "--once", str(tmp_path)])
    assert outcome.exit_code == 78
    assert "no run directory" in outcome.stderr


def test_a_failed_run_says_why(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", end=False)
    (run / "failed.json").write_text('{"message": "NaN in layer 1"}')
    outcome = CliRunner().invoke(cli, ["tail", str(run)])
    assert outcome.exit_code == 1
    assert "failed: NaN in layer 1" in outcome.output


def test_tail_waits_for_a_run_that_is_about_to_begin(tmp_path: Path) -> None:
    made = write_run(tmp_path / "made", end=True)
    run = tmp_path / "run"
    looks: list[float] = []

    def sleep(seconds: float) -> None:
        looks.append(seconds)
        if len(looks) == 2:
            run.mkdir()
        elif len(looks) == 3:
            (run / "config.toml").write_bytes((made / "config.toml").read_bytes())
        elif len(looks) == 4:
            (run / "metrics.jsonl").write_bytes((made / "metrics.jsonl").read_bytes())

    screen, file = console()
    assert follow(run, console=screen, every=0.5, wait=60, sleep=sleep) == "ended"
    assert looks == [0.5] * 4
    assert f"{run}: waiting for a run to begin there, for 60 s at most" in file.getvalue().replace("\n", "")


@pytest.mark.parametrize(
    ("there", "message"),
    [
        ("nothing", "waited 2 s for a run to begin there, and nothing came"),
        ("directory", "waited 2 s for a run to begin there, and nothing came"),
        ("config", "waited 2 s for its log, and nothing came"),
        ("file", "is a file: give the directory of a run"),
        ("sweep", "holds runs, a, b: give one of them"),
    ],
)
def test_tail_does_not_wait_for_ever(tmp_path: Path, there: str, message: str) -> None:
    run = tmp_path / "run"
    if there == "file":
        run.write_text("x")
    elif there != "nothing":
        run.mkdir()
    if there == "config":
        (run / "config.toml").write_text("")
    if there == "sweep":
        write_run(run / "a")
        write_run(run / "b")
    looks: list[float] = []
    screen, _ = console()
    with pytest.raises(ValueError, match=message):
        follow(run, console=screen, every=1, wait=2, sleep=looks.append)
    assert len(looks) == (0 if there in ("file", "sweep") else 2)
    outcome = CliRunner().invoke(cli, ["tail", "--wait", "0", str(run)])
    assert outcome.exit_code == 78
    assert outcome.stderr.startswith(f"analysis: {run}")

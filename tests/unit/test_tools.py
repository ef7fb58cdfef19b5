"""`mpisparse checkpoint`: what each command says and does, in one process that never starts MPI."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner, Result

from mpisparse.checkpoint import Checkpointer, find_flaws, list_checkpoints, open_checkpoint, step_of, verify
from mpisparse.cli import cli
from mpisparse.comm import Communicator, run_ranks
from mpisparse.errors import CheckpointError
from mpisparse.training.configfile import to_tree
from mpisparse.words import counted
from tests.launch import environment
from tests.stamps import contents
from tests.unit.test_trainer import make
from tests.unit.test_training_reshape import RULES


def call(*words: object) -> Result:
    """Return how a command ended that ended as it should, or in a CheckpointError."""
    result = CliRunner().invoke(cli, ["checkpoint", *map(str, words)])
    if result.exception is not None and not isinstance(result.exception, SystemExit | CheckpointError):
        raise result.exception
    return result


def parsed(*words: object) -> Any:
    result = call(*words, "--json")
    assert result.exit_code == 0, result.output
    return json.loads(result.output)


def write_run(directory: Path, rule: str, size: int = 2, steps: tuple[int, ...] = (1, 2, 3, 4)) -> Path:
    """Return the directory of a run of a training on digits."""
    from mpisparse.training.configfile import parse_config

    def run(comm: Communicator) -> None:
        trainer = make(comm, **RULES[rule])
        checkpointer = Checkpointer(directory / "checkpoints", keep=100, comm=comm)
        tree = {"name": "try", "data": {"name": "digits"}, "model": {"name": "mlp"}, "training": {"length": "2 epochs"}}
        tree["training"] = {"length": "2 epochs", "batch": 50}
        config = to_tree(parse_config(tree, "test"))
        for step in steps:
            while trainer.steps_done < step:
                trainer.step()
            checkpointer.save(step, {**trainer.replicated_state(), "config": config}, trainer.rank_state())

    run_ranks(size, run)
    return directory


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return write_run(tmp_path / "run", "topk")


def step(run: Path, number: int) -> Path:
    return run / "checkpoints" / f"step-{number:08d}"


def steps(run: Path) -> list[int]:
    return [step_of(path) for path in list_checkpoints(run / "checkpoints")]


def damage(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def test_list_tells_what_is_whole_as_far_as_it_looked(run: Path) -> None:
    damage(step(run, 2) / "rank-00001.h5")
    (step(run, 3) / "state.h5").unlink()
    (step(run, 1) / "manifest.json").write_text("{}")
    quick, thorough = parsed("list", run), parsed("list", run / "checkpoints", "--verify")
    assert [(c["step"], c["ranks"], c["latest"]) for c in quick] == [
        (1, None, False), (2, 2, False), (3, 2, False), (4, 2, True)
    ]  # fmt: skip
    assert [len(c["flaws"]) for c in quick] == [1, 0, 1, 0]
    assert [len(c["flaws"]) for c in thorough] == [1, 1, 1, 0]
    assert thorough[1]["flaws"][0].startswith("rank-00001.h5 is damaged: its digest is")
    assert quick[3]["bytes"] == sum(path.stat().st_size for path in step(run, 4).iterdir())
    text = call("list", run, "--verify").output
    assert "step-00000004" in text
    assert "verified" in text
    assert "state.h5 is missing" in text
    assert call("list", run).output.count("complete") == 2


def test_show_tells_trees_norms_and_where_the_run_was(run: Path) -> None:
    held = parsed("show", run)
    saved = open_checkpoint(step(run, 4))
    assert (held["step"], held["ranks"], held["configuration"], held["steps_done"]) == (4, 2, "try", 4)
    assert held["sampler"]["consumed"] == 400
    by_name = {leaf["name"]: leaf for leaf in held["trees"]["state.h5"]}
    weight = by_name["model/layers.1.weight"]
    assert (weight["dtype"], weight["shape"], weight["bytes"]) == ("float32", [8, 64], 2048)
    assert by_name["steps_done"]["value"] == "4"
    assert set(held["trees"]) == {"state.h5", "rank-00000.h5"}
    residuals = [saved.rank(rank)["exchange"]["memory"]["residual"] for rank in range(2)]
    for rank, residual in enumerate(residuals):
        norm = torch.cat([part.double().reshape(-1) for part in residual.values()]).norm().item()
        assert held["norms"]["ranks"][rank]["residual"] == pytest.approx(norm, rel=1e-12)
    text = call("show", step(run, 4)).output
    for words in ("step 4, 2 ranks", "configuration try", "consumed 400", "8 x 64", "mean over ranks"):
        assert words in text


def test_show_describes_any_program_s_state(tmp_path: Path) -> None:
    def save(comm: Communicator) -> None:
        state = {"step": 1, "seed": 0, "rank": comm.rank, "size": 2, "memory": {"residual": {"w": torch.ones(4)}}}
        own = {"deep": [1, {"mpisparse": state}], "also": {"mpisparse": state}, "odd": torch.zeros(comm.rank)}
        Checkpointer(tmp_path, comm=comm).save(1, [torch.ones(2, dtype=torch.bfloat16), None], own)

    run_ranks(2, save)
    held = parsed("show", tmp_path)
    assert held["norms"]["mean"] == {"residual": 2.0}
    assert set(held["trees"]) == {"state.h5", "rank-00000.h5", "rank-00001.h5"}
    assert held["trees"]["state.h5"][0]["dtype"] == "bfloat16"
    assert (held["configuration"], held["sampler"]) == (None, None)
    assert call("show", tmp_path).exit_code == 0


def test_verify_exits_with_70_and_a_line_for_each_flaw(run: Path) -> None:
    good = call("verify", run)
    assert (good.exit_code, good.output.count("verified")) == (0, 4)
    damage(step(run, 2) / "rank-00001.h5")
    damage(step(run, 2) / "state.h5")
    bad = call("verify", run)
    assert bad.exit_code == 70
    assert [line.split(" is ")[0] for line in bad.output.splitlines()] == [
        "step-00000001: verified", "step-00000002: state.h5", "step-00000002: rank-00001.h5",
        "step-00000003: verified", "step-00000004: verified",
    ]  # fmt: skip
    assert call("verify", step(run, 2)).exit_code == 70
    assert call("verify", step(run, 3)).exit_code == 0


def test_prune_keeps_the_newest_and_says_what_goes(run: Path) -> None:
    dry = call("prune", run, "--keep", 2, "--dry-run")
    assert dry.output.splitlines() == [f"would remove {step(run, 1)}", f"would remove {step(run, 2)}"]
    assert steps(run) == [1, 2, 3, 4]
    assert call("prune", run, "--keep", 2).output.splitlines() == [f"removed {step(run, n)}" for n in (1, 2)]
    assert sorted(os.listdir(run / "checkpoints")) == ["latest", "step-00000003", "step-00000004"]
    assert call("prune", run, "--keep", 2).output == "nothing to remove\n"
    assert call("prune", run, "--keep", 0).exit_code == 2


def test_prune_never_takes_the_newest_that_is_whole(run: Path) -> None:
    damage(step(run, 4) / "rank-00001.h5")
    damage(step(run, 3) / "state.h5")
    call("prune", run, "--keep", 1)
    assert steps(run) == [2, 4]
    damage(step(run, 2) / "state.h5")
    refused = call("prune", run, "--keep", 1)
    assert "is whole: nothing is removed" in str(refused.exception)
    assert steps(run) == [2, 4]


def test_prune_leaves_the_one_that_latest_names(run: Path) -> None:
    (run / "checkpoints" / "latest").write_text("step-00000002\n")
    call("prune", run, "--keep", 1)
    assert steps(run) == [2, 4]


@pytest.mark.parametrize("rule", ["topk", "momentum", "gspar", "norm"])
@pytest.mark.parametrize("ranks", [1, 2, 3])
def test_reshape_writes_a_whole_checkpoint_of_other_ranks(rule: str, ranks: int, tmp_path: Path) -> None:
    source = write_run(tmp_path / "run", rule, steps=(2,))
    result = call("reshape", source, "--ranks", ranks, "-o", tmp_path / "new")
    assert result.exit_code == 0, result.exception
    new = tmp_path / "new" / "step-00000002"
    manifest = verify(new)
    assert (manifest.ranks, manifest.step, find_flaws(new)) == (ranks, 2, [])
    assert (tmp_path / "new" / "latest").read_text() == "step-00000002\n"
    assert contents(new / "state.h5") == contents(step(source, 2) / "state.h5")
    words = {"gspar": "no memory to keep", "momentum": "velocity: norm "}.get(rule, "residual: norm ")
    assert f"reshaped from 2 to {counted(ranks, 'rank')} (redistribute); " in result.output
    assert words in result.output
    before, after = (parsed("show", path)["norms"]["mean"] for path in (source, new))
    assert after == pytest.approx(before, rel=1e-6)

    def resume(comm: Communicator) -> None:
        trainer = make(comm, **RULES[rule])
        restored = Checkpointer(tmp_path / "new", comm=comm).restore()
        assert restored is not None
        trainer.load_state(restored.replicated, restored.per_rank)
        trainer.step()

    run_ranks(ranks, resume)


def test_reshape_drops_when_asked_and_writes_over_nothing(run: Path, tmp_path: Path) -> None:
    output = tmp_path / "new"
    result = call("reshape", run, "--ranks", 3, "--residual", "drop", "-o", output)
    assert "(drop); residual: norm " in result.output
    assert parsed("show", output)["norms"]["mean"] == {"residual": 0.0}
    again = call("reshape", run, "--ranks", 3, "-o", output)
    assert "is there already" in str(again.exception)
    assert verify(output / "step-00000004").ranks == 3


def test_a_reshape_that_fails_leaves_nothing(run: Path, tmp_path: Path) -> None:
    damage(step(run, 4) / "rank-00001.h5")
    failed = call("reshape", run, "--ranks", 1, "-o", tmp_path / "new")
    assert "rank-00001.h5 is damaged" in str(failed.exception)
    assert os.listdir(tmp_path / "new") == []


def test_export_writes_what_torch_loads_without_running_anything(run: Path, tmp_path: Path) -> None:
    result = call("export", run, "-o", tmp_path / "model.pt")
    assert "model after step 4, 4 tensors" in result.output
    loaded = torch.load(tmp_path / "model.pt", weights_only=True)
    saved = open_checkpoint(run).replicated()
    assert loaded.keys() == saved["model"].keys()
    assert all(torch.equal(loaded[name], saved["model"][name]) for name in loaded)
    model = make(run_ranks(1, lambda comm: comm)[0]).model
    model.load_state_dict(loaded)
    assert "is there already" in str(call("export", run, "-o", tmp_path / "model.pt").exception)
    call("export", run, "-o", tmp_path / "optimizer.pt", "--what", "optimizer")
    state = torch.load(tmp_path / "optimizer.pt", weights_only=True)
    torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.5).load_state_dict(state)
    assert sorted(os.listdir(tmp_path)) == ["model.pt", "optimizer.pt", "run"]


def test_an_exported_model_has_the_mean_of_running_statistics(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", "norm", size=3, steps=(2,))
    call("export", run, "-o", tmp_path / "model.pt")
    loaded = torch.load(tmp_path / "model.pt", weights_only=True)
    saved = open_checkpoint(run)
    buffers = [saved.rank(rank)["buffers"] for rank in range(3)]
    names = [name for name in buffers[0] if name.endswith("running_mean")]
    assert names
    for name in names:
        expected = torch.stack([each[name].double() for each in buffers]).mean(0).float()
        assert torch.equal(loaded[name], expected)
        assert not torch.equal(loaded[name], buffers[0][name])


def test_nothing_there_is_an_error_that_names_the_way_out(tmp_path: Path) -> None:
    for words in (["list"], ["show"], ["verify"], ["prune", "--keep", "1"], ["export", "-o", str(tmp_path / "x.pt")]):
        result = call(words[0], tmp_path / "nowhere", *words[1:])
        assert "is no checkpoint and holds none" in str(result.exception), words


def test_no_mpi_is_started(run: Path) -> None:
    """On a login node there may be none: the process that lists and verifies never loads mpi4py."""
    code = (
        "import sys; from mpisparse.cli import cli\n"
        f"for words in (['list', {str(run)!r}], ['show', {str(run)!r}]):\n"
        "    cli.main(['checkpoint', *words], standalone_mode=False)\n"
        "print('mpi4py.MPI' in sys.modules)"
    )
    ended = subprocess.run(
        [sys.executable, "-c", code], env=environment(), capture_output=True, text=True, timeout=120, check=True
    )
    assert ended.stdout.splitlines()[-1] == "False"

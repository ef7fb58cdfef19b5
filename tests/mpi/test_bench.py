"""`mpisparse bench` on real ranks: what it writes, beside gloo, and how it refuses. No times are judged."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.faults.test_bad_input import expect_one_message
from tests.launch import Outcome, find_mpirun, run

SMALL = ["--set", "model.hidden=[24, 24]", "--set", "exchange.bucket_mib=0.002", "--steps", "3"]


def bench(folder: Path, *arguments: str, size: int = 2, env: dict[str, str] | None = None) -> Outcome:
    return run([find_mpirun(), "-n", str(size), "mpisparse", "bench", *arguments], timeout=200, cwd=folder, env=env)


def document(outcome: Outcome) -> dict[str, Any]:
    """Return the JSON document that a command wrote to standard output, where nothing else may be."""
    assert outcome.code == 0, outcome.text
    found: dict[str, Any] = json.loads(outcome.stdout)
    return found


@pytest.mark.parametrize("size", [2, pytest.param(3, marks=pytest.mark.long)])
def test_exchange_beside_gloo(tmp_path: Path, size: int) -> None:
    sizes = ["--size", "5000", "--size", "20000", "--density", "0.01", "--repeat", "3"]
    outcome = bench(tmp_path, "exchange", *sizes, "--gloo", "--json", "-", size=size)
    found = document(outcome)
    assert found["machine"]["ranks"] == size
    for result in found["results"]:
        numel, entries = result["size"], {entry["name"]: entry for entry in result["contenders"]}
        assert list(entries) == ["dense float32", "dense bfloat16", "gloo float32", "topk 1 %"]
        assert entries["gloo float32"]["received_bytes"] == 2 * (size - 1) * 4 * numel // size
        assert entries["topk 1 %"]["density_sent"] == pytest.approx(0.01)
        assert len(result["break_even"]) == 3
    assert "Exchange of 20.0 k entries" in outcome.stderr
    assert len(found["verdict"]) >= 6


def test_exchange_by_another_rule_and_alone(tmp_path: Path) -> None:
    options = ["--size", "4000", "--rule", "gspar", "--values", "hybrid", "--density", "0.1", "--repeat", "3"]
    found = document(bench(tmp_path, "exchange", *options, "--json", "-", size=1))
    assert found["verdict"] == [
        "one rank: there is nobody to exchange with, so these are local costs. Start it with mpirun -n 2 or more"
    ]
    assert 0.05 < found["results"][0]["contenders"][-1]["density_sent"] < 0.15


@pytest.mark.parametrize("size", [pytest.param(2, marks=pytest.mark.long), 3])
def test_step_beside_ddp(tmp_path: Path, size: int) -> None:
    outcome = bench(tmp_path, "step", *SMALL, "--gloo", "--json", "found.json", size=size)
    assert outcome.code == 0, outcome.text
    found = json.loads((tmp_path / "found.json").read_text())
    entries = {entry["name"]: entry for entry in found["contenders"]}
    assert {"dense", "sparse", "DDP over gloo"} <= set(entries)
    assert entries["sparse"]["received_bytes"] < entries["dense"]["received_bytes"]
    assert entries["DDP over gloo"]["ratio_to_ddp"] == entries["dense"]["ratio_to_dense"] == 1.0
    assert all(entry["steps"] == 3 for entry in entries.values())
    assert found["config"]["model"]["hidden"] == [24, 24]
    assert "DDP over gloo" in outcome.stdout


def test_kernels(tmp_path: Path) -> None:
    options = ["--size", "20000", "--density", "0.01", "--repeat", "3"]
    found = document(bench(tmp_path, "kernels", *options, "--json", "-", size=1))
    assert len(found["rows"]) >= 4
    assert all(row["copies"] > 0 and row["torch"] > 0 and row["limit"] > 0 and row["reason"] for row in found["rows"])


def test_coding(tmp_path: Path) -> None:
    options = ["--size", "1000", "--support", "0.1", "--rho", "0.5", "--draws", "2"]
    found = document(bench(tmp_path, "coding", *options, "--json", "-", size=2))
    assert found["study"] == "coding"
    assert [row["method"] for row in found["rows"]] == ["gspar", "qsgd-2", "qsgd-4", "qsgd-8", "terngrad"]


@pytest.mark.long
def test_wrong_input_is_said_once(tmp_path: Path) -> None:
    for wrong in (["exchange", "--density", "2"], ["exchange", "--size", "0"], ["kernels", "--threads", "0"]):
        outcome = bench(tmp_path, *wrong)
        assert outcome.code == 2, outcome.text
        assert outcome.stderr.count("Error: Invalid value") == 1, outcome.text
    expect_one_message(bench(tmp_path, "step", "--config", "none.toml"), 78, "none.toml", "No such file")
    expect_one_message(bench(tmp_path, "step", "--set", "sparsifier.name=dense"), 78, "sends everything")
    expect_one_message(bench(tmp_path, "exchange", "--json", "none/x.json"), 78, "no file can be written")
    hybrid = ["exchange", "--size", "100", "--values", "hybrid"]
    expect_one_message(bench(tmp_path, *hybrid), 78, "hybrid need the magnitude")


@pytest.mark.long
def test_gloo_that_cannot_meet_is_said_once(tmp_path: Path) -> None:
    nowhere = {"MASTER_ADDR": "192.0.2.1"}
    outcome = bench(tmp_path, "exchange", "--size", "100", "--gloo", env=nowhere)
    expect_one_message(outcome, 78, "192.0.2.1", "set MASTER_ADDR")
    outcome = bench(tmp_path, "exchange", "--size", "100", "--gloo", env={"MASTER_PORT": "many"})
    expect_one_message(outcome, 78, "MASTER_PORT 'many' is no port")

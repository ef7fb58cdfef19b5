"""The arithmetic and the words of `mpisparse bench`, on made-up numbers: nothing here depends on the clock."""

from __future__ import annotations

import gc
import json
import mmap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mpisparse import ErrorFeedback, Memory, MomentumCorrection, TopK
from mpisparse.bench.breakeven import Point, find_break_even
from mpisparse.bench.cases import RANKS, Case, add_up, all_cases, compress, write_and_read
from mpisparse.bench.contenders import Gradients
from mpisparse.bench.exchange import Options, measure_exchange
from mpisparse.bench.footprint import peak_during, resident
from mpisparse.bench.report import Report, processor
from mpisparse.bench.runs import BUILT_IN, dense_of, read_run
from mpisparse.bench.statistics import fit_line, median_ratio, summarise
from mpisparse.bench.text import density_text, digits, entries_text
from mpisparse.bench.timing import FEWEST, Contender, interleave
from mpisparse.comm import Communicator, run_ranks, solo
from mpisparse.errors import ConfigError
from mpisparse.runtime import Surroundings
from mpisparse.training.configfile import read_config, to_tree
from mpisparse.training.console import bytes_text
from mpisparse.words import counted
from tests.paths import CHECKOUT

# Statistics ---------------------------------------------------------------------------------------------------------


def test_summary_is_the_median_and_the_middle_four_fifths() -> None:
    summary = summarise(range(101))
    assert (summary.low, summary.median, summary.high) == (10.0, 50.0, 90.0)
    assert summarise([3.0]).low == summarise([3.0]).high == 3.0


def test_ratios_are_taken_pair_by_pair() -> None:
    """A machine that slows down for both of a pair changes no ratio, though it changes both medians."""
    reference = np.array([1.0, 1.0, 9.0, 9.0, 9.0])
    assert median_ratio(2 * reference, reference) == 2.0
    assert median_ratio([2, 4, 6], [1, 1, 1]) == 4.0


def test_line_through_points() -> None:
    line = fit_line([1e6, 2e6, 5e6], [3e-3, 5e-3, 11e-3])
    assert line is not None
    assert (line.start, line.slope) == pytest.approx((1e-3, 2e-9))
    assert fit_line([4.0, 4.0], [1.0, 2.0]) is None
    assert fit_line([4.0], [1.0]) is None


# The break-even -------------------------------------------------------------------------------------------------------


def points(start: float, slope: float, *densities: float, local: float = 1e-3) -> list[Point]:
    """Return points that lie on a line: seconds = start + slope * bytes, 8 bytes an entry of a million."""
    return [Point(d, start + slope * 8e6 * d, local, 8e6 * d) for d in densities]


def test_break_even_inside_what_was_measured() -> None:
    found = find_break_even(10**6, "dense float32", 10e-3, points(2e-3, 1e-8, 0.2, 0.01, 0.05))
    assert found.verdict == "below"
    assert found.density == pytest.approx(0.1)
    assert found.sentence == (
        "sparse wins here below a density of about 10 % at 1.0 M entries (against dense float32, 10.0 ms)"
    )


def test_break_even_outside_is_called_extrapolated() -> None:
    above = find_break_even(10**6, "dense", 10e-3, points(2e-3, 1e-8, 0.01, 0.05))
    assert above.verdict == "always"
    assert above.density == pytest.approx(0.1)
    assert "up to 5 %" in above.sentence
    assert above.sentence.endswith("extrapolated, not measured: break-even near 10 %")
    below = find_break_even(10**6, "dense", 2.4e-3, points(2e-3, 1e-8, 0.01, 0.05))
    assert below.verdict == "never"
    assert below.density == pytest.approx(0.005)
    assert "down to 1 %" in below.sentence
    assert below.sentence.endswith("extrapolated, not measured: break-even near 0.5 %")


def test_no_break_even_is_made_up_beyond_density_one_or_from_one_point() -> None:
    everywhere = find_break_even(10**6, "dense", 1.0, points(2e-3, 1e-8, 0.01, 0.05))
    assert (everywhere.verdict, everywhere.density) == ("always", None)
    assert "extrapolated" not in everywhere.sentence
    alone = find_break_even(10**6, "dense", 1.0, points(2e-3, 1e-8, 0.01))
    assert (alone.verdict, alone.density, alone.line) == ("always", None, None)
    assert "at the density measured" in alone.sentence


def test_local_work_that_exceeds_dense() -> None:
    found = find_break_even(10**7, "dense", 12e-3, points(25e-3, 1e-8, 0.001, 0.01, local=21e-3))
    assert found.verdict == "local"
    assert found.sentence == (
        "dense wins at every density measured, at 10.0 M entries (against dense, 12.0 ms): "
        "the local work alone (21.0 ms) exceeds dense (12.0 ms)"
    )


def test_measurements_win_over_the_line() -> None:
    """Where the line misses the two densities between which the winner changes, those two are named."""
    bent = [Point(d, s, 0.0, 8e6 * d) for d, s in ((0.01, 1e-3), (0.02, 1.1e-3), (0.04, 9e-3), (0.08, 9.1e-3))]
    found = find_break_even(10**6, "dense", 1.2e-3, bent)
    assert found.verdict == "below"
    assert "between 2 % and 4 %" in found.sentence
    mixed = [Point(d, s, 0.0, 8e6 * d) for d, s in ((0.01, 1e-3), (0.02, 3e-3), (0.04, 1e-3))]
    found = find_break_even(10**6, "dense", 2e-3, mixed)
    assert (found.verdict, found.density) == ("unclear", None)
    assert "sparse wins at 1 %, 4 % alone" in found.sentence


# Timing -------------------------------------------------------------------------------------------------------------


def test_contenders_take_turns() -> None:
    calls: list[str] = []

    def contender(name: str) -> Contender:
        def run() -> int:
            calls.append(name)
            return len(calls)

        return Contender(
            name=name,
            prepare=lambda: calls.append(f"{name} prepares"),
            run=run,
            inspect=lambda result: {"calls": result},
        )

    samples = interleave([contender("a"), contender("b")], 4, comm=solo(), warm_up=1)
    turn = ["a prepares", "a", "b prepares", "b"]
    assert calls == turn * 5
    assert samples["a"].details["calls"].tolist() == [6, 10, 14, 18]
    assert samples["b"].seconds.shape == (4,)
    calls.clear()
    interleave([contender("a"), contender("b")], 3, comm=solo(), warm_up=0, block=2, lead_in=1)
    assert "".join(call for call in calls if len(call) == 1) == "aaabbb" + "aabb"


def test_a_sample_is_that_of_the_slowest_rank_and_a_detail_the_mean() -> None:
    def measure(comm: Communicator) -> tuple[float, list[float]]:
        contender = Contender(name="x", run=lambda: None, inspect=lambda _: {"rank": comm.rank})
        samples = interleave([contender], 3, comm=comm)["x"]
        return float(samples.seconds.sum()), samples.details["rank"].tolist()

    found = run_ranks(3, measure)
    assert len({seconds for seconds, _ in found}) == 1
    assert found[0][1] == [1.0, 1.0, 1.0]


def test_a_budget_ends_the_rounds_on_all_ranks_alike() -> None:
    def measure(comm: Communicator) -> int:
        samples = interleave([Contender(name="x", run=lambda: None)], 1000, comm=comm, budget=0.0)
        return int(samples["x"].seconds.size)

    assert run_ranks(2, measure) == [FEWEST, FEWEST]


# What is timed --------------------------------------------------------------------------------------------------------


def test_gradients_share_a_part_and_change() -> None:
    first, second, other = np.empty(5000, np.float32), np.empty(5000, np.float32), np.empty(5000, np.float32)
    ours, theirs = Gradients(5000, 0), Gradients(5000, 1)
    ours.write(first)
    ours.write(second)
    theirs.write(other)
    for vector in (second, other):
        assert 0.4 < np.corrcoef(first, vector)[0, 1] < 0.6
    Gradients(1, 0).write(first[:1])


def compress_with(memory: Memory) -> Callable[[float], Case[Any]]:
    return lambda density: compress("exact", TopK(density), memory, density)


@pytest.mark.parametrize(
    "make", [compress_with(ErrorFeedback()), compress_with(MomentumCorrection()), write_and_read, add_up]
)
def test_our_kernels_and_torchs_expressions_do_the_same(make: Callable[[float], Case[Any]]) -> None:
    """A comparison is worth something only if both sides come to the same result."""
    case = make(0.05)
    state = case.prepare(2000, 0.05)
    for _ in range(3):
        case.refresh(state)
        ours: Any = case.ours(state)
        if make is add_up:
            mean = state.mean.copy()
            case.refresh(state)
            np.testing.assert_allclose(mean, np.asarray(case.torch(state)), rtol=1e-6, atol=1e-7)
            continue
        if make is not write_and_read:
            state.turn -= 1
            case.refresh(state)
        theirs: Any = case.torch(state)
        indices, values = (np.asarray(part) for part in theirs)
        order = np.argsort(indices)
        np.testing.assert_array_equal(ours.indices, indices[order])
        np.testing.assert_array_equal(ours.values, values[order])


def test_limits_are_of_the_density_and_say_why() -> None:
    limits = {case.name: case.limit for case in all_cases(0.01)}
    assert limits["encode and decode, 1 %"] == pytest.approx(0.04)
    assert limits[f"decode and add {RANKS} ranks, 1 %"] == pytest.approx(1 - 0.99**128 + 0.08)
    assert all(case.reason for case in all_cases(0.01))


def test_peak_memory_is_what_an_array_takes() -> None:
    numel = 2**25

    def fill() -> None:  # a mapping of its own: malloc may hand out pages that are in memory already
        with mmap.mmap(-1, numel) as pages:
            for start in range(0, numel, mmap.PAGESIZE):
                pages[start] = 1

    gc.collect()
    before = resident()
    peak = peak_during(fill)
    if before is None or peak is None:
        pytest.skip("this system does not tell a process's peak memory")
    assert numel <= peak - before + 2**20
    assert peak_during(lambda: None, Path("/nonexistent")) is None
    assert resident(Path("/nonexistent")) is None


# Runs and reports -----------------------------------------------------------------------------------------------------


def test_the_built_in_run_is_the_file_in_jobs() -> None:
    assert read_run(None, []) == read_config(CHECKOUT / "jobs" / "bench-mlp.toml")
    assert BUILT_IN.strip() in (CHECKOUT / "jobs" / "bench-mlp.toml").read_text()
    assert read_run(None, ["model.hidden=[8]"]).model != read_run(None, []).model


def test_runs_are_measured_at_their_target_and_against_their_dense_baseline() -> None:
    falling = ["sparsifier.schedule.name=dense_warmup", "sparsifier.schedule.steps=9", "exchange.values=bfloat16"]
    run = read_run(None, falling)
    assert "schedule" not in to_tree(run)["sparsifier"]
    dense = dense_of(run)
    assert (dense.sparsifier.name, dense.exchange.values) == ("dense", "auto")
    assert (dense.model, dense.data, dense.optimizer) == (run.model, run.data, run.optimizer)
    with pytest.raises(ConfigError, match="sends everything"):
        read_run(None, ["sparsifier.name=dense"])


@pytest.mark.parametrize(
    ("found", "expected"),
    [
        ([digits(x) for x in (12345, 123.4, 12.34, 1.234, 0.1234)], ["12345", "123", "12.3", "1.23", "0.123"]),
        ([bytes_text(x) for x in (8, 8048, 40e6, 2.5e9)], ["8 B", "8.05 kB", "40 MB", "2.5 GB"]),
        ([entries_text(x) for x in (512, 64_000, 10_000_000)], ["512", "64.0 k", "10.0 M"]),
        ([density_text(x) for x in (0.0312, 0.00049, 0.5)], ["3.1 %", "0.049 %", "50 %"]),
        ([counted(1, "rank"), counted(2, "rank")], ["1 rank", "2 ranks"]),
    ],
)
def test_numbers_have_three_digits(found: list[str], expected: list[str]) -> None:
    assert found == expected


SURROUNDINGS = Surroundings("0", 2, 1, "threads", "no MPI", "multiple", 1, "a test")


def test_the_document_and_the_tables_of_an_exchange(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    target = tmp_path / "found.json"

    def measure(comm: Communicator) -> None:
        options = Options(sizes=[3000, 6000], densities=[0.1, 0.01], repeat=3)
        measure_exchange(comm, options, Report(comm, "exchange", SURROUNDINGS, str(target)))

    run_ranks(2, measure)
    document = json.loads(target.read_text())
    assert {"schema", "benchmark", "machine", "options", "results", "dense_lines", "verdict"} == set(document)
    assert document["machine"]["versions"].keys() >= {"mpisparse", "torch", "numpy", "mpi4py"}
    assert [result["size"] for result in document["results"]] == [3000, 6000]
    names = ["dense float32", "dense bfloat16", "topk 10 %", "topk 1 %"]
    for result in document["results"]:
        numel, found = result["size"], {entry["name"]: entry for entry in result["contenders"]}
        assert list(found) == names
        assert [item["against"] for item in result["break_even"]] == names[:2]
        assert found["dense float32"]["received_bytes"] == 4 * numel == 2 * found["dense bfloat16"]["received_bytes"]
        assert found["topk 10 %"]["density_sent"] == pytest.approx(0.1)
        assert found["topk 10 %"]["received_bytes"] == found["topk 10 %"]["sent_bytes"] < 4 * numel
        assert {"sparsify", "encode", "exchange", "decode"} <= set(found["topk 1 %"]["phase_seconds"])
        assert all(entry["repetitions"] == 3 and entry["seconds"]["median"] > 0 for entry in found.values())
        assert found["dense float32"]["ratio_to_dense"] == 1.0
    printed = capsys.readouterr().out
    assert all(name in printed for name in names)
    assert all(sentence in printed for sentence in document["verdict"])


def test_a_document_that_cannot_be_written_is_refused_first(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no file can be written there"):
        Report(solo(), "exchange", SURROUNDINGS, str(tmp_path / "missing" / "x.json"))
    with pytest.raises(ConfigError, match="--json"):
        Report(solo(), "exchange", SURROUNDINGS, str(tmp_path))


def test_the_processor_has_a_name(tmp_path: Path) -> None:
    (tmp_path / "cpuinfo").write_text("processor\t: 0\nmodel name\t: Some CPU @ 2 GHz\n")
    assert processor(tmp_path / "cpuinfo") == "Some CPU @ 2 GHz"
    assert processor(tmp_path / "none")

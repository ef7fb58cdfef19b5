"""Claims: each is measured where it holds and where it does not, and is not measured without runs."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from analysis.drawing.curve import Curve
from analysis.load import load_run
from analysis.paper import claims_convex as convex
from analysis.paper import claims_other as other
from analysis.paper.claims import CLAIMS
from analysis.paper.coding import load_codings
from analysis.paper.evidence import FAILS, HOLDS, NOT_MEASURED, Evidence, Finding, power, reach, straightness
from analysis.paper.record import record_of
from analysis.paper.tuning import tune
from tests.unit.paper_runs import (
    DENSE,
    convex_config,
    gspar,
    methods,
    qsgd,
    uniform,
    write_cnn,
    write_coding,
    write_convex,
    write_svm,
)

Rule = dict[str, Any]


def gather(directories: Iterable[Path]) -> Evidence:
    return Evidence(tuple(tune(record_of(load_run(directory)) for directory in directories)))


def convex_runs(
    root: Path,
    rules: Iterable[Rule],
    *,
    name: str = "paper-sgd",
    linear: bool = False,
    var: Callable[[Rule], float | None] = lambda rule: None,
    **changes: Any,
) -> list[Path]:
    config = {"paper-svrg": {"svrg_form": "difference"}}.get(name, {}) | changes
    return [
        write_convex(root / name / str(i), convex_config(name, rule, 0.1, **config), linear=linear, var=var(rule))
        for i, rule in enumerate(rules)
    ]


def test_without_runs_nothing_is_measured() -> None:
    findings = [claim.measure(Evidence(())) for claim in CLAIMS]
    assert {finding.verdict for finding in findings} == {NOT_MEASURED}
    assert {finding.runs for finding in findings} == {0}


@pytest.mark.parametrize(("uniform_var", "verdict"), [(None, HOLDS), (2.0, FAILS)])
def test_order(tmp_path: Path, uniform_var: float | None, verdict: str) -> None:
    def var(rule: Rule) -> float | None:
        return uniform_var if rule["name"] == "uniform" else None

    finding = convex.order(gather(convex_runs(tmp_path, methods(), var=var)), "sgd")
    assert (finding.verdict, finding.runs) == (verdict, 5)
    assert finding.measured.startswith("in 2 of 2" if verdict == HOLDS else "in 0 of 2")
    assert ("density 0.02" in finding.measured) == (verdict == FAILS)


def test_order_counts_a_curve_that_always_failed_as_last(tmp_path: Path) -> None:
    runs = convex_runs(tmp_path, [DENSE, gspar(0.1), uniform(0.1)])
    (runs[2] / "failed.json").write_text('{"error": "NonFiniteError", "message": "NaN", "step": 1}')
    assert convex.order(gather(runs), "sgd").verdict == HOLDS
    (runs[2] / "failed.json").rename(runs[1] / "failed.json")
    assert convex.order(gather(runs), "sgd").verdict == FAILS


@pytest.mark.parametrize(("factor", "verdict"), [(1.0, HOLDS), (1.03, FAILS)])
def test_variance_of_uniform_sampling(tmp_path: Path, factor: float, verdict: str) -> None:
    runs = convex_runs(tmp_path, [uniform(0.1), uniform(0.02)], var=lambda rule: factor / rule["density"])
    assert convex.uniform_variance(gather(runs)).verdict == verdict


@pytest.mark.parametrize(("product", "verdict"), [(0.46, HOLDS), (0.5, FAILS), (0.43, FAILS)])
def test_variance_of_gspar(tmp_path: Path, product: float, verdict: str) -> None:
    runs = convex_runs(tmp_path, [gspar(0.1)], var=lambda rule: product / 0.1)
    assert convex.gspar_variance(gather(runs)).verdict == verdict
    runs = convex_runs(tmp_path / "other", [gspar(0.1)], data_c1=0.9)
    assert convex.gspar_variance(gather(runs)).verdict == NOT_MEASURED


def test_slowdown_is_linear_where_curves_fall_as_var_over_t(tmp_path: Path) -> None:
    finding = convex.linear_slowdown(gather(convex_runs(tmp_path, methods())))
    assert finding.verdict == HOLDS
    runs = convex_runs(tmp_path / "other", methods(), var=lambda rule: 1.5 if rule["name"] != "dense" else 1.0)
    assert convex.linear_slowdown(gather(runs)).verdict == FAILS


def test_linear_convergence_is_told_from_1_over_t(tmp_path: Path) -> None:
    rules = [DENSE, gspar(0.1)]
    linear = gather(convex_runs(tmp_path / "1", rules, name="paper-svrg", linear=True))
    assert convex.linear_convergence(linear).verdict == HOLDS
    slower = gather(convex_runs(tmp_path / "2", rules, name="paper-svrg", var=lambda rule: 0.1))
    assert convex.linear_convergence(slower).verdict == FAILS


@pytest.mark.parametrize(("less", "verdict"), [(0.5, HOLDS), (2.0, FAILS)])
def test_slowdown_of_svrg_beside_that_of_sgd(tmp_path: Path, less: float, verdict: str) -> None:
    """Runs tell the var that they were made with, and their speed; here SVRG's var is changed after the fact."""
    rules = [DENSE, gspar(0.1), uniform(0.1), gspar(0.02)]
    evidence = gather([*convex_runs(tmp_path, rules), *convex_runs(tmp_path, rules, name="paper-svrg")])
    for each in evidence.curves("svrg"):
        for record in each.records:
            if record.var is not None and record.var > 1:
                object.__setattr__(record, "var", record.var ** (1 / less))
    assert convex.smaller_slowdown(evidence).verdict == verdict


@pytest.mark.parametrize(("density", "bits", "ratio", "verdict"), [(0.1, 8, "8.9", HOLDS), (0.3, 2, "0.74", FAILS)])
def test_bits_of_gspar_beside_qsgd(tmp_path: Path, density: float, bits: int, ratio: str, verdict: str) -> None:
    """Of equal var they need equal passes, so that their bits differ as their messages do."""
    runs = convex_runs(tmp_path, [gspar(density), qsgd(bits)], var=lambda rule: 4.0)
    finding = convex.bits(gather(runs), "sgd")
    assert (finding.verdict, finding.runs) == (verdict, 2)
    assert f"median {ratio}, from {ratio} to {ratio}" in finding.measured


def test_net_saving_where_var_times_spa_is_below_1(tmp_path: Path) -> None:
    assert convex.net_saving(gather(convex_runs(tmp_path / "1", [DENSE, gspar(0.1)]))).verdict == HOLDS
    # As many bits for an entry as would make a dense one cheaper.
    runs = convex_runs(tmp_path / "2", [DENSE, gspar(0.1)])
    text = (runs[0] / "metrics.jsonl").read_text()
    (runs[0] / "metrics.jsonl").write_text(text.replace('"coding_bytes": 32768', '"coding_bytes": 32'))
    assert convex.net_saving(gather(runs)).verdict == FAILS
    none = convex_runs(tmp_path / "3", [DENSE, gspar(0.5)], var=lambda rule: 3.0)
    assert convex.net_saving(gather(none)).verdict == NOT_MEASURED


def test_order_of_the_network(tmp_path: Path) -> None:
    runs = [write_cnn(tmp_path / rule["name"], rule) for rule in (DENSE, gspar(0.05), uniform(0.05))]
    finding = other.cnn_order(gather(runs))
    assert (finding.verdict, finding.runs) == (HOLDS, 2)
    log = (runs[1] / "metrics.jsonl").read_text()
    (runs[1] / "metrics.jsonl").write_text(log.replace('"loss": 0.', '"loss": 3.'))
    assert other.cnn_order(gather(runs)).verdict == FAILS


def test_convergence_of_the_network(tmp_path: Path) -> None:
    runs = [write_cnn(tmp_path / str(i), rule) for i, rule in enumerate((DENSE, gspar(0.05), gspar(0.004)))]
    assert other.cnn_slight(gather(runs)).verdict == HOLDS
    assert other.cnn_sparsest(gather(runs)).verdict == HOLDS
    (runs[2] / "failed.json").write_text('{"error": "NonFiniteError", "message": "NaN", "step": 1}')
    assert other.cnn_sparsest(gather(runs)).verdict == FAILS
    assert other.cnn_slight(gather(runs[:1])).verdict == NOT_MEASURED


def svm(root: Path, *, gain: float = 1.3, dense_writes: float = 1.0) -> Evidence:
    """Return asynchronous runs on 1, 2 and 4 ranks, in which GSpar writes a tenth of the entries."""
    spa = {"dense": dense_writes, "gspar": 0.1}
    return gather(
        write_svm(root / f"{rule['name']}-{ranks}", rule, ranks, gain=gain, spa=spa[rule["name"]])
        for rule in (DENSE, gspar(0.1))
        for ranks in (1, 2, 4)
    )


def test_asynchronous_claims_where_they_hold(tmp_path: Path) -> None:
    evidence = svm(tmp_path)
    findings = [measure(evidence) for measure in (other.svm_conflicts, other.svm_faster, other.svm_gain)]
    assert [finding.verdict for finding in findings] == [HOLDS] * 3
    assert [finding.runs for finding in findings] == [4, 4, 6]


def test_asynchronous_claims_where_they_do_not_hold(tmp_path: Path) -> None:
    evidence = svm(tmp_path / "1", dense_writes=0.05)
    assert other.svm_conflicts(evidence).verdict == FAILS
    assert other.svm_faster(evidence).verdict == FAILS
    assert other.svm_gain(svm(tmp_path / "2", gain=0.2)).verdict == FAILS


def test_conflicts_that_are_not_counted_are_not_measured(tmp_path: Path) -> None:
    runs = [write_svm(tmp_path / rule["name"], rule, 2) for rule in (DENSE, gspar(0.1))]
    for run in runs:
        log = (run / "metrics.jsonl").read_text()
        start, _, rest = log.partition('"conflicts": ')
        (run / "metrics.jsonl").write_text(f'{start}"conflicts": null{rest[rest.index(",") :]}')
    assert other.svm_conflicts(gather(runs)).verdict == NOT_MEASURED
    assert other.svm_faster(gather(runs)).verdict == HOLDS


@pytest.mark.parametrize(("over", "verdict"), [(0.9, HOLDS), (1.01, FAILS)])
def test_coding_beside_its_bound(tmp_path: Path, over: float, verdict: str) -> None:
    codings, problems = load_codings([write_coding(tmp_path / "coding.json", over=over)])
    assert not problems
    finding = other.coding_bound(Evidence((), tuple(codings)))
    assert finding == Finding(verdict, finding.measured, 12)
    assert other.lemma(Evidence((), tuple(codings))).verdict == HOLDS
    codings[0].rows[0]["count"] = 1.1 * codings[0].rows[0]["count_bound"]
    assert other.lemma(Evidence((), tuple(codings))).verdict == FAILS


def test_reach_is_exact_on_an_exponential() -> None:
    x = np.arange(6.0)
    y = np.exp(-x)
    points = Curve(x, y, y, y)
    assert reach(points, np.exp(-2.25)) == pytest.approx(2.25)
    assert reach(points, 2.0) == 0
    assert reach(points, 1e-3) == float("inf")


def test_fits_find_what_made_the_points() -> None:
    var = np.array([2.0, 5.0, 10.0, 50.0])
    k, r2 = power(list(var), list(var**0.7))
    assert k == pytest.approx(0.7)
    assert r2 == pytest.approx(1)
    slope, straight = straightness(np.arange(5.0), 3 - 2 * np.arange(5.0))
    assert slope == pytest.approx(-2)
    assert straight == pytest.approx(1)
    assert np.isnan(straightness(np.arange(2.0), np.arange(2.0))[0])

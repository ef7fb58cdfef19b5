"""The report's models: constants of made-up runs are found again, and predictions hold on what was left out."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.signal import lfilter

from analysis.bootstrap import block_length, coverage, drawn_medians, interval, median_of
from analysis.brief import read_brief
from analysis.many import read_briefs
from analysis.model.cost import TERMS, Coefficients, Cost, Point, at, fit_cost
from analysis.model.crossover import at_density, changes, crossover, crossovers, index_bytes
from analysis.model.fit import fit, r_squared
from analysis.model.laws import amdahl, gustafson, karp_flatt
from analysis.model.measure import Cell, cells_of
from analysis.model.predict import Fitted, fit_cells, hold_out, rank_counts
from analysis.study import studies_of
from tests.unit.report_runs import (
    ADD,
    ALPHA,
    BATCH,
    BETA,
    DECODE,
    METHODS,
    NUMEL,
    OPEN,
    RING,
    SAMPLE,
    SELECT,
    config,
    seconds_of,
    write_run,
    write_study,
)

SPARSE = Point(ranks=4, numel=NUMEL, samples=16, count=1e4, message=8e4, whole=0.0, width=4.0, sparse=True)


@pytest.fixture(scope="module")
def cells(tmp_path_factory: pytest.TempPathFactory) -> list[Cell]:
    directory = write_study(tmp_path_factory.mktemp("study"), ranks=(1, 2, 4, 8), steps=40)
    briefs, left_out = read_briefs([directory])
    assert not left_out
    (study,), refusals = studies_of(briefs)
    assert not refusals
    return cells_of(study.runs)


@pytest.fixture(scope="module")
def fitted(cells: list[Cell]) -> Fitted:
    return fit_cells(cells, np.random.default_rng(0), draws=60)


@pytest.mark.parametrize(
    ("name", "true"),
    [("alpha", ALPHA), ("ring", RING), ("beta", BETA), ("add", ADD), ("select", SELECT), ("decode", DECODE),
     ("open", OPEN), ("sample", SAMPLE), ("step", 1e-3), ("agree", 20e-6)],
)  # fmt: skip
def test_what_made_the_runs_is_found_again(fitted: Fitted, name: str, true: float) -> None:
    drawn = np.array([cost.of(name, "TopK 10 %") for cost in fitted.drawn])
    found = interval(fitted.cost.of(name, "TopK 10 %"), drawn)
    # What takes a small share of a step is known less well.
    assert found.value == pytest.approx(true, rel=0.2 if name == "add" else 0.15)
    assert found.low <= found.value <= found.high
    assert found.low * 0.9 < true < found.high * 1.1


def made_up(generator: np.random.Generator, repeats: int = 3, noise: float = 0.02) -> list[Cell]:
    """Return the cells of a study by the law: each run has a factor of its own, and each of its phases another."""
    cells = []
    for density, half in METHODS:
        whole = 0.0 if density else NUMEL * (2.0 if half else 4.0)
        message, count = (NUMEL * density * 8 + 48, NUMEL * density) if density else (0.0, 0.0)
        for ranks in (1, 2, 4, 8):
            point = Point(ranks=ranks, numel=NUMEL, samples=BATCH / ranks, count=count, message=message, whole=whole,
                          width=2.0 if half else 4.0, sparse=bool(density), method=f"{density} {half}")  # fmt: skip
            law = seconds_of(ranks, density, half=half)
            phases = []
            for _ in range(repeats):
                factor = np.exp(noise * generator.standard_normal())
                phases.append({phase: law[phase] * factor * np.exp(noise * generator.standard_normal())
                               for phase in TERMS})  # fmt: skip
            cells.append(Cell(point.method, point, tuple(phases)))
    return cells


def test_intervals_have_what_made_the_runs_inside_as_often_as_they_say() -> None:
    """Said is 95 %: of 40 made-up studies, with what made them in 11 places each."""
    true = {"alpha": ALPHA, "ring": RING, "beta": BETA, "add": ADD, "decode": DECODE, "open": OPEN, "select": SELECT,
            "message": 50e-6, "sample": SAMPLE, "step": 1e-3, "agree": 20e-6}  # fmt: skip
    inside = dict.fromkeys(true, 0)
    for seed in range(40):
        generator = np.random.default_rng(seed)
        fitted = fit_cells(made_up(generator), generator, draws=100)
        for name, value in true.items():
            drawn = np.array([cost.of(name, "0.1 False") for cost in fitted.drawn])
            found = interval(fitted.cost.of(name, "0.1 False"), drawn)
            inside[name] += found.low <= value <= found.high
    assert sum(inside.values()) >= 0.9 * 40 * len(true), inside
    assert min(inside.values()) >= 0.8 * 40, inside


def crowded(ranks: int, density: float | None, crowd: float, turn: float, half: bool = False) -> dict[str, float]:
    """Return the seconds of a step where all ranks share two cores: computing and exchanging take longer."""
    sharing = max(1.0, ranks / 2)
    own = seconds_of(ranks, density, half=half)
    whole = NUMEL * (2 if half else 4)
    received = 2 * (ranks - 1) / ranks * whole if density is None else (ranks - 1) * (NUMEL * density * 8 + 48)
    slowed = {phase: seconds * sharing for phase, seconds in own.items()}
    if ranks > 1:
        summed = 0.0 if density is not None else ADD * NUMEL
        slowed["exchange"] = own["exchange"] + (crowd * received + turn + summed) * (sharing - 1)
    return slowed


def test_ranks_that_share_cores_are_told_from_a_slow_network(tmp_path: Path) -> None:
    crowd, turn = 0.7e-9, 2e-3
    for ranks in (1, 2, 4, 8):
        for density, half in METHODS:
            for seed in range(3):
                settings = config(density=density, half=half)
                where = tmp_path / f"{density}-{half}-{ranks}-{seed}"
                times = crowded(ranks, density, crowd, turn, half)
                machines = [{"ranks": ranks, "cores": 2}]
                write_run(where, settings, ranks=ranks, seed=seed, seconds=times, threads=1, machines=machines)
    briefs, _ = read_briefs([tmp_path])
    (study,), _ = studies_of(briefs)
    cells = cells_of(study.runs)
    assert {cell.point.ranks: cell.point.sharing for cell in cells} == {1: 1.0, 2: 1.0, 4: 2.0, 8: 4.0}
    for each in hold_out(cells, np.random.default_rng(0), draws=20):
        assert abs(each.error) < 0.1, each
    found = fit_cells(cells, np.random.default_rng(0), draws=20).cost
    assert found.coefficients.beta == pytest.approx(BETA, rel=0.15)
    assert found.coefficients.crowd == pytest.approx(crowd, rel=0.4)
    assert found.coefficients.turn == pytest.approx(turn, rel=0.2)
    assert set(found.select) == {cell.method for cell in cells if cell.point.sparse}
    # Predictions are for ranks with cores of their own: what the same steps take without sharing.
    (dense,) = [cell for cell in cells if cell.method == "dense" and cell.point.ranks == 8]
    alone = at(dense.point, 8, strong=True)
    assert alone.sharing == 1.0
    assert found.seconds(alone) == pytest.approx(sum(seconds_of(8, None).values()), rel=0.15)


def test_the_fit_tells_how_good_it_is(fitted: Fitted) -> None:
    assert fitted.r2["exchange"] > 0.99
    assert fitted.r2["step"] > 0.99


def test_the_largest_rank_count_is_predicted_from_the_others(cells: list[Cell]) -> None:
    found = list(hold_out(cells, np.random.default_rng(0), draws=20))
    assert {(each.method, each.ranks) for each in found} == {(cell.method, 8) for cell in cells}
    assert len(found) == 5
    for each in found:
        assert abs(each.error) < 0.1, each
        measured = sum(
            cell.median()["exchange"] for cell in cells if cell.method == each.method and cell.point.ranks == 8
        )
        assert measured < each.measured


def test_nothing_is_held_out_where_nothing_smaller_has_an_exchange(cells: list[Cell]) -> None:
    few = [cell for cell in cells if cell.point.ranks <= 2]
    assert not list(hold_out(few, np.random.default_rng(0)))


@pytest.mark.parametrize("density", [None, 0.1, 0.001])
def test_thousands_of_ranks_cost_what_the_law_says(fitted: Fitted, density: float | None) -> None:
    name = "dense" if density is None else f"TopK {100 * density:g} %"
    cell = next(cell for cell in fitted.cells if cell.method == name and cell.point.ranks == 8)
    found = fitted.seconds(at(cell.point, 1024, strong=True))
    assert found.value == pytest.approx(sum(seconds_of(1024, density).values()), rel=0.15)
    assert found.low < found.value < found.high


def test_the_crossover_is_where_both_take_as_long(fitted: Fitted) -> None:
    last = {cell.method: cell.point for cell in fitted.cells}
    sparse, dense = at(last["TopK 1 %"], 64, strong=True), at(last["dense"], 64, strong=True)
    density = crossover(fitted.cost, sparse, dense)
    assert 1e-4 < density < 0.1
    below, above = (fitted.cost.seconds(at_density(sparse, density * factor)) for factor in (0.99, 1.01))
    assert below < fitted.cost.seconds(dense) < above
    found = crossovers(fitted, last["TopK 1 %"], last["dense"], [64, 1024], draws=30)
    assert found[0].low <= density <= found[0].high
    assert found[1].value < found[0].value


def test_what_would_move_the_crossover(fitted: Fitted) -> None:
    last = {cell.method: cell.point for cell in fitted.cells}
    found = {each.words: each.density[0] for each in changes(fitted, last["TopK 1 %"], last["dense"], [64])}
    now = found.pop("as measured")
    assert found.pop("dense in 16 bits") < now
    assert all(density >= now for words, density in found.items() if "link" not in words)
    assert found["values in half the bytes"] > 1.1 * now


def test_dense_always_or_never() -> None:
    free = Coefficients(*([0.0] * len(Coefficients._fields)))
    point, dense = SPARSE, replace(SPARSE, sparse=False, count=0.0, message=0.0, whole=4.0 * NUMEL)
    for cost, density in ((Cost(free, {"": 1.0}), 0.0), (Cost(free._replace(add=1.0)), 1.0)):
        assert crossover(cost, point, dense) == density
        *_, reducing = changes(Fitted((), cost, (), {}), point, dense, [4])
        assert "reduces on the way" in reducing.words
        assert reducing.density == [density]


def test_an_index_takes_its_entropy() -> None:
    assert index_bytes(0.5) == pytest.approx(0.25)
    assert index_bytes(0.01) * 8 == pytest.approx(8.08, abs=0.01)
    assert index_bytes(1.0) == 0.0


def test_whole_tensors_among_the_messages_are_told_by_bytes(tmp_path: Path) -> None:
    """A rank that sends m in messages and w whole receives (P - 1) m + 2 (P - 1) / P w."""
    brief = read_brief(write_run(tmp_path / "run", config(density=0.01), ranks=4, steps=30))
    message, whole = brief.means["payload_bytes"] / 4, 4000.0
    brief.means["payload_bytes"] += 4 * whole
    brief.means["received_bytes"] += 4 * 2 * 3 / 4 * whole
    brief.means["count"] += 4 * 1000
    (cell,) = cells_of({"topk": {4: [brief]}})
    assert cell.point.whole == pytest.approx(whole)
    assert cell.point.message == pytest.approx(message)
    assert cell.point.count == pytest.approx(1e4)
    assert cell.point.received == pytest.approx(3 * message + 6000)


def test_no_coefficient_is_negative_and_one_bad_point_bends_nothing() -> None:
    generator = np.random.default_rng(3)
    features = generator.uniform(1, 10, (40, 2))
    seconds = features @ np.array([2.0, 0.0]) * np.exp(0.01 * generator.standard_normal(40))
    seconds[7] *= 30
    found = fit(features, seconds, seconds)
    assert found[0] == pytest.approx(2.0, rel=0.02)
    assert found[1] == pytest.approx(0.0, abs=0.02)
    assert (found >= 0).all()


def test_units_do_not_matter_to_a_fit() -> None:
    features = np.array([[1.0, 1e9], [2.0, 1e9], [1.0, 5e9]])
    seconds = features @ np.array([1e-6, 1e-12])
    found = fit(features, seconds, seconds)
    assert found == pytest.approx([1e-6, 1e-12], rel=1e-6)


def test_nothing_to_fit_is_all_zero() -> None:
    assert fit(np.zeros((0, 2)), np.zeros(0), np.zeros(0)).tolist() == [0.0, 0.0]
    assert np.isnan(r_squared(np.zeros(0), np.zeros(0)))


def test_a_phase_that_no_run_has_costs_nothing() -> None:
    dense = replace(SPARSE, sparse=False, count=0.0, message=0.0, whole=4.0 * NUMEL)
    phases = dict.fromkeys(("compute", "agree", "sparsify", "encode", "exchange", "decode"), 1e-3)
    cost = fit_cost([dense], [phases])
    assert cost.select == {}
    assert cost.coefficients.decode == 0.0


def test_amdahls_share_is_found_again() -> None:
    generator = np.random.default_rng(1)
    ranks = np.array([1.0, 2, 4, 8, 16])
    true = 0.1 * (0.2 + 0.8 / ranks)
    drawn = true * np.exp(0.02 * generator.standard_normal((200, 5)))
    law = amdahl(ranks, true, drawn)
    assert law.serial.value == pytest.approx(0.2, abs=1e-6)
    assert law.serial.low < 0.2 < law.serial.high
    assert law.serial.high - law.serial.low < 0.05
    assert law.r2 == pytest.approx(1.0)
    assert karp_flatt(16, true[0] / true[-1]) == pytest.approx(0.2)


def test_gustafsons_share_is_found_again() -> None:
    ranks = np.array([1.0, 2, 4, 8])
    scaled = ranks - 0.1 * (ranks - 1)
    seconds = 0.05 * ranks / scaled
    law = gustafson(ranks, seconds, np.tile(seconds, (10, 1)))
    assert law.serial.value == pytest.approx(0.1)
    assert law.r2 == pytest.approx(1.0)


def test_a_law_that_does_not_hold_says_so() -> None:
    ranks = np.array([1.0, 2, 4])
    seconds = np.array([0.1, 0.2, 0.4])
    assert amdahl(ranks, seconds, seconds[None]).r2 < 0


@pytest.mark.parametrize("steps", [7, 8])
def test_medians_drawn_by_one_number_are_those_of_drawing_all_steps(steps: int) -> None:
    generator = np.random.default_rng(5)
    times = np.sort(generator.lognormal(size=steps)).astype(np.float32)
    fast = drawn_medians([times], generator, draws=20_000)
    slow = np.median(generator.choice(times, (20_000, steps)), axis=1)
    for share in (0.05, 0.25, 0.5, 0.75, 0.95):
        below, above = np.mean(fast <= np.quantile(slow, share)), np.mean(fast < np.quantile(slow, share))
        assert above - 0.02 < share < below + 0.02
    assert fast.mean() == pytest.approx(slow.mean(), rel=0.02)


def test_intervals_cover_the_true_median() -> None:
    """Runs differ by 5 %, steps by 20 %: of 95 % intervals of eight runs, about so many have the true median."""
    generator = np.random.default_rng(7)
    inside = 0
    for _ in range(200):
        factors = np.exp(0.05 * generator.standard_normal(8))
        runs = [(f * np.exp(0.2 * generator.standard_normal(100))).astype(np.float32) for f in factors]
        found = interval(median_of(runs), drawn_medians(runs, generator, draws=300))
        inside += found.low <= 1.0 <= found.high
    assert 0.85 <= inside / 200 <= 0.995


def autocorrelated(generator: np.random.Generator, correlation: float, steps: int) -> NDArray[np.float32]:
    """Return times of median 1 whose logarithms are an AR(1) series."""
    noise = generator.standard_normal(steps + 300)
    series = lfilter([math.sqrt(1 - correlation**2)], [1, -correlation], noise)[300:]
    return np.asarray(np.exp(0.2 * series), np.float32)


@pytest.mark.parametrize(("correlation", "least"), [(0.0, 0.9), (0.5, 0.87), (0.8, 0.81), (0.9, 0.81)])
def test_intervals_cover_the_true_median_where_steps_depend_on_each_other(correlation: float, least: float) -> None:
    """Intervals of 95 % of steps drawn one by one cover it far less often: what sorted times, without an order, get."""
    generator = np.random.default_rng(11)
    inside = one_by_one = 0
    for _ in range(150):
        times = autocorrelated(generator, correlation, 500)
        found = interval(1.0, drawn_medians([times], generator, draws=300))
        inside += found.low <= 1.0 <= found.high
        found = interval(1.0, drawn_medians([np.sort(times)], generator, draws=300))
        one_by_one += found.low <= 1.0 <= found.high
    assert least <= inside / 150 <= 0.995
    assert correlation < 0.5 or one_by_one < inside
    assert correlation < 0.8 or one_by_one / 150 < 0.65


def test_blocks_are_as_long_as_steps_depend_on_each_other() -> None:
    generator = np.random.default_rng(12)
    lengths = [
        np.mean([block_length(autocorrelated(generator, correlation, 800)) for _ in range(40)])
        for correlation in (0.0, 0.5, 0.8, 0.95)
    ]
    assert lengths[0] < 2
    assert lengths == sorted(lengths)
    assert lengths[-1] > 20
    outliers = autocorrelated(generator, 0.9, 800)
    before = block_length(outliers)
    outliers[::97] *= 1000
    assert before / 2 < block_length(outliers) < before * 2
    for steps in (1, 2, 7, 8, 20):
        assert block_length(np.ones(steps, np.float32)) == 1
        assert 1 <= block_length(generator.random(steps).astype(np.float32)) <= max(1, steps // 3 + 1)
    assert block_length(np.tile(np.array([1, 2], np.float32), 50)) == 1
    slow_half = np.concatenate([np.full(100, 2.0), np.full(100, 1.0)]).astype(np.float32)
    assert block_length(slow_half) > 20


def test_drawn_blocks_are_of_successive_steps() -> None:
    """Half of a run was twice as slow: a median may be either, which steps drawn one by one would never say."""
    times = np.concatenate([np.full(100, 2.0), np.full(101, 1.0)]).astype(np.float32)
    drawn = drawn_medians([times], np.random.default_rng(1), draws=400)
    assert set(drawn.tolist()) == {1.0, 2.0}
    assert drawn_medians([times[:1]], np.random.default_rng(1), draws=3).tolist() == [2.0] * 3


def test_few_runs_cannot_be_sure() -> None:
    assert coverage(3) == 0.75
    assert coverage(6) > 0.95 > coverage(5)


def test_rank_counts_are_powers_of_two() -> None:
    assert rank_counts(2, 16) == [2, 4, 8, 16]
    assert rank_counts(3, 16) == [3, 4, 8, 16]

"""Measuring the claims on convex problems: order, variance, slowdown, linear convergence, bits."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from analysis.method import short
from analysis.paper.curves import curve
from analysis.paper.evidence import (
    FLOOR,
    Evidence,
    Finding,
    family,
    judged,
    matching,
    not_measured,
    power,
    reach,
    slowdowns,
    straightness,
)
from analysis.paper.tuning import Tuned

#: Suboptimalities at which bits are compared: these parts, on a log scale, of the way that both rules made.
_LEVELS = (1 / 3, 2 / 3, 1.0)


def order(evidence: Evidence, experiment: str) -> Finding:
    """Measure whether dense < GSpar < uniform in the last suboptimality; a curve without a good rate is last.

    Where values have come as near to the optimum as float32 goes, nothing tells them apart.
    """
    right, wrong, used = 0, [], []
    gains = []
    for place, curves in evidence.panels(experiment):
        dense = matching(curves, "dense", None)
        for sparse in family(curves, "gspar"):
            sampled = matching(curves, "uniform", sparse.method.amount)
            if dense is None or sampled is None:
                continue
            values = [each.score for each in (dense, sparse, sampled)]
            if max(values) < FLOOR:
                continue
            used += [dense, sparse, sampled]
            seen = [max(value, FLOOR) for value in values]
            if (seen[0] < seen[1] or seen[1] == FLOOR) and seen[1] < seen[2]:
                right += 1
            else:
                listed = ", ".join(short(value) for value in values)
                wrong.append(f"{place.figure[1]}, {place.panel}, density {sparse.method.amount:g}: {listed}")
            if 0 < values[1] < np.inf and values[2] < np.inf:
                gains.append(values[2] / values[1])
    if not used:
        return not_measured("needs dense, GSpar and uniform at one density in a panel")
    text = f"in {right} of {right + len(wrong)} comparisons"
    if gains:
        text += f"; uniform / GSpar: median {short(float(np.median(gains)))}"
    return judged(not wrong, text + _listed("; not (dense, GSpar, uniform): ", wrong), used)


def uniform_variance(evidence: Evidence) -> Finding:
    """Measure var times density of uniform sampling on the synthetic data.

    On the real sets a few early vectors make up most of a run's squares under SVRG, and chance has its way with them.
    """
    return _variance(family(evidence.curves("sgd", "svrg"), "uniform"), 0.98, 1.02)


def gspar_variance(evidence: Evidence) -> Finding:
    """Measure var times density of GSpar at the reference setting."""
    curves = [each for each in family(evidence.curves("sgd"), "gspar") if each.method.amount == 0.1]
    setting = {"c1": 0.6, "samples": 1024, "features": 2048}
    chosen = [each for each in curves if each.records and setting.items() <= _data(each).items()]
    return _variance(chosen, 0.44, 0.49)


def linear_slowdown(evidence: Evidence) -> Finding:
    """Measure k of slowdown = var^k with SGD."""
    found = slowdowns(evidence, "sgd")
    if len(found) < 3:
        return not_measured("needs three curves with a var, and dense in their panels")
    k, r2 = power([var for var, _, _ in found], [slow for _, slow, _ in found])
    most = max(found, key=lambda each: each[0])
    text = (
        f"k = {short(k)}, r² = {r2:.3f} of {len(found)} curves; at var {short(most[0])} {short(most[1])} times slower"
    )
    return judged(0.75 <= k <= 1.25 and r2 >= 0.8, text, (each for _, _, each in found))


def smaller_slowdown(evidence: Evidence) -> Finding:
    """Measure k of slowdown = var^k with SVRG beside that with SGD."""
    sgd, svrg = slowdowns(evidence, "sgd"), slowdowns(evidence, "svrg")
    kept = [
        [(var, slow, each) for var, slow, each in found if each.method.family in ("gspar", "uniform")]
        for found in (sgd, svrg)
    ]
    if min(len(found) for found in kept) < 2:
        return not_measured("needs curves of both, with a var, and dense in their panels")
    ks = [power([var for var, _, _ in found], [slow for _, slow, _ in found])[0] for found in kept]
    text = f"k = {short(ks[1])} with SVRG, {short(ks[0])} with SGD"
    return judged(ks[1] < ks[0], text, (each for found in kept for _, _, each in found))


def linear_convergence(evidence: Evidence) -> Finding:
    """Measure how straight log suboptimality is under SVRG with GSpar, against passes and against their logarithm.

    In the latter half of the passes alone: a rate of convergence is one of the end, and the start is of its own.
    """
    fits, wrong, used = [], [], []
    for each in family(evidence.curves("svrg"), "gspar"):
        points = curve(each.records, "passes", "suboptimality")
        points = points.where((points.y > FLOOR) & (points.x > points.x.max(initial=0.0) / 2))
        slope, straight = straightness(points.x, np.log(points.y))
        _, bent = straightness(np.log(points.x), np.log(points.y))
        if np.isnan(slope):
            continue
        used.append(each)
        fits.append((slope, straight))
        if not (slope < 0 and straight >= 0.9 and straight > bent):
            where = f"{each.place.figure[1]}, {each.place.panel}, density {each.method.amount:g}"
            wrong.append(f"{where}: r² {straight:.3f}, of log passes {bent:.3f}")
    if not used:
        return not_measured("needs SVRG with GSpar, three evaluations and more")
    rates = [-slope for slope, _ in fits]
    text = (
        f"{len(used) - len(wrong)} of {len(used)} curves; r² at least {min(straight for _, straight in fits):.3f}, "
        f"a pass divides suboptimality by {np.exp(min(rates)):.3g} to {np.exp(max(rates)):.3g}"
    )
    return judged(not wrong, text + _listed("; not: ", wrong), used)


def bits(evidence: Evidence, experiment: str) -> Finding:
    """Measure the bits that the best QSGD needs to some suboptimalities, over those of the best GSpar."""
    ratios, used = [], []
    for _, curves in evidence.panels(experiment):
        ours = [each for each in family(curves, "gspar") if each.records]
        theirs = [each for each in family(curves, "qsgd") if each.records]
        if not ours or not theirs:
            continue
        level = max(min(each.score for each in ours), min(each.score for each in theirs))
        start = max(_first(each) for each in ours + theirs)
        for share in _LEVELS:
            goal = max(start, FLOOR) ** (1 - share) * max(level, FLOOR) ** share
            needed = [min(_bits_to(each, goal) for each in side) for side in (theirs, ours)]
            if min(needed) > 0 and max(needed) < np.inf:
                ratios.append(needed[0] / needed[1])
        used += ours + theirs
    if not ratios:
        return not_measured("needs GSpar and QSGD in a panel, with coding_bytes in the run log")
    good = sum(ratio >= 0.9 for ratio in ratios)
    text = (
        f"QSGD / GSpar in bits: median {short(float(np.median(ratios)))}, from {short(min(ratios))} to "
        f"{short(max(ratios))}; at least 0.9 in {good} of {len(ratios)} comparisons"
    )
    return judged(good == len(ratios), text, used)


def net_saving(evidence: Evidence) -> Finding:
    """Measure dense's bits over GSpar's where var times spa is below 1."""
    ratios, used, indices = [], [], []
    for _, curves in evidence.panels("sgd", "svrg"):
        dense = matching(curves, "dense", None)
        for each in family(curves, "gspar"):
            if dense is None or not dense.records or not each.records or each.var is None or each.spa is None:
                continue
            needed = _bits_to(dense, each.score), _bits_to(each, each.score)
            if each.var * each.spa < 1 and needed[1] > 0 and max(needed) < np.inf:
                ratios.append(needed[0] / needed[1])
                indices.append(each.var * each.spa)
                used += [dense, each]
    if not ratios:
        return not_measured("needs GSpar with a var and var · spa < 1, and dense in its panel")
    text = (
        f"var · spa from {short(min(indices))} to {short(max(indices))}: dense / GSpar in bits from "
        f"{short(min(ratios))} to {short(max(ratios))}, {len(ratios)} curves"
    )
    return judged(min(ratios) > 1, text, used)


def _variance(curves: list[Tuned], low: float, high: float) -> Finding:
    found = list(_variances(curves))
    if not found:
        return not_measured("needs the gauge (exchange.gauge) and a rule given by its density")
    values = [value for value, _ in found]
    outside = sum(not low <= value <= high for value in values)
    text = f"var · density from {min(values):.3f} to {max(values):.3f} in {len(values)} run{'s' * (len(values) != 1)}"
    text += f"; {outside} outside [{low:g}, {high:g}]" if outside else ""
    return judged(not outside, text, (each for _, each in found))


def _variances(curves: list[Tuned]) -> Iterator[tuple[float, Tuned]]:
    for each in curves:
        for record in each.records:
            if record.var is not None and each.method.kind == "density" and each.method.amount is not None:
                yield record.var * each.method.amount, each


def _bits_to(each: Tuned, level: float) -> float:
    """Return the bits at which a curve comes to a level; its start, at no bits, is no point to stop at."""
    points = curve(each.records, "bits", "suboptimality")
    return reach(points, level)


def _first(each: Tuned) -> float:
    points = curve(each.records, "bits", "suboptimality")
    points = points.where(points.x > 0)
    return float(points.y[0]) if len(points.y) else 0.0


def _data(each: Tuned) -> dict[str, object]:
    data: dict[str, object] = each.records[0].config.get("data", {})
    return data


def _listed(words: str, items: list[str]) -> str:
    """Return the first few items in words, and how many more there are."""
    if not items:
        return ""
    more = f" and {len(items) - 3} more" if len(items) > 3 else ""
    return words + "; ".join(items[:3]) + more

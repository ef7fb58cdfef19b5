"""Measuring the claims on the network, on asynchronous training, and on coding length."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from statistics import fmean

from analysis.method import short
from analysis.paper.curves import curve
from analysis.paper.evidence import FAILS, HOLDS, Evidence, Finding, family, judged, matching, not_measured, reach
from analysis.paper.record import Record
from analysis.paper.tuning import Tuned

#: Loss of a guess among ten classes.
_CHANCE = math.log(10)


def cnn_order(evidence: Evidence) -> Finding:
    """Measure the last training loss of GSpar beside that of uniform sampling."""
    used, parts, wrong = [], [], 0
    for place, curves in evidence.panels("cnn"):
        for sparse in family(curves, "gspar"):
            sampled = matching(curves, "uniform", sparse.method.amount)
            if sampled is None:
                continue
            used += [sparse, sampled]
            wrong += not sparse.score < sampled.score
            where = f"{place.figure[1]}, {sparse.method.amount:g}"
            parts.append(f"{where}: {_loss(sparse)} and {_loss(sampled)}")
    if not used:
        return not_measured("needs GSpar and uniform at one width and density")
    text = f"in {len(parts) - wrong} of {len(parts)} pairs; GSpar and uniform: {'; '.join(parts)}"
    return judged(not wrong, text, used)


def cnn_slight(evidence: Evidence) -> Finding:
    """Measure the share of dense's fall of training loss that GSpar makes at its highest density below 1."""
    best: dict[str, tuple[float, Tuned, Tuned]] = {}
    for width, dense, sparse in _cnn_pairs(evidence):
        density = sparse.method.amount or 0.0
        if density < 1 and density > best.get(width, (0.0,))[0]:
            best[width] = (density, dense, sparse)
    return _falls([(width, dense, sparse) for width, (_, dense, sparse) in best.items()], 0.9)


def cnn_sparsest(evidence: Evidence) -> Finding:
    """Measure the same at density 0.004."""
    return _falls([pair for pair in _cnn_pairs(evidence) if pair[2].method.amount == 0.004], 0.5)


def _cnn_pairs(evidence: Evidence) -> Iterator[tuple[str, Tuned, Tuned]]:
    for place, curves in evidence.panels("cnn"):
        dense = matching(curves, "dense", None)
        for sparse in family(curves, "gspar"):
            if dense is not None and dense.records and sparse.method.kind == "density":
                yield place.figure[1], dense, sparse


def _falls(pairs: list[tuple[str, Tuned, Tuned]], least: float) -> Finding:
    if not pairs:
        return not_measured("needs dense and GSpar at such a density")
    shares = [(_CHANCE - sparse.score) / (_CHANCE - dense.score) for _, dense, sparse in pairs]
    learned = all(dense.score < _CHANCE for _, dense, _ in pairs)
    parts = [
        f"{width}, {sparse.method.amount:g}: {share:.0%} (training loss {_loss(sparse)}, dense {_loss(dense)})"
        for (width, dense, sparse), share in zip(pairs, shares, strict=True)
    ]
    used = (each for _, dense, sparse in pairs for each in (dense, sparse))
    text = "; ".join(parts) if learned else f"dense did not learn: {'; '.join(parts)}"
    return judged(learned and min(shares) >= least, text, used)


def _loss(each: Tuned) -> str:
    return f"{each.score:.3f}" if math.isfinite(each.score) else "failed"


def svm_conflicts(evidence: Evidence) -> Finding:
    """Measure failed attempts an update, GSpar beside dense."""
    used, parts, wrong = [], [], 0
    for place, dense, sparse in _svm_pairs(evidence):
        counts = [_mean(_conflicts(record) for record in each.records) for each in (sparse, dense)]
        if any(math.isnan(count) for count in counts):
            continue
        used += [dense, sparse]
        wrong += not counts[0] < counts[1]
        parts.append(f"{place}, {sparse.method.amount:g}: {short(counts[0])} and {short(counts[1])}")
    if not used:
        return not_measured("needs dense and GSpar on 2 ranks or more of a window that counts conflicts")
    text = f"in {len(parts) - wrong} of {len(parts)} pairs; an update, GSpar and dense: {'; '.join(parts)}"
    return judged(not wrong, text, used)


def svm_faster(evidence: Evidence) -> Finding:
    """Measure dense's time over that of the best GSpar, in every panel of 2 ranks and more."""
    gains = [(place, ranks, gain, used) for place, ranks, gain, used in _gains(evidence) if ranks >= 2]
    if not gains:
        return not_measured("needs dense and GSpar on 2 ranks or more")
    text = f"dense / GSpar in milliseconds: {'; '.join(f'{place}: {short(gain)}' for place, _, gain, _ in gains)}"
    return judged(min(gain for _, _, gain, _ in gains) > 1, text, (each for _, _, _, used in gains for each in used))


def svm_gain(evidence: Evidence) -> Finding:
    """Measure that ratio at the most ranks beside that at the fewest, for every penalty."""
    rows: dict[str, list[tuple[int, float, list[Tuned]]]] = {}
    for place, ranks, gain, used in _gains(evidence):
        rows.setdefault(place.split(",")[0], []).append((ranks, gain, used))
    spans = [(words, sorted(row, key=lambda each: each[0])) for words, row in rows.items() if len(row) > 1]
    if not spans:
        return not_measured("needs dense and GSpar on two numbers of ranks")
    grows = all(row[-1][1] > row[0][1] for _, row in spans)
    parts = [
        f"{words}: {', '.join(f'{short(gain)} on {ranks}' for ranks, gain, _ in row)} ranks" for words, row in spans
    ]
    everything = (each for _, row in spans for _, _, curves in row for each in curves)
    return judged(grows, f"dense / GSpar in milliseconds: {'; '.join(parts)}", everything)


def _svm_pairs(evidence: Evidence) -> Iterator[tuple[str, Tuned, Tuned]]:
    for place, curves in evidence.panels("svm"):
        dense = matching(curves, "dense", None)
        for sparse in family(curves, "gspar"):
            if dense is not None and dense.records and sparse.records and place.column[0] >= 2:
                yield place.panel, dense, sparse


def _gains(evidence: Evidence) -> Iterator[tuple[str, int, float, list[Tuned]]]:
    """Yield the panel, its ranks, dense's milliseconds over the best GSpar's, and the curves."""
    for place, curves in evidence.panels("svm"):
        dense = matching(curves, "dense", None)
        if dense is None or not dense.records:
            continue
        ratios = [(_ratio(dense, sparse), sparse) for sparse in family(curves, "gspar") if sparse.records]
        known = [(ratio, sparse) for ratio, sparse in ratios if math.isfinite(ratio)]
        if known:
            gain, sparse = max(known, key=lambda each: each[0])
            yield place.panel, int(place.column[0]), gain, [dense, sparse]


def _ratio(dense: Tuned, sparse: Tuned) -> float:
    """Return the times of the two to the higher of their last objectives, divided; NaN where one is not reached."""
    level = max(dense.score, sparse.score)
    times = [reach(curve(each.records, "milliseconds", "objective"), level) for each in (dense, sparse)]
    return times[0] / times[1] if 0 < times[1] < math.inf and times[0] < math.inf else math.nan


def _conflicts(record: Record) -> float | None:
    conflicts, updates = record.end.get("conflicts"), record.end.get("updates")
    return conflicts / updates if conflicts is not None and updates else None


def _mean(values: Iterable[float | None]) -> float:
    known = [value for value in values if value is not None]
    return fmean(known) if known else math.nan


def coding_bound(evidence: Evidence) -> Finding:
    """Measure the bits of GSpar's messages as a part of Theorem 4's bound."""
    parts = [row["bits"] / row["bound"] for row in _gspar_rows(evidence)]
    if not parts:
        return not_measured("needs the JSON of `mpisparse bench coding`")
    over = sum(part > 1 for part in parts)
    text = f"bits / bound from {min(parts):.3f} to {max(parts):.3f} on {len(parts)} vectors"
    return Finding(FAILS if over else HOLDS, text + (f"; above 1 on {over}" if over else ""), len(parts))


def lemma(evidence: Evidence) -> Finding:
    """Measure variance and entries sent as parts of Lemma 3's bounds."""
    rows = [row for row in _gspar_rows(evidence) if {"variance", "count", "count_bound"} <= row.keys()]
    if not rows:
        return not_measured("needs variance, count and count_bound in the JSON of `mpisparse bench coding`")
    variance = max(row["variance"] / (1 + row["rho"]) for row in rows)
    count = max(row["count"] / row["count_bound"] for row in rows)
    text = f"variance at most {variance:.3f} times, entries at most {count:.3f} times the bound on {len(rows)} vectors"
    return Finding(HOLDS if max(variance, count) <= 1.03 else FAILS, text, len(rows))


def _gspar_rows(evidence: Evidence) -> list[dict[str, float]]:
    return [row for coding in evidence.codings for row in coding.rows if row["method"] == "gspar"]

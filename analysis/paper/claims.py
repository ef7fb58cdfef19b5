"""The paper's claims, each with what it is measured by. Verdicts come from numbers alone, by the rule that is named."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from analysis.paper import claims_convex as convex
from analysis.paper import claims_other as other
from analysis.paper.evidence import Evidence, Finding


@dataclass(frozen=True)
class Claim:
    """A claim. text: what the paper says. rule: when it counts as holding. measure: what finds it out."""

    experiment: str
    text: str
    rule: str
    measure: Callable[[Evidence], Finding]


CLAIMS: tuple[Claim, ...] = (
    Claim(
        "sgd",
        "SGD: at equal data passes, dense is ahead of GSpar, and GSpar of uniform sampling at equal density.",
        "last suboptimality dense < GSpar < uniform in every panel and at every density",
        lambda evidence: convex.order(evidence, "sgd"),
    ),
    Claim(
        "sgd",
        "Uniform sampling multiplies the squared norm by 1 / density.",
        "var times the density asked within 2 % of 1 in every run on the synthetic data",
        convex.uniform_variance,
    ),
    Claim(
        "sgd",
        "GSpar adds less variance than uniform sampling does: at N = 1024, d = 2048, C₁ = 0.6 and density 0.1, less "
        "than half of it.",
        "var times the density asked in [0.44, 0.49] in every panel of that setting, with SGD",
        convex.gspar_variance,
    ),
    Claim(
        "sgd",
        "SGD slows down about linearly in var.",
        "slowdown = var^k with 0.75 ≤ k ≤ 1.25 and r² ≥ 0.8; slowdown: passes to a curve's own last suboptimality, in "
        "passes that dense needs",
        convex.linear_slowdown,
    ),
    Claim(
        "svrg",
        "SVRG: at equal data passes, dense is ahead of GSpar, and GSpar of uniform sampling at equal density.",
        "as for SGD, for both forms",
        lambda evidence: convex.order(evidence, "svrg"),
    ),
    Claim(
        "svrg",
        "SVRG converges linearly under GSpar.",
        "in every panel log suboptimality falls in a straight line of passes, r² ≥ 0.9, that fits better than one of "
        "log passes, both in the latter half of the passes",
        convex.linear_convergence,
    ),
    Claim(
        "svrg",
        "Sparsification slows SVRG down less than SGD.",
        "k of slowdown = var^k is smaller with SVRG, GSpar and uniform sampling together",
        convex.smaller_slowdown,
    ),
    Claim(
        "sgd",
        "SGD: GSpar is ahead of QSGD per bit, or level with it.",
        "bits to three suboptimalities: the best QSGD's over the best GSpar's at least 0.9 each time",
        lambda evidence: convex.bits(evidence, "sgd"),
    ),
    Claim(
        "svrg",
        "SVRG: GSpar is ahead of QSGD per bit, or level with it.",
        "as for SGD",
        lambda evidence: convex.bits(evidence, "svrg"),
    ),
    Claim(
        "sgd",
        "Where var · spa < 1, sparsification saves communication.",
        "every GSpar curve with var · spa < 1, SGD and SVRG, takes fewer bits than dense to its own last suboptimality",
        convex.net_saving,
    ),
    Claim(
        "real",
        "Real data: GSpar is ahead of uniform sampling at equal density and data passes.",
        "last suboptimality dense < GSpar < uniform in every panel and at every density",
        lambda evidence: convex.order(evidence, "real"),
    ),
    Claim(
        "real",
        "Real data: GSpar is ahead of QSGD per bit, or level with it.",
        "as for SGD",
        lambda evidence: convex.bits(evidence, "real"),
    ),
    Claim(
        "cnn",
        "CIFAR-10: GSpar beats uniform sampling at equal density.",
        "last epoch's training loss is lower at every width and density, in the mean over seeds",
        other.cnn_order,
    ),
    Claim(
        "cnn",
        "CIFAR-10: the network converges with only a slight slowdown at moderate density.",
        "GSpar at its highest density below 1 makes at least 90 % of dense's fall of training loss from ln 10",
        other.cnn_slight,
    ),
    Claim(
        "cnn",
        "CIFAR-10: the network still converges at density 0.004.",
        "GSpar at 0.004 makes at least half of dense's fall of training loss from ln 10, at every width",
        other.cnn_sparsest,
    ),
    Claim(
        "svm",
        "Asynchronous SVM: GSpar has fewer conflicts than dense.",
        "fewer failed attempts an update, at every density and from 2 ranks on",
        other.svm_conflicts,
    ),
    Claim(
        "svm",
        "Asynchronous SVM: GSpar is faster than dense.",
        "fewer milliseconds to the higher of the two last objectives, the best GSpar in every panel from 2 ranks on",
        other.svm_faster,
    ),
    Claim(
        "svm",
        "Asynchronous SVM: the gain grows with the number of ranks.",
        "dense's milliseconds over the best GSpar's at the most ranks are more than at the fewest, for every λ",
        other.svm_gain,
    ),
    Claim(
        "coding",
        "Theorem 4: the coding length of GSpar's messages is bounded.",
        "mean bits of a message, without its fixed header, at most the bound for every vector",
        other.coding_bound,
    ),
    Claim(
        "coding",
        "Lemma 3: with ε = ρ, variance grows by 1 + ρ at most, and (1 + ρ) s entries are sent at most.",
        "means over the draws at most 3 % above, for every vector",
        other.lemma,
    ),
)

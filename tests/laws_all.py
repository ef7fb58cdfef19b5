"""All laws, by name, from the files that hold them."""

from __future__ import annotations

from tests import laws, laws_convex, laws_lifetime, laws_metrics, laws_overlap, laws_program, laws_rows, laws_window

#: Laws of distributions and of convergence, which ask for hundreds of exchanges. What carries the bytes is nothing to
#: them: they are held on threads with every number of ranks, and on real ranks with one.
STATISTICAL = {
    "unbiased",
    "a_resparsified_average_stays_unbiased",
    "svrg_converges_linearly_under_gspar",
}
STATISTICAL_SIZE = 3

LAWS = {
    **laws.LAWS, **laws_overlap.LAWS, **laws_program.LAWS, **laws_convex.LAWS, **laws_window.LAWS,
    **laws_lifetime.LAWS, **laws_metrics.LAWS, **laws_rows.LAWS,
}  # fmt: skip

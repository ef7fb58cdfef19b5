"""All laws, by name, from the files that hold them."""

from __future__ import annotations

from tests import laws, laws_convex, laws_lifetime, laws_metrics, laws_overlap, laws_program, laws_rows, laws_window

LAWS = {
    **laws.LAWS, **laws_overlap.LAWS, **laws_program.LAWS, **laws_convex.LAWS, **laws_window.LAWS,
    **laws_lifetime.LAWS, **laws_metrics.LAWS, **laws_rows.LAWS,
}  # fmt: skip

"""Overlap: messages leave while backward still runs."""

from mpisparse.overlap.choice import Overlap, say_on_stderr
from mpisparse.overlap.early import Early, check_overlap
from mpisparse.overlap.sender import group_buckets

__all__ = ["Early", "Overlap", "check_overlap", "group_buckets", "say_on_stderr"]

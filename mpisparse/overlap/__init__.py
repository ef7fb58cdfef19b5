"""Overlap: messages leave while backward still runs."""

from mpisparse.overlap.choice import Choice, Overlap
from mpisparse.overlap.sender import Sender, group_buckets

__all__ = ["Choice", "Overlap", "Sender", "group_buckets"]

"""How messages travel, and how whole vectors are averaged."""

from mpisparse.collectives.allgatherv import Allgatherv
from mpisparse.collectives.base import Collective
from mpisparse.collectives.dense import DENSE_MEANS, Allreduce, BFloat16Pieces, DenseMean, Pieces
from mpisparse.collectives.flight import Flight, Flights

__all__ = [
    "DENSE_MEANS",
    "Allgatherv",
    "Allreduce",
    "BFloat16Pieces",
    "Collective",
    "DenseMean",
    "Flight",
    "Flights",
    "Pieces",
]

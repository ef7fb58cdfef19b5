"""What a rank keeps of the gradients that it did not send."""

from mpisparse.memory.base import Kept, Memory
from mpisparse.memory.error_feedback import ErrorFeedback
from mpisparse.memory.momentum_correction import MomentumCorrection
from mpisparse.memory.none import NoMemory
from mpisparse.sparsifiers.base import Sparsifier

__all__ = ["ErrorFeedback", "Kept", "Memory", "MomentumCorrection", "NoMemory", "default_memory"]


def default_memory(sparsifier: Sparsifier) -> Memory:
    """Return the memory that `sparsifier` needs: none for unbiased rules and those that send everything."""
    return NoMemory() if sparsifier.amplifies or sparsifier.sends_everything else ErrorFeedback()

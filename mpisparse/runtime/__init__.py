"""What keeps a run honest: a safe start, thread counts, and the run log."""

from mpisparse.runtime.startup import Surroundings, init, start

__all__ = ["Surroundings", "init", "start"]

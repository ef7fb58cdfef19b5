"""What keeps a run honest: a safe start, thread counts, a watchdog, and the run log."""

from mpisparse.runtime.startup import Surroundings, init, start
from mpisparse.runtime.watchdog import Watchdog

__all__ = ["Surroundings", "Watchdog", "init", "start"]

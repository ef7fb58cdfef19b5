"""What keeps a run honest: a safe start, thread counts, a watchdog, an end in good order, and the run log."""

from mpisparse.runtime.preemption import Preemption
from mpisparse.runtime.startup import Surroundings, init, start
from mpisparse.runtime.watchdog import Watchdog

__all__ = ["Preemption", "Surroundings", "Watchdog", "init", "start"]

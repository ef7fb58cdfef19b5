"""Saving: the checkpoints of a run that goes on meanwhile, and what is told of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from mpisparse.checkpoint import Checkpointer, Outcome
from mpisparse.runtime import Preemption
from mpisparse.runtime.runlog import RunLog
from mpisparse.training.config import Checkpoint
from mpisparse.training.console import ignore

#: Returns the state of a run: what all ranks hold alike, and what this rank alone holds.
State = Callable[[], tuple[dict[str, Any], dict[str, Any]]]


class Saving:
    """Saves a run's state when it is due, and tells rank 0's log and screen what came of it."""

    def __init__(
        self,
        checkpointer: Checkpointer,
        options: Checkpoint,
        log: RunLog,
        state: State,
        preemption: Preemption,
        saved: int,
    ) -> None:
        """Save what `state` returns, of a run that has `saved` steps behind it and on the disk."""
        self._checkpointer, self._options, self._log, self._state = checkpointer, options, log, state
        self._preemption, self._saved = preemption, saved
        #: A shared file is written while training waits.
        self._behind = options.asynchronous and not options.shared
        self._say: Callable[[str], None] = ignore
        self._told: Outcome | None = None

    def say_with(self, say: Callable[[str], None]) -> None:
        """Let `say` print from now on what went wrong; until then nothing is printed."""
        self._say = say

    def start(self, step: int) -> None:
        """Save the state after `step`, behind training or before it goes on. Collective.

        Raises:
            CheckpointError: the state cannot be saved; or, where that is asked for, this save or the one before failed.
        """
        self._end(self._checkpointer.finish())
        self._checkpointer.start(step, *self._state(), behind=self._behind)
        if not self._behind:
            self._end(self._checkpointer.finish())

    def stepped(self) -> None:
        """Move a save on after a step, and tell what came of it as soon as rank 0 knows. Not collective."""
        outcome = self._checkpointer.poll()
        if outcome is not None:
            self._tell(outcome)

    def last(self, step: int) -> None:
        """Return when the state after `step` is on the disk, as nothing follows. Collective.

        Raises:
            CheckpointError: it could not be saved.
        """
        self._end(self._checkpointer.finish())
        if self._saved != step:
            self._checkpointer.start(step, *self._state(), behind=False)
            outcome = self._checkpointer.finish()
            if outcome is not None:
                self._tell(outcome)
                outcome.expect()

    def _end(self, outcome: Outcome | None) -> None:
        """Take note of a save that all ranks know the end of."""
        if outcome is None:
            return
        self._tell(outcome)
        # All that a save takes counts for a job that is to save in the time it has left.
        writing = outcome.writing if self._behind else 0.0
        self._preemption.saved(outcome.pause + writing + outcome.waited)
        if outcome.path is not None:
            self._saved = outcome.step
        elif self._options.on_failure == "raise":
            outcome.expect()

    def _tell(self, outcome: Outcome) -> None:
        """Write an outcome to the log, and to the screen if it is bad, unless that was done already."""
        if outcome is self._told:
            return
        self._told = outcome
        failure = {} if outcome.failure is None else {"failure": outcome.failure}
        self._log.event(
            "save",
            outcome.step,
            ok=outcome.path is not None,
            bytes=outcome.bytes,
            pause_seconds=round(outcome.pause, 6),
            writing_seconds=round(outcome.writing, 6),
            waiting_seconds=round(outcome.waited, 6),
            **failure,
        )
        if outcome.path is None:
            self._say(f"step {outcome.step} could not be saved: {outcome.failure}")
        elif outcome.failure is not None:
            self._say(outcome.failure)

"""Pending: a call that ranks make together, and that goes on while they compute."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Generic, TypeVar

from mpisparse.comm.recorder import Call
from mpisparse.errors import CommError

Result = TypeVar("Result")


class Pending(ABC, Generic[Result]):
    """A call that was started and has not ended. Whoever holds it has to keep it until `test` returned True.

    MPI moves next to nothing by itself: it is `test`, called again and again, that does. The buffers of the call are
    kept alive here; nobody may touch them before the end.
    """

    def __init__(self, result: Result) -> None:
        self._result = result
        self._ended = False
        #: What the recorder knows of this call, which ends there when it ends here.
        self.call: Call | None = None

    def test(self) -> bool:
        """Move what can be moved, and return True once the result is there. Never waits."""
        if not self._ended and self._test():
            self._ended = True
            if self.call is not None:
                self.call.end()
        return self._ended

    @property
    def result(self) -> Result:
        """Return what the call brought. CommError before its end."""
        if not self._ended:
            raise CommError("the result of a call was read before its end: call test() until it returns True")
        return self._result

    @abstractmethod
    def _test(self) -> bool:
        """Return True when the result is complete."""

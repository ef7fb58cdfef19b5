"""Handles: what a communicator's duplicates and windows take of MPI, and how MPI gets it back.

MPI gives a communicator back only where all ranks do so together, and Python drops objects whenever it likes. So a
dropped duplicate is only noted; when the ranks come together for the next one, they give back what none of them has.
"""

from __future__ import annotations

import gc
import json
import weakref
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

#: Objects that hold each other are only collected now and then. Every so many duplicates it is done at once.
_COLLECT_EVERY = 64


@dataclass(slots=True)
class Handle:
    """One duplicate or window, as long as MPI knows it.

    release: gives it back; called on all ranks together. refuse: has what uses it refuse later calls, if it is there.
    inner: its own duplicates.
    """

    release: Callable[[], object]
    refuse: weakref.WeakMethod[Callable[[], None]]
    inner: Handles

    def give_back(self) -> None:
        """Give it back, its duplicates first. Collective."""
        self.inner.give_back_all()
        refuse = self.refuse()
        if refuse is not None:
            refuse()
        self.release()


@dataclass(slots=True)
class Handles:
    """A communicator's duplicates and windows, by numbers in the order of their making: the same on all ranks."""

    _made: int = 0
    _kept: dict[int, Handle] = field(default_factory=dict)
    #: Numbers of those whose owners are gone, as the garbage collector leaves them here, on any thread; and in order.
    _dropped: deque[int] = field(default_factory=deque)
    _idle: set[int] = field(default_factory=set)

    def __len__(self) -> int:
        return len(self._kept)

    def add(
        self,
        owner: object,
        release: Callable[[], object],
        refuse: Callable[[], None],
        inner: Handles | None = None,
    ) -> int:
        """Return the number of a new duplicate, which is dropped when `owner` is collected.

        Args:
            owner: what can be used as long as it is there. release, inner: of the handle; they must not hold `owner`.
            refuse: a method of what uses the handle.
        """
        number = self._made
        self._made += 1
        self._kept[number] = Handle(release, weakref.WeakMethod(refuse), Handles() if inner is None else inner)
        weakref.finalize(owner, self._dropped.append, number).atexit = False
        return number

    def meet(self, gather: Callable[[bytes], list[bytes]]) -> None:
        """Give back what all ranks have dropped, whose garbage collectors run at times of their own. Collective.

        Args:
            gather: returns what every rank gave.
        """
        if not self._kept:
            return
        if self._made % _COLLECT_EVERY == 0:
            gc.collect()
        while self._dropped:
            self._idle.add(self._dropped.popleft())
        self._idle &= self._kept.keys()
        everyone = gather(json.dumps(sorted(self._idle)).encode())
        self.give_back(set.intersection(*(set(json.loads(numbers)) for numbers in everyone)))

    def give_back(self, numbers: Iterable[int]) -> None:
        """Give duplicates back, in the order in which they were made. Collective: all ranks bring the same numbers."""
        for number in sorted(numbers):
            self._kept.pop(number).give_back()

    def give_back_all(self) -> None:
        """Give all duplicates back. Collective."""
        self.give_back(list(self._kept))

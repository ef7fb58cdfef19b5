"""Versions: whether tensors were changed since they were last looked at, told by counters, without reading values."""

from __future__ import annotations

from collections.abc import Sequence
from enum import IntEnum

from torch import Tensor

#: What changes when a tensor gets other memory, or is changed in place: its address, and torch's count of changes.
Version = tuple[int, int]


def version_of(tensor: Tensor) -> Version:
    """Return what changes when `tensor` is changed in place, or its data are replaced.

    A change through `tensor.data` changes nothing here, nor does one by a library that torch does not know of.
    """
    if tensor.is_sparse:
        return id(tensor), tensor._version
    return tensor.data_ptr(), 0 if tensor.is_inference() else tensor._version


class Change(IntEnum):
    """What became of gradients between the end of backward and the look at them; of several, the greatest counts.

    DROPPED: some were set to None. CHANGED: some were replaced, or changed in place.
    """

    NONE = 0
    DROPPED = 1
    CHANGED = 2


def change_of(version: Version | None, grad: Tensor | None) -> Change:
    """Return what became of a finished gradient that is no view of the buffer now, or was none.

    Args:
        version: that of the gradient at the end of backward; None if it was a view then.
        grad: what the parameter has now.
    """
    if grad is None:
        return Change.DROPPED
    return Change.NONE if version is not None and version_of(grad) == version else Change.CHANGED


class Versions:
    """The versions of some tensors at the last look at them."""

    def __init__(self, tensors: Sequence[Tensor]) -> None:
        self._tensors = tensors
        self.note()

    def note(self) -> None:
        """Take the tensors as they are now for unchanged."""
        self._noted = [version_of(tensor) for tensor in self._tensors]

    def changed(self) -> bool:
        """Return True when any of them was changed since the last `note`."""
        return any(version_of(tensor) != noted for tensor, noted in zip(self._tensors, self._noted, strict=True))

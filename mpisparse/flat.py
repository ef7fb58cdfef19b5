"""FlatGradients: the gradients of all parameters in one flat float32 buffer, cut into buckets."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass
from typing import Literal, TypeVar, get_args
from weakref import WeakMethod

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.hooks import RemovableHandle

from mpisparse.arguments import is_number, is_one_of, require_flag, short
from mpisparse.errors import ConfigError
from mpisparse.kernels.anywhere import Anywhere, first_bad_entry, see

Granularity = Literal["model", "tensor", "bucket"]
Given = TypeVar("Given")


@dataclass(frozen=True, slots=True)
class Layout:
    """How the parameters lie in the buffer, and which of them are never sparsified.

    granularity: "model" selects over all entries at once, "tensor" in each tensor for itself, "bucket" in runs of
        tensors of about `bucket_mib`. Larger units let the selection go where the gradient is large; smaller ones keep
        one badly scaled layer from taking it all.
    bucket_mib: size of a bucket in MiB of float32, for granularity "bucket".
    dense_vectors: send tensors of one dimension (biases, normalisation) whole. They are a per cent of the bytes, and
        leaving them out costs accuracy.
    dense_below: send tensors of fewer entries than this whole, too.
    """

    granularity: Granularity = "model"
    bucket_mib: float = 25.0
    dense_vectors: bool = True
    dense_below: int = 0

    def __post_init__(self) -> None:
        if not is_one_of(self.granularity, get_args(Granularity)):
            raise ConfigError(f"granularity {short(self.granularity)} does not exist: use model, tensor or bucket")
        if not is_number(self.bucket_mib) or not self.bucket_mib > 0:
            raise ConfigError(f"bucket_mib is {short(self.bucket_mib)}: it must be above 0, such as 25")
        require_flag("dense_vectors", self.dense_vectors)
        if not is_number(self.dense_below) or not self.dense_below >= 0:
            raise ConfigError(f"dense_below is {short(self.dense_below)}: give a number of entries, such as 0 or 1000")

    def is_dense(self, parameter: Tensor) -> bool:
        """Return True when `parameter` is always sent whole."""
        return (self.dense_vectors and parameter.dim() <= 1) or parameter.numel() < self.dense_below


@dataclass(frozen=True, slots=True)
class Slot:
    """Where one parameter lies in the buffer."""

    name: str
    parameter: Tensor
    start: int
    stop: int


@dataclass(frozen=True, slots=True)
class Bucket:
    """A slice of the buffer that is selected from and sent as one."""

    index: int
    start: int
    stop: int
    dense: bool

    @property
    def numel(self) -> int:
        """Return the number of entries."""
        return self.stop - self.start

    @property
    def place(self) -> slice:
        """Return where it lies in the buffer."""
        return slice(self.start, self.stop)


class FlatGradients:
    """One flat buffer that every `p.grad` is a view of.

    - Sparsified tensors come first, those that are always dense after them: `sparse_numel` tells the border.
    - A gradient that autograd makes afresh (after `zero_grad(set_to_none=True)`) is copied into its slice by a hook as
      soon as it is final, so it is never held twice. A slice whose parameter got no gradient is zeroed by `collect`.
    - The buffer lies on the CUDA device that all parameters lie on, else on the CPU. Parameters that lie elsewhere, or
      are not float32, keep gradients of their own, copied in by `collect` and out by `publish`.
    """

    def __init__(self, named_parameters: Iterable[tuple[str, Tensor]], layout: Layout) -> None:
        named = [(name, p) for name, p in named_parameters if p.requires_grad]
        _refuse_complex(named)
        if not named:
            raise ConfigError("no parameter requires a gradient: there is nothing to exchange")
        sparse = [(name, p) for name, p in named if not layout.is_dense(p)]
        dense = [(name, p) for name, p in named if layout.is_dense(p)]
        self.slots = tuple(_slots(sparse + dense))
        self.buffer = torch.zeros(self.slots[-1].stop, dtype=torch.float32, device=_common_device(named))
        self.sparse_numel = sum(p.numel() for _, p in sparse)
        self.buckets = tuple(_buckets(self.slots, len(sparse), layout))
        self._views = {id(s.parameter): self.buffer[s.start : s.stop].view(s.parameter.shape) for s in self.slots}
        #: True when autograd has finished a gradient that no exchange has averaged.
        self.fresh = False
        #: Called with a slot's number when autograd has finished its gradient and it is in the buffer.
        self.on_final: Callable[[int], None] | None = None
        self._numbers = {id(slot.parameter): number for number, slot in enumerate(self.slots)}
        hooks = [s.parameter.register_post_accumulate_grad_hook(weakly(self._finished)) for s in self.slots]  # type: ignore[no-untyped-call]
        #: Takes the hooks off the parameters; called when nobody uses this any more, at the latest.
        self.release = weakref.finalize(self, _remove, hooks)
        self.release.atexit = False

    @property
    def vector(self) -> Anywhere:
        """Return the whole buffer as the kernels take it, sharing its memory: a numpy array unless on a device."""
        return see(self.buffer)

    @torch.no_grad()
    def collect(self, sent: Collection[int] = ()) -> NDArray[np.bool_]:
        """Bring every gradient into the buffer, and return which parameters have one, bool of shape (len(slots),).

        Args:
            sent: numbers of slots whose gradients are in messages already: what is in the buffer there stays.
        """
        present = np.ones(len(self.slots), bool)
        for i, slot in enumerate(self.slots):
            view = self._views[id(slot.parameter)]
            if slot.parameter.grad is None:
                present[i] = False
                view.zero_()
            elif i not in sent:
                self._adopt(slot.parameter)
        return present

    @torch.no_grad()
    def publish(self, present: NDArray[np.bool_]) -> None:
        """Hand every parameter its slice of the buffer as `p.grad`, or None where no rank had a gradient.

        A parameter without a gradient anywhere gets its slice all the same when the exchange put something there: a
        residual of earlier steps. One that was frozen since gets none.
        """
        self.fresh = False
        for i, slot in enumerate(self.slots):
            view = self._views[id(slot.parameter)]
            if not slot.parameter.requires_grad or (not present[i] and not bool(view.any())):
                slot.parameter.grad = None
            elif self._can_alias(slot.parameter):
                slot.parameter.grad = view
            elif slot.parameter.grad is None:
                slot.parameter.grad = view.to(slot.parameter)
            else:
                slot.parameter.grad.copy_(view)

    def clear(self) -> None:
        """Set every gradient to None, as `zero_grad` does."""
        for slot in self.slots:
            slot.parameter.grad = None

    def where(self, index: int) -> str:
        """Return the name of the parameter that holds entry `index` of the buffer."""
        return next(slot.name for slot in self.slots if slot.start <= index < slot.stop)

    def first_bad_entry(self, place: slice = slice(None)) -> int | None:
        """Return where in the buffer the first NaN or infinity of a part of it lies, or None. One pass."""
        bad = first_bad_entry(self.vector[place])
        return None if bad is None else (place.start or 0) + bad

    def mark(self, number: int) -> tuple[int, int] | None:
        """Return what changes when a slot's gradient is replaced, or changed in place outside the buffer."""
        slot = self.slots[number]
        grad = slot.parameter.grad
        if grad is None:
            return None
        if grad.is_sparse:
            return id(grad), grad._version
        outside = grad.data_ptr() != self._views[id(slot.parameter)].data_ptr()
        return grad.data_ptr(), grad._version if outside else 0

    @torch.no_grad()
    def _finished(self, parameter: Tensor) -> None:
        """Take in a gradient that autograd has finished."""
        self.fresh = True
        if self._can_alias(parameter) or self.on_final is not None:
            self._adopt(parameter)
        if self.on_final is not None:
            self.on_final(self._numbers[id(parameter)])

    def _can_alias(self, parameter: Tensor) -> bool:
        return parameter.dtype == torch.float32 and parameter.device == self.buffer.device

    def _adopt(self, parameter: Tensor) -> None:
        """Copy a gradient that autograd or the user made elsewhere into its slice; make it a view where it can be."""
        grad, view = parameter.grad, self._views[id(parameter)]
        if grad is None:
            return
        if grad.is_sparse:
            grad = grad.to_dense()
        if grad.data_ptr() == view.data_ptr() and grad.dtype == view.dtype:
            return
        view.copy_(grad)
        if self._can_alias(parameter):
            parameter.grad = view


def weakly(method: Callable[[Given], None]) -> Callable[[Given], None]:
    """Return a hook that calls `method` while its object lives, so that whoever holds the hook does not keep that."""
    reference = WeakMethod(method)

    def hook(given: Given) -> None:
        alive = reference()
        if alive is not None:
            alive(given)

    return hook


def _remove(hooks: list[RemovableHandle]) -> None:
    for hook in hooks:
        hook.remove()


def _refuse_complex(named: list[tuple[str, Tensor]]) -> None:
    for name, parameter in named:
        if parameter.is_complex():
            raise ConfigError(
                f"parameter {name} is {parameter.dtype}, and gradients are exchanged in float32: "
                "train its real and imaginary parts (torch.view_as_real)"
            )


def _common_device(named: list[tuple[str, Tensor]]) -> torch.device:
    devices = {parameter.device for _, parameter in named}
    alone = devices.pop()
    return alone if not devices and alone.type == "cuda" else torch.device("cpu")


def _slots(named: list[tuple[str, Tensor]]) -> Iterator[Slot]:
    start = 0
    for name, parameter in named:
        yield Slot(name, parameter, start, start + parameter.numel())
        start += parameter.numel()


def _buckets(slots: tuple[Slot, ...], sparse: int, layout: Layout) -> Iterator[Bucket]:
    """Cut the sparse slots by granularity; all dense ones make one bucket."""
    limit = {"model": float("inf"), "tensor": 0.0, "bucket": layout.bucket_mib * 2**20 / 4}[layout.granularity]
    index, start = 0, 0
    for number, slot in enumerate(slots[:sparse], start=1):
        if number == sparse or slots[number].stop - start > limit:
            yield Bucket(index, start, slot.stop, dense=False)
            index, start = index + 1, slot.stop
    if sparse < len(slots):
        yield Bucket(index, start, slots[-1].stop, dense=True)

"""FlatGradients: the gradients of all parameters in one flat float32 buffer, cut into buckets."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass
from typing import Literal
from weakref import WeakMethod

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.autograd import Variable

from mpisparse.errors import ConfigError
from mpisparse.kernels.anywhere import Anywhere, first_bad_entry, see
from mpisparse.slots import Slot, dense_strides, has_layout_of, new_gradient, require_shape, rows_of, same_order
from mpisparse.versions import Change, Version, change_of, version_of

Granularity = Literal["model", "tensor", "bucket"]


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
        if self.granularity not in ("model", "tensor", "bucket"):
            raise ConfigError(f"granularity {self.granularity!r} does not exist: use model, tensor or bucket")
        if not self.bucket_mib > 0:
            raise ConfigError(f"bucket_mib is {self.bucket_mib}: it must be above 0, such as 25")

    def is_dense(self, parameter: Tensor) -> bool:
        """Return True when `parameter` is always sent whole."""
        return (self.dense_vectors and parameter.dim() <= 1) or parameter.numel() < self.dense_below


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
    - The buffer lies on the CUDA device that all parameters lie on, else on the CPU. Parameters that lie elsewhere, are
      not float32, or do not have their slot's strides (any more), keep gradients of their own, copied in by `collect`
      and out by `publish`.
    - Each `p.grad` is an alias made for it alone: replacing its data, as conversions of a model do, leaves the buffer
      as it is, and the next `collect` finds that it shows something else.
    """

    def __init__(self, named_parameters: Iterable[tuple[str, Tensor]], layout: Layout) -> None:
        named = [(name, p) for name, p in named_parameters if p.requires_grad]
        _refuse_complex(named)
        if not named:
            raise ConfigError("no parameter requires a gradient: there is nothing to exchange")
        sparse = [(name, p) for name, p in named if not layout.is_dense(p)]
        dense = [(name, p) for name, p in named if layout.is_dense(p)]
        self.slots = tuple(_slots(sparse + dense))
        self.buffer = torch.zeros(self.slots[-1].stop, device=_common_device(named))
        self.sparse_numel = sum(p.numel() for _, p in sparse)
        self.buckets = tuple(_buckets(self.slots, len(sparse), layout))
        #: True when autograd has finished a gradient that no exchange has averaged.
        self.fresh = False
        #: Called with a slot's number when autograd has finished its gradient and it is in the buffer.
        self.on_final: Callable[[int], None] | None = None
        #: What became of the gradients between backward and the last `collect`.
        self.change = Change.NONE
        #: Slots whose gradients autograd has finished since the last exchange; with the version of a gradient of their
        #: own. The buffer has one version for all that are views of it.
        self._finished_ones: dict[int, Version | None] = {}
        self._version = 0
        self._awaits_end = False
        self._numbers = {id(slot.parameter): number for number, slot in enumerate(self.slots)}
        for slot in self.slots:
            slot.parameter.register_post_accumulate_grad_hook(_weakly(self._finished))  # type: ignore[no-untyped-call]

    @property
    def vector(self) -> Anywhere:
        """Return the whole buffer as the kernels take it, sharing its memory: a numpy array unless on a device."""
        return see(self.buffer)

    @torch.no_grad()
    def collect(self, sent: Collection[int] = ()) -> NDArray[np.bool_]:
        """Bring every gradient into the buffer, and return which parameters have one, bool of shape (len(slots),).

        `change` tells from then on what became of them since backward.

        Args:
            sent: numbers of slots whose gradients are in messages already: what is in the buffer there stays.
        """
        present = np.ones(len(self.slots), bool)
        changed = bool(self._finished_ones) and self.buffer._version != self._version
        changes = [Change.CHANGED if changed else Change.NONE]
        for i, slot in enumerate(self.slots):
            grad = slot.parameter.grad
            require_shape(slot, slot.parameter)
            shows = grad is not None and self._shows(slot, grad)
            if grad is None:
                present[i] = False
                self.buffer[slot.start : slot.stop].zero_()
            elif not shows and i not in sent:
                self._adopt(slot)
            if i in self._finished_ones and not (shows and self._finished_ones[i] is None):
                changes.append(change_of(self._finished_ones[i], grad))
        self.change = max(changes)
        return present

    @torch.no_grad()
    def publish(self, present: NDArray[np.bool_]) -> None:
        """Hand every parameter its slice of the buffer as `p.grad`, or None where no rank had a gradient.

        A parameter without a gradient anywhere gets its slice all the same when the exchange put something there: a
        residual of earlier steps. One that was frozen since gets none.
        """
        self.forget()
        for i, slot in enumerate(self.slots):
            view = self._view(slot)
            if not slot.parameter.requires_grad or (not present[i] and not bool(view.any())):
                slot.parameter.grad = None
            elif self._can_alias(slot):
                slot.parameter.grad = view
            else:
                if not has_layout_of(slot.parameter.grad, slot.parameter):
                    slot.parameter.grad = new_gradient(slot.parameter)
                assert slot.parameter.grad is not None
                slot.parameter.grad.copy_(view)

    def forget(self) -> None:
        """Take gradients as they are for exchanged, or thrown away: what autograd finished before counts no more."""
        self.fresh = self._awaits_end = False
        self._finished_ones.clear()

    def clear(self) -> None:
        """Set every gradient to None, as `zero_grad` does."""
        self.forget()
        for slot in self.slots:
            slot.parameter.grad = None

    def where(self, index: int) -> str:
        """Return the name of the parameter that holds entry `index` of the buffer."""
        return next(slot.name for slot in self.slots if slot.start <= index < slot.stop)

    def first_bad_entry(self, place: slice = slice(None)) -> int | None:
        """Return where in the buffer the first NaN or infinity of a part of it lies, or None. One pass."""
        bad = first_bad_entry(self.vector[place])
        return None if bad is None else (place.start or 0) + bad

    def holds_unaveraged(self) -> bool:
        """Return True when autograd has finished, or the user has put there, a gradient that no exchange averaged."""
        return self.fresh or any(
            slot.parameter.grad is not None and self._can_alias(slot) and not self._shows(slot, slot.parameter.grad)
            for slot in self.slots
        )

    def orders(self) -> list[str]:
        """Return a line for each parameter whose entries do not lie row after row in the buffer, and so in messages."""
        return [
            f"{slot.name}: strides {slot.strides}"
            for slot in self.slots
            if not same_order(slot.shape, slot.strides, rows_of(slot.shape))
        ]

    @torch.no_grad()
    def _finished(self, parameter: Tensor) -> None:
        """Take in a gradient that autograd has finished."""
        number = self._numbers.get(id(parameter))
        if number is None:  # a copy, which took the hook along
            return
        slot, grad = self.slots[number], parameter.grad
        self.fresh = True
        # What autograd can differentiate once more, as after backward(create_graph=True), stays as it is for now.
        if grad is not None and (self.on_final is not None or (self._can_alias(slot) and not grad.requires_grad)):
            self._adopt(slot, during_backward=True)
        if self.on_final is not None:
            self.on_final(number)
        self._note(number)

    def _note(self, number: int) -> None:
        """Remember how a finished gradient is, now and again at the end of backward, after other hooks."""
        slot = self.slots[number]
        grad = slot.parameter.grad
        own = grad is not None and not self._shows(slot, grad)
        self._finished_ones[number] = version_of(grad) if grad is not None and own else None
        self._version = self.buffer._version
        if not self._awaits_end:
            self._awaits_end = True
            Variable._execution_engine.queue_callback(self._backward_ended)

    def _backward_ended(self) -> None:
        self._awaits_end = False
        self._version = self.buffer._version
        for number, version in self._finished_ones.items():
            grad = self.slots[number].parameter.grad
            if version is not None and grad is not None:
                self._finished_ones[number] = version_of(grad)

    def _view(self, slot: Slot) -> Tensor:
        """Return a new alias of a slot's part of the buffer, in the parameter's shape."""
        return slot.view(self.buffer)

    def _can_alias(self, slot: Slot) -> bool:
        """Return True while the slot's part of the buffer can be the parameter's gradient as it is."""
        parameter = slot.parameter
        return (
            parameter.dtype == torch.float32
            and parameter.device == self.buffer.device
            and parameter.layout == torch.strided
            and parameter.shape == slot.shape
            and same_order(slot.shape, parameter.stride(), slot.strides)
        )

    def _shows(self, slot: Slot, grad: Tensor) -> bool:
        """Return True when a gradient is the slot's part of the buffer, entry by entry."""
        return (
            grad.data_ptr() == self.buffer.data_ptr() + self.buffer.element_size() * slot.start
            and (grad.dtype, grad.shape) == (self.buffer.dtype, slot.shape)
            and same_order(slot.shape, grad.stride(), slot.strides)
        )

    def _adopt(self, slot: Slot, during_backward: bool = False) -> None:
        """Copy a gradient that autograd or the user made elsewhere into its slot; make it an alias where it can be."""
        parameter = slot.parameter
        grad = parameter.grad
        if grad is None:
            return
        if grad.is_sparse:
            grad = grad.to_dense()
        if self._shows(slot, grad):
            return
        require_shape(slot, grad)
        view = self._view(slot)
        view.copy_(grad)
        if self._can_alias(slot) and not (grad.requires_grad and during_backward):
            parameter.grad = view


def _weakly(method: Callable[[Tensor], None]) -> Callable[[Tensor], None]:
    """Return a hook that calls `method` while its object lives, so that a parameter does not keep an old buffer."""
    reference = WeakMethod(method)

    def hook(parameter: Tensor) -> None:
        alive = reference()
        if alive is not None:
            alive(parameter)

    return hook


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
        yield Slot(name, parameter, start, start + parameter.numel(), parameter.shape, dense_strides(parameter))
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

"""FlatGradients: the gradients of all parameters in one flat float32 buffer, cut into buckets."""

from __future__ import annotations

import math
import weakref
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass
from typing import Literal, TypeVar, get_args
from weakref import WeakMethod

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.autograd import Variable
from torch.utils.hooks import RemovableHandle

from mpisparse.arguments import is_number, is_one_of, require_flag, short
from mpisparse.errors import ConfigError, MpiSparseError, NonFiniteError, alike
from mpisparse.kernels.anywhere import Anywhere, first_bad_entry, forgotten, see

#: Entries whose squares are added up at a time.
_PIECE = 1 << 20

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
    """Where one parameter lies in the buffer, and in which order.

    strides: those of the parameter where they are dense and do not overlap, so that entries lie as in the parameter's
        own memory: fused optimizers walk both as such. Row after row for other parameters.
    """

    name: str
    parameter: Tensor
    start: int
    stop: int
    shape: torch.Size
    strides: tuple[int, ...]

    def view(self, vector: Tensor) -> Tensor:
        """Return this parameter's part of `vector`, laid out like the buffer, in the parameter's shape; not a copy."""
        return vector[self.start : self.stop].as_strided(self.shape, self.strides)


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

    def __init__(
        self, named_parameters: Iterable[tuple[str, Tensor]], layout: Layout, *, may_be_empty: bool = False
    ) -> None:
        named = [(name, p) for name, p in named_parameters if p.requires_grad]
        _refuse_complex(named)
        if not named and not may_be_empty:
            raise ConfigError("no parameter requires a gradient: there is nothing to exchange")
        sparse = [(name, p) for name, p in named if not layout.is_dense(p)]
        dense = [(name, p) for name, p in named if layout.is_dense(p)]
        self.slots = tuple(_slots(sparse + dense))
        self.buffer = torch.zeros(sum(p.numel() for _, p in named), dtype=torch.float32, device=_common_device(named))
        self.sparse_numel = sum(p.numel() for _, p in sparse)
        self.buckets = tuple(_buckets(self.slots, len(sparse), layout))
        self._slot_of = {id(slot.parameter): slot for slot in self.slots}
        #: True when autograd has finished a gradient that no exchange has averaged.
        self.fresh = False
        #: Called with a slot's number when autograd has finished its gradient and it is in the buffer.
        self.on_final: Callable[[int], None] | None = None
        self._numbers = {id(slot.parameter): number for number, slot in enumerate(self.slots)}
        #: What each gradient looked like when backward had finished it, and the buffer's version at the last of these.
        self._marks: dict[int, tuple[int, int] | None] = {}
        self._version = 0
        self._awaits_end = False
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
            if slot.parameter.grad is None:
                present[i] = False
                self.buffer[slot.start : slot.stop].zero_()
            elif i not in sent:
                self._adopt(slot)
        return present

    @torch.no_grad()
    def publish(self, present: NDArray[np.bool_]) -> None:
        """Hand every parameter its slice of the buffer as `p.grad`, or None where no rank had a gradient.

        A parameter without a gradient anywhere gets its slice all the same when the exchange put something there: a
        residual of earlier steps. One that was frozen since gets none.
        """
        self.fresh = False
        for i, slot in enumerate(self.slots):
            view = self._view(slot)
            if not slot.parameter.requires_grad or (not present[i] and not bool(view.any())):
                slot.parameter.grad = None
            elif self._can_alias(slot):
                slot.parameter.grad = view
            else:
                if not _has_layout_of(slot.parameter.grad, slot.parameter):
                    slot.parameter.grad = _new_gradient(slot.parameter)
                assert slot.parameter.grad is not None
                slot.parameter.grad.copy_(view)

    def clear(self) -> None:
        """Set every gradient to None, as `zero_grad` does."""
        for slot in self.slots:
            slot.parameter.grad = None

    def versions(self) -> list[tuple[int, int]]:
        """Return for each parameter what changes when it is changed in place, or gets other memory."""
        return [(slot.parameter.data_ptr(), slot.parameter._version) for slot in self.slots]

    def where(self, index: int) -> str:
        """Return the name of the parameter that holds entry `index` of the buffer."""
        return next(slot.name for slot in self.slots if slot.start <= index < slot.stop)

    def first_bad_entry(self, place: slice = slice(None)) -> int | None:
        """Return where in the buffer the first NaN or infinity of a part of it lies, or None. One pass."""
        bad = first_bad_entry(self.vector[place])
        return None if bad is None else (place.start or 0) + bad

    def clip(self, most: float, others: float = 0.0) -> tuple[float, float]:
        """Scale all gradients so that their norm is at most `most`; return what it was, and the factor, at most 1.

        The same bits on any number of threads, as each rank clips by itself and replicas have to stay equal.

        Args:
            others: squared norm of gradients that are not in the buffer, and have to be scaled by the same factor.
        """
        present = self.collect()
        pieces = [self.vector[start : start + _PIECE] for start in range(0, self.buffer.numel(), _PIECE)]
        norm = math.sqrt(sum((forgotten(piece).square() for piece in pieces), others))
        if not math.isfinite(norm):
            raise alike(NonFiniteError(f"the norm of the mean gradient is {norm}: look at what changed the mean"))
        # As torch.nn.utils.clip_grad_norm_ has it.
        factor = min(1.0, most / (norm + 1e-6))
        if factor < 1.0:
            self.buffer *= factor
            self.publish(present)
        return norm, factor

    def changed(self, cleared: bool = True) -> bool:
        """Return True when a gradient was replaced or changed in place after backward had finished it.

        To be asked before gradients are collected. A GradScaler's `unscale_`, and changes through `.data`, do not show.

        Args:
            cleared: whether one that was set to None counts.
        """
        if not self._marks:
            return False
        now = {number: self._mark(number) for number in self._marks}
        moved = any(now[number] != mark for number, mark in self._marks.items() if cleared or now[number] is not None)
        return moved or self.buffer._version != self._version

    def holds_unaveraged(self) -> bool:
        """Return True when autograd has finished, or the user has put there, a gradient that no exchange averaged."""
        return self.fresh or any(
            slot.parameter.grad is not None and self._can_alias(slot) and not self._shows(slot, slot.parameter.grad)
            for slot in self.slots
        )

    def forget(self) -> None:
        """Begin a step: no backward pass has finished a gradient in it."""
        self.fresh = self._awaits_end = False
        self._marks = {}

    def _mark(self, number: int) -> tuple[int, int] | None:
        """Return what changes when a slot's gradient is replaced, or changed in place outside the buffer."""
        slot = self.slots[number]
        grad = slot.parameter.grad
        if grad is None:
            return None
        if grad.is_sparse:
            return id(grad), grad._version
        return grad.data_ptr(), 0 if self._shows(slot, grad) else grad._version

    @torch.no_grad()
    def _finished(self, parameter: Tensor) -> None:
        """Take in a gradient that autograd has finished."""
        slot = self._slot_of[id(parameter)]
        self.fresh = True
        if self._can_alias(slot) or self.on_final is not None:
            self._adopt(slot, final=False)
        number = self._numbers[id(parameter)]
        if self.on_final is not None:
            self.on_final(number)
        self._marks[number] = self._mark(number)
        self._version = self.buffer._version
        if not self._awaits_end:
            # Hooks of users that come after this one are part of backward, too.
            self._awaits_end = True
            Variable._execution_engine.queue_callback(self._backward_ended)

    def _backward_ended(self) -> None:
        self._awaits_end = False
        if self.on_final is None:
            self._marks = {number: self._mark(number) for number in self._marks}
            self._version = self.buffer._version

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
            and _same_order(slot.shape, parameter.stride(), slot.strides)
        )

    def _shows(self, slot: Slot, grad: Tensor) -> bool:
        """Return True when a gradient is the slot's part of the buffer, entry by entry."""
        return (
            grad.data_ptr() == self.buffer.data_ptr() + self.buffer.element_size() * slot.start
            and (grad.dtype, grad.shape) == (self.buffer.dtype, slot.shape)
            and _same_order(slot.shape, grad.stride(), slot.strides)
        )

    def _adopt(self, slot: Slot, final: bool = True) -> None:
        """Copy a gradient that autograd or the user made elsewhere into its slot; make it an alias where it can be.

        Args:
            final: whether backward is over. Before, one that can be differentiated once more stays what the user sees.
        """
        parameter = slot.parameter
        grad = parameter.grad
        if grad is None:
            return
        if grad.is_sparse:
            grad = grad.to_dense()
        if self._shows(slot, grad):
            return
        if grad.shape != slot.shape:
            raise MpiSparseError(
                f"the gradient of {slot.name} has shape {tuple(grad.shape)}, and the parameter had "
                f"{tuple(slot.shape)} when the optimizer was wrapped: wrap it again after changing a parameter's shape"
            )
        if grad.is_meta:
            raise MpiSparseError(
                f"the gradient of {slot.name} is on the meta device and has no values: move the model to a device that "
                "holds them"
            )
        view = self._view(slot)
        view.copy_(grad)
        if self._can_alias(slot) and (final or not grad.requires_grad):
            parameter.grad = view


def _dense_strides(parameter: Tensor) -> tuple[int, ...]:
    """Return the parameter's strides where its entries fill memory without gaps and overlaps, else those of rows."""
    expected, filled = 1, True
    for size, stride in sorted(zip(parameter.shape, parameter.stride(), strict=True), key=lambda pair: pair[1]):
        if size != 1:
            filled, expected = filled and stride == expected, expected * size
    return parameter.stride() if filled else torch.empty(parameter.shape, device="meta").stride()


def _same_order(shape: torch.Size, ours: tuple[int, ...], theirs: tuple[int, ...]) -> bool:
    """Return True when tensors of a shape have their entries in the same places, whatever a stride of a size of 1."""
    return ours == theirs or (
        len(shape) == len(ours) == len(theirs)
        and all(size == 1 or a == b for size, a, b in zip(shape, ours, theirs, strict=True))
    )


def _new_gradient(parameter: Tensor) -> Tensor:
    """Return an empty tensor such as autograd would make for the gradient of a parameter."""
    strides = _dense_strides(parameter)
    return torch.empty_strided(parameter.shape, strides, dtype=parameter.dtype, device=parameter.device)


def _has_layout_of(grad: Tensor | None, parameter: Tensor) -> bool:
    """Return True when `grad` is as autograd would make the gradient of a parameter."""
    return (
        grad is not None
        and not grad.is_sparse
        and (grad.dtype, grad.device, grad.shape) == (parameter.dtype, parameter.device, parameter.shape)
        and _same_order(parameter.shape, grad.stride(), _dense_strides(parameter))
    )


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
    alone = devices.pop() if devices else torch.device("cpu")
    return alone if not devices and alone.type == "cuda" else torch.device("cpu")


def _slots(named: list[tuple[str, Tensor]]) -> Iterator[Slot]:
    start = 0
    for name, parameter in named:
        yield Slot(name, parameter, start, start + parameter.numel(), parameter.shape, _dense_strides(parameter))
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

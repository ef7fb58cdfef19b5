"""RowGradients: gradients that hold some rows of a table alone, exchanged as those rows."""

from __future__ import annotations

import weakref
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.autograd import Variable
from torch.optim import SGD, Adagrad, Optimizer, SparseAdam

from mpisparse import wire
from mpisparse.flat import FlatGradients, weakly
from mpisparse.kernels.anywhere import first_bad_entry, forgotten
from mpisparse.sparse import Indices, index_dtype
from mpisparse.wire import Expectation

Bytes = NDArray[np.uint8]
Matrix = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Table:
    """One parameter whose gradients hold some of its rows."""

    name: str
    parameter: Tensor
    bucket: int

    @property
    def height(self) -> int:
        """Return the number of rows."""
        return self.parameter.shape[0]

    @property
    def width(self) -> int:
        """Return the entries of a row."""
        return self.parameter.shape[1]


def row_sparse(optimizer: Optimizer, model: nn.Module) -> set[int]:
    """Return the ids of the parameters whose gradients are exchanged, and handed to the optimizer, as rows.

    Those are the trained weights of nn.Embedding and nn.EmbeddingBag with sparse=True that no other module shares, in
    parameter groups that take sparse gradients.
    """
    rows: set[int] = set()
    others: set[int] = set()
    for module in model.modules():
        sparse = isinstance(module, nn.Embedding | nn.EmbeddingBag) and module.sparse
        for _, parameter in module.named_parameters(recurse=False):
            (rows if sparse and parameter.is_floating_point() else others).add(id(parameter))
    taken = {
        id(parameter)
        for group in optimizer.param_groups
        if _takes_rows(optimizer, group)
        for parameter in group["params"]
        if parameter.requires_grad
    }
    return (rows - others) & taken


def _takes_rows(optimizer: Optimizer, group: dict[str, object]) -> bool:
    """Return True where torch's step changes, and remembers, nothing outside the rows of a sparse gradient.

    With weight decay it refuses sparse gradients, and a momentum would grow to the whole table.
    """
    if isinstance(optimizer, SparseAdam):
        return True
    plain = type(optimizer) in (SGD, Adagrad) and not group.get("fused")
    return plain and not group.get("weight_decay") and not group.get("momentum")


class RowGradients:
    """The gradients of some parameters as rows: collected, averaged without loss, and handed back as sparse tensors.

    Surprises first:

    - Nothing is left out and nothing is rounded, whatever the rule and the wire, so there is nothing to remember.
    - All ranks add up the rows in rank order, so that they get the same bits: those of the mean of whole tables.
    - No array is as large as a table, unless a gradient holds all of its rows.
    - A dense gradient of such a parameter counts as its rows that are not zero.

    Args:
        named: the parameters, of two dimensions, with their names.
        flat: the other parameters' gradients, whose `fresh` tells of these, too. Their buckets are counted first.
    """

    def __init__(self, named: Iterable[tuple[str, Tensor]], flat: FlatGradients) -> None:
        first = len(flat.buckets)
        self.tables = tuple(Table(name, p, first + i) for i, (name, p) in enumerate(named))
        self.numel = sum(table.parameter.numel() for table in self.tables)
        self._flat = flat
        self._collected: list[tuple[Indices, Tensor]] = []
        self._means: list[tuple[Indices, Matrix]] = []
        self._marks: dict[int, tuple[int, int] | None] = {}
        #: What `publish` handed out, held so that nothing else has its place in memory, and its version.
        self._published: dict[int, tuple[Tensor, int]] = {}
        self._awaits_end = False
        hooks = [t.parameter.register_post_accumulate_grad_hook(weakly(self._finished)) for t in self.tables]  # type: ignore[no-untyped-call]
        #: Takes the hooks off the parameters; called when nobody uses this any more, at the latest.
        self.release = weakref.finalize(self, lambda: [hook.remove() for hook in hooks])
        self.release.atexit = False

    @torch.no_grad()
    def collect(self) -> NDArray[np.bool_]:
        """Take in every gradient, and return which parameters have one, bool of shape (len(tables),)."""
        self._collected = [_rows_of(table) for table in self.tables]
        return np.array([table.parameter.grad is not None for table in self.tables], bool)

    def first_bad_table(self) -> int | None:
        """Return the place of the first table whose collected gradient holds NaN or infinity, or None."""
        places = range(len(self._collected))
        return next((i for i in places if first_bad_entry(self._collected[i][1].view(-1).numpy()) is not None), None)

    def divide(self, scale: Tensor) -> None:
        """Divide what was collected, as by the scale of a GradScaler."""
        for _, values in self._collected:
            values /= scale.to(values)

    def weigh(self, share: float) -> None:
        """Multiply what was collected by this rank's weight in the mean."""
        for _, values in self._collected:
            values *= share

    def values(self) -> list[Tensor]:
        """Return the entries that were collected, not copies."""
        return [values for _, values in self._collected]

    def encode(self, step: int, rank: int) -> list[Bytes]:
        """Return this rank's messages, one a table.

        Raises:
            WireError: one is longer than the format can say.
        """
        return [
            wire.encode_rows(rows, values.numpy(), table.height, step=step, bucket=table.bucket, rank=rank)
            for table, (rows, values) in zip(self.tables, self._collected, strict=True)
        ]

    def decode(self, table: Table, message: Bytes, step: int, rank: int) -> tuple[Indices, Matrix]:
        """Return the rows that a rank sent of a table, and their entries.

        Raises:
            WireError: the message is damaged, truncated, stale or foreign.
        """
        expected = Expectation(step, table.bucket, rank, table.parameter.numel())
        return wire.decode_rows(message, table.width, table.height, expected)

    def keep_means(self, means: list[tuple[Indices, Matrix]]) -> None:
        """Take the mean of each table's rows, for `publish`."""
        self._means, self._collected = means, []

    def square(self) -> float:
        """Return the squared norm of what was collected."""
        return sum(_square(values) for _, values in self._collected)

    @torch.no_grad()
    def publish(self, present: NDArray[np.bool_]) -> None:
        """Hand every parameter its mean as `p.grad`, coalesced and sparse, or None where no rank had a gradient."""
        for table, (rows, values), there in zip(self.tables, self._means, present, strict=True):
            frozen = not table.parameter.requires_grad
            table.parameter.grad = None if frozen or not there else _sparse(table, rows, values)
        self._means = []
        self._note_published()

    def clear(self) -> None:
        """Set every gradient to None, as `zero_grad` does."""
        for table in self.tables:
            table.parameter.grad = None

    @torch.no_grad()
    def square_of_gradients(self) -> float:
        """Return the squared norm of the gradients as they are now, the same bits on any number of threads."""
        return sum(_square(_rows_of(table)[1]) for table in self.tables)

    @torch.no_grad()
    def scale(self, factor: float) -> None:
        """Multiply the gradients as they are now."""
        for table in self.tables:
            if table.parameter.grad is not None:
                table.parameter.grad *= factor
        self._note_published()

    def versions(self) -> list[tuple[int, int]]:
        """Return for each parameter what changes when it is changed in place, or gets other memory."""
        return [(table.parameter.data_ptr(), table.parameter._version) for table in self.tables]

    def holds_unaveraged(self) -> bool:
        """Return True when there is a gradient that `publish` did not hand out, or that was changed since."""
        grads = [(place, table.parameter.grad) for place, table in enumerate(self.tables)]
        return any(grad is not None and not self._is_published(place, grad) for place, grad in grads)

    def changed(self, cleared: bool = True) -> bool:
        """Return True when a gradient was replaced or changed in place after backward had finished it.

        Args:
            cleared: whether one that was set to None counts.
        """
        now = {place: _mark(self.tables[place].parameter) for place in self._marks}
        return any(now[place] != mark and (cleared or now[place] is not None) for place, mark in self._marks.items())

    def forget(self) -> None:
        """Begin a step: no backward pass has finished a gradient in it."""
        self._marks, self._awaits_end = {}, False

    def _finished(self, parameter: Tensor) -> None:
        """Note that autograd has finished a gradient."""
        self._flat.fresh = True
        place = next(i for i, table in enumerate(self.tables) if table.parameter is parameter)
        self._marks[place] = _mark(parameter)
        if not self._awaits_end:
            # Hooks of users that come after this one are part of backward, too.
            self._awaits_end = True
            Variable._execution_engine.queue_callback(self._backward_ended)

    def _backward_ended(self) -> None:
        self._awaits_end = False
        self._marks = {place: _mark(self.tables[place].parameter) for place in self._marks}

    def _note_published(self) -> None:
        grads = {place: table.parameter.grad for place, table in enumerate(self.tables)}
        self._published = {place: (grad, grad._version) for place, grad in grads.items() if grad is not None}

    def _is_published(self, place: int, grad: Tensor) -> bool:
        ours = self._published.get(place)
        return ours is not None and ours[0] is grad and ours[1] == grad._version


def mean_rows(parts: list[tuple[Indices, Matrix]]) -> tuple[Indices, Matrix]:
    """Return the rows that any rank has, rising, and the sum over ranks in rank order by the number of ranks.

    Args:
        parts: each rank's rows, strictly rising, and their entries.
    """
    rows, places = np.unique(np.concatenate([rows for rows, _ in parts]), return_inverse=True)
    total = np.zeros((rows.size, parts[0][1].shape[1]), np.float32)
    start = 0
    for theirs, values in parts:
        # A rank has a row once, so that no addition is lost here.
        total[places[start : start + theirs.size]] += values
        start += theirs.size
    total /= len(parts)
    return rows, total


def _rows_of(table: Table) -> tuple[Indices, Tensor]:
    """Return which rows of a table a gradient holds, and a copy of them in float32 on the host."""
    grad, kind = table.parameter.grad, index_dtype(table.height)
    if grad is None:
        return np.empty(0, kind), torch.empty((0, table.width), dtype=torch.float32, device="cpu")
    if grad.is_sparse and grad.sparse_dim() == 1:
        grad = grad.coalesce()
        rows, values = grad.indices()[0], grad.values()
    else:
        whole = grad.to_dense() if grad.is_sparse else grad
        rows = torch.nonzero((whole != 0).any(dim=1)).view(-1)
        values = whole[rows]
    # A copy: it is divided and weighed in place.
    host = values.detach().to("cpu", torch.float32, copy=True).contiguous()
    return rows.cpu().numpy().astype(kind), host


def _sparse(table: Table, rows: Indices, values: Matrix) -> Tensor:
    """Return rows as a coalesced sparse tensor of the parameter's shape, type and device."""
    parameter = table.parameter
    places = torch.from_numpy(rows.astype(np.int64)).view(1, -1).to(parameter.device)
    entries = torch.from_numpy(values).to(parameter.device, parameter.dtype)
    return torch.sparse_coo_tensor(places, entries, parameter.shape, is_coalesced=True, check_invariants=False)


def _square(values: Tensor) -> float:
    return float(forgotten(values.view(-1).numpy()).square()) if values.numel() else 0.0


def _mark(parameter: Tensor) -> tuple[int, int] | None:
    grad = parameter.grad
    return None if grad is None else (id(grad), grad._version)

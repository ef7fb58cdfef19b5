"""Tensors of every kind that models and optimizers hold: whether they can be replicated, and their bits."""

from __future__ import annotations

import io

import torch
from torch import Tensor
from torch.nn.parameter import is_lazy

from mpisparse.errors import ConfigError
from mpisparse.kernels.checksum import checksum

_ROWS = (torch.sparse_csr, torch.sparse_bsr)
_COLUMNS = (torch.sparse_csc, torch.sparse_bsc)
_LAYOUTS = (torch.strided, torch.sparse_coo, *_ROWS, *_COLUMNS)


def refuse_unusable(what: str, tensor: object, trained: bool = False) -> None:
    """Raise ConfigError for what cannot be given to all ranks, or not be trained.

    Args:
        what: such as "parameter weight".
        tensor: a parameter or a buffer, or whatever lies in the place of one.
        trained: whether its gradient is to be exchanged.
    """
    if not isinstance(tensor, Tensor):
        raise ConfigError(f"{what} is a {type(tensor).__name__}: register_buffer takes tensors, so make it one")
    if is_lazy(tensor):
        raise ConfigError(
            f"{what} is lazy and has no shape before the first forward pass: run the model on one batch, on every "
            "rank, before it is wrapped"
        )
    if tensor.is_meta:
        raise ConfigError(
            f"{what} lies on the meta device and holds no values: call model.to_empty(device=...) and initialise it, "
            "or load a state, before it is wrapped"
        )
    if tensor.is_nested or tensor.layout not in _LAYOUTS:
        kind = "a nested tensor" if tensor.is_nested else f"of layout {tensor.layout}"
        raise ConfigError(f"{what} is {kind}, which cannot be sent to other ranks: keep it as plain tensors")
    if trained and tensor.layout != torch.strided:
        raise ConfigError(
            f"{what} is of layout {tensor.layout}, and sparse parameters cannot be trained here: keep it dense "
            "(gradients may be sparse, as those of nn.Embedding(sparse=True)), or freeze it by requires_grad_(False)"
        )
    if trained and expanded(tensor):
        raise ConfigError(
            f"{what} is expanded: several of its entries share one place in memory, and no optimizer can change them: "
            "make it a parameter after .clone(), or expand a smaller parameter in forward()"
        )


def expanded(tensor: Tensor) -> list[int]:
    """Return the dimensions along which all entries of a tensor lie in one place, as `expand` makes them."""
    if tensor.layout != torch.strided or tensor.numel() == 0 or tensor.is_quantized:
        return []
    return [d for d, (size, stride) in enumerate(zip(tensor.shape, tensor.stride(), strict=True)) if size > 1 > stride]


def describe(name: str, tensor: Tensor) -> str:
    """Return a line that is the same for tensors that can take each other's values, entry by entry as they lie."""
    unusual = [] if tensor.layout == torch.strided else [str(tensor.layout)]
    unusual += [f"strides {tensor.stride()}"] if is_plain(tensor) and not tensor.is_contiguous() else []
    unusual += [] if tensor.requires_grad else ["fixed"]
    return " ".join([f"{name}: {tuple(tensor.shape)} {tensor.dtype}", *unusual])


def is_plain(tensor: Tensor) -> bool:
    """Return True when a tensor is its entries, one after the other, and nothing else."""
    return tensor.layout == torch.strided and not tensor.is_quantized


def on_host(tensor: Tensor) -> Tensor:
    """Return a copy of a plain tensor on the host, of one dimension and contiguous, lazy signs applied."""
    return tensor.detach().to("cpu", copy=True).resolve_conj().resolve_neg().contiguous().reshape(-1)


@torch.no_grad()
def fill(tensor: Tensor, values: Tensor) -> None:
    """Give a tensor the values of another of the same kind and shape."""
    for dimension in expanded(tensor):
        tensor, values = tensor.narrow(dimension, 0, 1), values.narrow(dimension, 0, 1)
    if tensor.layout in (*_ROWS, *_COLUMNS):
        tensor.resize_as_sparse_(values)
    tensor.copy_(values)


def packed(tensor: Tensor) -> bytes:
    """Return a tensor of any kind as bytes."""
    buffer = io.BytesIO()
    torch.save(tensor.detach().cpu(), buffer)
    return buffer.getvalue()


def unpacked(payload: bytes) -> Tensor:
    """Return the tensor that `packed` wrote."""
    tensor: Tensor = torch.load(io.BytesIO(payload), weights_only=True)
    return tensor


def bits_of(tensor: Tensor) -> int:
    """Return a checksum of 64 bits of a tensor of any kind, on any device."""
    sums = [checksum(on_host(part).view(torch.uint8).numpy()) for part in _parts(tensor)]
    return sums[0] if len(sums) == 1 else hash(tuple(sums)) % 2**64


def _parts(tensor: Tensor) -> list[Tensor]:
    """Return plain tensors that hold the values of one of any kind."""
    if tensor.is_meta or tensor.is_nested or tensor.layout not in _LAYOUTS:
        return []
    if tensor.is_quantized:
        if tensor.qscheme() in (torch.per_tensor_affine, torch.per_tensor_symmetric):
            scale = torch.tensor([tensor.q_scale(), float(tensor.q_zero_point())], dtype=torch.float64, device="cpu")
            return [tensor.int_repr(), scale]
        return [tensor.int_repr(), tensor.q_per_channel_scales(), tensor.q_per_channel_zero_points()]
    if tensor.layout == torch.sparse_coo:
        tensor = tensor.detach().coalesce()
        return [tensor.indices(), tensor.values()]
    if tensor.layout in _ROWS:
        return [tensor.crow_indices(), tensor.col_indices(), tensor.values()]
    if tensor.layout in _COLUMNS:
        return [tensor.ccol_indices(), tensor.row_indices(), tensor.values()]
    return [tensor]

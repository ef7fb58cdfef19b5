"""Models whose parameters and buffers are unusual: rank 0's values come to all ranks, or one line says why not."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import Tensor, nn

import mpisparse as ms
from mpisparse.comm import run_ranks, solo
from mpisparse.tensors import bits_of

#: torch warns that some of these kinds are new, and others old.
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")


def dense(x: float) -> Tensor:
    return torch.tensor([[0.0, x, 0.0], [2.0, 0.0, x * (x > 1)]])  # the number of entries depends on x, too


#: Makers of a buffer's value on a rank.
BUFFERS: dict[str, Callable[[float], Tensor]] = {
    "plain": dense,
    "sparse COO": lambda x: dense(x).to_sparse(),
    "sparse COO not coalesced": lambda x: torch.sparse_coo_tensor(torch.tensor([[0, 0]]), torch.tensor([x, 1.0]), (2,)),
    "sparse COO with dense dimensions": lambda x: torch.eye(3).mul(x).to_sparse(1),
    "sparse CSR": lambda x: dense(x).to_sparse_csr(),
    "sparse CSC": lambda x: dense(x).to_sparse_csc(),
    "sparse BSR": lambda x: dense(x).to_sparse_bsr((1, 3)),
    "expanded": lambda x: torch.tensor([x]).expand(3, 4),
    "expanded in one dimension": lambda x: torch.tensor([[x], [1.0]]).expand(2, 4),
    "transposed": lambda x: dense(x).T,
    "every other": lambda x: torch.full((6,), x)[::2],
    "quantized": lambda x: torch.quantize_per_tensor(torch.tensor([x, 1.0]), 0.1 * x, 3, torch.qint8),
    "quantized by channel": lambda x: torch.quantize_per_channel(
        torch.full((2, 3), x), torch.tensor([0.1, 0.2 * x]), torch.tensor([0, 1]), 0, torch.quint8
    ),
    "complex": lambda x: torch.tensor([1j * x, 2.0]),
    "conjugate": lambda x: torch.tensor([1j * x, 2.0]).conj(),
    "bool": lambda x: torch.tensor([x > 1, True]),
    "integers": lambda x: torch.tensor(int(x)),
    "float8": lambda x: torch.tensor([x, 2.0]).to(torch.float8_e4m3fn),
    "empty": lambda x: torch.zeros(0, 3),
    "expanded and empty": lambda x: torch.zeros(1, 0).expand(3, 0),
}


def same(one: Tensor, other: Tensor) -> bool:
    """Return True when two tensors hold the same values, whatever their layout."""
    if one.is_quantized:
        return torch.equal(one, other)
    one, other = (t.to_dense() if t.layout != torch.strided else t for t in (one, other))
    return one.shape == other.shape and one.dtype == other.dtype and one.tolist() == other.tolist()


@pytest.mark.parametrize("kind", BUFFERS)
@pytest.mark.parametrize("size", [1, 3])
def test_a_buffer_of_any_kind_is_rank_zeros_on_all_ranks(kind: str, size: int) -> None:
    def one(comm: ms.Communicator) -> tuple[Tensor, int]:
        net = nn.Linear(4, 2)
        net.register_buffer("odd", BUFFERS[kind](float(comm.rank + 1)))
        optimizer = ms.DistributedOptimizer(torch.optim.SGD(net.parameters(), lr=0.1), net, comm=comm)
        net(torch.ones(2, 4)).sum().backward()
        optimizer.step()
        assert isinstance(net.odd, Tensor)
        return net.odd, bits_of(net.odd)

    found = run_ranks(size, one)
    for odd, bits in found:
        assert same(odd, BUFFERS[kind](1.0))
        assert bits == found[0][1]
    if size > 1 and "empty" not in kind:
        assert bits_of(BUFFERS[kind](1.0)) != bits_of(BUFFERS[kind](2.0))


class Lazy(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm = nn.LazyLinear(3), nn.LazyBatchNorm1d()


def with_buffer(buffer: Callable[[], object]) -> Callable[[], nn.Module]:
    def make() -> nn.Module:
        net = nn.Linear(4, 2)
        net._buffers["odd"] = buffer()  # type: ignore[assignment]
        return net

    return make


def with_parameter(make: Callable[[], Tensor], *, trained: bool = True) -> Callable[[], nn.Module]:
    def made() -> nn.Module:
        net = nn.Linear(4, 2)
        net.register_parameter("odd", nn.Parameter(make(), requires_grad=trained))
        return net

    return made


REFUSED: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "lazy": (Lazy, r"parameter first\.weight is lazy .* run the model on one batch"),
    "lazy buffer": (lambda: nn.Sequential(nn.Linear(2, 2), nn.LazyBatchNorm1d(affine=False)), r"buffer 1\.\w+ is lazy"),
    "meta": (lambda: nn.Linear(3, 3, device="meta"), r"parameter weight lies on the meta device .*to_empty"),
    "meta buffer": (with_buffer(lambda: torch.ones(3, device="meta")), "buffer odd lies on the meta device"),
    "no tensor": (with_buffer(lambda: 3), "buffer odd is a int"),
    "nested buffer": (
        with_buffer(lambda: torch.nested.nested_tensor([torch.ones(2), torch.ones(3)])),
        "buffer odd is a nested tensor",
    ),
    "nested": (
        with_parameter(lambda: torch.nested.nested_tensor([torch.ones(2), torch.ones(3)])),
        "parameter odd is a nested tensor",
    ),
    "sparse": (
        with_parameter(lambda: torch.eye(3).to_sparse()),
        r"parameter odd is of layout .*keep it dense",
    ),
    "expanded": (with_parameter(lambda: torch.ones(1).expand(3, 4)), r"parameter odd is expanded: .*clone"),
    "complex": (with_parameter(lambda: torch.ones(3, 3, dtype=torch.complex64)), "odd is torch.complex64"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_a_part_that_cannot_be_replicated_is_named(kind: str) -> None:
    make, words = REFUSED[kind]
    net = make()
    with pytest.raises(ms.ConfigError, match=words) as got:
        ms.DistributedOptimizer(torch.optim.SGD(net.parameters(), lr=0.1), net, comm=solo())
    assert "\n" not in str(got.value)


def test_one_that_only_one_rank_has_is_named_on_all() -> None:
    def one(comm: ms.Communicator) -> None:
        net = Lazy() if comm.rank == 1 else nn.Linear(2, 2)
        with pytest.raises(ms.ConfigError, match=r"^rank 1 of 2: parameter first\.weight is lazy"):
            ms.DistributedOptimizer(torch.optim.SGD(net.parameters(), lr=0.1), net, comm=comm)

    run_ranks(2, one)


def test_a_buffer_that_one_rank_has_expanded_is_a_difference() -> None:
    def one(comm: ms.Communicator) -> None:
        net = with_buffer(lambda: torch.ones(1).expand(3) if comm.rank else torch.arange(3.0))()
        with pytest.raises(ms.RankMismatchError, match=r"odd: \(3,\) .* strides \(0,\) fixed on rank 1"):
            ms.DistributedOptimizer(torch.optim.SGD(net.parameters(), lr=0.1), net, comm=comm)

    run_ranks(2, one)


def trained(comm: ms.Communicator, rule: ms.TopK | None, layout: ms.Layout) -> list[Tensor]:
    net, generator = Tied(), torch.Generator().manual_seed(comm.rank)
    with torch.no_grad():
        for parameter in net.parameters():
            if parameter.layout == torch.strided:
                parameter.copy_(torch.randn(parameter.shape, generator=generator))
    optimizer = ms.DistributedOptimizer(
        torch.optim.SGD(net.parameters(), lr=0.001), net, sparsifier=rule, layout=layout, comm=comm, check_replicas=1
    )
    for step in range(3):
        optimizer.zero_grad()
        net(torch.full((2, 4), 0.1 * (comm.rank + step))).square().mean().backward()
        optimizer.step()
    return [p.detach().clone() for p in net.parameters()]


class Tied(nn.Module):
    """Tied weights, a parameter without entries, a parametrized and a frozen sparse one."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.utils.parametrizations.weight_norm(nn.Linear(4, 4))
        self.nothing = nn.Parameter(torch.zeros(0, 5))
        self.no_vector = nn.Parameter(torch.zeros(0))
        self.second, self.third = nn.Linear(4, 4), nn.Linear(4, 4)
        self.third.weight = self.second.weight
        self.mask = nn.Parameter(torch.eye(4).to_sparse(), requires_grad=False)

    def forward(self, inputs: Tensor) -> Tensor:
        hidden = torch.sparse.mm(self.mask, self.third(self.second(self.first(inputs))).T).T
        outputs: Tensor = hidden + self.nothing.sum() + self.no_vector.sum()
        return outputs


@pytest.mark.parametrize("granularity", ["model", "tensor"])
def test_tied_empty_parametrized_and_frozen_parameters_train_alike_on_all_ranks(granularity: str) -> None:
    layout = ms.Layout(granularity)  # type: ignore[arg-type]
    for rule in (None, ms.TopK(0.3)):
        first, *others = run_ranks(3, partial(trained, rule=rule, layout=layout))
        for other in others:
            assert all(same(a, b) for a, b in zip(first, other, strict=True))
        assert any(bool(t.any()) for t in first if t.layout == torch.strided and t.numel())


def test_a_model_whose_only_parameter_is_empty_can_be_wrapped() -> None:
    net = nn.ParameterList([nn.Parameter(torch.zeros(0, 3))])
    optimizer = ms.DistributedOptimizer(torch.optim.SGD(net.parameters(), lr=0.1), net, comm=solo())
    net[0].sum().backward()
    optimizer.step()
    assert optimizer.exchange.step == 1

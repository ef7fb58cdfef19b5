"""FlatGradients: where parameters lie, and what is selected from as one."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from mpisparse.errors import ConfigError
from mpisparse.flat import FlatGradients, Layout


def model() -> nn.Sequential:
    return nn.Sequential(nn.Linear(10, 20), nn.LayerNorm(20), nn.Linear(20, 5), nn.Linear(5, 2))


def places(layout: Layout) -> list[tuple[int, int, bool]]:
    flat = FlatGradients(model().named_parameters(), layout)
    assert [bucket.index for bucket in flat.buckets] == list(range(len(flat.buckets)))
    return [(bucket.start, bucket.stop, bucket.dense) for bucket in flat.buckets]


def test_matrices_come_first_and_vectors_go_dense_together() -> None:
    flat = FlatGradients(model().named_parameters(), Layout())
    assert [slot.name for slot in flat.slots[:3]] == ["0.weight", "2.weight", "3.weight"]
    assert flat.sparse_numel == 310
    assert [(slot.start, slot.stop) for slot in flat.slots[:3]] == [(0, 200), (200, 300), (300, 310)]
    assert flat.buffer.numel() == sum(p.numel() for p in model().parameters())
    assert flat.where(205) == "2.weight"


@pytest.mark.parametrize(
    ("layout", "expected"),
    [
        (Layout(), [(0, 310, False), (310, 377, True)]),
        (Layout(granularity="tensor"), [(0, 200, False), (200, 300, False), (300, 310, False), (310, 377, True)]),
        (
            Layout(granularity="bucket", bucket_mib=120 * 4 / 2**20),
            [(0, 200, False), (200, 310, False), (310, 377, True)],
        ),
        (
            Layout(granularity="bucket", bucket_mib=300 * 4 / 2**20),
            [(0, 300, False), (300, 310, False), (310, 377, True)],
        ),
        (Layout(dense_vectors=False), [(0, 377, False)]),
        (Layout(dense_below=150), [(0, 200, False), (200, 377, True)]),
        (Layout(dense_below=10**6), [(0, 377, True)]),
    ],
)
def test_buckets_follow_the_layout(layout: Layout, expected: list[tuple[int, int, bool]]) -> None:
    assert places(layout) == expected


def test_gradients_land_in_their_slices_once_they_are_final() -> None:
    net = model()
    flat = FlatGradients(net.named_parameters(), Layout())
    net(torch.randn(4, 10)).square().sum().backward()
    expected = [p.grad.clone() for p in net.parameters() if p.grad is not None]
    present = flat.collect()
    assert present.all()
    for slot in flat.slots:
        assert slot.parameter.grad is not None
        assert slot.parameter.grad.data_ptr() == flat.buffer[slot.start :].data_ptr()
    assert all(torch.equal(a, p.grad) for a, p in zip(expected, net.parameters(), strict=True) if p.grad is not None)


def test_a_slice_without_a_gradient_is_zeroed() -> None:
    net = model()
    flat = FlatGradients(net.named_parameters(), Layout())
    flat.buffer.fill_(7.0)
    next(iter(net.parameters())).grad = torch.ones(20, 10)
    present = flat.collect()
    assert present.tolist() == [slot.name == "0.weight" for slot in flat.slots]
    assert flat.buffer.sum() == 200


def test_options_that_make_no_sense_are_refused() -> None:
    with pytest.raises(ConfigError, match="granularity 'layer'"):
        Layout(granularity="layer")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="bucket_mib"):
        Layout(bucket_mib=0)

"""A state tree comes back from its file exactly as it was, and what would not is refused by name."""

from __future__ import annotations

import collections
import datetime
import enum
import errno
import itertools
import math
import os
import random
import resource
import struct
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import h5py
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mpisparse.checkpoint import read_tree, write_tree
from mpisparse.checkpoint.arrays import CARRIERS, NUMPY_DTYPES
from mpisparse.checkpoint.hdf5 import CHUNK_BYTES, chunk_shape
from mpisparse.errors import CheckpointError

TORCH_DTYPES = sorted(name for name in CARRIERS if hasattr(torch, name))
SHAPES = [(), (0,), (1,), (5,), (2, 0, 3), (2, 3, 4), (1,) * 33, (2,) * 6 + (1,) * 27, (300_001,), (3, 100_003)]


def bits(value: float) -> bytes:
    return struct.pack(">d", value)


def tensor_bits(tensor: torch.Tensor) -> bytes:
    plain = torch.view_as_real(tensor) if tensor.is_complex() else tensor
    return plain.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


def same(first: Any, second: Any) -> bool:
    """Return whether two trees are equal in type, value, order, dtype and shape, down to the bits of every NaN."""
    if type(first) is not type(second):
        return False
    if isinstance(first, dict):
        items = zip(first.items(), second.items(), strict=False)
        if type(first) is OrderedDict and not same(vars(first), vars(second)):
            return False
        return len(first) == len(second) and all(same(a, b) and same(x, y) for (a, x), (b, y) in items)
    if isinstance(first, (list, tuple)):
        return len(first) == len(second) and all(same(a, b) for a, b in zip(first, second, strict=True))
    if isinstance(first, torch.Tensor):
        alike = first.dtype == second.dtype and first.shape == second.shape
        return alike and tensor_bits(first) == tensor_bits(second)
    if isinstance(first, (np.ndarray, np.generic)):
        return bool(first.dtype == second.dtype and first.shape == second.shape and first.tobytes() == second.tobytes())
    equal: bool = bits(first) == bits(second) if isinstance(first, float) else first == second
    return equal


def there_and_back(tree: Any) -> Any:
    with TemporaryDirectory() as directory:
        path = Path(directory) / "state.h5"
        write_tree(path, tree)
        return read_tree(path)


def random_tensor(name: str, shape: tuple[int, ...]) -> torch.Tensor:
    """Return a tensor of arbitrary bits, NaNs with payloads among them."""
    dtype: torch.dtype = getattr(torch, name)
    if dtype == torch.bool:
        return torch.randint(0, 2, shape).bool()
    raw = torch.randint(0, 256, (math.prod(shape) * dtype.itemsize,), dtype=torch.uint8)
    return raw.view(dtype).reshape(shape)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_tensors_of_every_dtype_come_back_bit_for_bit(shape: tuple[int, ...]) -> None:
    torch.manual_seed(1)
    tree = {name: random_tensor(name, shape) for name in TORCH_DTYPES}
    assert "bfloat16" in tree
    assert same(there_and_back(tree), tree)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_numpy_arrays_of_every_dtype_come_back_bit_for_bit(shape: tuple[int, ...]) -> None:
    tree = {name: random_tensor(name, shape).numpy() for name in sorted(NUMPY_DTYPES)}
    assert same(there_and_back(tree), tree)


def test_numpy_scalars_come_back_as_scalars() -> None:
    tree = [np.dtype(name).type(1) for name in sorted(NUMPY_DTYPES)] + [np.float32("nan"), np.float64("-inf")]
    assert same(there_and_back(tree), tree)


def test_strided_and_lazy_tensors_come_back_by_value() -> None:
    base = torch.arange(24.0).reshape(2, 3, 4)
    strided = [base.transpose(0, 2), base[:, ::2], base[1, 1, 1], base.expand(5, 2, 3, 4), base[:, :0]]
    complex_ = torch.complex(base, -base)
    lazy = [complex_.conj(), complex_.conj().imag, torch.ones(3, requires_grad=True) * 2]
    expected = [tensor.detach().resolve_conj().resolve_neg().contiguous() for tensor in strided + lazy]
    restored = there_and_back(strided + lazy)
    assert same(restored, expected)
    assert not any(tensor.requires_grad for tensor in restored)


def test_restored_arrays_can_be_written_to() -> None:
    restored = there_and_back({"tensor": torch.zeros(3), "array": np.zeros(3), "none": np.zeros(0)})
    restored["tensor"] += 1
    restored["array"] += 1
    assert restored["tensor"].tolist() == restored["array"].tolist() == [1.0, 1.0, 1.0]


# A whole state, as torch makes it -------------------------------------------------------------------------------------


def make_training(name: str) -> tuple[torch.nn.Module, torch.optim.Optimizer]:
    torch.manual_seed(3)
    model = torch.nn.Sequential(torch.nn.Linear(4, 6), torch.nn.BatchNorm1d(6), torch.nn.Linear(6, 2))
    if name == "adam":
        return model, torch.optim.Adam(model.parameters(), lr=0.01)
    return model, torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, nesterov=True)


def train(model: torch.nn.Module, optimizer: torch.optim.Optimizer, steps: range) -> None:
    for step in steps:
        generator = torch.Generator().manual_seed(step)
        optimizer.zero_grad()
        model(torch.randn(8, 4, generator=generator)).square().sum().backward()
        optimizer.step()


@pytest.mark.parametrize("name", ["sgd", "adam"])
def test_training_goes_on_from_a_restored_state_bit_for_bit(name: str) -> None:
    model, optimizer = make_training(name)
    train(model, optimizer, range(4))
    state = {"model": model.state_dict(), "optimizer": optimizer.state_dict()}
    restored = there_and_back(state)
    assert same(restored, state)
    train(model, optimizer, range(4, 8))

    fresh, its_optimizer = make_training(name)
    fresh.load_state_dict(restored["model"])
    its_optimizer.load_state_dict(restored["optimizer"])
    train(fresh, its_optimizer, range(4, 8))
    assert same(fresh.state_dict(), model.state_dict())
    assert same(its_optimizer.state_dict(), optimizer.state_dict())


def test_layer_versions_of_a_state_dict_are_kept() -> None:
    state = torch.nn.BatchNorm1d(3).state_dict()
    restored = there_and_back(state)
    assert type(restored) is OrderedDict
    assert vars(restored)["_metadata"] == vars(state)["_metadata"] != {}


def test_random_states_and_schedules_come_back() -> None:
    optimizer = make_training("sgd")[1]
    schedules: list[Any] = [
        torch.optim.lr_scheduler.MultiStepLR(optimizer, [2, 2, 5]),
        torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 7),
        torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.1, total_steps=9, cycle_momentum=False),
    ]
    state = {
        "torch": torch.get_rng_state(),
        "numpy": np.random.Generator(np.random.Philox(5)).bit_generator.state,
        "pcg": np.random.Generator(np.random.PCG64(5)).bit_generator.state,
        "python": random.Random(5).getstate(),
        "schedules": [schedule.state_dict() for schedule in schedules if "anneal_func" not in schedule.__dict__],
        "counter": Counter({3: 2, 1: 0}),
    }
    assert same(there_and_back(state), state)


# Any tree -------------------------------------------------------------------------------------------------------------

EXACT = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.integers(-(2**200), 2**200),
    st.sampled_from([2**63, 2**64 - 1, 2**64, -(2**63), -(2**63) - 1]),
    st.floats(),
    st.binary(min_size=8, max_size=8).map(lambda raw: float(struct.unpack(">d", raw)[0])),
    st.text(),
    st.binary(),
    st.sampled_from(TORCH_DTYPES).map(lambda name: random_tensor(name, (3,))),
    st.sampled_from(sorted(NUMPY_DTYPES)).map(lambda name: random_tensor(name, (2, 1)).numpy()),
)
KEYS = st.one_of(st.text(), st.integers(-3, 3), st.sampled_from(["0", "1", "dict", "tensor", "a/b", ".", ""]))
TREES = st.recursive(
    EXACT,
    lambda inner: st.one_of(
        st.lists(inner, max_size=4),
        st.lists(inner, max_size=4).map(tuple),
        st.dictionaries(KEYS, inner, max_size=4),
        st.dictionaries(KEYS, inner, max_size=4).map(OrderedDict),
    ),
    max_leaves=12,
)


@given(TREES)
@settings(max_examples=60)
def test_any_tree_comes_back_exactly(tree: Any) -> None:
    assert same(there_and_back(tree), tree)


@pytest.mark.parametrize("payload", ["7ff8000000000001", "fff8000000000000", "7ff0000000000001", "8000000000000000"])
def test_floats_keep_their_bits(payload: str) -> None:
    (value,) = struct.unpack(">d", bytes.fromhex(payload))
    assert bits(there_and_back({"x": value})["x"]).hex() == payload


def test_equal_trees_give_equal_bytes(tmp_path: Path) -> None:
    for name in ("first.h5", "second.h5"):
        write_tree(tmp_path / name, {"a": torch.arange(1000.0), "b": [1, "two"]})
    assert (tmp_path / "first.h5").read_bytes() == (tmp_path / "second.h5").read_bytes()


def test_all_that_the_file_holds_is_plain_checksummed_numbers(tmp_path: Path) -> None:
    tree = {name: random_tensor(name, (7,)) for name in TORCH_DTYPES}
    write_tree(tmp_path / "state.h5", {**tree, "bytes": b"\x80\x04.", "text": "é"})
    with h5py.File(tmp_path / "state.h5", "r") as file:
        datasets = [file["structure"], *file["arrays"].values()]
        assert len(datasets) == 1 + len(tree)
        assert all(dataset.dtype.kind in "iuf" and dataset.fletcher32 for dataset in datasets)
        assert not any(dataset.compression or len(dataset.attrs) for dataset in datasets)
        assert file["arrays"][f"{TORCH_DTYPES.index('bfloat16'):06d}.bfloat16"].dtype == np.uint16


@given(st.lists(st.integers(1, 10**7), min_size=1, max_size=5).map(tuple), st.sampled_from([1, 2, 4, 8]))
def test_chunks_fit_a_mebibyte_and_waste_little(shape: tuple[int, ...], itemsize: int) -> None:
    chunk = chunk_shape(shape, itemsize)
    assert all(1 <= step <= length for step, length in zip(chunk, shape, strict=True))
    assert math.prod(chunk) * itemsize <= CHUNK_BYTES
    padded = math.prod(-(-length // step) * step for step, length in zip(chunk, shape, strict=True))
    assert padded < 1.5 * math.prod(shape)
    assert math.prod(shape) * itemsize > CHUNK_BYTES or chunk == shape


# What is refused ------------------------------------------------------------------------------------------------------


class Color(enum.IntEnum):
    RED = 1


Pair = collections.namedtuple("Pair", "a b")
ITSELF: list[Any] = []
ITSELF.append(ITSELF)

REFUSED = {
    "a set": {1},
    "a frozenset": frozenset(),
    "a defaultdict": collections.defaultdict(list),
    "a Pair": Pair(1, 2),
    "a Size": torch.Size([1]),
    "a Parameter": torch.nn.Parameter(torch.zeros(1)),
    "a Color": Color.RED,
    "a dtype": torch.float32,
    "a Generator": torch.Generator(),
    "a bytearray": bytearray(b"x"),
    "a complex": 1j,
    "a function": there_and_back,
    "a MaskedArray": np.ma.masked_array([1], [True]),
    "a deque": collections.deque([1]),
    "a numpy object": np.array([{}], dtype=object),
    "a numpy <U1": np.array(["a"]),
    "a numpy |S1": np.array([b"a"]),
    "a numpy datetime64": np.datetime64("2020-01-01"),
    "a numpy [('a', '<f4')]": np.zeros(1, [("a", "<f4")]),
    "a numpy float128": np.zeros(1, np.longdouble),
    "a numpy >f4": np.zeros(1, ">f4"),
    "a tensor of layout torch.sparse_coo": torch.eye(2).to_sparse(),
    "a tensor on the meta device": torch.zeros(1, device="meta"),
    "a date": datetime.date(2020, 1, 1),
    "a string with half a surrogate pair": "\ud800",
    "an integer of": 10**5000,
    "a dict with the key 1.0": {1.0: 0},
    "a dict with the key True": {True: 0},
    "a dict with the key None": {None: 0},
    "a dict with the key (1, 2)": {(1, 2): 0},
    "a dict with the key <Color.RED": {Color.RED: 0},
}


@pytest.mark.parametrize("what", REFUSED)
def test_anything_else_is_refused_with_its_path(what: str, tmp_path: Path) -> None:
    tree = {"optimizer": {"state": {0: {"fine": torch.zeros(2), "foo": REFUSED[what]}}}}
    with pytest.raises(CheckpointError) as caught:
        write_tree(tmp_path / "state.h5", tree)
    assert f"optimizer.state.0.foo is {what}" in str(caught.value)
    assert not (tmp_path / "state.h5").exists()


@pytest.mark.parametrize("key", ["\udfff", 10**5000], ids=["surrogate", "huge"])
def test_keys_that_cannot_be_written_are_refused(key: str | int, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"half a surrogate pair|an integer of"):
        write_tree(tmp_path / "state.h5", {"model": {key: 1}})


def test_a_tree_that_holds_itself_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="nested deeper than 100 levels"):
        write_tree(tmp_path / "state.h5", {"loop": ITSELF})


def test_attributes_of_an_ordered_dict_are_not_lost_in_silence(tmp_path: Path) -> None:
    tree = OrderedDict(a=1)
    vars(tree)["note"] = "kept nowhere"
    with pytest.raises(CheckpointError, match="attribute note"):
        write_tree(tmp_path / "state.h5", tree)


def test_nesting_up_to_the_limit_comes_back() -> None:
    tree: Any = 1
    for _ in range(100):
        tree = {"x": tree}
    assert same(there_and_back(tree), tree)


# The disk -------------------------------------------------------------------------------------------------------------


def test_an_existing_file_is_left_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "state.h5"
    path.write_bytes(b"precious")
    with pytest.raises(CheckpointError, match=r"state\.h5 cannot be written to .*: File exists"):
        write_tree(path, {"a": 1})
    assert path.read_bytes() == b"precious"


@pytest.mark.parametrize("limit", [0, 100, 5_000, 1_500_000, 2_000_000])
def test_a_disk_that_fills_up_is_an_error_that_leaves_nothing_open(limit: int, tmp_path: Path) -> None:
    tree = {"large": torch.rand(500_000), "small": [torch.ones(3) for _ in range(50)], "last": torch.rand(20_000)}
    before = h5py.h5f.get_obj_count(h5py.h5f.OBJ_ALL, h5py.h5f.OBJ_FILE | h5py.h5f.OBJ_DATASET)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limits[1]))
    try:
        with pytest.raises(CheckpointError, match=r"state\.h5 cannot be written to .*: File too large$"):
            write_tree(tmp_path / "state.h5", tree)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert h5py.h5f.get_obj_count(h5py.h5f.OBJ_ALL, h5py.h5f.OBJ_FILE | h5py.h5f.OBJ_DATASET) == before
    with pytest.raises(CheckpointError, match=r"state\.h5"):
        read_tree(tmp_path / "state.h5")


@contextmanager
def patched_writes(patch: pytest.MonkeyPatch, write: Callable[..., int]) -> Iterator[None]:
    with patch.context() as inner:
        inner.setattr(os, "pwrite", write)
        yield


def test_writes_that_the_system_cuts_short_are_gone_on_with(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tree, pwrite = {"a": torch.arange(1000.0)}, os.pwrite
    write_tree(tmp_path / "whole.h5", tree)
    with patched_writes(monkeypatch, lambda file, content, start: pwrite(file, content[:7], start)):
        write_tree(tmp_path / "pieces.h5", tree)
    assert (tmp_path / "pieces.h5").read_bytes() == (tmp_path / "whole.h5").read_bytes()


def test_whichever_write_fails_the_file_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tree, pwrite = {"a": torch.arange(1000.0), "b": torch.zeros(3)}, os.pwrite
    before = h5py.h5f.get_obj_count(h5py.h5f.OBJ_ALL, h5py.h5f.OBJ_FILE | h5py.h5f.OBJ_DATASET)
    for good in range(1000):
        count = itertools.count()

        def write(file: int, content: memoryview, start: int, count: Iterator[int] = count, good: int = good) -> int:
            if next(count) == good:
                raise OSError(errno.EIO, "Input/output error")
            return pwrite(file, content, start)

        with patched_writes(monkeypatch, write):
            try:
                write_tree(tmp_path / f"{good}.h5", tree)
            except CheckpointError as error:
                message = str(error)
            else:
                break
        assert message.endswith("Input/output error")
        assert h5py.h5f.get_obj_count(h5py.h5f.OBJ_ALL, h5py.h5f.OBJ_FILE | h5py.h5f.OBJ_DATASET) == before
    assert good > 8
    assert same(read_tree(tmp_path / f"{good}.h5"), tree)

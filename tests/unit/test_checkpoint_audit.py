"""A file that could lead its reader elsewhere, or is not what it declares, is refused before any of it is read."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch

from mpisparse.checkpoint import hdf5, read_tree, write_tree
from mpisparse.errors import CheckpointError

WEIGHT = "000000.weight"
TREE = {"weight": torch.arange(12.0).reshape(3, 4), "bias": torch.ones(3, dtype=torch.bfloat16)}
CHECKED: dict[str, Any] = {"chunks": (3, 4), "fletcher32": True}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    write_tree(tmp_path / "state.h5", TREE)
    (tmp_path / "secret.txt").write_bytes(b"the secret" * 10)
    with h5py.File(tmp_path / "other.h5", "w") as file:
        file["secret"] = np.full((3, 4), 42, np.float32)
    return tmp_path / "state.h5"


@pytest.fixture
def unread(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make every read of values fail the test."""

    def read(*arguments: Any, **options: Any) -> None:
        raise AssertionError("values were read")

    monkeypatch.setattr(hdf5, "_load", read)
    monkeypatch.setattr(h5py.Dataset, "__getitem__", read)
    monkeypatch.setattr(h5py.Dataset, "read_direct", read)


Change = Callable[[h5py.File, Path], None]


def replace(**options: Any) -> Change:
    """Return a change that puts another dataset in the place of the weight."""

    def change(file: h5py.File, directory: Path) -> None:
        del file["arrays"][WEIGHT]
        file["arrays"].create_dataset(WEIGHT, **options)

    return change


def external_storage(file: h5py.File, directory: Path) -> None:
    replace(shape=(3, 4), dtype="<f4", external=[(str(directory / "secret.txt"), 0, 48)])(file, directory)


def virtual(file: h5py.File, directory: Path) -> None:
    layout = h5py.VirtualLayout((3, 4), "<f4")
    layout[:] = h5py.VirtualSource(str(directory / "other.h5"), "secret", (3, 4))
    del file["arrays"][WEIGHT]
    file["arrays"].create_virtual_dataset(WEIGHT, layout)


def unlimited_virtual(file: h5py.File, directory: Path) -> None:
    layout = h5py.VirtualLayout((3, 4), "<f4", maxshape=(None, 4))
    source = h5py.VirtualSource(str(directory / "other.h5"), "secret", (3, 4), maxshape=(None, 4))
    layout[0 : h5py.h5s.UNLIMITED, :] = source[0 : h5py.h5s.UNLIMITED, :]
    del file["arrays"][WEIGHT]
    file["arrays"].create_virtual_dataset(WEIGHT, layout)


def linked(link: Callable[[Path], Any]) -> Change:
    def change(file: h5py.File, directory: Path) -> None:
        del file["arrays"][WEIGHT]
        file["arrays"][WEIGHT] = link(directory)

    return change


def linked_structure(file: h5py.File, directory: Path) -> None:
    del file["structure"]
    file["structure"] = h5py.ExternalLink(str(directory / "other.h5"), "secret")


def linked_arrays(file: h5py.File, directory: Path) -> None:
    del file["arrays"]
    file["arrays"] = h5py.SoftLink("/")


def grown(file: h5py.File, directory: Path) -> None:
    file["extra"] = np.zeros(3)


def cyclic(file: h5py.File, directory: Path) -> None:
    file["arrays/000002.loop"] = file["/"]


def repeated(file: h5py.File, directory: Path) -> None:
    large = file["arrays"].create_dataset("000002.large", data=np.zeros(10**5), chunks=(10**5,), fletcher32=True)
    file["arrays/000003.large"] = large


def annotated(file: h5py.File, directory: Path) -> None:
    file["arrays"][WEIGHT].attrs["note"] = "text"


def annotated_root(file: h5py.File, directory: Path) -> None:
    file.attrs["note"] = "text"


def without_structure(file: h5py.File, directory: Path) -> None:
    del file["structure"]


def array_of_arrays(file: h5py.File, directory: Path) -> None:
    del file["arrays"]
    file["arrays"] = np.zeros(3)


def empty_space(file: h5py.File, directory: Path) -> None:
    del file["arrays"][WEIGHT]
    file["arrays"][WEIGHT] = h5py.Empty("<f4")


def other_structure(**options: Any) -> Change:
    def change(file: h5py.File, directory: Path) -> None:
        del file["structure"]
        file.create_dataset("structure", fletcher32=True, **options)

    return change


def named(name: str) -> Change:
    def change(file: h5py.File, directory: Path) -> None:
        file["arrays"].create_dataset(name, data=np.zeros((3, 4), "<f4"), **CHECKED)

    return change


def without_this_checksum(file: h5py.File, directory: Path) -> None:
    """Leave the filter out for the one chunk, which a file can ask for."""
    replace(shape=(3, 4), dtype="<f4", **CHECKED)(file, directory)
    file["arrays"][WEIGHT].id.write_direct_chunk((0, 0), bytes(48), filter_mask=1)


def half_written(file: h5py.File, directory: Path) -> None:
    replace(shape=(4, 4), dtype="<f4", chunks=(2, 4), fletcher32=True)(file, directory)
    file["arrays"][WEIGHT][:2] = 1.0


def scale_offset(file: h5py.File, directory: Path) -> None:
    replace(data=np.zeros((3, 4), "<i4"), chunks=(3, 4), scaleoffset=0)(file, directory)


FOREIGN: dict[str, tuple[Change, str]] = {
    "external link": (linked(lambda d: h5py.ExternalLink(str(d / "other.h5"), "secret")), "soft or external link"),
    "soft link": (linked(lambda d: h5py.SoftLink("/structure")), "soft or external link"),
    "dangling link": (linked(lambda d: h5py.SoftLink("/nowhere")), "soft or external link"),
    "structure elsewhere": (linked_structure, "structure is a soft or external link"),
    "arrays elsewhere": (linked_arrays, "arrays is a soft or external link"),
    "external storage": (external_storage, "external storage"),
    "virtual dataset": (virtual, "virtual dataset"),
    "growing virtual dataset": (unlimited_virtual, "virtual dataset"),
    "strings": (replace(data=["a", "b"], dtype=h5py.string_dtype(), chunks=(2,)), "plain"),
    "fixed strings": (replace(data=np.array([b"a"]), chunks=(1,), fletcher32=True), "plain"),
    "lists": (replace(shape=(2,), dtype=h5py.vlen_dtype("i4"), chunks=(2,)), "plain"),
    "references": (replace(shape=(2,), dtype=h5py.ref_dtype, chunks=(2,), fletcher32=True), "plain"),
    "records": (replace(data=np.zeros(2, [("a", "<f4")]), chunks=(2,), fletcher32=True), "plain"),
    "enumeration": (replace(data=np.zeros(2, bool), chunks=(2,), fletcher32=True), "plain"),
    "big-endian": (replace(data=np.zeros((3, 4), ">f4"), **CHECKED), "plain"),
    "a group": (lambda file, d: linked(lambda _: file.create_group("x"))(file, d) or file.pop("x"), "not a dataset"),
    "a type": (linked(lambda d: np.dtype("<f4")), "not a dataset"),
    "the root again": (cyclic, "loop is not a dataset"),
    "arrays in an array": (array_of_arrays, "arrays is not a group"),
    "opaque bytes": (replace(data=np.zeros(2, "V3"), chunks=(2,), fletcher32=True), "plain"),
    "an array of arrays": (replace(shape=(2,), dtype=np.dtype(("<f4", (3,))), chunks=(2,), fletcher32=True), "plain"),
    "regions": (replace(shape=(2,), dtype=h5py.regionref_dtype, chunks=(2,), fletcher32=True), "plain"),
    "variable length records": (
        replace(shape=(2,), dtype=np.dtype([("a", h5py.string_dtype())]), chunks=(2,), fletcher32=True),
        "plain",
    ),
    "a structure of numbers": (other_structure(data=np.zeros(9), chunks=(9,)), "structure is not one row of uint8"),
    "a structure of two dimensions": (
        other_structure(data=np.zeros((3, 3), np.uint8), chunks=(3, 3)),
        "structure is not one row of uint8",
    ),
    "an odd name": (named("weight"), "arrays holds 'weight', which is no name of an array"),
    "a name that speaks to a terminal": (named("000002.\x1b[2J"), "arrays holds '000002.\\x1b[2J'"),
    "a name that looks up": (named("000002.weight "), "which is no name of an array"),
    "a chunk without its checksum": (without_this_checksum, "but 48 are stored"),
    "half of the values": (half_written, "bytes, but 36 are stored"),
    "lossy packing": (scale_offset, "filters"),
    "no structure": (without_structure, "it holds"),
    "one thing more": (grown, "extra"),
    "one array under two names": (repeated, "bytes, but the file has only"),
    "an attribute": (annotated, "attributes"),
    "an attribute of the file": (annotated_root, "attributes"),
    "compression": (replace(data=np.zeros((3, 4), "<f4"), compression="gzip", **CHECKED), "filters"),
    "shuffling": (replace(data=np.zeros((3, 4), "<f4"), shuffle=True, **CHECKED), "filters"),
    "no checksum": (replace(data=np.zeros((3, 4), "<f4"), chunks=(3, 4)), "filters"),
    "no chunks": (replace(data=np.zeros((3, 4), "<f4")), "not chunked"),
    "room to grow": (replace(data=np.zeros((3, 4), "<f4"), maxshape=(None, 4), **CHECKED), "can grow"),
    "a scalar": (replace(data=np.float32(1)), "not chunked"),
    "nothing": (empty_space, "not chunked"),
    "values never written": (replace(shape=(3, 4), dtype="<f4", **CHECKED), "but 0 are stored"),
    "a huge shape": (replace(shape=(2**40, 2**20), dtype="<f4", **CHECKED), "but 0 are stored"),
}


@pytest.mark.usefixtures("unread")
@pytest.mark.parametrize("name", FOREIGN)
def test_foreign_contents_are_refused_before_anything_is_read(name: str, path: Path) -> None:
    change, words = FOREIGN[name]
    with h5py.File(path, "r+") as file:
        change(file, path.parent)
    with pytest.raises(CheckpointError, match=r"^state\.h5 is not a sound checkpoint file: ") as caught:
        read_tree(path)
    assert words in str(caught.value)


def test_what_leads_elsewhere_is_refused_even_when_nothing_is_there(path: Path) -> None:
    for change in (external_storage, unlimited_virtual, FOREIGN["external link"][0]):
        with h5py.File(path, "r+") as file:
            change(file, path.parent)
        (path.parent / "secret.txt").unlink(missing_ok=True)
        (path.parent / "other.h5").unlink(missing_ok=True)
        with pytest.raises(CheckpointError, match=r"not a sound checkpoint file"):
            read_tree(path)


def mostly_missing(file: h5py.File, directory: Path) -> None:
    replace(shape=(1000, 4), dtype="<f4", **CHECKED)(file, directory)
    file["arrays"][WEIGHT][:3] = 1


@pytest.mark.usefixtures("unread")
def test_a_shape_of_which_only_a_part_is_stored_is_refused(path: Path) -> None:
    with h5py.File(path, "r+") as file:
        mostly_missing(file, path.parent)
    with pytest.raises(CheckpointError, match=r"weight declares float32 of shape \(1000, 4\): 17368 bytes, but 52"):
        read_tree(path)


# A structure that does not fit ----------------------------------------------------------------------------------------


def rewrite(path: Path, content: bytes) -> None:
    """Put another structure into a file."""
    with h5py.File(path, "r+") as file:
        del file["structure"]
        data = np.frombuffer(content, np.uint8)
        file.create_dataset("structure", data=data, chunks=data.shape, fletcher32=True)


def structure(path: Path) -> dict[str, Any]:
    with h5py.File(path, "r") as file:
        document: dict[str, Any] = json.loads(file["structure"][:].tobytes())
    return document


def deep(levels: int) -> Any:
    node: Any = 1
    for _ in range(levels):
        node = [node]
    return node


WRONG_NODES: list[Any] = [
    {"pickle": "gASVAA=="},
    {},
    {"int": 3, "float": 4},
    {"int": "0x10"},
    {"int": "9" * 5000},
    {"int": 7},
    {"float": "00"},
    {"float": 1.5},
    {"float": "zz00000000000000"},
    {"bytes": "not base64!"},
    {"bytes": None},
    {"tuple": 3},
    {"tuple": {"a": 1}},
    {"dict": {"a": 1}},
    {"dict": [["a"]]},
    {"dict": [["a", 1], ["a", 2]]},
    {"dict": [[1.5, 1]]},
    {"dict": [[{"dict": []}, 1]]},
    {"dict": [[[1], 1]]},
    {"ordered": []},
    {"ordered": {"items": [], "more": 1}},
    {"counter": 5},
    {"scalar": ["float32", "00"]},
    {"scalar": ["object", "00"]},
    {"scalar": ["bfloat16", "0000"]},
    {"scalar": [[], "0000"]},
    {"scalar": "float32"},
    {"tensor": 2},
    {"tensor": -1},
    {"tensor": True},
    {"tensor": None},
    {"tensor": [0]},
    {"tensor": 0},
    {"array": 1},
    deep(103),
    deep(900),
]
BOTH = [{"tensor": 0}, {"tensor": 1}]


def put_tree(path: Path, tree: Any) -> None:
    document = structure(path)
    document["tree"] = tree
    rewrite(path, json.dumps(document).encode())


@pytest.mark.parametrize("number", range(len(WRONG_NODES)))
def test_a_structure_with_a_wrong_node_is_refused(number: int, path: Path) -> None:
    put_tree(path, [*BOTH, WRONG_NODES[number]])
    with pytest.raises(CheckpointError, match=r"^state\.h5 is not a sound checkpoint file: the structure is damaged"):
        read_tree(path)


@pytest.mark.parametrize("tree", [BOTH[:1], [], [BOTH[0], {"array": 1}], [BOTH[0], BOTH[0], BOTH[1]]], ids=str)
def test_a_structure_that_does_not_use_every_array_once_is_refused(tree: Any, path: Path) -> None:
    put_tree(path, tree)
    with pytest.raises(CheckpointError, match=r"^state\.h5 is not a sound checkpoint file: the structure is damaged"):
        read_tree(path)


def test_a_structure_that_someone_else_wrote_is_read(path: Path) -> None:
    put_tree(path, {"tuple": [*BOTH, {"float": "3ff0000000000000"}, {"dict": [["b", 1], ["a", {"int": "2"}]]}]})
    weight, bias, *others = read_tree(path)
    assert torch.equal(weight, TREE["weight"])
    assert torch.equal(bias, TREE["bias"])
    assert others == [1.0, {"b": 1, "a": 2}]


WRONG_ENTRIES: list[dict[str, Any]] = [
    {"dtype": "object"},
    {"dtype": "float64"},
    {"dtype": "int32"},
    {"dtype": "complex64"},
    {"dtype": None},
    {"dtype": ["float32"]},
    {"shape": [4, 3]},
    {"shape": [3, 4, 1]},
    {"shape": [2**62, 4]},
    {"shape": [3, -4]},
    {"shape": [3.0, 4]},
    {"shape": 12},
    {"shape": [0]},
    {"dataset": None},
    {"dataset": "../structure"},
    {"dataset": "/structure"},
    {"dataset": "000002.other"},
    {"dataset": "000001.bias"},
    {"dataset": 0},
    {"more": 0},
]


@pytest.mark.parametrize("number", range(len(WRONG_ENTRIES)))
def test_a_structure_that_does_not_fit_the_arrays_is_refused(number: int, path: Path) -> None:
    document = structure(path)
    document["arrays"][0] |= WRONG_ENTRIES[number]
    rewrite(path, json.dumps(document).encode())
    with pytest.raises(CheckpointError, match=r"^state\.h5 is not a sound checkpoint file: the "):
        read_tree(path)


NO_STRUCTURES = [
    b"{",
    b"[]",
    b"3",
    b"\xff\xfe",
    b"[" * 100_000,
    b"1" * 9999,
    b"\x80\x04K\x01.",
    b'{"tree":1}',
    b'{"version":1,"arrays":{},"tree":1}',
    b'{"version":2,"arrays":[],"tree":1}',
    b'{"version":1,"arrays":[],"tree":NaN}',
]


@pytest.mark.parametrize("content", NO_STRUCTURES, ids=range(len(NO_STRUCTURES)))
def test_a_structure_that_is_not_one_is_refused(content: bytes, path: Path) -> None:
    rewrite(path, content)
    with pytest.raises(CheckpointError, match=r"^state\.h5 is not a sound checkpoint file: the structure is "):
        read_tree(path)


@pytest.mark.parametrize("shape", [[0, 2**62], [0, 2**62, 2**62], [2**62, 2**62, 2**62, 0]], ids=str)
@pytest.mark.parametrize("kind", ["tensor", "array"])
def test_an_empty_array_of_an_impossible_shape_is_no_crash(kind: str, shape: list[int], tmp_path: Path) -> None:
    write_tree(tmp_path / "state.h5", torch.zeros(0))
    entry = {"dataset": None, "dtype": "float32", "shape": shape}
    rewrite(tmp_path / "state.h5", json.dumps({"version": 1, "arrays": [entry], "tree": {kind: 0}}).encode())
    with contextlib.suppress(CheckpointError):
        assert list(read_tree(tmp_path / "state.h5").shape) == shape


def test_a_boolean_that_is_neither_is_refused(tmp_path: Path) -> None:
    write_tree(tmp_path / "state.h5", torch.tensor([True, False]))
    with h5py.File(tmp_path / "state.h5", "r+") as file:
        file["arrays/000000."][1] = 7
    with pytest.raises(CheckpointError, match="holds booleans, but one of them is 7"):
        read_tree(tmp_path / "state.h5")


# A file that is broken ------------------------------------------------------------------------------------------------


def test_truncated_and_foreign_files_are_refused_by_name(path: Path) -> None:
    whole = path.read_bytes()
    for length in [*range(0, len(whole), 97), len(whole) - 1]:
        path.write_bytes(whole[:length])
        with pytest.raises(CheckpointError, match=r"^state\.h5 cannot be read: "):
            read_tree(path)
    path.write_bytes(b"\x80\x04K\x01." * 100)
    with pytest.raises(CheckpointError, match=r"^state\.h5 cannot be read: "):
        read_tree(path)


def test_a_missing_file_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"^gone\.h5 cannot be read: No such file or directory$"):
        read_tree(tmp_path / "gone.h5")


def test_a_flipped_bit_among_the_values_is_found_by_their_checksum(path: Path) -> None:
    content = bytearray(path.read_bytes())
    place = content.index(np.arange(12, dtype="<f4").tobytes())
    content[place + 17] ^= 4
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"^state\.h5 cannot be read: "):
        read_tree(path)


# A structure that would cost its reader -------------------------------------------------------------------------------

COSTLY: dict[str, dict[str, Any]] = {
    "dimensions": {"arrays": [{"dataset": None, "dtype": "float32", "shape": [0] + [2**62] * 200_000}] * 2, "tree": 0},
    "lists": {"arrays": [], "tree": [[]] * 2_000_000},
    "dicts": {"arrays": [], "tree": [{"dict": []}] * 600_000},
    "arrays": {"arrays": [{"dataset": None, "dtype": "float32", "shape": [0]}] * 400_000, "tree": 0},
    "numbers": {"arrays": [], "tree": [0] * 2_200_000},
}


@pytest.mark.parametrize("name", COSTLY)
def test_a_structure_that_would_cost_its_reader_is_refused_before_it_is_built(name: str, path: Path) -> None:
    rewrite(path, json.dumps({"version": 1, **COSTLY[name]}).encode())
    with pytest.raises(
        CheckpointError, match=r"^state\.h5 is not a sound checkpoint file: the structure is "
    ) as caught:
        read_tree(path)
    assert len(str(caught.value)) < 300


def test_what_its_reader_would_refuse_is_not_saved(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"^state\.h5 cannot be written to .*: the state's structure cannot be"):
        write_tree(tmp_path / "state.h5", {"list": [0] * 2_200_000})


def test_more_names_than_a_structure_has_are_refused(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mpisparse.checkpoint.audit._ARRAYS", 3)
    with h5py.File(path, "r+") as file:
        for number in range(2, 5):
            file["arrays"][f"{number:06d}.loop"] = h5py.SoftLink("/arrays")
    with pytest.raises(CheckpointError, match="arrays holds 5 names, where a checkpoint holds at most 3"):
        read_tree(path)

"""What a file may hold, checked before anything in it is read.

HDF5 files can make their reader open other files: external and soft links, external storage, virtual datasets. They can
declare arrays far larger than themselves, ask for filters that are loaded as plug-ins, and hold types that are turned
into Python objects. A checkpoint has none of that, so a file that has is refused.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import h5py
import numpy as np

from mpisparse.checkpoint.arrays import CARRIERS, is_dataset_name
from mpisparse.errors import CheckpointError

STRUCTURE = "structure"
ARRAYS = "arrays"
CHECKSUM_BYTES = 4
#: Arrays of a file at most: more than a structure can name.
_ARRAYS = 2**18


@dataclass(frozen=True, slots=True)
class Declared:
    """What a file says about one of its datasets."""

    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    stored_bytes: int


def audit(file: h5py.File, file_bytes: int) -> dict[str, Declared]:
    """Return what an open file of `file_bytes` bytes declares: its structure, and each dataset of its group of arrays.

    Only metadata is read, and no link is followed but the hard ones of this very file.

    Raises:
        CheckpointError: the file holds something that no checkpoint does; the message names it.
    """
    root = h5py.h5g.open(file.id, b"/")
    _limit_links(root, "it", 100)
    names = _hard_links(root, "/")
    if names != {STRUCTURE, ARRAYS}:
        raise CheckpointError(f"it holds {sorted(names)!r:.200}, where a checkpoint holds {STRUCTURE} and {ARRAYS}")
    group = h5py.h5o.open(root, ARRAYS.encode())
    if not isinstance(group, h5py.h5g.GroupID):
        raise CheckpointError(f"{ARRAYS} is not a group")
    _limit_links(group, ARRAYS, _ARRAYS)
    declared = {STRUCTURE: _declared(root, STRUCTURE)}
    if declared[STRUCTURE].dtype != np.uint8 or len(declared[STRUCTURE].shape) != 1:
        raise CheckpointError(f"{STRUCTURE} is not one row of uint8")
    for name in sorted(_hard_links(group, f"{ARRAYS}/")):
        if not is_dataset_name(name):
            raise CheckpointError(f"{ARRAYS} holds {name!r:.100}, which is no name of an array")
        declared[name] = _declared(group, name)
    total = sum(dataset.stored_bytes for dataset in declared.values())
    if total > file_bytes:
        raise CheckpointError(f"its datasets take {total} bytes, but the file has only {file_bytes}")
    return declared


def _limit_links(group: h5py.h5g.GroupID, where: str, most: int) -> None:
    """Raise CheckpointError for a group of more links than are worth looking at."""
    if (links := group.get_num_objs()) > most:
        raise CheckpointError(f"{where} holds {links} names, where a checkpoint holds at most {most}")


def _hard_links(group: h5py.h5g.GroupID, where: str) -> set[str]:
    _refuse_attributes(group, where)
    names = set()
    for raw in group:
        name = raw.decode(errors="backslashreplace")
        if group.links.get_info(raw).type != h5py.h5l.TYPE_HARD:
            raise CheckpointError(f"{where}{name} is a soft or external link, which may lead to another file")
        names.add(name)
    return names


def _refuse_attributes(thing: Any, name: str) -> None:
    if h5py.h5a.get_num_attrs(thing) > 0:
        raise CheckpointError(f"{name} has attributes, which no checkpoint has")


def _declared(group: h5py.h5g.GroupID, name: str) -> Declared:
    dataset = h5py.h5o.open(group, name.encode())
    if not isinstance(dataset, h5py.h5d.DatasetID):
        raise CheckpointError(f"{name} is not a dataset")
    _refuse_attributes(dataset, name)
    plan = dataset.get_create_plist()
    # The layout first: the extent of a virtual dataset is looked up in the files that it names.
    _check_layout(plan, name)
    dtype = _dtype(dataset.get_type(), name)
    shape = _shape(dataset.get_space(), name)
    chunk = _chunk(plan, name)
    if len(chunk) != len(shape) or 0 in shape:
        raise CheckpointError(f"{name} has the shape {shape} in chunks of {chunk}")
    chunks = math.prod(-(-length // step) for length, step in zip(shape, chunk, strict=True))
    expected = chunks * (math.prod(chunk) * dtype.itemsize + CHECKSUM_BYTES)
    # Whatever is not stored would be read as zeros, and could be of any size.
    stored = dataset.get_storage_size()
    if stored != expected:
        raise CheckpointError(f"{name} declares {dtype} of shape {shape}: {expected} bytes, but {stored} are stored")
    return Declared(dtype, shape, stored)


def _check_layout(plan: Any, name: str) -> None:
    if plan.get_external_count() > 0:
        raise CheckpointError(f"{name} has external storage: its values lie in another file")
    if plan.get_layout() == h5py.h5d.VIRTUAL:
        raise CheckpointError(f"{name} is a virtual dataset: its values lie in other files")
    if plan.get_layout() != h5py.h5d.CHUNKED:
        raise CheckpointError(f"{name} is not chunked, so that it has no checksum")


def _chunk(plan: Any, name: str) -> tuple[int, ...]:
    filters = [plan.get_filter(index)[0] for index in range(plan.get_nfilters())]
    if filters != [h5py.h5z.FILTER_FLETCHER32]:
        raise CheckpointError(f"{name} has the filters {filters}, where a checkpoint has fletcher32 alone")
    chunk: tuple[int, ...] = plan.get_chunk()
    return chunk


def _dtype(type_id: Any, name: str) -> np.dtype[Any]:
    for carrier in sorted(set(CARRIERS.values())):
        dtype = np.dtype(carrier).newbyteorder("<")
        if type_id.equal(h5py.h5t.py_create(dtype)):
            return dtype
    raise CheckpointError(f"{name} holds something else than plain little-endian numbers")


def _shape(space: Any, name: str) -> tuple[int, ...]:
    if space.get_simple_extent_type() != h5py.h5s.SIMPLE:
        raise CheckpointError(f"{name} has no shape")
    shape: tuple[int, ...] = space.get_simple_extent_dims()
    if space.get_simple_extent_dims(True) != shape:
        raise CheckpointError(f"{name} can grow, which no dataset of a checkpoint can")
    return shape

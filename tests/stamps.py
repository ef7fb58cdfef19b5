"""What checkpoint files hold besides the random number of their save, for tests that compare two saves byte by byte."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import h5py

from mpisparse.checkpoint import read_manifest
from mpisparse.checkpoint.manifest import rank_file


def contents(path: Path | io.BytesIO) -> tuple[dict[str, Any], dict[str, tuple[Any, ...]]]:
    """Return the structure of a file without the save that it names, and the bytes of each array and how they lie."""
    with h5py.File(path, "r", locking=False) as file:
        structure = json.loads(file["structure"][:].tobytes())
        structure.pop("saved", None)
        structure.pop("version")
        arrays = {
            name: (array.dtype, array.shape, array.chunks, array[:].tobytes()) for name, array in file["arrays"].items()
        }
    return structure, arrays


def images(step: Path) -> list[io.BytesIO]:
    """Return the bytes of the files of the ranks of a checkpoint, wherever they lie."""
    manifest = read_manifest(step)
    places = [manifest.place(rank_file(rank)) for rank in range(manifest.ranks)]
    return [io.BytesIO((step / place.file).read_bytes()[place.start : place.stop]) for place in places]

"""What is wrong with a checkpoint: all of it, for people, where `verify` stops at the first flaw."""

from __future__ import annotations

from pathlib import Path

from mpisparse.checkpoint.hdf5 import read_tree
from mpisparse.checkpoint.manifest import listing_flaws, read_manifest, verify_file
from mpisparse.errors import CheckpointError


def find_flaws(path: Path, *, contents: bool = True) -> list[str]:
    """Return one line for each flaw of the checkpoint in directory `path`; none when it is whole.

    Args:
        contents: read every file, check its digest, and read every array in it; else only the manifest, and which files
            there are with which lengths.
    """
    try:
        manifest = read_manifest(path)
    except CheckpointError as error:
        return [str(error)]
    flaws = listing_flaws(path, manifest)
    for entry in manifest.files if contents else ():
        if entry.name not in flaws:
            try:
                verify_file(path, manifest, entry.name)
                # HDF5 sees no file whose digest does not hold.
                read_tree(path / entry.name)
            except CheckpointError as error:
                flaws[entry.name] = str(error)
    return list(flaws.values())

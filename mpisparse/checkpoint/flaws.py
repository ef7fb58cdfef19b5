"""What is wrong with a checkpoint: all of it, for people, where `verify` stops at the first flaw."""

from __future__ import annotations

from pathlib import Path

from mpisparse.checkpoint.manifest import listing_flaws, read_manifest
from mpisparse.checkpoint.saved import read_verified
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
        if manifest.place(entry.name).file not in flaws:
            try:
                # HDF5 sees no file whose digest does not hold.
                read_verified(path, manifest, entry.name)
            except CheckpointError as error:
                flaws[entry.name] = str(error)
    # What is wrong with the shared file around its parts is found with each of them.
    return list(dict.fromkeys(flaws.values()))

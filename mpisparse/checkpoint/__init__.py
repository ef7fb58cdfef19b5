"""The state of a run on the disk: HDF5 files without pickle, written whole or not at all, verified before use.

arrays        an array, and the carrier of its bits
tree          the structure of a state tree
encode        from a tree to its structure and arrays
decode        and back
sink          the file that HDF5 writes through
audit         what a file may hold
hdf5          a tree in a file
manifest      the files of a checkpoint, and their digests
directory     the checkpoints of a run
checkpointer  saves and restores
"""

from mpisparse.checkpoint.checkpointer import Checkpointer, Restored
from mpisparse.checkpoint.directory import list_checkpoints, step_of
from mpisparse.checkpoint.hdf5 import read_tree, write_tree
from mpisparse.checkpoint.manifest import FileEntry, Manifest, read_manifest, verify

__all__ = [
    "Checkpointer",
    "FileEntry",
    "Manifest",
    "Restored",
    "list_checkpoints",
    "read_manifest",
    "read_tree",
    "step_of",
    "verify",
    "write_tree",
]

"""The state of a run on the disk: HDF5 files without pickle, written whole or not at all, verified before use.

arrays        an array, and the carrier of its bits
tree          the structure of a state tree
encode        from a tree to its structure and arrays
decode        and back
disk          all that saving changes in the file system
faulty        a disk on which that goes wrong, when the environment asks for it
stamp         which save a file belongs to
sink          the file that HDF5 writes through
audit         what a file may hold
hdf5          a tree in a file
manifest      the files of a checkpoint, and their digests
claim         which process writes to a directory
directory     the checkpoints of a run
saved         one on the disk, to be read by any number of ranks
shared        one file for all ranks
snapshot      copies of a state, kept while they are written
report        how a rank's part of a save went
save          a checkpoint on its way to the disk
restore       the newest that is whole
checkpointer  saves and restores
reshape       what each rank takes over when their number changes
norms         how large memories are, before and after that
flaws         all that is wrong with one
writer        one made of another
"""

from mpisparse.checkpoint.checkpointer import Checkpointer
from mpisparse.checkpoint.claim import Claim, claimed
from mpisparse.checkpoint.directory import list_checkpoints, step_of
from mpisparse.checkpoint.disk import Disk
from mpisparse.checkpoint.faulty import FaultyDisk
from mpisparse.checkpoint.flaws import find_flaws
from mpisparse.checkpoint.hdf5 import read_tree, write_tree
from mpisparse.checkpoint.manifest import FileEntry, Manifest, read_manifest
from mpisparse.checkpoint.norms import Norms, Tally
from mpisparse.checkpoint.reshape import Residual, reshape_exchange
from mpisparse.checkpoint.restore import Reshape, Restored
from mpisparse.checkpoint.save import Outcome
from mpisparse.checkpoint.saved import Saved, find_checkpoints, open_checkpoint, verify
from mpisparse.checkpoint.writer import write_alike

__all__ = [
    "Checkpointer",
    "Claim",
    "Disk",
    "FaultyDisk",
    "FileEntry",
    "Manifest",
    "Norms",
    "Outcome",
    "Reshape",
    "Residual",
    "Restored",
    "Saved",
    "Tally",
    "claimed",
    "find_checkpoints",
    "find_flaws",
    "list_checkpoints",
    "open_checkpoint",
    "read_manifest",
    "read_tree",
    "reshape_exchange",
    "step_of",
    "verify",
    "write_alike",
    "write_tree",
]

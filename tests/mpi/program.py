"""Runs every law on the ranks of this job, and writes on rank 0 a JSON object that says how each ended.

mpirun -n 3 python -m tests.mpi.program OUTPUT
"""

from __future__ import annotations

import faulthandler
import json
import sys
import traceback
from pathlib import Path

import mpisparse as ms
from tests.laws_all import LAWS, STATISTICAL, STATISTICAL_SIZE

#: A law that one rank never finishes ends the job with the stacks of all ranks.
_LIMIT = 60


def main(output: Path) -> None:
    """Run the laws; after one that fails on any rank the job cannot go on, as the others may be anywhere."""
    comm = ms.init(banner=False)
    ended: dict[str, str] = {}
    for name, law in LAWS.items():
        if name in STATISTICAL and comm.size != STATISTICAL_SIZE:
            continue
        faulthandler.dump_traceback_later(_LIMIT, exit=True)
        try:
            law(comm.duplicate())
        except BaseException:
            output.with_suffix(f".{comm.rank}").write_text(json.dumps([name, traceback.format_exc()]))
            raise
        ended[name] = "held"
        if comm.rank == 0:
            output.write_text(json.dumps(ended))
    faulthandler.cancel_dump_traceback_later()


if __name__ == "__main__":
    main(Path(sys.argv[1]))

"""relay: a command whose PMI requests Slurm's pmi2 can read.

    python jobs/relay.py COMMAND ...

Slurm's pmi2 answers MPICH in version 1 of the protocol, tells it that a value may have 1024 characters, and reads a
request of at most 1024 with all that goes around the value: it tears longer ones apart, and the start fails
(handle_pmi1_cmd in Slurm's src/plugins/mpi/pmi2/pmi1.c). MPICH 5 over UCX sends what lies behind its address in memory,
too, so that its requests are short or long by chance (MPIDI_UCX_comm_addr_exchange in src/mpid/ch4/netmod/ucx). Here a
process between the two says that a value may have fewer characters, and MPICH cuts its values accordingly. All else
passes as it is.
"""

from __future__ import annotations

import os
import re
import select
import signal
import socket
import sys
from contextlib import suppress

#: Characters of a value; with command, name and key around it a request stays below 1024.
VALUE = 900

_LIMIT = re.compile(rb"\bvallen_max=(\d+)")
_CHUNK = 2**16


def answer(text: bytes) -> bytes:
    """Return what Slurm says, with the length of a value no more than `VALUE` where it tells that."""
    if not text.startswith(b"cmd=maxes "):
        return text
    return _LIMIT.sub(lambda found: b"vallen_max=%d" % min(int(found[1]), VALUE), text)


def relay(client: socket.socket, server: socket.socket) -> None:
    """Pass messages on until the client is gone. Each request in one piece, as Slurm reads it."""
    sides = [client, server]
    while client in sides:
        for side in select.select(sides, [], [])[0]:
            other = server if side is client else client
            try:
                text = side.recv(_CHUNK)
                other.sendall(answer(text) if side is server else text)
            except OSError:
                text = b""
            if not text:
                sides.remove(side)
                if side is server:  # as after the last request; the client may still live for long
                    with suppress(OSError):
                        client.shutdown(socket.SHUT_WR)


def main(command: list[str]) -> None:
    """Become `command`, with a relay beside it if this process was started by Slurm's pmi2."""
    number = os.environ.get("PMI_FD", "")
    if number.isdigit() and "SLURM_STEP_ID" in os.environ:
        ours, theirs = socket.socketpair()
        if os.fork() == 0:
            # Slurm sends signals to every process of a step: this one ends with the rank, and not before.
            for ignored in (signal.SIGUSR1, signal.SIGUSR2, signal.SIGTERM, signal.SIGINT):
                signal.signal(ignored, signal.SIG_IGN)
            theirs.close()
            relay(ours, socket.socket(fileno=int(number)))
            os._exit(0)
        ours.close()
        os.close(int(number))
        os.dup2(theirs.fileno(), int(number), inheritable=True)
    os.execvp(command[0], command)


if __name__ == "__main__":
    if len(sys.argv) < 2:
        sys.exit("usage: python jobs/relay.py COMMAND ...")
    main(sys.argv[1:])

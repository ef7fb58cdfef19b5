"""Stands for Python in a launcher's command: hands its place to a process that the server forks, and ends as it ends.

python -I -S stub.py SOCKET ARGUMENTS. It imports nothing of weight.
"""

from __future__ import annotations

import array
import json
import os
import resource
import signal
import socket
import sys

#: Those that launchers, schedulers and tests send, and that the process is to hear.
_PASSED_ON = (
    signal.SIGINT,
    signal.SIGTERM,
    signal.SIGUSR1,
    signal.SIGUSR2,
    signal.SIGHUP,
    signal.SIGQUIT,
    signal.SIGCONT,
)


def main() -> None:
    """Hand over, pass signals on, and end."""
    signal.pthread_sigmask(signal.SIG_BLOCK, _PASSED_ON)
    server = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    server.connect(sys.argv[1])
    files = [file for file in open_files() if file != server.fileno()]
    what = {"directory": os.getcwd(), "arguments": sys.argv[2:], "environment": dict(os.environ), "files": files}
    request = json.dumps(what).encode()
    ancillary = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", files))]
    server.sendmsg([len(request).to_bytes(8, "little")], ancillary)
    server.sendall(request)
    process = int.from_bytes(read(server, 8), "little")
    if not sys.argv[2:]:
        return
    for number in _PASSED_ON:
        signal.signal(number, lambda came, frame: os.kill(process, came))
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _PASSED_ON)
    status = int.from_bytes(read(server, 8), "little")
    if os.WIFSIGNALED(status):
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        ended_by = os.WTERMSIG(status)
        if ended_by != signal.SIGKILL:
            signal.signal(ended_by, signal.SIG_DFL)
        os.kill(os.getpid(), ended_by)
    os._exit(os.waitstatus_to_exitcode(status) & 255)


def open_files() -> list[int]:
    """Return the numbers of all files that are open in this process, but for the directory that lists them."""
    found = []
    for number in sorted(int(name) for name in os.listdir("/proc/self/fd")):
        try:
            os.fstat(number)
        except OSError:
            continue
        found.append(number)
    return found


def read(server: socket.socket, size: int) -> bytes:
    """Return the next bytes from the server; without it the process is gone, too."""
    found = b""
    while len(found) < size:
        more = server.recv(size - len(found))
        if not more:
            os._exit(97)
        found += more
    return found


main()

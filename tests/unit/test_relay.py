"""The relay before Slurm's pmi2: long values arrive whole, and the command is none the wiser."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from jobs.relay import VALUE, answer

RELAY = Path(__file__).resolve().parents[2] / "jobs" / "relay.py"

#: What MPICH does: it asks how long a value may be, and cuts its address accordingly.
CLIENT = """
import os, socket, sys
pmi = socket.socket(fileno=int(os.environ["PMI_FD"]))
def ask(text):
    pmi.sendall(text.encode() + b"\\n")
    return pmi.recv(4096).decode()
ask("cmd=init pmi_version=1 pmi_subversion=1")
maxes = dict(word.split("=") for word in ask("cmd=get_maxes").split())
size = (int(maxes["vallen_max"]) - 2) // 2 * 2
value = os.urandom(4096).hex()
key = "-allgather-" + 53 * "k"
for i in range(0, len(value), size):
    ask(f"cmd=put kvsname=4294967295.4294967295 key={key} value={value[i:i + size]}")
ask("cmd=finalize")
assert pmi.recv(1) == b""
print(value)
sys.exit(3)
"""


class Slurm(threading.Thread):
    """The other end, as handle_pmi1_cmd does it: a request is what one read of 1024 characters brings."""

    def __init__(self, end: socket.socket) -> None:
        super().__init__(daemon=True)
        self.end = end
        self.values: list[str] = []
        self.torn = 0

    def run(self) -> None:
        while text := self.end.recv(1024).decode():
            words = dict(word.split("=") for word in text.split() if "=" in word)
            self.torn += not text.endswith("\n")
            reply = "cmd=maxes rc=0 kvsname_max=256 keylen_max=64 vallen_max=1024"
            if words.get("cmd") != "get_maxes":
                reply = "cmd=put_result rc=0"
            self.values += [words["value"]] if "value" in words else []
            self.end.sendall(f"{reply}\n".encode())
            if words.get("cmd") == "finalize":
                self.end.shutdown(socket.SHUT_RDWR)


def start(command: list[str], end: socket.socket, **environ: str) -> subprocess.Popen[str]:
    """Start a command as a rank of a step; `end` is what Slurm gave it."""
    env = {**os.environ, "PMI_FD": str(end.fileno()), **environ}
    return subprocess.Popen(command, env=env, pass_fds=[end.fileno()], stdout=subprocess.PIPE, text=True)


@pytest.mark.parametrize("relayed", [True, False])
def test_long_values_arrive_whole(relayed: bool) -> None:
    ours, theirs = socket.socketpair()
    slurm = Slurm(ours)
    slurm.start()
    front = [sys.executable, str(RELAY)] if relayed else []
    with theirs:
        process = start([*front, sys.executable, "-c", CLIENT], theirs, SLURM_STEP_ID="0")
    if not relayed:
        # Slurm answers each half by itself; that this fails is why the relay is there.
        slurm.join(5)
        assert slurm.torn > 0
        process.kill()
    out, _ = process.communicate(timeout=30)
    if relayed:
        assert process.returncode == 3
        assert slurm.torn == 0
        assert "".join(slurm.values) == out.strip()
    ours.close()


def test_signals_to_the_step_leave_the_relay_and_it_ends_with_its_rank() -> None:
    ours, theirs = socket.socketpair()
    code = "import sys, time; print('up', flush=True); sys.stdin.read()"
    env = {**os.environ, "PMI_FD": str(theirs.fileno()), "SLURM_STEP_ID": "0"}
    process = subprocess.Popen(
        [sys.executable, str(RELAY), sys.executable, "-c", code], env=env, pass_fds=[theirs.fileno()],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    theirs.close()
    assert process.stdout is not None
    assert process.stdout.readline() == "up\n"
    (child,) = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    for number in (signal.SIGUSR1, signal.SIGTERM):
        os.kill(int(child), number)
    time.sleep(0.2)
    assert os.readlink(f"/proc/{child}/fd/{theirs_in(int(child))}").startswith("socket:")
    process.communicate("", timeout=30)
    # Slurm sees the end of the last process that holds its socket.
    ours.settimeout(30)
    assert ours.recv(1) == b""
    ours.close()


def theirs_in(pid: int) -> str:
    """Return a file descriptor of a living process that is a socket."""
    places = Path(f"/proc/{pid}/fd")
    return next(place.name for place in places.iterdir() if os.readlink(place).startswith("socket:"))


def test_what_is_not_slurms_is_started_as_it_is() -> None:
    ours, theirs = socket.socketpair()
    code = "import os; print(os.fstat(int(os.environ['PMI_FD'])).st_ino)"
    process = start([sys.executable, str(RELAY), sys.executable, "-c", code], theirs)
    out, _ = process.communicate(timeout=30)
    assert int(out) == os.fstat(theirs.fileno()).st_ino
    ours.close()
    theirs.close()


def test_nothing_but_the_length_of_a_value_is_changed() -> None:
    said = b"cmd=maxes rc=0 kvsname_max=1024 keylen_max=64 vallen_max=1024\n"
    assert answer(said) == said.replace(b"vallen_max=1024", b"vallen_max=%d" % VALUE)
    for text in (
        b"cmd=maxes rc=0 vallen_max=512\n",
        b"cmd=get_result rc=0 value=vallen_max=4096\n",
        b"    52cmd=fullinit-response;pmi-version=2;vallen_max=2000;",
        b"",
    ):
        assert answer(text) == text


def test_a_command_is_needed() -> None:
    done = subprocess.run([sys.executable, str(RELAY)], capture_output=True, text=True, timeout=30)
    assert done.returncode == 1
    assert "usage:" in done.stderr

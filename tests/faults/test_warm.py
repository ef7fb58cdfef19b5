"""What a warm server forks is the program that Python would have started: see `tests.warm`."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.launch import environment, find_mpirun, forked, kill_tree, mpirun, run

#: Prints where it is and what it was given.
PROGRAM = """
import os, sys
print(os.getcwd(), sys.argv, os.environ.get("MARK"), __name__, sys.stdin.read(), os.read(int(os.environ["FILE"]), 9))
print("words", file=sys.stderr)
"""


def popen(*arguments: str, **options: object) -> subprocess.Popen[str]:
    command = forked([sys.executable, *arguments])
    assert "stub.py" in command[3]
    return subprocess.Popen(command, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE, **options)  # type: ignore[call-overload, no-any-return]


@pytest.mark.parametrize("kind", ["-c", "-m", "a file"])
def test_a_program_gets_what_it_would_get_from_python(kind: str, tmp_path: Path) -> None:
    (tmp_path / "program.py").write_text(PROGRAM)
    start = {"-c": ["-c", PROGRAM], "-m": ["-m", "program"], "a file": ["program.py"]}[kind]
    said = []
    for command in (forked([sys.executable, *start, "a", "b"]), [sys.executable, *start, "a", "b"]):
        mine, theirs = os.pipe()
        os.write(theirs, b"inherited")
        done = subprocess.run(
            command, cwd=tmp_path, env={**environment(), "MARK": "here", "FILE": str(mine)}, pass_fds=[mine],
            input="said", text=True, capture_output=True, timeout=60, check=True,
        )  # fmt: skip
        for file in (mine, theirs):
            os.close(file)
        said.append((done.stdout, done.stderr))
    assert said[0] == said[1]
    assert "__main__ said b'inherited'" in said[0][0]


@pytest.mark.parametrize(
    ("program", "code"),
    [
        ("pass", 0),
        ("raise SystemExit(7)", 7),
        ("raise SystemExit('words')", 1),
        ("1 / 0", 1),
        ("import os; os._exit(9)", 9),
        ("import os; os.kill(os.getpid(), 9)", -9),
        ("import os; os.abort()", -signal.SIGABRT),
        ("raise KeyboardInterrupt", -signal.SIGINT),
    ],
)
def test_it_ends_as_it_would_end(program: str, code: int) -> None:
    fork, fresh = (run([sys.executable, "-c", program], timeout=60, fresh=fresh) for fresh in (False, True))
    assert (fork.code, fresh.code) == (code, code), fork.text
    assert fork.stderr.splitlines()[-1:] == fresh.stderr.splitlines()[-1:]


def test_what_runs_at_exit_runs_once() -> None:
    program = "import atexit, threading, time\natexit.register(print, 'exit')\n"
    program += "threading.Thread(target=lambda: (time.sleep(0.1), print('thread'))).start()"
    assert run([sys.executable, "-c", program], timeout=60).stdout == "thread\nexit\n"


def test_signals_reach_it() -> None:
    program = "import signal\nsignal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR1])\nprint('ready', flush=True)\n"
    program += "signal.sigwait([signal.SIGUSR1])\nprint('heard')"
    child = popen("-c", program)
    assert child.stdout is not None
    assert child.stdout.readline() == "ready\n"
    child.send_signal(signal.SIGUSR1)
    assert child.communicate(timeout=60)[0] == "heard\n"
    child = popen("-c", "import time; print('ready', flush=True); time.sleep(100)")
    assert child.stdout is not None
    child.stdout.readline()
    child.terminate()
    child.communicate(timeout=60)
    assert child.returncode == -signal.SIGTERM


def test_a_tree_that_is_killed_leaves_no_process() -> None:
    child = popen("-c", "import os, time; print(os.getpid(), flush=True); time.sleep(100)", start_new_session=True)
    assert child.stdout is not None
    process = int(child.stdout.readline())
    assert process != child.pid
    kill_tree(child.pid)
    assert not Path(f"/proc/{process}").exists()
    child.communicate(timeout=60)


def test_other_values_of_what_imports_read_start_python() -> None:
    command = [find_mpirun(), "-n", "2", sys.executable, "-c", "pass"]
    assert forked(command)[:3] == command[:3]
    assert forked(command) != command
    for variable in ("OMP_NUM_THREADS", "PYTHONMALLOC", "NUMBA_NUM_THREADS", "LD_PRELOAD"):
        assert forked(command, {variable: "2"}) == command


def test_ranks_are_ranks_and_draw_apart() -> None:
    program = "import mpisparse as ms, random; c = ms.init(banner=False)\n"
    program += "drawn = set(c.allgather_bytes(str(random.random()).encode()))\n"
    program += "print(f'{c.size} {len(drawn)}\\n', end='', flush=True)  # in one piece, whatever buffers"
    outcome = mpirun(3, "-c", program, timeout=60)
    assert (outcome.code, outcome.stdout) == (0, "3 3\n" * 3), outcome.text

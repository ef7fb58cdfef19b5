"""The limit on how long MPI may take to start: a process that waits inside one call ends, having said why."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from mpisparse.comm.limit import DEFAULT, VARIABLE, ended_after, start_limit, words_of
from mpisparse.errors import ConfigError

#: Holds Python's lock all the time, as the start of MPI does: PyDLL does not give it away.
BLOCKED = """
import ctypes
from mpisparse.comm.limit import ended_after
with ended_after({seconds}, "the words"):
    ctypes.PyDLL(None).sleep({asleep})
print("went on")
"""


def run(seconds: float, asleep: int) -> tuple[int, str, str, float]:
    begin = time.monotonic()
    code = BLOCKED.format(seconds=seconds, asleep=asleep)
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    return found.returncode, found.stdout, found.stderr, time.monotonic() - begin


def test_a_call_that_never_ends_is_ended_with_words() -> None:
    code, out, err, took = run(0.5, 50)
    assert (code, out, err) == (-signal.SIGKILL, "", "the words\n")
    assert took < 40


@pytest.mark.parametrize("seconds", [0, 30])
def test_one_that_ends_in_time_leaves_nothing_behind(seconds: float) -> None:
    assert run(seconds, 1)[:3] == (0, "went on\n", "")


def children() -> str:
    return "".join(path.read_text() for path in Path("/proc/self/task").glob("*/children"))


def test_no_child_and_no_file_is_left() -> None:
    before, processes = set(os.listdir("/proc/self/fd")), children()
    with ended_after(60, "never said"):
        pass
    with pytest.raises(KeyError), ended_after(60, "never said"):
        raise KeyError
    assert set(os.listdir("/proc/self/fd")) == before
    assert children() == processes


def test_the_limit_is_what_the_environment_says() -> None:
    assert start_limit({}) == DEFAULT
    assert start_limit({VARIABLE: "2.5"}) == 2.5
    assert start_limit({VARIABLE: "0"}) == 0
    for text in ("soon", "-1", "inf", "nan"):
        with pytest.raises(ConfigError, match=f"^{VARIABLE}='{text}' is no number of seconds"):
            start_limit({VARIABLE: text})


def test_the_words_name_rank_and_way_out() -> None:
    words = words_of(2.5, {"PMI_RANK": "3"})
    assert words.startswith("mpisparse: HangError: MPI did not start within 2.5 s on rank 3 (")
    assert VARIABLE in words

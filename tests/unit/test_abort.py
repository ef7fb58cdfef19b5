"""The last words of a rank: they are read before the job is ended."""

from __future__ import annotations

import os
import threading
from pathlib import Path
from time import sleep

from mpisparse.comm.abort import wait_until_heard


def test_waits_until_the_pipe_has_been_read() -> None:
    reader, writer = os.pipe()
    heard = []

    def read_late() -> None:
        sleep(0.2)
        heard.append(os.read(reader, 100))

    with open(writer, "w", encoding="utf-8") as stream:
        late = threading.Thread(target=read_late)
        late.start()
        stream.write("the reason")
        assert wait_until_heard(stream)
        late.join()
    os.close(reader)
    assert heard == [b"the reason"]


def test_gives_up_on_a_pipe_that_nobody_reads() -> None:
    reader, writer = os.pipe()
    with open(writer, "w", encoding="utf-8") as stream:
        stream.write("the reason")
        assert not wait_until_heard(stream, limit=0.05)
    os.close(reader)


def test_a_file_counts_as_read(tmp_path: Path) -> None:
    with (tmp_path / "log").open("w") as stream:
        stream.write("the reason")
        assert wait_until_heard(stream, limit=0.0)
    assert (tmp_path / "log").read_text() == "the reason"

"""The watchdog between threads, and what it makes of dumps: who was behind follows from numbers alone."""

from __future__ import annotations

from pathlib import Path
from time import monotonic, sleep

import pytest

from mpisparse.comm import Communicator, run_ranks, solo
from mpisparse.comm.recorder import ENDED, Recorder
from mpisparse.errors import CommError, ConfigError
from mpisparse.runtime import Watchdog
from mpisparse.runtime.dump import Dump, make_dump, read_dumps, write_dump
from mpisparse.runtime.hang import explain, find_hang, summary

LIMIT = 0.6


def test_a_rank_that_does_not_come_ends_the_group_and_is_named_once(tmp_path: Path) -> None:
    said: list[str] = []

    def one(comm: Communicator) -> str:
        watchdog = Watchdog(comm, limit=LIMIT, directory=tmp_path, say=said.append)
        comm.barrier()
        watchdog.start()
        begin = monotonic()
        try:
            if comm.rank == 1:
                while monotonic() < begin + 60 and not said:
                    sleep(0.05)
                return "came late"
            comm.barrier()
        except CommError as error:
            assert monotonic() - begin > LIMIT
            return str(error)
        finally:
            watchdog.stop()
        return "went on"

    results = run_ranks(3, one)
    assert "another rank left" in results[0]
    assert "another rank left" in results[2]
    assert len(said) == 1
    assert said[0].startswith("mpisparse: HangError: ranks 0, 2 of 3 waited for ")
    assert 'of communicator "world"' in said[0]
    assert "rank 1 did not come: it was in its own code" in said[0]
    assert sorted(read_dumps(tmp_path)) == [0, 1, 2]
    assert not list(tmp_path.glob(".alarm*"))


def test_long_work_that_nobody_waits_for_is_left_alone(tmp_path: Path) -> None:
    said: list[str] = []

    def one(comm: Communicator) -> None:
        watchdog = Watchdog(comm, limit=0.2, directory=tmp_path / "crash", say=said.append)
        comm.barrier()
        watchdog.start()
        sleep(1)
        watchdog.stop()
        comm.barrier()

    run_ranks(3, one)
    assert not said
    assert not (tmp_path / "crash").exists()


def test_off_it_does_nothing_and_a_limit_below_zero_is_refused(tmp_path: Path) -> None:
    assert not Watchdog(solo(), limit=1, directory=tmp_path).start().watches
    with pytest.raises(ConfigError, match="limit is -1 s"):
        Watchdog(solo(), limit=-1, directory=tmp_path)

    def one(comm: Communicator) -> None:
        before = comm.lane.begun
        watchdog = Watchdog(comm, limit=0, directory=tmp_path).start()
        watchdog.stop()
        assert (watchdog.watches, comm.lane.begun) == (False, before)

    run_ranks(2, one)


def test_a_directory_that_cannot_be_written_does_not_keep_the_job_alive(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no directory")
    said: list[str] = []

    def one(comm: Communicator) -> None:
        watchdog = Watchdog(comm, limit=0.3, directory=tmp_path / "file", say=said.append).start()
        if comm.rank == 0:
            with pytest.raises(CommError):
                comm.barrier()
        while not said:
            sleep(0.05)
        watchdog.stop()

    run_ranks(2, one)
    assert "Nothing could be written to" in said[0]
    assert "rank 1 did not come" in said[0]


# What dumps tell ------------------------------------------------------------------------------------------------------


def dump(rank: int, calls: list[str], *, inside: bool, size: int = 3, name: str = "optimizer", **about: object) -> Dump:
    """Return the dump of a rank that made these calls, and is inside the last of them or not."""
    recorder = Recorder()
    lane = recorder.lane(name)
    recorder.step = 4
    for operation in calls:
        lane.call(operation).end()
    if inside and calls:
        recorder.ring[-1].ended = 0
        recorder.waiting.add(recorder.ring[-1])
    fixed = {
        "job": "j",
        "rank": rank,
        "size": size,
        "host": "h",
        "process": 10 + rank,
        "limit": 3.0,
        "reason": "waited",
    }
    return make_dump(recorder, **{**fixed, **about})


THERE = ["allgather", "allgatherv", "allgather"]


def test_ranks_that_have_not_begun_the_call_are_behind() -> None:
    dumps = {0: dump(0, THERE, inside=True), 1: dump(1, THERE[:2], inside=False), 2: dump(2, THERE, inside=True)}
    hang = find_hang(dumps)
    assert (hang.waiting, hang.behind, hang.elsewhere) == ((0, 2), (1,), ())
    line = summary(dumps, "runs/x/crash")
    assert line.startswith('ranks 0, 2 of 3 waited for 0.0 s in allgather 3 of communicator "optimizer", after 4 steps')
    assert "rank 1 did not come: it was in its own code for" in line
    assert "since allgatherv 2 of communicator" in line
    assert line.endswith("mpisparse explain-hang runs/x/crash")
    told = "\n".join(explain(dumps))
    assert told.index("rank 1 (process 11 on h) was in its own code") < told.index("rank 0 (process 10 on h) waits")


def test_a_rank_without_a_dump_is_behind_and_what_was_seen_of_it_is_said() -> None:
    silent = {"1": "process 11 on h is stopped by a signal"}
    dumps = {0: dump(0, THERE, inside=True, silent=silent), 2: dump(2, THERE, inside=True)}
    assert find_hang(dumps).behind == (1,)
    assert "rank 1 did not come: it told nothing, process 11 on h is stopped by a signal" in summary(dumps, "c")


def test_ranks_in_different_calls_of_the_same_number_go_different_ways() -> None:
    dumps = {0: dump(0, THERE, inside=True), 1: dump(1, [*THERE[:2], "barrier"], inside=True, size=2)}
    dumps[0]["size"] = 2
    hang = find_hang(dumps)
    assert (hang.waiting, hang.elsewhere, hang.behind) == ((0,), (1,), ())
    assert "rank 1 made barrier of it: every rank must make the same calls in the same order" in summary(dumps, "c")


def test_ranks_that_wait_on_different_communicators_are_told_of_the_order() -> None:
    dumps = {}
    for rank in range(2):
        recorder = Recorder()
        lanes = [recorder.lane("optimizer"), recorder.lane("optimizer")]
        recorder.waiting.add(lanes[rank].call("allgather"))
        about = {"job": "j", "size": 2, "host": "h", "process": rank, "limit": 3.0, "reason": "waited"}
        dumps[rank] = make_dump(recorder, rank=rank, **about)
    line = summary(dumps, "c")
    assert 'rank 0 of 2 waited for 0.0 s in allgather 1 of communicator "optimizer"' in line
    assert 'rank 1 did not come: it waited in allgather 1 of communicator "optimizer 2"' in line
    assert "different communicators: every rank must make the same calls in the same order" in line


def test_when_all_came_it_is_the_network() -> None:
    dumps = {rank: dump(rank, THERE, inside=True) for rank in range(3)}
    assert "all 3 ranks came to allgather 3" in summary(dumps, "c")
    assert "network or the MPI library" in summary(dumps, "c")


def test_a_program_that_had_ended_says_so() -> None:
    recorder = Recorder()
    recorder.lane("optimizer").call("allgather").end()
    recorder.lane(ENDED).start("started allgather")
    about = {"job": "j", "size": 2, "host": "h", "process": 1, "limit": 3.0, "reason": "waited"}
    dumps = {0: dump(0, THERE, inside=True, size=2), 1: make_dump(recorder, rank=1, **about)}
    assert "rank 1 did not come: its program had ended, after 0 steps" in summary(dumps, "c")


def test_many_missing_ranks_are_listed_shortly() -> None:
    dumps = {0: dump(0, THERE, inside=True, size=1000)}
    line = summary(dumps, "c")
    assert "nor did ranks 9-999" in line
    assert len(line) < 1000


def test_dumps_of_an_earlier_hang_do_not_count(tmp_path: Path) -> None:
    for rank in range(3):
        write_dump(tmp_path, dump(rank, THERE, inside=True, job="old"))
    for rank in range(2):
        later = dump(rank, THERE, inside=True, size=2, job="new")
        write_dump(tmp_path, later)
    (tmp_path / "rank-00007.json").write_text("{ torn")
    assert sorted(read_dumps(tmp_path)) == [0, 1]
    assert sorted(read_dumps(tmp_path, "old")) == [2]
    with pytest.raises(ConfigError, match="holds no dump"):
        read_dumps(tmp_path, "another")
    with pytest.raises(ConfigError, match="holds no dump"):
        read_dumps(tmp_path / "nowhere")

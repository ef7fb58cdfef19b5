"""Claims: one process at a time writes to a directory, others are refused, and a dead owner's claim is taken over."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from threading import Event, Thread

import pytest
import torch
from click.testing import CliRunner

import mpisparse as ms
from mpisparse.checkpoint import claim as claims
from mpisparse.checkpoint.claim import NAME, Claim, Owner, claimed
from mpisparse.cli import cli
from mpisparse.comm import Communicator, run_ranks
from mpisparse.errors import ConfigError, RunDirectoryError

#: Seconds: of what other processes need, far more than they do.
LIMIT = 60.0

#: A process that claims the directory named, says how that ended, and holds it until its input ends.
HOLDER = (
    "import sys\n"
    "from mpisparse.checkpoint.claim import Claim\n"
    "from mpisparse.errors import ConfigError\n"
    "from pathlib import Path\n"
    "claim = Claim(Path(sys.argv[1]), beat=0.05, watch=0.5)\n"
    "print('loaded', flush=True)\n"
    "sys.stdin.readline()\n"
    "try:\n"
    "    claim.take()\n"
    "    print('taken', flush=True)\n"
    "    sys.stdin.readline()\n"
    "    claim.release()\n"
    "except ConfigError as error:\n"
    "    print('refused', error, flush=True)\n"
)


class Holder:
    """Another process, which is told when to claim a directory and when to end."""

    def __init__(self, directory: Path) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", HOLDER, str(directory)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        assert self.says() == "loaded"

    def says(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip()

    def goes_on(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write("\n")
        self.process.stdin.flush()

    def takes(self) -> str:
        self.goes_on()
        return self.says()

    def kill(self) -> None:
        self.process.kill()
        self.process.communicate()


def owner(directory: Path) -> Owner:
    content = json.loads((directory / NAME).read_text())
    assert content.pop("schema") == 1
    return Owner(**content)


def write(directory: Path, claim: Owner) -> None:
    (directory / NAME).write_text(json.dumps({"schema": 1, **{k: getattr(claim, k) for k in Owner.__slots__}}))


def elsewhere(**changes: object) -> Owner:
    """Return the claim of a process on another machine."""
    return replace(Owner.this(), token="ab12", host="n7", place="another boot", **changes)  # type: ignore[arg-type]


def wait_for(path: Path, *, there: bool) -> None:
    until = time.monotonic() + LIMIT
    while path.exists() != there:
        assert time.monotonic() < until
        time.sleep(0.01)


def test_an_owner_keeps_others_out_until_it_gives_the_directory_back(tmp_path: Path) -> None:
    other = Holder(tmp_path)
    try:
        assert other.takes() == "taken"
        pid, host = other.process.pid, os.uname().nodename
        with pytest.raises(ConfigError, match=rf"is being written to by process {pid} on {host}, since .*--run-dir"):
            Claim(tmp_path).take()
        other.goes_on()
        wait_for(tmp_path / NAME, there=False)
        claim = Claim(tmp_path)
        claim.take()
        assert owner(tmp_path).process == os.getpid()
        claim.release()
        claim.release()
        assert list(tmp_path.iterdir()) == []
    finally:
        other.kill()


def test_the_claim_of_a_killed_process_is_taken_over_by_one_of_many(tmp_path: Path) -> None:
    dead = Holder(tmp_path)
    others = [Holder(tmp_path) for _ in range(4)]
    try:
        assert dead.takes() == "taken"
        dead.kill()
        for other in others:
            other.goes_on()
        words = [other.says().split()[0] for other in others]
        assert sorted(words) == ["refused"] * 3 + ["taken"]
        winner = others[words.index("taken")]
        assert owner(tmp_path).process == winner.process.pid
        assert [path.name for path in tmp_path.iterdir()] == [NAME]
    finally:
        for other in others:
            other.kill()


def test_a_process_of_the_same_number_that_began_later_is_another(tmp_path: Path) -> None:
    write(tmp_path, replace(Owner.this(), started=1, token="ab12"))
    claim = Claim(tmp_path)
    claim.take()
    assert owner(tmp_path).started != 1
    claim.release()


def test_a_process_elsewhere_is_dead_when_its_file_stays_as_it_is(tmp_path: Path) -> None:
    write(tmp_path, elsewhere())
    os.utime(tmp_path / NAME, (2e9, 2e9))  # its clock is years ahead of ours
    said: list[str] = []
    claim = Claim(tmp_path, watch=0.3, say=said.append)
    claim.take()
    assert owner(tmp_path).host == os.uname().nodename
    assert len(said) == 1
    assert "on n7, since" in said[0]
    assert "0.3 s" in said[0]
    claim.release()


def test_a_process_elsewhere_lives_when_its_file_changes(tmp_path: Path) -> None:
    write(tmp_path, elsewhere(job="77", restart=2))

    done = Event()

    def touch() -> None:
        while not done.wait(0.01):
            os.utime(tmp_path / NAME)

    toucher = Thread(target=touch)
    with pytest.raises(ConfigError, match=r"on n7, Slurm job 77 \(restart 2\), since"):
        Claim(tmp_path, watch=LIMIT, say=lambda line: toucher.start()).take()
    done.set()
    toucher.join()


@pytest.mark.parametrize(("job", "restart", "taken"), [("77", "3", True), ("77", "2", False), ("78", "3", False)])
def test_a_job_that_slurm_starts_again_takes_over_at_once(
    job: str, restart: str, taken: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path, elsewhere(job="77", restart=2))
    monkeypatch.setenv("SLURM_JOB_ID", job)
    monkeypatch.setenv("SLURM_RESTART_COUNT", restart)
    assert owner(tmp_path).has_ended(Owner.this()) is (True if taken else None)


@pytest.mark.parametrize("content", [b"", b"{", b"[" * 9999, b'{"token": "../x"}', b"\xff\xfe", b"null"])
def test_a_claim_that_says_nothing_is_watched_and_taken_over(content: bytes, tmp_path: Path) -> None:
    (tmp_path / NAME).write_bytes(content)
    said: list[str] = []
    claim = Claim(tmp_path, watch=0.1, say=said.append)
    claim.take()
    assert len(said) == 1
    assert owner(tmp_path).process == os.getpid()
    claim.release()


def test_a_link_or_a_pipe_in_its_place_is_neither_followed_nor_waited_for(tmp_path: Path) -> None:
    (tmp_path / "kept").write_text("as it was")
    (tmp_path / NAME).symlink_to(tmp_path / "kept")
    with pytest.raises(OSError, match="symbolic"):
        Claim(tmp_path).take()
    assert (tmp_path / "kept").read_text() == "as it was"
    (tmp_path / NAME).unlink()
    os.mkfifo(tmp_path / NAME)
    claim = Claim(tmp_path, watch=0.1, say=lambda line: None)
    claim.take()
    claim.release()


def test_a_taker_that_died_on_its_way_is_replaced_as_well(tmp_path: Path) -> None:
    first, second = replace(Owner.this(), started=1, token="aa"), replace(Owner.this(), started=2, token="bb")
    write(tmp_path, second)
    (tmp_path / NAME).rename(tmp_path / ".owner-aa")
    write(tmp_path, first)
    (tmp_path / f".{NAME}.bb.tmp").write_text((tmp_path / ".owner-aa").read_text())
    claim = Claim(tmp_path)
    claim.take()
    assert owner(tmp_path).started not in (1, 2)
    claim.release()
    assert list(tmp_path.iterdir()) == []


def test_a_file_system_without_hard_links_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "link", refuse)
    write(tmp_path, replace(Owner.this(), started=1, token="aa"))
    claim = Claim(tmp_path)
    claim.take()
    assert [path.name for path in tmp_path.iterdir()] == [NAME]
    claim.release()


def test_one_process_may_own_a_directory_twice(tmp_path: Path) -> None:
    first, second = Claim(tmp_path), Claim(tmp_path)
    first.take()
    second.take()
    second.release()
    assert (tmp_path / NAME).exists()
    first.release()
    assert not (tmp_path / NAME).exists()


def lost(claim: Claim) -> str:
    """Return what a claim says once it has noticed that it is lost."""
    until = time.monotonic() + LIMIT
    while time.monotonic() < until:
        try:
            claim.check()
        except RunDirectoryError as error:
            return str(error)
        time.sleep(0.01)
    return "nothing"


def test_a_directory_that_is_moved_removed_or_taken_over_is_noticed(tmp_path: Path) -> None:
    run = tmp_path / "run"
    acts: list[tuple[Callable[[], object], str]] = [
        (lambda: run.rename(tmp_path / "moved"), f"{run}: the directory was moved or removed while this run"),
        (lambda: (run / NAME).unlink(), f"{run}: owner.json was moved or removed"),
        (lambda: write(run, elsewhere()), f"{run} was taken over by process {os.getpid()} on n7"),
    ]
    for act, words in acts:
        run.mkdir(exist_ok=True)
        claim = Claim(run, beat=0.02)
        claim.take()
        claim.check()
        act()
        assert lost(claim).startswith(words)
        claim.release()
        (run / NAME).unlink(missing_ok=True)


def test_the_owner_touches_its_file(tmp_path: Path) -> None:
    claim = Claim(tmp_path, beat=0.02)
    claim.take()
    os.utime(tmp_path / NAME, (1, 1))
    until = time.monotonic() + LIMIT
    while (tmp_path / NAME).stat().st_mtime == 1:
        assert time.monotonic() < until
        time.sleep(0.01)
    claim.release()


def test_all_ranks_are_refused_alike(tmp_path: Path) -> None:
    write(tmp_path, replace(Owner.this(), process=1, started=claims._started(1) or 0, token="ab12"))

    def law(comm: Communicator) -> None:
        refused_by = pytest.raises(ConfigError, match="is being written to by process 1 on")
        with refused_by as refused, claimed(comm, tmp_path):
            raise AssertionError("not refused")
        assert refused.value.on_all_ranks

    run_ranks(3, law)


def test_a_checkpointer_a_prune_and_a_reshape_keep_out_of_a_directory_in_use(tmp_path: Path) -> None:
    """In a run's directory the run's claim counts, and elsewhere the directory's own."""
    run, alone = tmp_path / "run" / "checkpoints", tmp_path / "alone"
    saved = ms.Checkpointer(run)
    for step in (1, 2):
        saved.save(step, {"weight": torch.ones(2)}, None)
    saved.__exit__(None, None, None)
    assert sorted(path.name for path in run.iterdir()) == ["latest", "step-00000001", "step-00000002"]
    alone.mkdir()
    unfinished = alone / "step-00000009.tmp"
    unfinished.mkdir()
    foreign = replace(Owner.this(), process=1, started=claims._started(1) or 0, token="ab12")
    for directory in (run.parent, alone):
        write(directory, foreign)
    for directory in (run, alone):
        with pytest.raises(ConfigError, match="is being written to by process 1 on"):
            ms.Checkpointer(directory).save(3, None)
    assert unfinished.is_dir()
    pruned = CliRunner().invoke(cli, ["checkpoint", "prune", str(run), "--keep", "1"])
    assert isinstance(pruned.exception, ConfigError), pruned.output
    assert (run / "step-00000001").is_dir()
    restored = ms.Checkpointer(run).restore()
    assert restored is not None
    assert restored.step == 2
    (run.parent / NAME).unlink()
    assert CliRunner().invoke(cli, ["checkpoint", "prune", str(run), "--keep", "1"]).exit_code == 0
    assert sorted(path.name for path in run.iterdir()) == ["latest", "step-00000002"]

"""The terminal behind the launcher: found through the launcher's own standard error."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from mpisparse.terminal import STDERR, STDOUT, terminal_columns


def fake(proc: Path, process: int, name: str, parent: int, stderr: str) -> None:
    folder = proc / str(process)
    (folder / "fd").mkdir(parents=True)
    (folder / "stat").write_text(f"{process} ({name}) S {parent} 1 1 0")
    (folder / "fd" / "2").symlink_to(stderr)


@pytest.fixture
def terminal() -> str:
    """Return the name of a terminal of this process's own."""
    _, inner = os.openpty()
    return os.ttyname(inner)


def test_a_known_launcher_on_a_terminal_is_found_behind_its_proxy(
    tmp_path: Path, terminal: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake(tmp_path, 100, "hydra_pmi_proxy", 90, "/dev/null")
    fake(tmp_path, 90, "mpirun", 1, terminal)
    monkeypatch.setattr(os, "getppid", lambda: 100)
    assert terminal_columns(STDERR, tmp_path) == 80


@pytest.mark.parametrize(("name", "stderr"), [("mpirun", "/dev/null"), ("prterun", "/dev/null")])
def test_a_file_behind_the_launcher_is_no_terminal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, stderr: str
) -> None:
    fake(tmp_path, 100, name, 1, stderr)
    monkeypatch.setattr(os, "getppid", lambda: 100)
    assert terminal_columns(STDERR, tmp_path) is None


def test_a_terminal_of_the_launchers_own_making_does_not_count(
    tmp_path: Path, terminal: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Open MPI gives its ranks one, whatever its own output is."""
    fake(tmp_path, 100, "prted", 90, terminal)
    fake(tmp_path, 90, "prterun", 1, "/dev/null")
    monkeypatch.setattr(os, "getppid", lambda: 100)
    assert terminal_columns(STDERR, tmp_path) is None


def test_without_a_launcher_the_streams_own_terminal_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake(tmp_path, 100, "bash", 1, "/dev/null")
    monkeypatch.setattr(os, "getppid", lambda: 100)
    monkeypatch.setattr(os, "isatty", lambda stream: stream == STDOUT)
    monkeypatch.setattr(os, "get_terminal_size", lambda stream: os.terminal_size((132, 40)))
    assert terminal_columns(STDOUT, tmp_path) == 132
    assert terminal_columns(STDERR, tmp_path) is None

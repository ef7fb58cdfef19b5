"""Where compiled kernels are kept: never where another user could put code, and nowhere rather than a crash."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from mpisparse.kernels.compiled import private_directory
from tests.launch import run

#: Kernels of its own, declared as the package's are; says how it went.
PROGRAM = """
import sys
import numpy as np
from mpisparse.comm import solo
from mpisparse.kernels.passes import largest_bits
from mpisparse.rehearsal import leaders_first
for call in range(2):
    print(leaders_first(solo(), lambda: int(largest_bits(np.ones(9, np.float32))))[1])
print(largest_bits.stats.cache_path)
"""


def say(**environ: str) -> list[str]:
    """Return what the program prints in a process of its own."""
    outcome = run([sys.executable, "-c", PROGRAM], timeout=120, env={**os.environ, **environ}, fresh=True)
    assert outcome.code == 0, outcome.text
    return outcome.stdout.splitlines()


def test_compiled_is_what_was_compiled_and_loaded_what_was_not(tmp_path: Path) -> None:
    first = say(NUMBA_CACHE_DIR=str(tmp_path))
    assert first[0].startswith("kernels compiled, once for this machine, in ")
    assert first[1].startswith("kernels loaded, in ")
    assert Path(first[2]).is_relative_to(tmp_path)
    assert say(NUMBA_CACHE_DIR=str(tmp_path))[0].startswith("kernels loaded, in ")
    files = [path for path in tmp_path.rglob("*") if path.suffix in (".nbi", ".nbc")]
    assert files
    for path in files:  # as a disk leaves them that fails
        path.write_bytes(path.read_bytes()[:20])
    assert say(NUMBA_CACHE_DIR=str(tmp_path))[0].startswith("kernels compiled, once")
    assert say(NUMBA_CACHE_DIR=str(tmp_path))[0].startswith("kernels loaded")


def test_a_read_only_package_and_home_leave_a_directory_of_the_users_own(tmp_path: Path) -> None:
    # Of numba's places only the one that is set remains, and none is.
    elsewhere = {
        "NUMBA_CACHE_LOCATOR_CLASSES": "UserProvidedCacheLocator",
        "NUMBA_CACHE_DIR": "",
        "TMPDIR": str(tmp_path),
    }
    first = say(**elsewhere)
    assert first[0].startswith("kernels compiled, once for this machine, in ")
    (own,) = tmp_path.iterdir()
    assert Path(first[2]).is_relative_to(own)
    assert own.stat().st_mode & 0o777 == 0o700
    assert say(**elsewhere)[0].startswith("kernels loaded, in ")


def test_without_any_directory_every_process_compiles_and_says_what_to_set() -> None:
    first = say(NUMBA_CACHE_LOCATOR_CLASSES="IPythonCacheLocator")
    assert first[0].startswith("kernels compiled, in ")
    assert "again in every start" in first[0]
    assert "set NUMBA_CACHE_DIR" in first[0]
    assert first[1].startswith("kernels loaded, in ")
    assert first[2] == "None"


def test_a_directory_that_others_could_write_is_passed_over(tmp_path: Path) -> None:
    good, bad = tmp_path / "good", tmp_path / "bad"
    good.mkdir()
    bad.mkdir()
    found = private_directory([bad, good])
    assert found is not None
    assert found.parent == bad
    assert private_directory([bad, good]) == found
    found.chmod(0o770)
    other = private_directory([bad, good])
    assert other == good / found.name
    found.chmod(0o700)
    assert private_directory([bad]) == found
    found.rmdir()
    found.symlink_to(other)
    assert private_directory([bad]) is None
    found.unlink()
    found.write_bytes(b"")
    assert private_directory([bad]) is None
    found.unlink()
    bad.chmod(0o777)
    assert private_directory([bad]) is None
    bad.chmod(0o1777)
    assert private_directory([bad]) == found
    found.rmdir()
    (bad / "below").mkdir()
    bad.chmod(0o777)
    assert private_directory([bad / "below"]) is None
    for nowhere in (Path(), Path("relative"), tmp_path / "missing", Path("/proc")):
        assert private_directory([nowhere]) is None


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a directory away")
def test_another_users_directory_is_passed_over(tmp_path: Path) -> None:
    found = private_directory([tmp_path])
    assert found is not None
    os.chown(found, 12345, 12345)
    assert private_directory([tmp_path]) is None
    found.rmdir()
    os.chown(tmp_path, 12345, 12345)
    assert private_directory([tmp_path]) is None
    os.chown(tmp_path, 0, 0)

"""What lies at a path is read without waiting or filling memory; what is written lands there and nowhere else."""

from __future__ import annotations

import errno
import json
import os
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mpisparse import files
from mpisparse.checkpoint import Checkpointer, read_manifest, read_tree
from mpisparse.checkpoint.tree import Structure
from mpisparse.comm import solo
from mpisparse.errors import CheckpointError, ConfigError, MpiSparseError, RunDirectoryError
from mpisparse.exchange import Traffic
from mpisparse.phases import NAMES
from mpisparse.runtime.runlog import LogFile, RunLog, StepRecord
from mpisparse.training.configfile import read_config, read_text
from mpisparse.training.study import read_study
from mpisparse.training.sweepfiles import Failure, read_failure


def bind(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as made:
        made.bind(str(path))


def make_huge(path: Path) -> None:
    path.touch()
    os.truncate(path, 2**40)


ODD: dict[str, Callable[[Path], object]] = {
    "a pipe": os.mkfifo,
    "a device that never ends": lambda path: path.symlink_to("/dev/zero"),
    "a directory": lambda path: path.mkdir(),
    "a socket": bind,
    "a link to nothing": lambda path: path.symlink_to(path.with_name("nowhere")),
    "a link to itself": lambda path: path.symlink_to(path),
    "a huge file": make_huge,
}
CONFIG = """
name = "try"
[data]
name = "digits"
[model]
name = "mlp"
[training]
length = "1 epoch"
batch = 8
"""
STUDY = f"[base]\n{CONFIG.replace('[', '[base.')}[axes]\n"


@pytest.fixture(params=ODD)
def odd(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return where something odd lies; relative, as the path of a socket may not be long."""
    monkeypatch.chdir(tmp_path)
    path = Path("odd")
    ODD[request.param](path)
    return path


def test_odd_files_are_refused_at_once(odd: Path) -> None:
    with pytest.raises(OSError):  # noqa: PT011
        files.read_bytes(odd)


def test_odd_configurations_and_studies_are_named_errors(odd: Path) -> None:
    for read in (read_config, read_study):
        with pytest.raises(ConfigError, match=r"^cannot read odd: [^\n]+$"):
            read(odd)


def test_odd_manifests_are_named_errors(odd: Path) -> None:
    step = Path("step-00000001")
    step.mkdir()
    odd.rename(step / "manifest.json")
    with pytest.raises(CheckpointError, match=r"^[^\n]*manifest\.json (is damaged|cannot be read): [^\n]+$"):
        read_manifest(step)
    with pytest.raises(CheckpointError):
        Checkpointer(Path()).restore()


def test_odd_trees_are_named_errors(odd: Path) -> None:
    with pytest.raises(CheckpointError, match=r"^odd cannot be read: [^\n]+$"):
        read_tree(odd)


def test_a_log_that_is_no_file_is_not_written_through(tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_text("precious\n")
    for make in (os.mkfifo, lambda path: path.symlink_to(victim)):
        make(tmp_path / "log")
        with pytest.raises(RunDirectoryError, match=r"^rank 3: .*log cannot be written: (a pipe|a link|not a reg)"):
            LogFile(tmp_path / "log", 3, 0)
        (tmp_path / "log").unlink()
    assert victim.read_text() == "precious\n"


def test_a_planted_link_leads_no_writer_elsewhere(tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_text("precious")
    for name in ("config.toml", ".config.toml.tmp"):
        (tmp_path / name).symlink_to(victim)
    files.replace_file(tmp_path / "config.toml", lambda file: file.write("new"))
    assert victim.read_text() == "precious"
    assert (tmp_path / "config.toml").read_text() == "new"
    assert not (tmp_path / "config.toml").is_symlink()
    assert sorted(path.name for path in tmp_path.iterdir()) == [".config.toml.tmp", "config.toml", "victim"]


def test_a_name_that_was_foreseen_is_not_written_through(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files.secrets, "token_hex", lambda _: "01234567")  # type: ignore[attr-defined]
    (tmp_path / ".a.01234567.tmp").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(FileExistsError):
        files.replace_file(tmp_path / "a", lambda file: file.write("new"))
    assert not (tmp_path / "elsewhere").exists()


def test_what_killed_writers_left_goes_and_nothing_else_does(tmp_path: Path) -> None:
    for name in (".config.toml.0123abcd.tmp", ".config.toml.tmp", "a.0123abcd.tmp", ".a.0123abcd.tmp"):
        (tmp_path / name).touch()
    files.remove_temporary(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == [".config.toml.tmp", "a.0123abcd.tmp"]


# JSON -----------------------------------------------------------------------------------------------------------------

LAX = {
    "a number beyond floats": b'{"a": 1e999}',
    "another": b"[-1e400]",
    "NaN": b"[NaN]",
    "infinity": b"[-Infinity]",
    "a key twice": b'{"a": 1, "b": {"c": 1, "c": 2}}',
    "a byte order mark": b"\xef\xbb\xbf{}",
    "UTF-16": '{"a": 1}'.encode("utf-16"),
    "no UTF-8": b'"\xff"',
    "10**5000": b"1" + b"0" * 5000,
    "deep": b"[" * 100_000 + b"]" * 100_000,
    "deep objects": b'{"a":' * 100_000 + b"1" + b"}" * 100_000,
    "wide": b"[" + b"[]," * 4_000_000 + b"0]",
    "half a pair": b'"\\ud800"',
    "the other half": b'"\\udc00\\ud800"',
    "half a pair and text": b'"\\ud800 \\udc00"',
    "nothing": b"",
    "two": b"1 2",
}


@pytest.mark.parametrize("name", LAX)
def test_lax_json_is_refused(name: str) -> None:
    with pytest.raises(ValueError) as caught:  # noqa: PT011
        files.parse_json(LAX[name])
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 300
    with pytest.raises(CheckpointError, match=r"^the structure is damaged: "):
        Structure.from_bytes(LAX[name])


def test_sound_json_is_read() -> None:
    for value in (["\U0001f600", "\\ud800", "a" * 10**6 + ",[{" * 10**6], {"": [1.5, -(2**63), 10**900, None]}, 1e308):
        assert files.parse_json(json.dumps(value)) == value
        assert files.parse_json(json.dumps(value, ensure_ascii=False).encode()) == value
    assert files.parse_json("[Infinity, -Infinity]", constants=True) == [float("inf"), float("-inf")]


_TREES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=10,
)


@given(_TREES)
def test_whatever_json_writes_is_read_again(tree: Any) -> None:
    try:
        content = json.dumps(tree, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        return
    assert files.parse_json(content) == tree


@given(st.binary(max_size=60) | st.text(alphabet='{}[]",:0123456789eE+-.\\u\ndtruefalsn', max_size=40))
def test_damaged_json_is_a_value_error_or_plain(content: bytes | str) -> None:
    try:
        found = files.parse_json(content)
    except ValueError:
        return
    assert json.loads(json.dumps(found)) == found


@given(st.text(alphabet="[]{}=\"'.,#\n \t0123456789abefinx_-+:TZ", max_size=60))
def test_damaged_toml_is_a_config_error_or_a_value_error(text: str) -> None:
    with pytest.raises(MpiSparseError) as caught:
        read_text(text, "it")
    assert isinstance(caught.value, ConfigError)


def test_a_failure_that_is_none_is_refused() -> None:
    assert read_failure('{"error": "DataError", "message": "m", "step": null}') == Failure("DataError", "m", None)
    for text in ("{}", "[]", '{"error": 1, "message": "", "step": 1}', '{"error": "a", "message": "b"}'):
        with pytest.raises(ValueError, match=r"failed\.json does not say"):
            read_failure(text)
    for name in ("annotations", "__doc__", "TypeVar", "nothing", "MpiSparseError"):
        assert Failure(name, "", None).exit_code == 70


# TOML -----------------------------------------------------------------------------------------------------------------

HOSTILE = {
    "deep arrays": "a = " + "[" * 5000 + "]" * 5000,
    "deep tables": "a = " + "{a=" * 5000 + "1" + "}" * 5000,
    "deep keys": ".".join("a" * 200_000) + " = 1",
    "deep quoted keys": " . ".join(['"a"'] * 50_000) + " = 1",
    "deep headers": "[" + ".".join("a" * 5000) + "]",
    "a long integer": "seed = " + "9" * 5000,
    "a long hexadecimal": "seed = 0x" + "f" * 100_000,
    "beyond 64 bits": "seed = 9223372036854775808",
    "beyond floats": "[optimizer]\nlr = 1e999",
    "two byte order marks": "\ufeff\ufeffname = 1",
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_toml_is_a_config_error(name: str, tmp_path: Path) -> None:
    path = tmp_path / "it.toml"
    path.write_text(HOSTILE[name] + "\n" + CONFIG if "name" not in HOSTILE[name] else HOSTILE[name], encoding="utf-8")
    for read in (read_config, read_study):
        with pytest.raises(ConfigError, match=r"^[^\n]*it\.toml is no TOML file: [^\n]+$") as caught:
            read(path)
        assert len(str(caught.value)) < 500


def test_a_byte_order_mark_is_read_over(tmp_path: Path) -> None:
    """Editors on other systems begin files with one."""
    path = tmp_path / "it.toml"
    path.write_text(CONFIG, encoding="utf-8")
    config = read_config(path)
    path.write_text(CONFIG, encoding="utf-8-sig")
    assert read_config(path) == config


@pytest.mark.parametrize(
    "setting",
    ["seed=" + "9" * 5000, "seed=" + "[" * 5000, "seed=18446744073709551616", ".".join("a" * 5000) + "=1",
     "name=\udcff", "optimizer.lr=1e999"],
)  # fmt: skip
def test_a_hostile_setting_is_a_config_error(setting: str) -> None:
    with pytest.raises(ConfigError) as caught:
        read_text(CONFIG, "it", [setting])
    assert len(str(caught.value)) < 500


def test_a_setting_sets_one_value_alone() -> None:
    with pytest.raises(ConfigError, match="seed"):
        read_text(CONFIG, "it", ["seed=1\nother=2"])


def test_a_study_of_a_million_million_runs_is_refused_before_one_is_made(tmp_path: Path) -> None:
    path = tmp_path / "study.toml"
    axes = ("seed", "optimizer.lr", "optimizer.weight_decay", "schedule.warmup")
    path.write_text(STUDY + "".join(f'"{axis}" = {list(range(1000))}\n' for axis in axes))
    with pytest.raises(ConfigError, match=r"1000 x 1000 x 1000 x 1000 = 1000000000000 runs, and a study has at most"):
        read_study(path)
    path.write_text(STUDY + '"' + ".".join("a" * 5000) + '" = [1]\n')
    with pytest.raises(ConfigError, match="names 4999 sections"):
        read_study(path)


# The run directory ----------------------------------------------------------------------------------------------------


def record(step: int) -> StepRecord:
    traffic = Traffic(payload=1, received=1, dense=1, count=1, numel=1, messages=1)
    return StepRecord(step, 0, 0.1, 1.0, 1, 1, traffic, seconds=dict.fromkeys(NAMES, 0.0))


def flush(log: RunLog) -> None:
    log.step(record(1))
    log.flush()


def write_and_sync(log: RunLog) -> None:
    flush(log)
    log.sync()


@pytest.mark.parametrize("call", ["write", "fsync"])
def test_a_full_disk_is_a_named_error_of_the_log(call: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log = RunLog(tmp_path, solo())

    def full(*arguments: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(os, call, full)
        with pytest.raises(
            RunDirectoryError, match=r"^rank 0: .*ranks/rank-00000\.jsonl cannot be written: No space left on device\."
        ):
            write_and_sync(log)
    log.close()
    assert RunDirectoryError.exit_code == 70


def test_a_write_that_takes_a_part_is_followed_by_the_rest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log, write = RunLog(tmp_path, solo()), os.write
    with monkeypatch.context() as patch:
        patch.setattr(os, "write", lambda file, text: write(file, text[:7]))
        flush(log)
    log.close()
    assert json.loads((tmp_path / "metrics.jsonl").read_text())["step"] == 1


def moved(directory: Path) -> None:
    directory.rename(directory.with_name("elsewhere"))


def replaced(directory: Path) -> None:
    moved(directory)
    (directory / "ranks").mkdir(parents=True)
    (directory / "ranks" / "rank-00000.jsonl").touch()


def log_removed(directory: Path) -> None:
    (directory / "metrics.jsonl").unlink()


@pytest.mark.parametrize("change", [moved, replaced, log_removed])
def test_a_run_directory_that_is_moved_or_removed_is_noticed(change: Callable[[Path], None], tmp_path: Path) -> None:
    directory = tmp_path / "run"
    directory.mkdir()
    log = RunLog(directory, solo())
    flush(log)
    change(directory)
    with pytest.raises(RunDirectoryError, match=r"^rank 0: .*/run/.* was moved, removed or replaced while the run"):
        flush(log)
    with pytest.raises(RunDirectoryError, match="moved"):
        log.sync()
    log.close()


def test_a_log_with_garbage_is_taken_up_without_it(tmp_path: Path) -> None:
    (tmp_path / "ranks").mkdir()
    good = b'{"schema":1,"kind":"evaluation","step":1,"loss":NaN}\n'
    garbage = [
        b"\xff\n",
        b'{"step":1e999}\n',
        b"[" * 100_000 + b"\n",
        b'{"step":"1"}\n',
        b'{"step":1,"step":1}\n',
        b"x" * 200_000,
    ]
    (tmp_path / "metrics.jsonl").write_bytes(b"".join([good, *garbage]))
    log = RunLog(tmp_path, solo(), 1)
    log.close()
    assert (tmp_path / "metrics.jsonl").read_bytes() == good
    assert log.evaluated == 1

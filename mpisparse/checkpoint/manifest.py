"""The manifest of a checkpoint: which files it is made of, and their digests. Written last, trusted first."""

from __future__ import annotations

import json
import os
import re
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mpisparse.checkpoint.arrays import shown
from mpisparse.checkpoint.digest import DIGESTS, Digest
from mpisparse.checkpoint.stamp import Stamp, is_save
from mpisparse.errors import CheckpointError
from mpisparse.files import OddFileError, parse_json, read_bytes
from mpisparse.words import counted

FORMAT = "mpisparse-checkpoint"
#: What is written; every version in DIGESTS is read.
VERSION = 4
#: The version before it of a file for each rank, and that of one for all of them: neither names the save.
_UNSTAMPED, _UNSTAMPED_SHARED = 2, 3
MANIFEST = "manifest.json"
STATE = "state.h5"
#: The file of all ranks, in which theirs lie one after another.
SHARED = "ranks.h5"
#: A directory of a checkpoint; the second form is one about to be replaced by another of the same step.
STEP_NAME = re.compile(r"step-([0-9]{8,})(\.replaced)?")

_DIGITS = re.compile(r"[0-9a-f]*")
_LARGEST = 2**25


def rank_file(rank: int) -> str:
    """Return the name of the file that holds what rank `rank` alone knows."""
    return f"rank-{rank:05d}.h5"


@dataclass(frozen=True, slots=True)
class FileEntry:
    """One file: its name, its length in bytes, and its digest in hexadecimal."""

    name: str
    bytes: int
    digest: str

    @staticmethod
    def of(path: Path, version: int = VERSION) -> FileEntry:
        """Return the entry of the file at `path`, which is read whole, in a manifest of a version of the format."""
        return FileEntry(path.name, *DIGESTS[version].of_file(path))


@dataclass(frozen=True, slots=True)
class Frame:
    """The shared file around the files of the ranks that it holds.

    start: the byte at which rank 0's begins; the others follow. bytes: of the whole file.
    digest: of all bytes that are no rank's, in hexadecimal.
    """

    start: int
    bytes: int
    digest: str

    @staticmethod
    def of(path: Path, start: int, ranks_bytes: int, kind: Digest) -> Frame:
        """Return the frame of the shared file at `path`, in which the ranks' files take `ranks_bytes` bytes."""
        whole = os.path.getsize(path)
        _, digest = kind.of_spans(path, [(0, start), (start + ranks_bytes, whole)])
        return Frame(start, whole, digest)


@dataclass(frozen=True, slots=True)
class Place:
    """Where a file of a checkpoint lies: in which file on the disk, and at which of its bytes."""

    file: str
    start: int
    stop: int


@dataclass(frozen=True, slots=True)
class Manifest:
    """A checkpoint of `ranks` ranks at `step`; `files` are the replicated state, then one a rank, in rank order.

    frame: of the shared file, where the ranks' files lie in one; else None.
    save: the number of the save, which all files carry; None in the versions before 4.
    """

    step: int
    ranks: int
    files: tuple[FileEntry, ...]
    version: int = _UNSTAMPED
    frame: Frame | None = None
    save: str | None = None

    def to_bytes(self) -> bytes:
        """Return the one way to write this manifest: JSON whose last member is the digest of all before it."""
        kind = DIGESTS[self.version]
        body: dict[str, Any] = {"format": FORMAT, "version": self.version, "step": self.step, "ranks": self.ranks}
        if self.save is not None:
            body["save"] = self.save
        body["files"] = [{"name": f.name, "bytes": f.bytes, kind.name: f.digest} for f in self.files]
        if (frame := self.frame) is not None:
            body["shared"] = {"name": SHARED, "bytes": frame.bytes, "start": frame.start, kind.name: frame.digest}
        body[kind.name] = kind.of_bytes(json.dumps(body).encode())
        return json.dumps(body, indent=2).encode() + b"\n"

    @staticmethod
    def from_bytes(content: bytes) -> Manifest:
        """Return the manifest that `content` writes.

        Raises:
            CheckpointError: it is damaged, of another format or of a newer version.
        """
        try:
            body = parse_json(content)
        except ValueError as error:
            raise CheckpointError(f"{MANIFEST} is damaged: {error}") from error
        if not isinstance(body, dict) or body.get("format") != FORMAT:
            raise CheckpointError(f"{MANIFEST} is damaged, or not the manifest of a checkpoint of mpisparse")
        version = body.get("version")
        if type(version) is not int or version not in DIGESTS:
            raise CheckpointError(
                f"{MANIFEST} is of format version {shown(version):.20}, and this mpisparse reads 1 to {max(DIGESTS)}: "
                "use the release that wrote it, or a newer one"
            )
        manifest = _parse(body, version)
        # Writing it again catches whatever parsing let pass, and checks the digest on the way.
        if manifest.to_bytes() != content:
            raise CheckpointError(f"{MANIFEST} is damaged: its digest does not match what it says")
        return manifest

    def stamp(self, name: str) -> Stamp | None:
        """Return what the file `name` has to say of the save; None in versions whose files say nothing."""
        if self.save is None:
            return None
        rank = None if name == STATE else int(name.removeprefix("rank-").removesuffix(".h5"))
        return Stamp(self.save, self.step, self.ranks, rank)

    def entry(self, name: str) -> FileEntry:
        """Return the entry of the file `name`."""
        return next(entry for entry in self.files if entry.name == name)

    def place(self, name: str) -> Place:
        """Return where the file `name` lies."""
        if self.frame is None or name == STATE:
            return Place(name, 0, self.entry(name).bytes)
        start = self.frame.start
        for entry in self.files[1:]:
            if entry.name == name:
                break
            start += entry.bytes
        return Place(SHARED, start, start + entry.bytes)

    def lengths(self) -> dict[str, int]:
        """Return the files that lie on the disk beside the manifest, and their lengths in bytes."""
        if self.frame is None:
            return {entry.name: entry.bytes for entry in self.files}
        return {STATE: self.files[0].bytes, SHARED: self.frame.bytes}


def read_manifest(path: Path | str) -> Manifest:
    """Return the manifest of the checkpoint in directory `path`; its files are not looked at.

    Raises:
        CheckpointError: it is missing or damaged, or of another step than the directory's name says.
    """
    path = Path(path)
    content = _read(path / MANIFEST)
    manifest = Manifest.from_bytes(content)
    named = STEP_NAME.fullmatch(path.name)
    if named and int(named[1]) != manifest.step:
        raise CheckpointError(f"{MANIFEST} is of step {manifest.step}, but the directory is {path.name}")
    return manifest


def verify_listing(path: Path, manifest: Manifest) -> None:
    """Raise CheckpointError unless directory `path` holds the manifest's files and no others, each of its length."""
    flaws = listing_flaws(path, manifest)
    if flaws:
        raise CheckpointError(next(iter(flaws.values())))


def listing_flaws(path: Path, manifest: Manifest) -> dict[str, str]:
    """Return what is wrong with the names and lengths of the files in directory `path`, by the file's name."""
    lengths = manifest.lengths()
    expected = {MANIFEST, *lengths}
    try:
        found = set(os.listdir(path))
    except OSError as error:
        return {path.name: f"{path} cannot be listed: {error.strerror}"}
    flaws = {name: f"{name} is missing" for name in sorted(expected - found)}
    for name in sorted(found - expected):
        flaws[name] = f"{name} does not belong to the checkpoint: remove it if you put it there"
    for name in lengths:
        if name in found:
            try:
                _check_length(path / name, lengths[name])
            except CheckpointError as error:
                flaws[name] = str(error)
    return flaws


def verify_file(path: Path, manifest: Manifest, name: str) -> None:
    """Raise CheckpointError unless file `name` in directory `path` has the length and digest that its manifest says.

    Of a file that lies in the shared one, all that is no rank's there is looked at too.
    """
    place, kind = manifest.place(name), DIGESTS[manifest.version]
    file = path / place.file
    _check_length(file, manifest.lengths()[place.file])
    try:
        _, digest = kind.of_spans(file, [(place.start, place.stop)])
        frame = None
        if place.file == SHARED and manifest.frame is not None:
            ranks_bytes = sum(entry.bytes for entry in manifest.files[1:])
            frame = Frame.of(file, manifest.frame.start, ranks_bytes, kind)
    except OSError as error:
        raise CheckpointError(f"{place.file} cannot be read: {error.strerror}") from error
    _compare(name if frame is None else f"{name} in {place.file}", digest, manifest.entry(name).digest)
    if frame is not None and manifest.frame is not None:
        _compare(f"{place.file}, outside the files of the ranks,", frame.digest, manifest.frame.digest)


def _read(path: Path) -> bytes:
    try:
        return read_bytes(path, _LARGEST)
    except OddFileError as error:
        raise CheckpointError(f"{path.name} is damaged: it is {error.strerror}") from error
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror}") from error


def _compare(what: str, found: str, digest: str) -> None:
    if found != digest:
        raise CheckpointError(f"{what} is damaged: its digest is {found[:16]}..., not {digest[:16]}...")


def _check_length(path: Path, length: int) -> None:
    try:
        status = os.lstat(path)
    except OSError as error:
        raise CheckpointError(f"{path.name} cannot be read: {error.strerror}") from error
    if not stat.S_ISREG(status.st_mode):
        raise CheckpointError(f"{path.name} is not a regular file")
    if status.st_size != length:
        raise CheckpointError(f"{path.name} is damaged: it has {status.st_size} bytes, not {length}")


def _parse(body: dict[str, Any], version: int) -> Manifest:
    step, ranks, files = (body.get(key) for key in ("step", "ranks", "files"))
    if type(step) is not int or type(ranks) is not int or not isinstance(files, list) or step < 0:
        raise CheckpointError(f"{MANIFEST} is damaged: step, ranks or files are missing")
    entries = tuple(_parse_entry(item, DIGESTS[version]) for item in files)
    names = [entry.name for entry in entries]
    if ranks < 1 or len(files) != ranks + 1 or names != [STATE, *(rank_file(rank) for rank in range(ranks))]:
        raise CheckpointError(f"{MANIFEST} is damaged: its files are not those of {counted(ranks, 'rank')}")
    save = body.get("save") if version == VERSION else None
    if version == VERSION and not is_save(save):
        raise CheckpointError(f"{MANIFEST} is damaged: {shown(save)} is no number of a save")
    return Manifest(step, ranks, entries, version, _parse_frame(body, entries, version), save)


def _parse_frame(body: dict[str, Any], entries: tuple[FileEntry, ...], version: int) -> Frame | None:
    if version != _UNSTAMPED_SHARED and not (version == VERSION and "shared" in body):
        return None
    kind, item = DIGESTS[version], body.get("shared")
    if not isinstance(item, dict) or set(item) != {"name", "bytes", "start", kind.name} or item["name"] != SHARED:
        raise CheckpointError(f"{MANIFEST} is damaged: {shown(item)} does not describe the shared file")
    start, whole, digest = item["start"], item["bytes"], item[kind.name]
    if type(start) is not int or type(whole) is not int or not isinstance(digest, str):
        raise CheckpointError(f"{MANIFEST} is damaged: {shown(item)} does not describe the shared file")
    if not 0 <= start <= whole - sum(entry.bytes for entry in entries[1:]):
        raise CheckpointError(f"{MANIFEST} is damaged: the files of the ranks do not fit into {SHARED}")
    return Frame(start, whole, digest)


def _parse_entry(item: Any, kind: Digest) -> FileEntry:
    if not isinstance(item, dict) or set(item) != {"name", "bytes", kind.name}:
        raise CheckpointError(f"{MANIFEST} is damaged: {shown(item)} does not describe a file")
    name, length, digest = item["name"], item["bytes"], item[kind.name]
    if not isinstance(name, str) or type(length) is not int or not isinstance(digest, str):
        raise CheckpointError(f"{MANIFEST} is damaged: {shown(item)} does not describe a file")
    if length < 0 or len(digest) != kind.digits or not _DIGITS.fullmatch(digest):
        raise CheckpointError(f"{MANIFEST} is damaged: the entry of {name!r:.40} has a wrong length or digest")
    return FileEntry(name, length, digest)

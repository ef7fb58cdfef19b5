"""The structure of a state tree: all of it but the contents of its arrays, as JSON.

None, booleans, strings, 64-bit integers and finite floats are written as JSON's own, a list as a JSON array. All else
is an object of one key, its kind:

    {"dict": [[key, node], ...]}        in order; also "counter" for a collections.Counter
    {"ordered": {"items": [[key, node], ...], "metadata": node}}     an OrderedDict, and its `_metadata` if it has one
    {"tuple": [node, ...]}
    {"int": "18446744073709551616"}     beyond 64 bits
    {"float": "7ff8000000000000"}       NaN and infinities: the bits, most significant first
    {"bytes": "AAEC"}                   base64
    {"scalar": ["float32", "0000803f"]} a numpy scalar: dtype, little-endian bytes
    {"tensor": 3}   {"array": 4}        the number of an entry in the list of arrays
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from mpisparse.checkpoint.arrays import ArrayEntry, shown
from mpisparse.checkpoint.stamp import Stamp
from mpisparse.errors import CheckpointError
from mpisparse.files import parse_json, values_flaw

#: Any nesting of dicts with str or int keys, lists, tuples, tensors, numpy arrays and scalars, numbers, strings, None.
Tree = Any
Json = Any

#: Deeper trees are refused: they are cycles in all likelihood.
DEPTH = 100
#: Of a structure without a stamp, and of one with it.
VERSION, STAMPED = 1, 2


@dataclass(frozen=True, slots=True)
class Structure:
    """All of a tree but the contents of its arrays; and the stamp of the save it belongs to, if it has one."""

    tree: Json
    arrays: tuple[ArrayEntry, ...]
    stamp: Stamp | None = None

    def to_bytes(self) -> bytes:
        """Return the structure as UTF-8 JSON.

        Raises:
            CheckpointError: the tree has so many values that `from_bytes` would refuse it.
        """
        document: dict[str, Any] = {"version": VERSION}
        if self.stamp is not None:
            document = {"version": STAMPED, "saved": self.stamp.to_json()}
        document |= {"arrays": [entry.to_json() for entry in self.arrays], "tree": self.tree}
        content = json.dumps(document, ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode()
        if flaw := values_flaw(content):
            raise CheckpointError(f"the state's structure cannot be saved: {flaw}. Give arrays instead of long lists")
        return content

    @staticmethod
    def from_bytes(content: bytes) -> Structure:
        """Return the structure that `content` writes.

        Raises:
            CheckpointError: it is not JSON, or not of this form.
        """
        try:
            document = parse_json(content)
        except ValueError as error:
            raise CheckpointError(f"the structure is damaged: {error}") from error
        if not isinstance(document, dict) or set(document) - {"saved"} != {"version", "arrays", "tree"}:
            raise CheckpointError("the structure is damaged: it must hold `version`, `arrays`, `tree` and nothing else")
        version = document["version"]
        if type(version) is not int or version not in (VERSION, STAMPED):
            raise CheckpointError(
                f"the structure is of version {shown(version)}; this one reads {VERSION} and {STAMPED}"
            )
        if (version == STAMPED) != ("saved" in document):
            raise CheckpointError("the structure is damaged: `saved` does not go with its version")
        stamp = Stamp.from_json(document["saved"]) if version == STAMPED else None
        if not isinstance(document["arrays"], list):
            raise CheckpointError("the structure is damaged: `arrays` must be a list")
        return Structure(document["tree"], tuple(ArrayEntry.from_json(item) for item in document["arrays"]), stamp)

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

from mpisparse.checkpoint.arrays import ArrayEntry
from mpisparse.errors import CheckpointError

#: Any nesting of dicts with str or int keys, lists, tuples, tensors, numpy arrays and scalars, numbers, strings, None.
Tree = Any
Json = Any

#: Deeper trees are refused: they are cycles in all likelihood.
DEPTH = 100
VERSION = 1


@dataclass(frozen=True, slots=True)
class Structure:
    """All of a tree but the contents of its arrays."""

    tree: Json
    arrays: tuple[ArrayEntry, ...]

    def to_bytes(self) -> bytes:
        """Return the structure as UTF-8 JSON."""
        arrays = [entry.to_json() for entry in self.arrays]
        document = {"version": VERSION, "arrays": arrays, "tree": self.tree}
        return json.dumps(document, ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode()

    @staticmethod
    def from_bytes(content: bytes) -> Structure:
        """Return the structure that `content` writes.

        Raises:
            CheckpointError: it is not JSON, or not of this form.
        """
        try:
            document = json.loads(content, parse_constant=_refuse_constant)
        except (ValueError, RecursionError) as error:
            raise CheckpointError(f"the structure is damaged: {error}") from error
        if not isinstance(document, dict) or set(document) != {"version", "arrays", "tree"}:
            raise CheckpointError("the structure is damaged: it must hold `version`, `arrays`, `tree` and nothing else")
        if document["version"] != VERSION:
            raise CheckpointError(f"the structure is of version {document['version']!r:.20}; this one reads {VERSION}")
        if not isinstance(document["arrays"], list):
            raise CheckpointError("the structure is damaged: `arrays` must be a list")
        return Structure(document["tree"], tuple(ArrayEntry.from_json(item) for item in document["arrays"]))


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")

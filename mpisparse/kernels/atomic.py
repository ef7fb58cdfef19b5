"""Adding to memory that others add to at the same moment: no addition is lost, and nobody waits for a lock.

A processor swaps an entry's new bits in if its old bits are still there (compare-and-swap), and otherwise tries again
with what came between. An attempt that failed is a conflict, and is counted.
"""

from __future__ import annotations

from time import CLOCK_MONOTONIC
from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from mpisparse.kernels.compiled import compiled

_WORD, _LONG = ir.IntType(32), ir.IntType(64)


def _address(context: Any, builder: Any, kind: Any, array: Any, place: Any, to: Any) -> Any:
    """Return the address of entry `place` of a contiguous array, as that of an entry of type `to`."""
    data = context.make_array(kind)(context, builder, array).data
    return builder.bitcast(builder.gep(data, [place]), to.as_pointer())


@intrinsic
def attempt_add(typing: Any, vector: Any, place: Any, value: Any) -> Any:
    """Return True if `value` was added to entry `place` of a contiguous float32 array, False if another came between.

    Nothing checks the place: the caller sees to it that it is there.
    """

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        array, offset, addend = args
        address = _address(context, builder, signature.args[0], array, offset, _WORD)
        before = builder.load_atomic(address, "monotonic", 4)
        after = builder.bitcast(builder.fadd(builder.bitcast(before, ir.FloatType()), addend), _WORD)
        swapped = builder.cmpxchg(address, before, after, "monotonic", "monotonic")
        return builder.extract_value(swapped, 1)

    return types.boolean(vector, types.int64, types.float32), generate


@intrinsic
def fetch_add(typing: Any, counters: Any, place: Any, number: Any) -> Any:
    """Return entry `place` of a contiguous int64 array as it was, and add `number` to it, in one step. Unchecked."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        array, offset, addend = args
        address = _address(context, builder, signature.args[0], array, offset, _LONG)
        return builder.atomic_rmw("add", address, addend, "seq_cst")

    return types.int64(counters, types.int64, types.int64), generate


@intrinsic
def load_counter(typing: Any, counters: Any, place: Any) -> Any:
    """Return entry `place` of a contiguous int64 array; what is read after this is no older. Unchecked."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        address = _address(context, builder, signature.args[0], args[0], args[1], _LONG)
        return builder.load_atomic(address, "acquire", 8)

    return types.int64(counters, types.int64), generate


@intrinsic
def nanoseconds(typing: Any) -> Any:
    """Return the time of the clock behind `time.monotonic`, in nanoseconds."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        time = cgutils.alloca_once(builder, ir.ArrayType(_LONG, 2))
        kind = ir.FunctionType(_WORD, [_WORD, time.type])
        read = cgutils.get_or_insert_function(builder.module, kind, "clock_gettime")
        builder.call(read, [ir.Constant(_WORD, CLOCK_MONOTONIC), time])
        seconds, rest = cgutils.unpack_tuple(builder, builder.load(time), 2)
        return builder.add(builder.mul(seconds, ir.Constant(_LONG, 10**9)), rest)

    return types.int64(), generate


@compiled()
def add_at(vector, indices, values):
    """Return how many attempts failed while `values` were added at `indices`; -1, and nothing added, where one is bad.

    Args:
        vector: float32, contiguous, shared with others.
        indices: of any integer type, in any order, possibly repeated; one outside the vector is bad.
        values: float32, one an index; another number of them is bad.
    """
    if indices.size != values.size:
        return -1
    for index in indices:
        if index < 0 or index >= vector.size:
            return -1
    conflicts = 0
    for i in range(indices.size):
        while not attempt_add(vector, indices[i], values[i]):
            conflicts += 1
    return conflicts


@compiled()
def add_all(vector, values):
    """Return how many attempts failed while `values` were added, one to each entry; -1 where their number is bad."""
    if vector.size != values.size:
        return -1
    conflicts = 0
    for i in range(vector.size):
        while not attempt_add(vector, i, values[i]):
            conflicts += 1
    return conflicts


@compiled()
def count_up(counters, place, number):
    """Return counter `place` as it was before `number` was added to it in one step; -1 where there is none."""
    if place < 0 or place >= counters.size:
        return -1
    return fetch_add(counters, place, number)

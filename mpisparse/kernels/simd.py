"""What numba has no words for: eight comparisons at once, the lowest bit that is set, wide products, arrays by address.

Written in LLVM's own vectors, which become the instructions that this machine's processor has.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

_LANES = 8
_MAGNITUDE = 0x7FFFFFFF

_FLOATS = ir.VectorType(ir.FloatType(), _LANES)
_INTEGERS = ir.VectorType(ir.IntType(32), _LANES)


@intrinsic
def at_least_mask(typing: Any, vector: Any, start: Any, floor: Any) -> Any:
    """Return eight bits: bit i is set when entry `start + i` reaches `floor` in magnitude, or is NaN.

    Reads entries start to start + 7 of a contiguous float32 array without a check: the caller sees to it that they are
    there.
    """

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        array, offset, limit = args
        data = context.make_array(signature.args[0])(context, builder, array).data
        address = builder.bitcast(builder.gep(data, [offset]), _FLOATS.as_pointer())
        entries = builder.load(address)
        entries.align = 4
        bits = builder.and_(builder.bitcast(entries, _INTEGERS), ir.Constant(_INTEGERS, [_MAGNITUDE] * _LANES))
        limits = ir.Constant(_FLOATS, ir.Undefined)
        for lane in range(_LANES):
            limits = builder.insert_element(limits, limit, ir.Constant(ir.IntType(32), lane))
        # Unordered, so that NaN is found too, and refused by whoever looks at what was found.
        reached = builder.fcmp_unordered(">=", builder.bitcast(bits, _FLOATS), limits)
        return builder.bitcast(reached, ir.IntType(_LANES))

    return types.uint8(vector, types.int64, types.float32), generate


@intrinsic
def lowest_bit(typing: Any, word: Any) -> Any:
    """Return the place of the lowest bit that is set in a uint64 that is not 0."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        kind = ir.FunctionType(ir.IntType(64), [ir.IntType(64), ir.IntType(1)])
        count = builder.module.declare_intrinsic("llvm.cttz", [ir.IntType(64)], kind)
        return builder.call(count, [args[0], ir.Constant(ir.IntType(1), 1)])

    return types.uint64(types.uint64), generate


@intrinsic
def multiply_high(typing: Any, first: Any, second: Any) -> Any:
    """Return the upper 64 bits of the product of two uint64."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        wide = ir.IntType(128)
        product = builder.mul(builder.zext(args[0], wide), builder.zext(args[1], wide))
        return builder.trunc(builder.lshr(product, ir.Constant(wide, 64)), ir.IntType(64))

    return types.uint64(types.uint64, types.uint64), generate


@intrinsic
def expect_write(typing: Any, vector: Any, place: Any) -> Any:
    """Have the processor fetch entry `place` of a contiguous array while it goes on, as it will soon be written."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        array, offset = args
        data = context.make_array(signature.args[0])(context, builder, array).data
        address = builder.bitcast(builder.gep(data, [offset]), ir.IntType(8).as_pointer())
        kind = ir.FunctionType(ir.VoidType(), [address.type, *[ir.IntType(32)] * 3])
        prefetch = builder.module.declare_intrinsic("llvm.prefetch", [address.type], kind)
        builder.call(prefetch, [address, *(ir.Constant(ir.IntType(32), hint) for hint in (1, 3, 1))])
        return context.get_dummy_value()

    return types.void(vector, types.int64), generate


def _reader(kind: Any, bits: Any) -> Any:
    """Return an intrinsic that reads entry `place` of an array of `kind` that starts at an address."""

    @intrinsic
    def read(typing: Any, address: Any, place: Any) -> Any:
        def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            pointer = builder.inttoptr(args[0], bits.as_pointer())
            return builder.load(builder.gep(pointer, [args[1]]))

        return kind(types.uint64, types.int64), generate

    return read


#: Entry `place` of the array at `address`, which numba cannot check: arrays of arrays are not among its types.
read_float32 = _reader(types.float32, ir.FloatType())
read_uint32 = _reader(types.uint32, ir.IntType(32))
read_uint64 = _reader(types.uint64, ir.IntType(64))

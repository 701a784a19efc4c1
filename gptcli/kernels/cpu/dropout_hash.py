"""The dropout mask of model/dropout_mask.py, a hash of a window's seed, row and column, 16 elements at a time.

The backward pass computes the mask again instead of storing it.

Every function of this file works inside numba-compiled code only.
"""

# mypy: ignore-errors

from llvmlite import ir
from numba.core import types
from numba.extending import intrinsic

from gptcli.kernels.cpu import simd as v

GOLDEN = 0x9E3779B9


def _ints(value):
    return ir.Constant(v.INTS, [value] * v.WIDTH)


def _shifted(builder, x, bits):
    return builder.xor(x, builder.lshr(x, _ints(bits)))


def _mixed(builder, x):
    """The 32-bit hash lowbias32 of Chris Wellons's search for integer hashes of low bias."""
    x = builder.mul(_shifted(builder, x, 16), _ints(0x7FEB352D))
    x = builder.mul(_shifted(builder, x, 15), _ints(0x846CA68B))
    return _shifted(builder, x, 16)


def _splat(builder, number):
    return v.splat_of(builder, builder.trunc(number, ir.IntType(32)), v.INTS)


def _lanes():
    return ir.Constant(v.INTS, list(range(v.WIDTH)))


def _row_keys(builder, seed, rows):
    low, high = seed, builder.lshr(seed, ir.Constant(seed.type, 32))
    x = _mixed(builder, builder.add(builder.mul(rows, _ints(GOLDEN)), _splat(builder, low)))
    return builder.bitcast(_mixed(builder, builder.add(x, _splat(builder, high))), v.FLOATS)


def _kept(builder, keys, columns, dropped, factor):
    keys = builder.bitcast(keys, v.INTS)
    x = builder.add(keys, builder.mul(columns, _ints(GOLDEN)))
    x = builder.mul(_shifted(builder, x, 16), _ints(0x7FEB352D))
    x = builder.add(_shifted(builder, x, 15), keys)  # again, so that near keys give different masks
    x = _shifted(builder, builder.mul(x, _ints(0x846CA68B)), 16)
    keep = builder.icmp_unsigned(">=", x, _splat(builder, dropped))
    return builder.select(keep, v.splat_of(builder, factor, v.FLOATS), ir.Constant(v.FLOATS, [0.0] * v.WIDTH))


@intrinsic
def row_keys(typingctx, seed, first):
    """The 32-bit hash keys, as the bits of 16 floats, of rows ``first`` to first + 15; ``seed`` has 64 bits."""

    def codegen(context, builder, signature, args):
        return _row_keys(builder, args[0], builder.add(_splat(builder, args[1]), _lanes()))

    return v.lanes(types.int64, types.int64), codegen


@intrinsic
def row_key(typingctx, seed, row):
    """16 copies of the key of one row."""

    def codegen(context, builder, signature, args):
        return _row_keys(builder, args[0], _splat(builder, args[1]))

    return v.lanes(types.int64, types.int64), codegen


@intrinsic
def kept(typingctx, keys, column, dropped, factor):
    """``factor`` where the hash of (key, column) is at least ``dropped``, else 0; rate dropped / 2^32."""

    def codegen(context, builder, signature, args):
        return _kept(builder, args[0], _splat(builder, args[1]), args[2], args[3])

    return v.lanes(v.lanes, types.int64, types.int64, types.float32), codegen


@intrinsic
def kept_columns(typingctx, keys, first, dropped, factor):
    """`kept` of columns ``first`` to first + 15, one for each key."""

    def codegen(context, builder, signature, args):
        return _kept(builder, args[0], builder.add(_splat(builder, args[1]), _lanes()), args[2], args[3])

    return v.lanes(v.lanes, types.int64, types.int64, types.float32), codegen

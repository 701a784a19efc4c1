"""The dropout mask as a hash of seed, row and column.

The backward pass computes the mask again instead of storing it; the mask does not depend on the number of threads.

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


@intrinsic
def row_keys(typingctx, seed, first):
    """The 32-bit hash keys, as the bits of 16 floats, of rows ``first`` to first + 15; ``seed`` has 64 bits."""

    def codegen(context, builder, signature, args):
        low, high = args[0], builder.lshr(args[0], ir.Constant(args[0].type, 32))
        rows = builder.add(_splat(builder, args[1]), ir.Constant(v.INTS, list(range(v.WIDTH))))
        x = _mixed(builder, builder.add(builder.mul(rows, _ints(GOLDEN)), _splat(builder, low)))
        return builder.bitcast(_mixed(builder, builder.add(x, _splat(builder, high))), v.FLOATS)

    return v.lanes(types.int64, types.int64), codegen


@intrinsic
def kept(typingctx, keys, column, dropped, factor):
    """``factor`` where the hash of (key, column) is at least ``dropped``, else 0; rate dropped / 2^32."""

    def codegen(context, builder, signature, args):
        keys = builder.bitcast(args[0], v.INTS)
        x = builder.add(keys, builder.mul(_splat(builder, args[1]), _ints(GOLDEN)))
        x = builder.mul(_shifted(builder, x, 16), _ints(0x7FEB352D))
        x = builder.add(_shifted(builder, x, 15), keys)  # again, so that near keys give different masks
        x = _shifted(builder, builder.mul(x, _ints(0x846CA68B)), 16)
        keep = builder.icmp_unsigned(">=", x, _splat(builder, args[2]))
        return builder.select(keep, v.splat_of(builder, args[3], v.FLOATS), ir.Constant(v.FLOATS, [0.0] * v.WIDTH))

    return v.lanes(v.lanes, types.int64, types.int64, types.float32), codegen

"""What dropout keeps, as a function of a seed and a place: nothing to store, the same on every thread, made twice.

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
    """The keys (bits, as 16 floats) of rows ``first``, first + 1, …, first + 15; seed of 64 bits."""

    def codegen(context, builder, signature, args):
        low, high = args[0], builder.lshr(args[0], ir.Constant(args[0].type, 32))
        rows = builder.add(_splat(builder, args[1]), ir.Constant(v.INTS, list(range(v.WIDTH))))
        x = _mixed(builder, builder.add(builder.mul(rows, _ints(GOLDEN)), _splat(builder, low)))
        return builder.bitcast(_mixed(builder, builder.add(x, _splat(builder, high))), v.FLOATS)

    return v.lanes(types.int64, types.int64), codegen


@intrinsic
def kept(typingctx, keys, column, dropped, factor):
    """``factor`` where the rows of ``keys`` keep this column, else 0; ``dropped`` of 2^32 hashes are not kept."""

    def codegen(context, builder, signature, args):
        keys = builder.bitcast(args[0], v.INTS)
        x = builder.add(keys, builder.mul(_splat(builder, args[1]), _ints(GOLDEN)))
        x = builder.mul(_shifted(builder, x, 16), _ints(0x7FEB352D))
        x = builder.add(_shifted(builder, x, 15), keys)  # again: rows whose keys are near must not repeat each other
        x = _shifted(builder, builder.mul(x, _ints(0x846CA68B)), 16)
        keep = builder.icmp_unsigned(">=", x, _splat(builder, args[2]))
        return builder.select(keep, v.splat_of(builder, args[3], v.FLOATS), ir.Constant(v.FLOATS, [0.0] * v.WIDTH))

    return v.lanes(v.lanes, types.int64, types.int64, types.float32), codegen

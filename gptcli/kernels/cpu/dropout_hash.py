"""What dropout keeps, as a function of a seed and a place: nothing to store, the same on every thread, made twice.

Every function of this file works inside numba-compiled code only.
"""

# mypy: ignore-errors

from llvmlite import ir
from numba.core import types
from numba.extending import intrinsic

from gptcli.kernels.cpu import simd

GOLDEN = 0x9E3779B9


def _ints(value):
    return ir.Constant(simd.INTS, [value] * simd.WIDTH)


def _shifted(builder, x, bits):
    return builder.xor(x, builder.lshr(x, _ints(bits)))


def _mixed(builder, x):
    """The 32-bit hash lowbias32 of Chris Wellons's search for integer hashes of low bias."""
    x = builder.mul(_shifted(builder, x, 16), _ints(0x7FEB352D))
    x = builder.mul(_shifted(builder, x, 15), _ints(0x846CA68B))
    return _shifted(builder, x, 16)


def _splat(builder, number):
    return simd.splat_of(builder, builder.trunc(number, ir.IntType(32)), simd.INTS)


@intrinsic
def row_keys(typingctx, seed, first):
    """The keys (bits, as 16 floats) of rows ``first``, first + 1, …, first + 15; seed of 64 bits."""

    def codegen(context, builder, signature, args):
        low, high = args[0], builder.lshr(args[0], ir.Constant(args[0].type, 32))
        rows = builder.add(_splat(builder, args[1]), ir.Constant(simd.INTS, list(range(simd.WIDTH))))
        x = _mixed(builder, builder.add(builder.mul(rows, _ints(GOLDEN)), _splat(builder, low)))
        return builder.bitcast(_mixed(builder, builder.add(x, _splat(builder, high))), simd.FLOATS)

    return simd.lanes(types.int64, types.int64), codegen


@intrinsic
def kept(typingctx, keys, column, dropped, factor):
    """``factor`` where the rows of ``keys`` keep this column, else 0; ``dropped`` of 2^32 hashes are not kept."""

    def codegen(context, builder, signature, args):
        keys = builder.bitcast(args[0], simd.INTS)
        x = builder.add(keys, builder.mul(_splat(builder, args[1]), _ints(GOLDEN)))
        x = builder.mul(_shifted(builder, x, 16), _ints(0x7FEB352D))
        x = builder.add(_shifted(builder, x, 15), keys)  # again: rows whose keys are near must not repeat each other
        x = _shifted(builder, builder.mul(x, _ints(0x846CA68B)), 16)
        keep = builder.icmp_unsigned(">=", x, _splat(builder, args[2]))
        return builder.select(
            keep, simd.splat_of(builder, args[3], simd.FLOATS), ir.Constant(simd.FLOATS, [0.0] * simd.WIDTH)
        )

    return simd.lanes(simd.lanes, types.int64, types.int64, types.float32), codegen

"""Vectors of 16 float32 for numba-compiled code, which has no vector type of its own.

A value of type `lanes` is a vector of 16 float32. LLVM maps it to one AVX-512, two AVX2 or four NEON registers, so the
same code uses each machine's vector width. Arrays are flat and C-contiguous; offsets count elements.
Every function of this file works inside numba-compiled code only.
"""

# mypy: ignore-errors

from typing import Any

import numpy as np
from llvmlite import ir
from numba import njit
from numba.core import cgutils, types
from numba.extending import intrinsic, models, register_model

from gptcli.kernels.cpu.memory_layout import LANES as WIDTH
from gptcli.kernels.cpu.target import WIDE_REGISTERS as WIDE_REGISTERS

FLOATS = ir.VectorType(ir.FloatType(), WIDTH)
INTS = ir.VectorType(ir.IntType(32), WIDTH)

OPTIONS: dict[str, Any] = {
    "nogil": True,
    "error_model": "numpy",
    "no_cpython_wrapper": True,
    "no_cfunc_wrapper": True,
}
jit = njit(**OPTIONS)


class _Lanes(types.Type):
    def __init__(self):
        super().__init__(name="lanes")


lanes = _Lanes()


@register_model(_Lanes)
class _LanesModel(models.PrimitiveModel):
    def __init__(self, dmm, fe_type):
        super().__init__(dmm, fe_type, FLOATS)


@intrinsic
def at_address(typingctx, address):
    """An int64 as a pointer."""

    def codegen(context, builder, signature, args):
        return builder.inttoptr(args[0], ir.IntType(8).as_pointer())

    return types.voidptr(types.int64), codegen


def pointer_to(context, builder, array_type, array, offset, element):
    """A pointer to array[offset], cast to a pointer to ``element``."""
    data = context.make_array(array_type)(context, builder, array).data
    return builder.bitcast(builder.gep(data, [offset]), element.as_pointer())


def integers_at(context, builder, array_type, array, offset, bits):
    """16 integers of ``bits`` bits from array[offset:]; no alignment is assumed."""
    vector = ir.VectorType(ir.IntType(bits), WIDTH)
    return builder.load(pointer_to(context, builder, array_type, array, offset, vector), align=1)


def splat_of(builder, scalar, vector):
    one = builder.insert_element(ir.Constant(vector, ir.Undefined), scalar, ir.Constant(ir.IntType(32), 0))
    mask = ir.Constant(ir.VectorType(ir.IntType(32), WIDTH), [0] * WIDTH)
    return builder.shuffle_vector(one, ir.Constant(vector, ir.Undefined), mask)


def _constant(value):
    return ir.Constant(FLOATS, [float(value)] * WIDTH)


def _ints(value):
    return ir.Constant(INTS, [value] * WIDTH)


def fma_of(builder, a, b, c):
    """a b + c, rounded once. Every path uses it, so that a row's result does not depend on the other rows."""
    signature = ir.FunctionType(FLOATS, [FLOATS] * 3)
    function = cgutils.get_or_insert_function(builder.module, signature, f"llvm.fma.v{WIDTH}f32")
    return builder.call(function, [a, b, c])


def float_at(context, builder, array_type, array, offset):
    return builder.load(pointer_to(context, builder, array_type, array, offset, ir.FloatType()), align=4)


@intrinsic
def load(typingctx, array, offset):
    """16 values of a float32, int8 or uint16 (bits of bfloat16) array, converted to float32."""

    def codegen(context, builder, signature, args):
        array_type = signature.args[0]
        if array_type.dtype == types.float32:
            return builder.load(pointer_to(context, builder, array_type, *args, FLOATS), align=4)
        if array_type.dtype == types.int8:
            return builder.sitofp(builder.sext(integers_at(context, builder, array_type, *args, 8), INTS), FLOATS)
        wide = builder.zext(integers_at(context, builder, array_type, *args, 16), INTS)
        return builder.bitcast(builder.shl(wide, _ints(16)), FLOATS)

    return lanes(array, types.intp), codegen


@intrinsic
def load_nibbles(typingctx, array, offset):
    """16 bytes of a uint8 array as two vectors of float32: low four bits - 8, high four bits - 8."""
    pair = types.UniTuple(lanes, 2)

    def codegen(context, builder, signature, args):
        both = builder.zext(integers_at(context, builder, signature.args[0], *args, 8), INTS)
        high = builder.lshr(both, _ints(4))
        if WIDE_REGISTERS:  # vpermps looks up 16 values; its index is the lowest four bits of a lane
            table = ir.Constant(FLOATS, [float(value - 8) for value in range(WIDTH)])
            signature = ir.FunctionType(FLOATS, [FLOATS, INTS])
            look = cgutils.get_or_insert_function(builder.module, signature, "llvm.x86.avx512.permvar.sf.512")
            parts = [builder.call(look, [table, half]) for half in (both, high)]
        else:
            halves = builder.and_(both, _ints(15)), high
            parts = [builder.sitofp(builder.sub(half, _ints(8)), FLOATS) for half in halves]
        return context.make_tuple(builder, pair, parts)

    return pair(array, types.intp), codegen


@intrinsic
def store(typingctx, array, offset, value):
    """Write 16 floats to a float32 array, as integers to int8, uint8 or int16, or as bfloat16 bits to uint16.

    Integers must be whole already, bfloat16 rounded (`nearest`, `to_bfloat16`): the rest is cut off.
    """

    def codegen(context, builder, signature, args):
        data, position, vector = args
        dtype = signature.args[0].dtype
        if dtype == types.uint16:
            high = builder.lshr(builder.bitcast(vector, INTS), _ints(16))
            vector = builder.trunc(high, ir.VectorType(ir.IntType(16), WIDTH))
        elif dtype != types.float32:
            vector = builder.trunc(builder.fptosi(vector, INTS), ir.VectorType(ir.IntType(dtype.bitwidth), WIDTH))
        pointer = pointer_to(context, builder, signature.args[0], data, position, vector.type)
        builder.store(vector, pointer, align=dtype.bitwidth // 8)
        return context.get_dummy_value()

    return types.void(array, types.intp, lanes), codegen


@intrinsic
def splat(typingctx, scalar):
    """A vector of 16 copies of ``scalar``, a float32."""

    def codegen(context, builder, signature, args):
        return splat_of(builder, args[0], FLOATS)

    return lanes(types.float32), codegen


@intrinsic
def iota(typingctx):
    """0, 1, …, 15."""

    def codegen(context, builder, signature, args):
        return ir.Constant(FLOATS, [float(number) for number in range(WIDTH)])

    return lanes(), codegen


@intrinsic
def prefetch(typingctx, array, offset):
    """Prefetch the cache line of array[offset] for reading; ``offset`` may be past the end."""

    def codegen(context, builder, signature, args):
        byte, hint = ir.IntType(8), ir.IntType(32)
        kind = ir.FunctionType(ir.VoidType(), [byte.as_pointer(), hint, hint, hint])
        function = cgutils.get_or_insert_function(builder.module, kind, "llvm.prefetch.p0")
        pointer = pointer_to(context, builder, signature.args[0], *args, byte)
        builder.call(function, [pointer, hint(0), hint(3), hint(1)])  # read; highest locality (L1); data cache
        return context.get_dummy_value()

    return types.void(array, types.intp), codegen


def _binary(name, emit):
    @intrinsic
    def operation(typingctx, a, b):
        def codegen(context, builder, signature, args):
            return emit(builder, *args)

        return lanes(lanes, lanes), codegen

    operation.__doc__ = name
    return operation


add = _binary("a + b", lambda builder, a, b: builder.fadd(a, b))
subtract = _binary("a - b", lambda builder, a, b: builder.fsub(a, b))
multiply = _binary("a b", lambda builder, a, b: builder.fmul(a, b))
divide = _binary("a / b", lambda builder, a, b: builder.fdiv(a, b))
maximum = _binary("the larger of a and b", lambda b_, a, b: b_.select(b_.fcmp_ordered(">", a, b), a, b))


@intrinsic
def where_less(typingctx, a, b, yes, no):
    """yes where a < b, else no."""

    def codegen(context, builder, signature, args):
        return builder.select(builder.fcmp_ordered("<", *args[:2]), *args[2:])

    return lanes(lanes, lanes, lanes, lanes), codegen


@intrinsic
def nearest(typingctx, x):
    """x rounded to the nearest integers, ties to even."""

    def codegen(context, builder, signature, args):
        rounding = ir.FunctionType(FLOATS, [FLOATS])
        function = cgutils.get_or_insert_function(builder.module, rounding, f"llvm.rint.v{WIDTH}f32")
        return builder.call(function, args)

    return lanes(lanes), codegen


@intrinsic
def to_bfloat16(typingctx, x):
    """x rounded to bfloat16, ties to even, as float32."""

    def codegen(context, builder, signature, args):
        bits = builder.bitcast(args[0], INTS)
        last = builder.and_(builder.lshr(bits, _ints(16)), _ints(1))
        rounded = builder.add(bits, builder.add(last, _ints(0x7FFF)))
        return builder.bitcast(builder.and_(rounded, _ints(0xFFFF0000)), FLOATS)

    return lanes(lanes), codegen


@intrinsic
def fma(typingctx, a, b, c):
    """a b + c, rounded once."""

    def codegen(context, builder, signature, args):
        return fma_of(builder, *args)

    return lanes(lanes, lanes, lanes), codegen


@intrinsic
def lane(typingctx, vector, index):
    """vector[index], a float32."""

    def codegen(context, builder, signature, args):
        return builder.extract_element(args[0], builder.trunc(args[1], ir.IntType(32)))

    return types.float32(lanes, types.intp), codegen


@jit
def total(vector):
    """The sum of the 16 floats, in order."""
    result = np.float32(0.0)
    for i in range(WIDTH):
        result += lane(vector, i)
    return result


@intrinsic
def exp(typingctx, x):
    """e^x, within 2 units in the last place, for x limited to [-87, 88].

    e^x = 2^n e^r with n = round(x / ln 2) and |r| <= ln 2 / 2, e^r by the Taylor polynomial of degree 7.
    """

    def codegen(context, builder, signature, args):
        low, high = _constant(-87.0), _constant(88.0)
        x = builder.select(builder.fcmp_ordered("<", args[0], low), low, args[0])
        x = builder.select(builder.fcmp_ordered(">", x, high), high, x)
        half = builder.select(builder.fcmp_ordered("<", x, _constant(0.0)), _constant(-0.5), _constant(0.5))
        n = builder.fptosi(fma_of(builder, x, _constant(1.4426950408889634), half), INTS)
        n_float = builder.sitofp(n, FLOATS)
        # ln 2 as a sum of two constants; the first has 9 significant bits, so that its product with n is exact.
        r = fma_of(builder, n_float, _constant(-0.693359375), x)
        r = fma_of(builder, n_float, _constant(2.12194440e-4), r)
        result = _constant(1 / 5040)
        for factorial in (720, 120, 24, 6, 2, 1, 1):
            result = fma_of(builder, result, r, _constant(1 / factorial))
        power = builder.bitcast(builder.shl(builder.add(n, _ints(127)), _ints(23)), FLOATS)
        return builder.fmul(result, power)

    return lanes(lanes), codegen

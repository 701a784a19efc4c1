"""Integer matrix products of int8 weights and int16 rows, by AVX-512 VNNI.

vpdpwssd multiplies and adds 32 pairs of int16 per instruction; a float32 fma does 16, and int8 weights would have to be
converted for it. A row is quantized for every product, in chunks of 256 inputs with one scale each, to int16 in
[-32767, 32767]: 258 times finer than int8. A chunk's int32 sums are exact, since 256 * 127 * 32767 < 2^31; the chunks
are added up in float32, in order.

    weights  int16 (in / 2, 16) per block: int8 of input 2j in the low byte, of input 2j + 1 in the high byte
    a row    `row_size` float32, ``pitch`` elements apart: one scale per chunk, then the bits of in / 2 pairs of int16

The type `lanes` also holds vectors of integers here: 16 int32, or 16 pairs of int16.
"""

# mypy: ignore-errors

import numpy as np
from llvmlite import ir
from numba.core import cgutils, types
from numba.extending import intrinsic

from gptcli.kernels.cpu import row_vectors
from gptcli.kernels.cpu import simd as v

LANES = v.WIDTH
CHUNK = 256  # inputs that share a scale
AHEAD = 1024  # prefetch distance in pairs of weights (2 KiB): the core by itself loads too few lines ahead
_PAIRS = ir.VectorType(ir.IntType(16), 2 * LANES)
_SHORTS = ir.VectorType(ir.IntType(16), LANES)


def _add_products(builder, weights, x, sums):
    """sums + products of pairs, all of type lanes; LLVM combines the product and the sum into one vpdpwssd."""
    signature = ir.FunctionType(v.INTS, [_PAIRS, _PAIRS])
    multiply = cgutils.get_or_insert_function(builder.module, signature, "llvm.x86.avx512.pmaddw.d.512")
    products = builder.call(multiply, [builder.bitcast(weights, _PAIRS), builder.bitcast(x, _PAIRS)])
    return builder.bitcast(builder.add(builder.bitcast(sums, v.INTS), products), v.FLOATS)


@intrinsic
def load_pairs(typingctx, array, offset):
    """16 pairs of int8 from an int16 array, sign-extended to pairs of int16."""

    def codegen(context, builder, signature, args):
        small = ir.VectorType(ir.IntType(8), 2 * LANES)
        pairs = builder.load(v.pointer_to(context, builder, signature.args[0], *args, small), align=2)
        return builder.bitcast(builder.sext(pairs, _PAIRS), v.FLOATS)

    return v.lanes(array, types.intp), codegen


@intrinsic
def add_products(typingctx, weights, pair, sums):
    """sums[i] + weights[2i] pair[0] + weights[2i + 1] pair[1]; ``pair``: two int16 in the bits of a float32."""

    def codegen(context, builder, signature, args):
        return _add_products(builder, args[0], v.splat_of(builder, args[1], v.FLOATS), args[2])

    return v.lanes(v.lanes, types.float32, v.lanes), codegen


# sums[i] + the products of weights and the pair of row i, for each i.
add_rows, add_rows_twice = row_vectors.over_rows(
    lambda builder, pair, weights, sums: _add_products(builder, weights, pair, sums)
)


@intrinsic
def scale_rows(typingctx, integers, x, offset, stride, accumulators):
    """accumulators[i] + integers[i] x[offset + i stride], for each i; x holds the chunk's scales."""

    def codegen(context, builder, signature, args):
        _, array, position, step, _ = args
        parts = []
        for whole, part in zip(*(cgutils.unpack_tuple(builder, args[i]) for i in (0, 4)), strict=True):
            factor = v.splat_of(builder, v.float_at(context, builder, signature.args[1], array, position), v.FLOATS)
            floats = builder.sitofp(builder.bitcast(whole, v.INTS), v.FLOATS)
            parts.append(v.fma_of(builder, floats, factor, part))
            position = builder.add(position, step)
        return context.make_tuple(builder, accumulators, parts)

    return accumulators(integers, x, types.intp, types.intp, accumulators), codegen


@intrinsic
def larger(typingctx, a, b):
    """The larger of |a| and |b| by their bits, so that NaN is larger than every number."""

    def codegen(context, builder, signature, args):
        bits = ir.Constant(v.INTS, [0x7FFFFFFF] * LANES)
        left, right = (builder.and_(builder.bitcast(x, v.INTS), bits) for x in args)
        return builder.bitcast(builder.select(builder.icmp_signed(">", left, right), left, right), v.FLOATS)

    return v.lanes(v.lanes, v.lanes), codegen


@intrinsic
def largest(typingctx, vector):
    """The largest of 16 floats without sign bits, as `larger` returns them."""

    def codegen(context, builder, signature, args):
        kind = ir.FunctionType(ir.IntType(32), [v.INTS])
        reduce = cgutils.get_or_insert_function(builder.module, kind, f"llvm.vector.reduce.smax.v{LANES}i32")
        return builder.bitcast(builder.call(reduce, [builder.bitcast(args[0], v.INTS)]), ir.FloatType())

    return types.float32(v.lanes), codegen


@intrinsic
def store_pairs(typingctx, array, offset, pitch, vector):
    """Write 16 floats, rounded to the nearest int16, as 8 pairs to a float32 array, ``pitch`` elements apart."""

    def codegen(context, builder, signature, args):
        data, position, step, values = args
        kind = ir.FunctionType(v.FLOATS, [v.FLOATS])
        nearest = cgutils.get_or_insert_function(builder.module, kind, f"llvm.rint.v{LANES}f32")
        shorts = builder.trunc(builder.fptosi(builder.call(nearest, [values]), v.INTS), _SHORTS)
        pairs = builder.bitcast(shorts, ir.VectorType(ir.FloatType(), LANES // 2))
        for i in range(LANES // 2):
            pair = builder.extract_element(pairs, ir.Constant(ir.IntType(32), i))
            builder.store(pair, v.pointer_to(context, builder, signature.args[0], data, position, ir.FloatType()))
            position = builder.add(position, step)
        return context.get_dummy_value()

    return types.void(array, types.intp, types.intp, v.lanes), codegen


@v.jit
def chunks(inputs):
    """Number of chunks of a row, so of the scales before its pairs."""
    return (inputs + CHUNK - 1) // CHUNK


@v.jit
def row_size(inputs):
    """Number of float32 elements of a row."""
    return chunks(inputs) + inputs // 2


@v.jit
def quantise(work, source, inputs, chunk, target, pitch):
    """Quantize one chunk of the floats work[source : + inputs] into the row at work[target]; return 1 / its scale."""
    first, last = chunk * CHUNK, min((chunk + 1) * CHUNK, inputs)
    peaks = v.splat(np.float32(0.0))
    for i in range(first, last, LANES):
        peaks = larger(v.load(work, source + i), peaks)
    peak = largest(peaks)
    work[target + chunk * pitch] = peak / np.float32(32767.0)  # NaN if one of the inputs is NaN
    factor = v.splat(np.float32(32767.0) / peak if peak > np.float32(1e-30) else np.float32(0.0))
    pairs = target + chunks(inputs) * pitch
    for i in range(first, last, LANES):
        store_pairs(work, pairs + i // 2 * pitch, pitch, v.multiply(v.load(work, source + i), factor))
    return factor


@v.jit
def rows_times_block(sums, data, start, scale, scale_start, inputs, x, at, pitch):
    """sums[i] + row i @ block, without the scale, for each i; row i begins at x[at + i]."""
    pairs = at + chunks(inputs) * pitch
    for first in range(0, inputs, CHUNK):
        whole = row_vectors.zeros_like(sums)
        for k in range(first // 2, min(first + CHUNK, inputs) // 2):
            whole = add_rows(whole, load_pairs(data, start + k * LANES), x, pairs + k * pitch, 1)
        sums = scale_rows(whole, x, at + first // CHUNK * pitch, 1, sums)
    return sums


@v.jit
def rows_times_two_blocks(sums, data, start, scale, scale_start, inputs, x, at, pitch):
    """As `rows_times_block` for two adjacent blocks: each pair loaded multiplies two vectors of weights."""
    a, b = sums, sums
    pairs, step = at + chunks(inputs) * pitch, inputs // 2 * LANES
    for first in range(0, inputs, CHUNK):
        whole_a, whole_b = row_vectors.zeros_like(sums), row_vectors.zeros_like(sums)
        for k in range(first // 2, min(first + CHUNK, inputs) // 2):
            p = start + k * LANES
            left, right = load_pairs(data, p), load_pairs(data, p + step)
            v.prefetch(data, p + AHEAD)
            v.prefetch(data, p + step + AHEAD)
            whole_a, whole_b = add_rows_twice(whole_a, whole_b, left, right, x, pairs + k * pitch, 1)
        a = scale_rows(whole_a, x, at + first // CHUNK * pitch, 1, a)
        b = scale_rows(whole_b, x, at + first // CHUNK * pitch, 1, b)
    return a, b


@v.jit
def row_times_four_blocks(data, start, scale, scale_start, inputs, x, at):
    """One row of pitch 1 times four adjacent blocks: four independent chains of sums hide the latency."""
    sums = row_vectors.zeros(4)
    pairs, step = at + chunks(inputs), inputs // 2 * LANES
    for first in range(0, inputs, CHUNK):
        a, b, c, d = row_vectors.zeros(4)
        for k in range(first // 2, min(first + CHUNK, inputs) // 2):
            pair = x[pairs + k]
            p = start + k * LANES
            a = add_products(load_pairs(data, p), pair, a)
            b = add_products(load_pairs(data, p + step), pair, b)
            c = add_products(load_pairs(data, p + 2 * step), pair, c)
            d = add_products(load_pairs(data, p + 3 * step), pair, d)
            if k % 2 == 0:  # a cache line (64 bytes) holds the weights of two pairs of inputs
                for i in range(4):
                    v.prefetch(data, p + i * step + AHEAD)
        sums = scale_rows((a, b, c, d), x, at + first // CHUNK, 0, sums)
    return sums


@v.jit
def weight(data, start, inputs, k, n):
    """The int8 weight from input k to output n."""
    pair = data[start + (n // LANES * (inputs // 2) + k // 2) * LANES + n % LANES]
    return np.int8(pair >> 8 if k % 2 else pair & 255)

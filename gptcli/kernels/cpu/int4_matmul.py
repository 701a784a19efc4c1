"""Integer matrix products of int4 weights and int16 rows, by AVX-512 VNNI; see int16_matmul.py for rows and chunks.

    weights  uint32 (in / 8, 16) per block: of inputs 8j to 8j + 7, input 8j + 2i in bits 4i to 4i + 3 and input
             8j + 2i + 1 in bits 16 + 4i to 16 + 4i + 3, so that a shift and a mask give a pair of int16
    a row    as in int16_matmul.py, then one int32 per group of 32 inputs: -8 times the sum of its int16

A weight's bits are its value plus 8. The sum of a group's products begins with the row's int32, which takes those 8
out again; it is exact, since 32 * 15 * 32767 < 2^31. The groups of a chunk are added up in float32 by the groups'
scales, then the chunks by the row's.
"""

# mypy: ignore-errors

from llvmlite import ir
from numba.core import cgutils, types
from numba.extending import intrinsic

from gptcli.kernels.cpu import int16_matmul as pairs
from gptcli.kernels.cpu import row_vectors as r
from gptcli.kernels.cpu import simd as v

LANES = v.WIDTH
GROUP = 32  # inputs that share a scale
NIBBLES = 8  # in a uint32
AHEAD = 512  # prefetch distance in uint32 (2 KiB)
_FOUR_PAIRS = types.UniTuple(v.lanes, 4)
_SHORTS = ir.VectorType(ir.IntType(16), 2 * LANES)
_EIGHT = types.UniTuple(v.lanes, NIBBLES)


@intrinsic
def load_pairs(typingctx, array, offset):
    """16 uint32 as four vectors of pairs of int16 in 0 … 15: of inputs 0 and 1, 2 and 3, 4 and 5, 6 and 7."""

    def codegen(context, builder, signature, args):
        whole = builder.load(v.pointer_to(context, builder, signature.args[0], *args, _SHORTS), align=4)
        low, parts = ir.Constant(_SHORTS, [15] * 2 * LANES), []
        for i in range(4):
            shifted = builder.lshr(whole, ir.Constant(_SHORTS, [4 * i] * 2 * LANES))
            parts.append(shifted if i == 3 else builder.and_(shifted, low))  # the highest four bits need no mask
        return context.make_tuple(builder, _FOUR_PAIRS, [builder.bitcast(part, v.FLOATS) for part in parts])

    return _FOUR_PAIRS(array, types.intp), codegen


@intrinsic
def store_nibbles(typingctx, array, offset, values):
    """Write 8 vectors of whole floats in 0 … 15 as 16 uint32; vector n holds input n."""

    def codegen(context, builder, signature, args):
        data, position, vectors = args
        whole = ir.Constant(v.INTS, [0] * LANES)
        for n, vector in enumerate(cgutils.unpack_tuple(builder, vectors)):
            place = ir.Constant(v.INTS, [4 * (n // 2) + 16 * (n % 2)] * LANES)
            whole = builder.or_(whole, builder.shl(builder.fptosi(vector, v.INTS), place))
        builder.store(whole, v.pointer_to(context, builder, signature.args[0], data, position, v.INTS), align=4)
        return context.get_dummy_value()

    return types.void(array, types.intp, _EIGHT), codegen


@intrinsic
def offset_of(typingctx, a, b):
    """-8 times the sum of 32 floats, each rounded to the nearest integer; an int32 in the bits of a float32."""

    def codegen(context, builder, signature, args):
        kind = ir.FunctionType(v.FLOATS, [v.FLOATS])
        nearest = cgutils.get_or_insert_function(builder.module, kind, f"llvm.rint.v{LANES}f32")
        left, right = (builder.fptosi(builder.call(nearest, [x]), v.INTS) for x in args)
        kind = ir.FunctionType(ir.IntType(32), [v.INTS])
        reduce = cgutils.get_or_insert_function(builder.module, kind, f"llvm.vector.reduce.add.v{LANES}i32")
        total = builder.mul(builder.call(reduce, [builder.add(left, right)]), ir.Constant(ir.IntType(32), -8))
        return builder.bitcast(total, ir.FloatType())

    return types.float32(v.lanes, v.lanes), codegen


@intrinsic
def offsets_like(typingctx, accumulators, x, offset, stride):
    """A vector of 16 copies of x[offset + i stride] for each i, as many as ``accumulators`` has."""

    def codegen(context, builder, signature, args):
        _, array, position, step = args
        parts = []
        for _ in range(accumulators.count):
            number = v.float_at(context, builder, signature.args[1], array, position)
            parts.append(v.splat_of(builder, number, v.FLOATS))
            position = builder.add(position, step)
        return context.make_tuple(builder, accumulators, parts)

    return accumulators(accumulators, x, types.intp, types.intp), codegen


@intrinsic
def add_scaled(typingctx, integers, factors, accumulators):
    """accumulators[i] + integers[i] factors, for each i."""

    def codegen(context, builder, signature, args):
        parts = []
        for whole, part in zip(*(cgutils.unpack_tuple(builder, args[i]) for i in (0, 2)), strict=True):
            floats = builder.sitofp(builder.bitcast(whole, v.INTS), v.FLOATS)
            parts.append(v.fma_of(builder, floats, args[1], part))
        return context.make_tuple(builder, accumulators, parts)

    return accumulators(integers, v.lanes, accumulators), codegen


@intrinsic
def add_by_rows(typingctx, vectors, x, offset, stride, accumulators):
    """accumulators[i] + vectors[i] x[offset + i stride], for each i."""

    def codegen(context, builder, signature, args):
        _, array, position, step, _ = args
        parts = []
        for vector, part in zip(*(cgutils.unpack_tuple(builder, args[i]) for i in (0, 4)), strict=True):
            factor = v.splat_of(builder, v.float_at(context, builder, signature.args[1], array, position), v.FLOATS)
            parts.append(v.fma_of(builder, vector, factor, part))
            position = builder.add(position, step)
        return context.make_tuple(builder, accumulators, parts)

    return accumulators(vectors, x, types.intp, types.intp, accumulators), codegen


@v.jit
def row_size(inputs):
    """Number of float32 elements of a row."""
    return pairs.row_size(inputs) + inputs // GROUP


@v.jit
def quantise(work, source, inputs, chunk, target, pitch):
    """As `int16_matmul.quantise`, and the int32 of the chunk's groups."""
    factor = pairs.quantise(work, source, inputs, chunk, target, pitch)
    first, last = chunk * pairs.CHUNK, min((chunk + 1) * pairs.CHUNK, inputs)
    offsets = target + pairs.row_size(inputs) * pitch
    for i in range(first, last, GROUP):
        left, right = v.load(work, source + i), v.load(work, source + i + LANES)
        work[offsets + i // GROUP * pitch] = offset_of(v.multiply(left, factor), v.multiply(right, factor))


@v.jit
def rows_times_block(sums, data, start, scale, scale_start, inputs, x, at, pitch):
    """sums[i] + row i @ block, for each i; row i begins at x[at + i]."""
    values, offsets = at + pairs.chunks(inputs) * pitch, at + pairs.row_size(inputs) * pitch
    for first in range(0, inputs, pairs.CHUNK):
        part = r.zeros_like(sums)
        for group in range(first // GROUP, min(first + pairs.CHUNK, inputs) // GROUP):
            whole = offsets_like(sums, x, offsets + group * pitch, 1)
            for k in range(group * GROUP // NIBBLES, (group + 1) * GROUP // NIBBLES):
                at_pairs = values + k * 4 * pitch
                a, b, c, d = load_pairs(data, start + k * LANES)
                whole = pairs.add_rows(whole, a, x, at_pairs, 1)
                whole = pairs.add_rows(whole, b, x, at_pairs + pitch, 1)
                whole = pairs.add_rows(whole, c, x, at_pairs + 2 * pitch, 1)
                whole = pairs.add_rows(whole, d, x, at_pairs + 3 * pitch, 1)
            part = add_scaled(whole, v.load(scale, scale_start + group * LANES), part)
        sums = add_by_rows(part, x, at + first // pairs.CHUNK * pitch, 1, sums)
    return sums


@v.jit
def rows_times_two_blocks(sums, data, start, scale, scale_start, inputs, x, at, pitch):
    """As `rows_times_block` for two adjacent blocks: each pair loaded multiplies two vectors of weights."""
    left, right = sums, sums
    step, scale_step = inputs // NIBBLES * LANES, inputs // GROUP * LANES
    values, offsets = at + pairs.chunks(inputs) * pitch, at + pairs.row_size(inputs) * pitch
    for first in range(0, inputs, pairs.CHUNK):
        part_left, part_right = r.zeros_like(sums), r.zeros_like(sums)
        for group in range(first // GROUP, min(first + pairs.CHUNK, inputs) // GROUP):
            whole_left = offsets_like(sums, x, offsets + group * pitch, 1)
            whole_right = whole_left
            for k in range(group * GROUP // NIBBLES, (group + 1) * GROUP // NIBBLES):
                p, y = start + k * LANES, values + k * 4 * pitch
                v.prefetch(data, p + AHEAD)
                v.prefetch(data, p + step + AHEAD)
                a, b, c, d = load_pairs(data, p)
                e, f, g, h = load_pairs(data, p + step)
                whole_left, whole_right = pairs.add_rows_twice(whole_left, whole_right, a, e, x, y, 1)
                whole_left, whole_right = pairs.add_rows_twice(whole_left, whole_right, b, f, x, y + pitch, 1)
                whole_left, whole_right = pairs.add_rows_twice(whole_left, whole_right, c, g, x, y + 2 * pitch, 1)
                whole_left, whole_right = pairs.add_rows_twice(whole_left, whole_right, d, h, x, y + 3 * pitch, 1)
            s = scale_start + group * LANES
            part_left = add_scaled(whole_left, v.load(scale, s), part_left)
            part_right = add_scaled(whole_right, v.load(scale, s + scale_step), part_right)
        factors = at + first // pairs.CHUNK * pitch
        left, right = add_by_rows(part_left, x, factors, 1, left), add_by_rows(part_right, x, factors, 1, right)
    return left, right


@v.jit
def unpack(data, start, count, work, to):
    """Write ``count`` uint32 of weights as 4 count pairs of int16, in order, to the float32 array work[to:]."""
    for i in range(0, count, LANES):
        a, b, c, d = load_pairs(data, start + i)
        v.store(work, to + 4 * i, a)
        v.store(work, to + 4 * i + LANES, b)
        v.store(work, to + 4 * i + 2 * LANES, c)
        v.store(work, to + 4 * i + 3 * LANES, d)


@v.jit
def rows_times_two_unpacked(sums, work, start, scale, scale_start, inputs, at, pitch):
    """As `rows_times_two_blocks`, bit-identical, for two blocks that `unpack` wrote to work[start:]."""
    left, right = sums, sums
    step, scale_step = inputs // 2 * LANES, inputs // GROUP * LANES
    values, offsets = at + pairs.chunks(inputs) * pitch, at + pairs.row_size(inputs) * pitch
    for first in range(0, inputs, pairs.CHUNK):
        part_left, part_right = r.zeros_like(sums), r.zeros_like(sums)
        for group in range(first // GROUP, min(first + pairs.CHUNK, inputs) // GROUP):
            whole_left = offsets_like(sums, work, offsets + group * pitch, 1)
            whole_right = whole_left
            for k in range(group * GROUP // 2, (group + 1) * GROUP // 2):
                p = start + k * LANES
                a, b = v.load(work, p), v.load(work, p + step)
                whole_left, whole_right = pairs.add_rows_twice(
                    whole_left, whole_right, a, b, work, values + k * pitch, 1
                )
            s = scale_start + group * LANES
            part_left = add_scaled(whole_left, v.load(scale, s), part_left)
            part_right = add_scaled(whole_right, v.load(scale, s + scale_step), part_right)
        factors = at + first // pairs.CHUNK * pitch
        left, right = add_by_rows(part_left, work, factors, 1, left), add_by_rows(part_right, work, factors, 1, right)
    return left, right


@v.jit
def row_times_four_blocks(data, start, scale, scale_start, inputs, x, at):
    """One row of pitch 1 times four adjacent blocks: four independent chains of sums hide the latency."""
    sums = r.zeros(4)
    step, scale_step = inputs // NIBBLES * LANES, inputs // GROUP * LANES
    values, offsets = at + pairs.chunks(inputs), at + pairs.row_size(inputs)
    for first in range(0, inputs, pairs.CHUNK):
        one, two, three, four = r.zeros(4)
        for group in range(first // GROUP, min(first + pairs.CHUNK, inputs) // GROUP):
            whole_1 = v.splat(x[offsets + group])
            whole_2, whole_3, whole_4 = whole_1, whole_1, whole_1
            for k in range(group * GROUP // NIBBLES, (group + 1) * GROUP // NIBBLES):
                p, y = start + k * LANES, values + k * 4
                w, z, s, t = x[y], x[y + 1], x[y + 2], x[y + 3]
                for i in range(4):
                    v.prefetch(data, p + i * step + AHEAD)
                whole_1 = add_four(load_pairs(data, p), w, z, s, t, whole_1)
                whole_2 = add_four(load_pairs(data, p + step), w, z, s, t, whole_2)
                whole_3 = add_four(load_pairs(data, p + 2 * step), w, z, s, t, whole_3)
                whole_4 = add_four(load_pairs(data, p + 3 * step), w, z, s, t, whole_4)
            here = scale_start + group * LANES
            one = v.fma(to_floats(whole_1), v.load(scale, here), one)
            two = v.fma(to_floats(whole_2), v.load(scale, here + scale_step), two)
            three = v.fma(to_floats(whole_3), v.load(scale, here + 2 * scale_step), three)
            four = v.fma(to_floats(whole_4), v.load(scale, here + 3 * scale_step), four)
        sums = add_by_rows((one, two, three, four), x, at + first // pairs.CHUNK, 0, sums)
    return sums


@v.jit
def add_four(weights, a, b, c, d, total):
    """``total`` plus the products of four vectors of pairs and four pairs of a row."""
    total = pairs.add_products(weights[0], a, total)
    total = pairs.add_products(weights[1], b, total)
    total = pairs.add_products(weights[2], c, total)
    return pairs.add_products(weights[3], d, total)


@intrinsic
def to_floats(typingctx, integers):
    """16 int32 in the bits of ``integers``, as float32."""

    def codegen(context, builder, signature, args):
        return builder.sitofp(builder.bitcast(args[0], v.INTS), v.FLOATS)

    return v.lanes(v.lanes), codegen


@v.jit
def value(data, start, inputs, k, n):
    """The integer of the weight from input k to output n, in -8 … 7."""
    whole = data[start + (n // LANES * (inputs // NIBBLES) + k // NIBBLES) * LANES + n % LANES]
    return (whole >> (4 * (k % NIBBLES // 2) + 16 * (k % 2)) & 15) - 8

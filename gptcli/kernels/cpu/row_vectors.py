"""Operations on a tuple of `lanes`, one vector of 16 sums per row, that LLVM keeps in registers; see matmul.py.

Every function of this file works inside numba-compiled code only.
"""

# mypy: ignore-errors

from llvmlite import ir
from numba.core import cgutils, types
from numba.extending import intrinsic

from gptcli.kernels.cpu import simd as v


@intrinsic(prefer_literal=True)
def zeros(typingctx, count):
    """A tuple of ``count`` (a literal) zero vectors: accumulators."""
    accumulators = types.UniTuple(v.lanes, count.literal_value)

    def codegen(context, builder, signature, args):
        return context.make_tuple(builder, accumulators, [ir.Constant(v.FLOATS, [0.0] * v.WIDTH)] * accumulators.count)

    return accumulators(count), codegen


def over_rows(combine):
    """Return two operations built on ``combine(builder, scalar, weights, sum)``, which emits the new sum.

    The first returns combine(x[offset + i stride], weights, accumulators[i]) for each i. The second does so for two
    sets of accumulators with a vector of weights each; it loads each element of x once for both.
    """

    def cell(context, builder, array_type, array, position):
        return v.splat_of(builder, v.float_at(context, builder, array_type, array, position), v.FLOATS)

    @intrinsic
    def rows(typingctx, accumulators, weights, x, offset, stride):
        def codegen(context, builder, signature, args):
            sums, vector, array, position, step = args
            parts = []
            for part in cgutils.unpack_tuple(builder, sums):
                parts.append(combine(builder, cell(context, builder, signature.args[2], array, position), vector, part))
                position = builder.add(position, step)
            return context.make_tuple(builder, accumulators, parts)

        return accumulators(accumulators, v.lanes, x, types.intp, types.intp), codegen

    @intrinsic
    def rows_twice(typingctx, left, right, left_weights, right_weights, x, offset, stride):
        both = types.UniTuple(left, 2)

        def codegen(context, builder, signature, args):
            sums = [cgutils.unpack_tuple(builder, part) for part in args[:2]]
            array, position, step = args[4:]
            parts = [[], []]
            for i in range(left.count):
                fetched = cell(context, builder, signature.args[4], array, position)
                for side in range(2):
                    parts[side].append(combine(builder, fetched, args[2 + side], sums[side][i]))
                position = builder.add(position, step)
            return context.make_tuple(builder, both, [context.make_tuple(builder, left, part) for part in parts])

        return both(left, right, v.lanes, v.lanes, x, types.intp, types.intp), codegen

    return rows, rows_twice


fma_rows, fma_rows_twice = over_rows(v.fma_of)  # sums + x * weights


@intrinsic
def zeros_like(typingctx, accumulators):
    """A tuple of as many zero vectors as ``accumulators`` has."""

    def codegen(context, builder, signature, args):
        return context.make_tuple(builder, accumulators, [ir.Constant(v.FLOATS, [0.0] * v.WIDTH)] * accumulators.count)

    return accumulators(accumulators), codegen


@intrinsic
def fma_all(typingctx, vectors, factor, accumulators):
    """vectors[i] factor + accumulators[i], for each i."""

    def codegen(context, builder, signature, args):
        left, right = (cgutils.unpack_tuple(builder, args[i]) for i in (0, 2))
        parts = [v.fma_of(builder, a, args[1], b) for a, b in zip(left, right, strict=True)]
        return context.make_tuple(builder, accumulators, parts)

    return accumulators(vectors, v.lanes, accumulators), codegen


@intrinsic
def load_rows(typingctx, accumulators, array, offset, stride):
    """array[offset + i stride : + 16] for each i, as many vectors as ``accumulators`` has."""

    def codegen(context, builder, signature, args):
        _, data, position, step = args
        parts = []
        for _ in range(accumulators.count):
            place = v.pointer_to(context, builder, signature.args[1], data, position, v.FLOATS)
            parts.append(builder.load(place, align=4))
            position = builder.add(position, step)
        return context.make_tuple(builder, accumulators, parts)

    return accumulators(accumulators, array, types.intp, types.intp), codegen


@intrinsic
def store_rows(typingctx, array, offset, stride, vectors):
    """Write vectors[i] to array[offset + i stride : + 16], for each i."""

    def codegen(context, builder, signature, args):
        data, position, step, values = args
        for i, vector in enumerate(cgutils.unpack_tuple(builder, values)):
            if i:
                position = builder.add(position, step)
            builder.store(vector, v.pointer_to(context, builder, signature.args[0], data, position, v.FLOATS), align=4)
        return context.get_dummy_value()

    return types.void(array, types.intp, types.intp, vectors), codegen


@intrinsic
def transpose(typingctx, array, offset, stride, count, to):
    """array[to + 16 k + i] = array[offset + i stride + k] for i < ``count`` and k < 16, count >= 1.

    The other elements of the 16 x 16 square at ``to`` get copies of row count - 1.
    """

    def codegen(context, builder, signature, args):
        data, position, step, number, target = args
        last = builder.sub(number, ir.Constant(number.type, 1))
        rows = []
        for i in range(v.WIDTH):
            index = ir.Constant(number.type, i)
            row = builder.select(builder.icmp_signed("<", index, last), index, last)
            place = builder.add(position, builder.mul(row, step))
            rows.append(builder.load(v.pointer_to(context, builder, signature.args[0], data, place, v.FLOATS), align=4))
        for size in (8, 4, 2, 1):  # exchange squares of this size across the diagonal
            low = [n if not n & size else n - size + v.WIDTH for n in range(v.WIDTH)]
            high = [n + size if not n & size else n + v.WIDTH for n in range(v.WIDTH)]
            for i in range(v.WIDTH):
                if not i & size:
                    pair = rows[i], rows[i + size]
                    rows[i], rows[i + size] = (
                        builder.shuffle_vector(*pair, ir.Constant(v.INTS, order)) for order in (low, high)
                    )
        for i, row in enumerate(rows):
            place = builder.add(target, ir.Constant(target.type, i * v.WIDTH))
            builder.store(row, v.pointer_to(context, builder, signature.args[0], data, place, v.FLOATS), align=4)
        return context.get_dummy_value()

    return types.void(array, types.intp, types.intp, types.intp, types.intp), codegen

"""Atomic operations on int64 counters that threads share: threads take work from them and wait for its end.

Every function of this file works inside numba-compiled code only.
"""

# mypy: ignore-errors

import sys

from llvmlite import ir
from numba.core import types
from numba.extending import intrinsic

from gptcli.kernels.cpu.simd import pointer_to


@intrinsic
def atomic_add(typingctx, counters, index, amount):
    """Add to one element of an int64 array atomically and return its value before; sequentially consistent."""

    def codegen(context, builder, signature, args):
        pointer = pointer_to(context, builder, signature.args[0], args[0], args[1], ir.IntType(64))
        return builder.atomic_rmw("add", pointer, args[2], "seq_cst")

    return types.int64(counters, types.intp, types.int64), codegen


@intrinsic
def atomic_load(typingctx, counters, index):
    """Load one element of an int64 array; sequentially consistent, so writes before the matching store are visible."""

    def codegen(context, builder, signature, args):
        pointer = pointer_to(context, builder, signature.args[0], args[0], args[1], ir.IntType(64))
        return builder.load_atomic(pointer, "seq_cst", 8)

    return types.int64(counters, types.intp), codegen


@intrinsic
def atomic_store(typingctx, counters, index, value):
    """Store one element of an int64 array; sequentially consistent, so earlier writes become visible before it."""

    def codegen(context, builder, signature, args):
        pointer = pointer_to(context, builder, signature.args[0], args[0], args[1], ir.IntType(64))
        builder.store_atomic(args[2], pointer, "seq_cst", 8)
        return context.get_dummy_value()

    return types.void(counters, types.intp, types.int64), codegen


# Yields the core to another thread. SwitchToThread (kernel32) and sched_yield (libc) are in every process.
give_way = types.ExternalFunction("SwitchToThread" if sys.platform == "win32" else "sched_yield", types.int32())

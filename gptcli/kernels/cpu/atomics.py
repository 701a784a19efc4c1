"""Counters that threads share: work is taken from them, and its end waited for.

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
    """Add to one counter of an int64 array and return what it was before, as one step for all threads."""

    def codegen(context, builder, signature, args):
        pointer = pointer_to(context, builder, signature.args[0], args[0], args[1], ir.IntType(64))
        return builder.atomic_rmw("add", pointer, args[2], "seq_cst")

    return types.int64(counters, types.intp, types.int64), codegen


@intrinsic
def atomic_load(typingctx, counters, index):
    """What a counter of an int64 array is now, with everything that was written before it was set."""

    def codegen(context, builder, signature, args):
        pointer = pointer_to(context, builder, signature.args[0], args[0], args[1], ir.IntType(64))
        return builder.load_atomic(pointer, "seq_cst", 8)

    return types.int64(counters, types.intp), codegen


@intrinsic
def atomic_store(typingctx, counters, index, value):
    """Set a counter of an int64 array, after everything written so far."""

    def codegen(context, builder, signature, args):
        pointer = pointer_to(context, builder, signature.args[0], args[0], args[1], ir.IntType(64))
        builder.store_atomic(args[2], pointer, "seq_cst", 8)
        return context.get_dummy_value()

    return types.void(counters, types.intp, types.int64), codegen


# Lets another thread have the core; both functions are in every process of their system.
give_way = types.ExternalFunction("SwitchToThread" if sys.platform == "win32" else "sched_yield", types.int32())

"""The kernels of decoding as functions of one address, which object_code.py keeps and calls.

At the address lie the arguments as int64, in the order of the kernel's own: an array as its address and its number of
elements, a number as itself.
"""

# mypy: ignore-errors

import numpy as np
from numba import carray, njit

from gptcli.kernels.cpu import block_packing, decode_step
from gptcli.kernels.cpu import simd as v


def run(data_type, scale_type):
    """`decode_step.run` for such weights."""
    kernel = njit(**v.OPTIONS)(decode_step.run)

    def entry(address):
        cells = carray(v.at_address(address), (13,), np.int64)
        kernel(
            carray(v.at_address(cells[0]), (cells[1],), data_type),
            carray(v.at_address(cells[2]), (cells[3],), scale_type),
            carray(v.at_address(cells[4]), (cells[5],), np.float32),
            carray(v.at_address(cells[6]), (cells[7],), np.float32),
            carray(v.at_address(cells[8]), (cells[9],), np.int64),
            carray(v.at_address(cells[10]), (cells[11],), np.int64),
            cells[12],
        )

    return entry


def quantize(data_type, scale_type):
    """`block_packing.quantize` into such weights."""
    kernel = njit(**v.OPTIONS)(block_packing.quantize)

    def entry(address):
        cells = carray(v.at_address(address), (11,), np.int64)
        source = carray(v.at_address(cells[0]), (cells[1],), np.float32)
        data = carray(v.at_address(cells[3]), (cells[4],), data_type)
        scale = carray(v.at_address(cells[6]), (cells[7],), scale_type)
        kernel(source, cells[2], data, cells[5], scale, cells[8], cells[9], cells[10])

    return entry


def pack(data_type, scale_type):
    """`block_packing.pack_pairs` or `pack_nibbles` from a contiguous matrix; its two sides follow it."""
    kernel = njit(**v.OPTIONS)(block_packing.pack_pairs if data_type == np.int16 else block_packing.pack_nibbles)
    source_type = np.int8 if data_type == np.int16 else np.uint8

    def entry(address):
        cells = carray(v.at_address(address), (8,), np.int64)
        source = carray(v.at_address(cells[0]), (cells[2], cells[3]), source_type)
        kernel(source, carray(v.at_address(cells[4]), (cells[5],), data_type), cells[6], cells[7])

    return entry

"""Symmetric weight-only quantisation: int8 with one scale an output, int4 with one scale per group of 32 inputs.

A packed matrix has the layout (in, out) of the model's projections:
    int8  values (in, out) int8 in [-127, 127];  scale (out) float32;  weight = value * scale
    int4  values (in' / 2, out) uint8, in' being `in` rounded up to whole groups: row j holds input 2j in the low and
          2j + 1 in the high four bits, each a value of [-8, 7] plus 8;  scale (in' / 32, out) uint16, the bits of a
          bfloat16 (float32's exponent range in 2 bytes)
The token embedding and an untied head (V, C) are packed as (C, V). Norms, biases and positions stay float32.
"""

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from gptcli.errors import SettingError

Bits = Literal[8, 4]
GROUP = 32
_BLOCK = 512  # outputs that one task quantises; bounds the size of temporaries


class Packed(NamedTuple):
    """A quantised matrix: see the module for shapes and dtypes.

    Attributes:
        values: int8, or uint8 with two 4-bit values.
        scale: float32, or uint16 bits of bfloat16.
        inputs: in, which the shape of padded int4 values does not give.
    """

    values: NDArray[Any]
    scale: NDArray[Any]
    inputs: int


def is_packed_name(name: str) -> bool:
    """Whether the parameter ``name`` is a matrix that quantisation packs."""
    return name in ("wte.weight", "lm_head.weight") or name.endswith(
        ("attn.c_attn.weight", "c_proj.weight", "c_fc.weight")
    )


def is_transposed(name: str) -> bool:
    """Whether the parameter ``name`` is stored (out, in) in float32 and therefore transposed before packing."""
    return name in ("wte.weight", "lm_head.weight")


def scale_name(name: str) -> str:
    """The tensor that holds the scales of the packed parameter ``name``."""
    return name.removesuffix("weight") + "scale"


def quantize(weight: NDArray[np.float32], bits: Bits, threads: int = 1) -> Packed:
    """Pack a matrix (in, out) of finite float32."""
    inputs, outputs = weight.shape
    rows = inputs if bits == 8 else -(-inputs // GROUP) * GROUP // 2
    values = np.empty((rows, outputs), np.int8 if bits == 8 else np.uint8)
    scale = np.empty(outputs if bits == 8 else (rows * 2 // GROUP, outputs), np.float32 if bits == 8 else np.uint16)
    pack = _int8 if bits == 8 else _int4

    def pack_part(first: int) -> None:
        part = np.s_[..., first : first + _BLOCK]
        values[part], scale[part] = pack(np.asarray(weight[part], dtype=np.float32))

    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(pack_part, range(0, outputs, _BLOCK)))
    return Packed(values, scale, inputs)


def _int8(weight: NDArray[np.float32]) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    scale = np.abs(weight).max(axis=0) / np.float32(127)
    scale[scale == 0] = 1
    return np.rint(weight / scale).astype(np.int8), scale


def _int4(weight: NDArray[np.float32]) -> tuple[NDArray[Any], NDArray[Any]]:
    """Pack with, for each group, the one of three scales whose squared error is smallest.

    The scales map the weight of largest magnitude to -8, -7.3 and 7.5.
    """
    inputs, outputs = weight.shape
    groups = -(-inputs // GROUP)
    padded = np.zeros((groups * GROUP, outputs), np.float32)
    padded[:inputs] = weight
    padded = padded.reshape(groups, GROUP, outputs)
    low, high = padded.min(axis=1), padded.max(axis=1)
    largest = np.where(-low > high, low, high)  # signed, so that it can map to -8: the range is -8 to 7
    best_error = np.full((groups, outputs), np.inf, np.float32)
    best_scale = np.zeros((groups, outputs), np.uint16)
    for steps in (-8.0, -7.3, 7.5):
        bits = to_bfloat16(largest / np.float32(steps))
        values = _nearest(padded, bits)
        values *= from_bfloat16(bits)[:, None]
        values -= padded
        error = np.einsum("gko,gko->go", values, values)
        best_scale = np.where(error < best_error, bits, best_scale)
        best_error = np.minimum(error, best_error)
    unsigned = (_nearest(padded, best_scale) + np.float32(8)).astype(np.uint8).reshape(groups * GROUP, outputs)
    return unsigned[0::2] | (unsigned[1::2] << 4), best_scale


def _nearest(weight: NDArray[np.float32], bits: NDArray[np.uint16]) -> NDArray[np.float32]:
    """The integers in [-8, 7] whose products with the scale are nearest to weights (groups, 32, out), as float32."""
    scale = from_bfloat16(bits)
    inverse = np.divide(np.float32(1), scale, out=np.zeros_like(scale), where=scale != 0)
    values = np.asarray(weight * inverse[:, None])
    np.rint(values, out=values)
    np.clip(values, -8, 7, out=values)
    return values


def dequantize(packed: Packed) -> NDArray[np.float32]:
    """The float32 matrix (in, out) of the packed values times their scales."""
    if packed.values.dtype == np.int8:
        return np.asarray(packed.values * packed.scale)
    values = np.empty((2 * packed.values.shape[0], packed.values.shape[1]), np.float32)
    values[0::2], values[1::2] = packed.values & 15, packed.values >> 4
    values -= 8
    scale = from_bfloat16(packed.scale.astype(np.uint16))
    return (values.reshape(len(scale), GROUP, -1) * scale[:, None]).reshape(values.shape)[: packed.inputs]


def packed(name: str, weight: NDArray[np.float32], bits: Bits, threads: int = 1) -> Packed:
    """The parameter ``name`` packed, transposed first if it is stored (out, in)."""
    return quantize(weight.T if is_transposed(name) else weight, bits, threads)


def unpacked(name: str, stored: NDArray[Any] | Packed) -> NDArray[np.float32]:
    """The parameter ``name`` in float32 and in the float32 model's layout; always a copy."""
    if not isinstance(stored, Packed):
        return np.array(stored, dtype=np.float32)
    weight = dequantize(stored)
    return np.ascontiguousarray(weight.T) if is_transposed(name) else weight


def to_bfloat16(values: NDArray[np.float32]) -> NDArray[np.uint16]:
    """The bits of the nearest bfloat16 of finite floats, ties to even."""
    bits = np.ascontiguousarray(values, dtype=np.float32).view(np.uint32)
    return ((bits + (0x7FFF + ((bits >> 16) & 1))) >> 16).astype(np.uint16)


def from_bfloat16(bits: NDArray[np.uint16]) -> NDArray[np.float32]:
    """bfloat16 bits as float32, exactly."""
    floats: NDArray[np.float32] = (bits.astype(np.uint32) << 16).view(np.float32)
    return floats


Tensors = Mapping[str, NDArray[Any] | Packed]


def check_bits(bits: int) -> Bits:
    """The bits of a packed weight, checked.

    Raises:
        SettingError: neither 8 nor 4.
    """
    if bits == 8:
        return 8
    if bits == 4:
        return 4
    raise SettingError(
        f"{{bits}} is {bits}, but weights can be packed in 8 or 4.", "8 loses almost no quality; 4 is smaller."
    )

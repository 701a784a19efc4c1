"""Triton's kernels without a GPU: import this before anything imports triton; it turns on Triton's interpreter."""

import os

os.environ["TRITON_INTERPRET"] = "1"

from typing import Any

import triton.runtime.interpreter as interpreter

_patch = interpreter._patch_lang_tensor


def _with_index(tensor: Any, scope: Any) -> None:
    """numpy 2.4 makes no whole number of an array of one element, which bounds of loops are to the interpreter."""
    _patch(tensor, scope)
    scope.set_attr(tensor, "__index__", lambda self: int(self.handle.data.item()))


interpreter._patch_lang_tensor = _with_index

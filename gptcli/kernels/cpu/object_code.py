"""Compiled functions as object code in files: numba compiles them once, and llvmlite alone loads them.

numba itself would load them in half a second, most of which goes into its own types and functions. A file is a line of
JSON, {"name": the function's symbol, "needs": the symbols that it takes from elsewhere, "crc32": of what follows}, and
an object file of the platform (ELF, Mach-O, COFF). The functions are those of entry_points.py: they take one address
and return nothing.
"""

import ctypes
import json
import os
import zlib
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

Entry = Callable[[int], None]


class Kernel:
    """A function of `entry_points`, called with arrays and numbers; it runs without the GIL.

    Args:
        entry: the function of an address.
        owner: what has to live as long as the function.
    """

    def __init__(self, entry: Entry, owner: Any) -> None:
        self._entry, self._owner = entry, owner

    def __call__(self, *arguments: NDArray[Any] | int) -> None:
        """Call the function; an array must be contiguous."""
        self.bound(*arguments)()

    def bound(self, *arguments: NDArray[Any] | int) -> Callable[..., None]:
        """The function with its first arguments given; the others, when it is called, are numbers."""
        cells: list[int] = []
        for each in arguments:
            assert isinstance(each, int | np.integer) or each.flags.c_contiguous
            cells += [int(each)] if isinstance(each, int | np.integer) else [each.ctypes.data, each.size]

        def call(*numbers: int) -> None:
            task = np.array([*cells, *numbers], np.int64)
            self._entry(task.ctypes.data)

        call.__dict__["arrays"] = arguments  # they have to live as long as their addresses
        return call


def save(file: Path, compiled: Any) -> None:
    """Write a function that numba.cfunc made, atomically. Raises OSError, or AttributeError where numba has changed."""
    library = compiled._library
    module = library._final_module
    needs = [each.name for each in (*module.functions, *module.global_variables) if each.is_declaration]
    code = library._get_compiled_object()
    about = {"name": compiled._wrapper_name, "needs": needs, "crc32": zlib.crc32(code)}
    partial = file.with_name(f"{file.name}.{os.getpid()}.partial")
    partial.write_bytes(json.dumps(about).encode() + b"\n" + code)
    partial.replace(file)


def load(file: Path) -> Kernel:
    """The function in a file of `save`. Raises OSError (no such file) or ValueError (it is damaged)."""
    from llvmlite import binding

    head, _, code = file.read_bytes().partition(b"\n")
    about = json.loads(head)
    if about["crc32"] != zlib.crc32(code):
        raise ValueError(f"{file} is damaged")
    engine = _engine()
    # numba's own functions, which serve exceptions in its code, are not loaded: the kernels raise none.
    for name in about["needs"]:
        if name.startswith(("numba_", "NRT_")) and binding.address_of_symbol(name) is None:
            binding.add_symbol(name, _fatal_error())
    engine.add_object_file(binding.ObjectFileRef.from_data(code))
    engine.finalize_object()
    entry = ctypes.CFUNCTYPE(None, ctypes.c_int64)(engine.get_function_address(about["name"]))
    return Kernel(entry, engine)


def of_compiled(compiled: Any) -> Kernel:
    """The function that numba.cfunc made."""
    return Kernel(compiled.ctypes, compiled)


@cache
def _fatal_error() -> int:
    """The address of a function that ends the process."""
    return ctypes.cast(ctypes.pythonapi.Py_FatalError, ctypes.c_void_p).value or 0


def _engine() -> Any:
    from llvmlite import binding

    binding.initialize_native_target()
    binding.initialize_native_asmprinter()
    machine = binding.Target.from_default_triple().create_target_machine(jit=True)
    empty = binding.parse_assembly(f'target triple = "{binding.get_process_triple()}"')
    return binding.create_mcjit_compiler(empty, machine)

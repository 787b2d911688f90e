"""The one place that imports numba, the one decorator that compiles, and what loops on several threads need.

`compiled` turns a function of `<part>/_compiled.py` into machine code at its first call, with a cache on disk. Where
numba is missing, or switched off by `NUMBA_DISABLE_JIT=1`, the same source runs as plain Python: slower, same results,
one warning. Functions that call each other share a file, because numba's cache does not see other files change.
"""

import ctypes
import os
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar, no_type_check

import numpy as np

_Function = TypeVar("_Function", bound=Callable[..., Any])

try:
    import numba
except ImportError as error:  # pragma: no cover - numba is a dependency; this is for machines where it cannot load
    numba = None
    _reason = f"numba cannot be imported ({error})"
    warnings.warn(
        f"{_reason}; infercore's CPU loops run as plain Python, about 50 times slower. pip install numba",
        RuntimeWarning,
        stacklevel=2,
    )
else:
    _reason = "NUMBA_DISABLE_JIT is set" if numba.config.DISABLE_JIT else ""


def is_compiled() -> bool:
    """Whether `compiled` compiles; False where numba is missing or switched off."""
    return not _reason


def status() -> str:
    """One line for reports: whether the CPU loops are compiled, and if not, why."""
    return f"plain Python ({_reason})" if _reason else f"compiled by numba {numba.__version__}"


def compiled(function: _Function) -> _Function:
    """Compile `function` (arrays and integers only) without the GIL, cached on disk; identity where numba is absent."""
    return _compile(function, {})


def compiled_float(function: _Function) -> _Function:
    """As `compiled`, for loops over floats: sums may be reordered and contracted, NaN and infinity stay right."""
    return _compile(function, {"fastmath": {"reassoc", "contract", "nsz", "arcp"}})


def compiled_in_place(function: _Function) -> _Function:
    """As `compiled`, for loops that make no arrays: numba then counts no references on those passed from call to call.

    That count is an atomic add per array and call, 22 ns where the loop itself takes 1 (docs/log/radix.md).
    """
    return _compile(function, {"_nrt": False})


def _compile(function: _Function, more_options: dict[str, Any]) -> _Function:
    if _reason:
        return function
    options = {"nogil": True, "cache": True, **more_options}
    try:
        dispatcher = numba.njit(**options)(function)
    except RuntimeError:  # numba found no writable place beside the package or in the user's home
        folder = Path(tempfile.gettempdir()) / f"infercore-numba-{os.getuid()}"
        folder.mkdir(mode=0o700, exist_ok=True)
        numba.config.CACHE_DIR = str(folder)
        dispatcher = numba.njit(**options)(function)
    return dispatcher  # type: ignore[no-any-return]


# ------------------------------------------------------------------------------------- memory that several threads see
# `address` is where an int64 (or, for `floats_at`, a float32) lies. All are sequentially consistent when compiled; as
# plain Python they are right for one thread only, which is all there is then.


@no_type_check
def atomic_load(address):
    """The int64 at `address`."""
    return ctypes.c_int64.from_address(int(address)).value


@no_type_check
def atomic_store(address, value):
    """Write an int64; everything written before it is seen by whoever reads it."""
    ctypes.c_int64.from_address(int(address)).value = value


@no_type_check
def atomic_add(address, value):
    """Add to an int64; returns what it was."""
    cell = ctypes.c_int64.from_address(int(address))
    before = cell.value
    cell.value = before + value
    return before


@no_type_check
def compare_and_swap(address, expected, value):
    """Write `value` if the int64 is `expected`; returns whether it was."""
    cell = ctypes.c_int64.from_address(int(address))
    if cell.value != expected:
        return False
    cell.value = value
    return True


@no_type_check
def prefetch(address):
    """Ask for a cache line ahead of its use; any address will do."""


@no_type_check
def floats_at(address, num_rows, num_columns):
    """The float32 array `[num_rows, num_columns]` at `address`; whoever owns the memory must keep it."""
    if num_rows * num_columns == 0:
        return np.empty((num_rows, num_columns), np.float32)
    kind = ctypes.c_float * int(num_rows * num_columns)
    return np.frombuffer(kind.from_address(int(address)), np.float32).reshape(num_rows, num_columns)


@no_type_check
def _compile_primitives():
    """Replace the functions above by machine code."""
    from llvmlite import ir
    from numba import carray, types
    from numba.extending import intrinsic

    @intrinsic
    def load(typing_context, address):
        def generate(context, builder, signature, arguments):
            pointer = builder.inttoptr(arguments[0], ir.PointerType(ir.IntType(64)))
            return builder.load_atomic(pointer, "seq_cst", 8)

        return types.int64(types.int64), generate

    @intrinsic
    def store(typing_context, address, value):
        def generate(context, builder, signature, arguments):
            pointer = builder.inttoptr(arguments[0], ir.PointerType(ir.IntType(64)))
            builder.store_atomic(arguments[1], pointer, "seq_cst", 8)
            return context.get_dummy_value()

        return types.void(types.int64, types.int64), generate

    @intrinsic
    def add(typing_context, address, value):
        def generate(context, builder, signature, arguments):
            pointer = builder.inttoptr(arguments[0], ir.PointerType(ir.IntType(64)))
            return builder.atomic_rmw("add", pointer, arguments[1], "seq_cst")

        return types.int64(types.int64, types.int64), generate

    @intrinsic
    def swap(typing_context, address, expected, value):
        def generate(context, builder, signature, arguments):
            pointer = builder.inttoptr(arguments[0], ir.PointerType(ir.IntType(64)))
            pair = builder.cmpxchg(pointer, arguments[1], arguments[2], "seq_cst", "seq_cst")
            return builder.extract_value(pair, 1)

        return types.boolean(types.int64, types.int64, types.int64), generate

    @intrinsic
    def ahead(typing_context, address):
        def generate(context, builder, signature, arguments):
            pointer = builder.inttoptr(arguments[0], ir.PointerType(ir.IntType(8)))
            number = ir.IntType(32)
            kind = ir.FunctionType(ir.VoidType(), [pointer.type, number, number, number])
            function = builder.module.declare_intrinsic("llvm.prefetch", [pointer.type], kind)
            builder.call(function, [pointer, number(0), number(2), number(1)])  # to read, into the second level, data
            return context.get_dummy_value()

        return types.void(types.int64), generate

    @intrinsic
    def pointer_at(typing_context, address):
        def generate(context, builder, signature, arguments):
            return builder.inttoptr(arguments[0], ir.PointerType(ir.FloatType()))

        return types.CPointer(types.float32)(types.int64), generate

    def floats(address, num_rows, num_columns):
        return carray(pointer_at(address), (num_rows, num_columns))

    return load, store, add, swap, ahead, _compile(floats, {})


if not _reason:
    atomic_load, atomic_store, atomic_add, compare_and_swap, prefetch, floats_at = _compile_primitives()

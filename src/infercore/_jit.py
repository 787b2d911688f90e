"""The one place that imports numba, the one decorator that compiles, and what loops on several threads need.

`compiled` turns a function of `<part>/_compiled.py` into machine code at its first call, with a cache on disk. Where
numba is missing, or switched off by `NUMBA_DISABLE_JIT=1`, the same source runs as plain Python: slower, same results,
one warning. Functions that call each other share a file, because numba's cache does not see other files change.
"""

import ctypes
import importlib.util
import os
import tempfile
import warnings
import weakref
from collections.abc import Callable, Sequence
from functools import lru_cache
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple, TypeVar, no_type_check

import numpy as np
import numpy.typing as npt

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


_plain = False  # while a module is loaded by `plain_copy`
_waiting: dict[str, str] = {}


def report_waiting(part: str, what: str) -> None:
    """Have `status` say that the loops of `part` run as plain Python for now; an empty `what`: not any more."""
    _waiting.pop(part, None)
    if what:
        _waiting[part] = what


def plain_copy(module: ModuleType) -> ModuleType:
    """`module`, a `_compiled.py`, loaded once more as plain Python; its functions take the same handles."""
    global _plain
    assert module.__spec__ is not None
    assert module.__file__ is not None
    spec = importlib.util.spec_from_file_location(f"{module.__name__}_plain", module.__file__)
    assert spec is not None
    assert spec.loader is not None
    copy = importlib.util.module_from_spec(spec)
    _plain = True
    try:
        spec.loader.exec_module(copy)
    finally:
        _plain = False
    return copy


def is_kept(function: Callable[..., Any]) -> bool:
    """Whether machine code of a compiled function is in memory or on disk, so that a call need not compile it."""
    if _reason or function.signatures:  # type: ignore[attr-defined]
        return True
    return bool(function._cache._cache_file._load_index())  # type: ignore[attr-defined]  # numba shows no other way


def is_compiled() -> bool:
    """Whether `compiled` compiles; False where numba is missing or switched off."""
    return not _reason


def status() -> str:
    """One line for reports: whether the CPU loops are compiled, and if not, why."""
    if _reason:
        return f"plain Python ({_reason})"
    return "; ".join([f"compiled by numba {numba.__version__}", *(f"{part}: {why}" for part, why in _waiting.items())])


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
    if _reason or _plain:
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


# ------------------------------------------------------------------------------------------- many arrays as one address


class Field(NamedTuple):
    """An array that compiled loops reach through an address.

    Attributes:
        name: how loops call it: `m.name`.
        dtype: of its items.
        columns: length of its second dimension; 0: it has one dimension.
    """

    name: str
    dtype: str
    columns: int = 0


def _address(array: npt.NDArray[Any]) -> int:
    """Where `array` begins: what `array.ctypes.data` says, in a quarter of the time."""
    if array.size and array.flags.writeable:
        return ctypes.addressof(ctypes.c_char.from_buffer(array.data))
    return int(array.ctypes.data)


@lru_cache
def _dtypes(fields: tuple[Field, ...]) -> tuple[np.dtype[Any], ...]:
    return tuple(np.dtype(field.dtype) for field in fields)


_directories: "weakref.WeakValueDictionary[int, Directory]" = weakref.WeakValueDictionary()


class Directory:
    """Where the arrays of one object lie, for loops that get them all as one number.

    A compiled call costs 0.1 µs for each array it is given; one address, whatever is behind it, costs 0.05, and calls
    from loop to loop hand over a pointer instead of seven words per array.

    Attributes:
        handle: what loops are given, to pass to `arrays_at`: the address of the directory, or, as plain Python, the
            arrays. It holds as long as this object lives and until the next `show`.
    """

    def __init__(self, fields: Sequence[Field]) -> None:
        self._fields = tuple(fields)
        self._dtypes = _dtypes(self._fields)
        self._entries = np.zeros((len(self._fields), 2), np.int64)
        self._words = self._entries.reshape(-1).data  # items of a memoryview are set faster than those of an array
        self._shown: tuple[Any, ...] = (None,) * len(self._fields)
        self.handle: Any = self._entries.ctypes.data
        _directories[self.handle] = self

    def show(self, arrays: tuple[Any, ...]) -> None:
        """Make `handle` lead to these arrays, contiguous, one for each field; the caller keeps them alive."""
        if _reason:
            self.handle = arrays
            return
        words, at = self._words, 0
        for field, dtype, array, before in zip(self._fields, self._dtypes, arrays, self._shown, strict=True):
            if array is not before:
                assert array.shape[1:] == ((field.columns,) if field.columns else ()), field
                assert array.dtype == dtype, field
                assert array.flags.c_contiguous, field
                words[at] = _address(array)
                words[at + 1] = array.shape[0]
            at += 2
        self._shown = arrays


def arrays_at(fields: Sequence[Field]) -> Callable[[Any], Any]:
    """A function that compiled loops call with a `Directory.handle`; its result has an attribute for each field."""
    if _reason:
        return lambda handle: handle
    if _plain:
        return lambda handle: _directories[handle]._shown
    return _arrays_at(tuple(fields))  # type: ignore[no-any-return]


if not _reason:
    from llvmlite import ir
    from numba import types
    from numba.core import cgutils
    from numba.core.imputils import lower_getattr_generic
    from numba.core.typing.templates import AttributeTemplate
    from numba.extending import infer_getattr, intrinsic, models, register_model

    class _Arrays(types.Type):  # type: ignore[misc]
        """Type of what `arrays_at` gives: a pointer to a directory."""

        def __init__(self, fields: tuple[Field, ...]) -> None:
            self.fields = fields
            super().__init__(name=f"Arrays({', '.join(f'{f.name}: {f.dtype}[{f.columns}]' for f in fields)})")

        def array(self, name: str) -> Any:
            for field in self.fields:
                if field.name == name:
                    return types.Array(numba.from_dtype(np.dtype(field.dtype)), 2 if field.columns else 1, "C")
            return None

    @register_model(_Arrays)
    class _ArraysModel(models.PrimitiveModel):  # type: ignore[misc]
        def __init__(self, manager: Any, kind: Any) -> None:
            super().__init__(manager, kind, ir.PointerType(ir.IntType(64)))

    @infer_getattr
    class _ArraysAttributes(AttributeTemplate):  # type: ignore[misc]
        key = _Arrays

        def generic_resolve(self, kind: Any, name: str) -> Any:
            return kind.array(name)

    @lower_getattr_generic(_Arrays)  # type: ignore[untyped-decorator]
    def _lower_attribute(context: Any, builder: Any, kind: Any, directory: Any, name: str) -> Any:
        index = [field.name for field in kind.fields].index(name)
        word = ir.IntType(64)
        same = builder.module.add_metadata([])

        def entry(column: int) -> Any:
            loaded = builder.load(builder.gep(directory, [word(2 * index + column)]))
            loaded.set_metadata("invariant.load", same)  # a directory changes between calls only
            return loaded

        field = kind.fields[index]
        array = context.make_array(kind.array(name))(context, builder)
        length = entry(1)
        size = np.dtype(field.dtype).itemsize
        array.data = builder.inttoptr(entry(0), array.data.type)
        columns = [field.columns] if field.columns else []
        array.shape = cgutils.pack_array(builder, [length, *map(word, columns)])
        array.strides = cgutils.pack_array(builder, [word(size * n) for n in (*columns, 1)])
        array.itemsize = word(size)
        array.nitems = builder.mul(length, word(max(field.columns, 1)))
        array.meminfo = cgutils.get_null_value(array.meminfo.type)
        array.parent = cgutils.get_null_value(array.parent.type)
        return array._getvalue()

    def _arrays_at(fields: tuple[Field, ...]) -> Any:
        kind = _Arrays(fields)

        @intrinsic
        def arrays_at_address(typing_context, address):  # type: ignore[no-untyped-def]
            def generate(context, builder, signature, arguments):  # type: ignore[no-untyped-def]
                return builder.inttoptr(arguments[0], ir.PointerType(ir.IntType(64)))

            return kind(types.int64), generate

        return arrays_at_address


if not _reason:
    atomic_load, atomic_store, atomic_add, compare_and_swap, prefetch, floats_at = _compile_primitives()

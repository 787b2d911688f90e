"""The one place that imports numba, and the one decorator that compiles.

`compiled` turns a function of `<part>/_compiled.py` into machine code at its first call, with a cache on disk. Where
numba is missing, or switched off by `NUMBA_DISABLE_JIT=1`, the same source runs as plain Python: slower, same results,
one warning. Functions that call each other share a file, because numba's cache does not see other files change.
"""

import os
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

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

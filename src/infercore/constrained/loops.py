"""The loops of `_compiled.py`: machine code where it is there, else plain Python until it is.

Nothing compiled yet, numba would take 20 s before the first mask. So the same source runs as plain Python, some 50
times slower and with the same results, while a process of its own compiles; when that has ended, calls go to machine
code. Both work on the same arrays, so that may happen between any two calls. INFERCORE_COLD_START=wait compiles in
place instead.

Import it as `from infercore.constrained.loops import loops as c`.
"""

import logging
import os
import subprocess
import sys
import warnings
from collections.abc import Callable
from time import monotonic
from typing import TYPE_CHECKING, Any

from infercore import _jit
from infercore.constrained import _compiled, cold_trie

_ENTRIES = (
    "build_trie", "classify_tokens", "ensure_row", "forced_byte", "intern_pairs", "native_state", "rehash",
    "same_shape", "start_config", "step_bytes", "store_row", "token_sets", "try_tokens", "union_of_sets", "walk_ends",
    "walk_plain", "walk_trie",
)  # fmt: skip
"""The functions that Python calls."""

_log = logging.getLogger("infercore")


class Loops:
    """What `_compiled` holds, as attributes: its constants, and its functions, compiled or plain.

    Args:
        command: what compiles them, run in a process of its own when a plain function is first called.
    """

    def __init__(self, command: list[str]) -> None:
        self.__dict__.update(vars(_compiled))
        self._command = command
        self._process: subprocess.Popen[bytes] | None = None
        self._next_look = 0.0

    @property
    def is_waiting(self) -> bool:
        """Whether plain Python stands in for machine code."""
        return self._process is not None

    def run_plain(self) -> None:
        """Let plain Python stand in from now on, until the machine code is there."""
        plain = _jit.plain_copy(_compiled)
        plain.build_trie = cold_trie.build_trie  # type: ignore[attr-defined]
        for name in _ENTRIES:
            setattr(self, name, self._stand_in(name, getattr(plain, name)))

    def _stand_in(self, name: str, plain: Callable[..., Any]) -> Callable[..., Any]:
        def function(*arguments: Any) -> Any:
            return getattr(_compiled, name)(*arguments) if self._is_ready() else plain(*arguments)

        return function

    def _is_ready(self) -> bool:
        """Whether machine code is there; the first call has it made."""
        if self._process is None:
            environment = {**os.environ, "INFERCORE_COLD_START": "wait", "PYTHONPATH": os.pathsep.join(sys.path)}
            self._process = subprocess.Popen(
                self._command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=environment
            )
            _log.info("grammars run as plain Python until their loops are compiled; `infercore warmup` does it ahead")
            _jit.report_waiting("grammars", "plain Python until compiled code is ready")
        now = monotonic()
        if now < self._next_look:
            return False
        self._next_look = now + 0.05
        if (code := self._process.poll()) is None:
            return False
        if code != 0:
            warnings.warn(
                f"compiling the loops of grammars in a process of its own ended with code {code}; they are compiled "
                "in this one now, which takes some 20 s",
                RuntimeWarning,
                stacklevel=2,
            )
        self._process = None
        for entry in _ENTRIES:
            setattr(self, entry, getattr(_compiled, entry))
        _jit.report_waiting("grammars", "")
        return True


def _started() -> Loops:
    started = Loops([sys.executable, "-c", "from infercore.warmup import compile_grammars; compile_grammars()"])
    if os.environ.get("INFERCORE_COLD_START") != "wait" and not all(
        _jit.is_kept(getattr(_compiled, name)) for name in _ENTRIES
    ):
        started.run_plain()
    return started


if TYPE_CHECKING:
    loops = _compiled
else:
    loops = _started()

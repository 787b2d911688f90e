"""`State`: what a program works on, the same to its author whether the program is traced or run op by op."""

from __future__ import annotations

import re
import sys
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import FrameType
from typing import Any, Generic, TypeVar

from infercore.lang.ir import ArgRef, Location, VarRef
from infercore.lang.nodes import Gen, Message, Select
from infercore.lang.types import Role

_PASSED_OVER = ("infercore.lang", "contextlib", "jaxtyping", "beartype")
_REFERENCE = re.compile("\ue000([va]):([^\ue000\ue001]*)\ue001")

Self = TypeVar("Self", bound="State[Any]")
Child = TypeVar("Child")


class State(ABC, Generic[Child]):
    """A growing text with variables.

        s += "Q: " + question + "\\nA: "      # text; numbers are written as Python writes them
        s += gen("answer", stop="\\n")        # generate; afterwards s["answer"] is its value
        s += user("Thanks!")                  # a turn of a chat; or: with s.role("assistant"): s += ...
        left, right = s.fork(2)               # two continuations of the text so far
        s.join([left, right])                 # their variables are now s's: s["x"] == (left["x"], right["x"])

    Raises, from `+=`: TypeError for a value that is neither text nor one of these nodes.
    """

    def __iadd__(self: Self, value: Any) -> Self:
        self._append(value)
        return self

    @abstractmethod
    def __getitem__(self, name: str) -> Any:
        """The value of a variable. KeyError, listing the known ones, if there is none of that name."""

    @abstractmethod
    def __setitem__(self, name: str, value: Any) -> None:
        """Give a value a name, so that it is among the results."""

    @abstractmethod
    def __contains__(self, name: str) -> bool: ...

    @abstractmethod
    def fork(self, n: int) -> list[Child]:
        """`n` continuations of this state, which go on independently; this state may go on as well."""

    @abstractmethod
    def join(self, children: Sequence[Child]) -> None:
        """Wait for forks; every variable that all of them set becomes a tuple of this state, one entry per fork."""

    @contextmanager
    def role(self, role: Role) -> Iterator[None]:
        """What is appended inside stands in one turn of `role`."""
        self._mark(role, begins=True)
        yield
        self._mark(role, begins=False)

    def _append(self, value: Any) -> None:
        match value:
            case str():
                self._append_mixed(value)
            case Gen():
                self._gen(value)
            case Select():
                self._select(value)
            case Message():
                with self.role(value.role):
                    for part in value.parts:
                        self._append(part)
            case bool() | int() | float():
                self._text(str(value))
            case _ if getattr(value, "kind", None) in ("str", "int", "float", "bool") and hasattr(value, "reference"):
                self._insert(value.reference)
            case _:
                raise TypeError(
                    f"cannot append a {type(value).__name__}; expected text, a number, gen(...), select(...), a turn "
                    'such as user(...), or a variable; write f"{value}" to append its text'
                )

    def _append_mixed(self, text: str) -> None:
        self._text(text)

    @abstractmethod
    def _text(self, text: str) -> None: ...

    @abstractmethod
    def _insert(self, source: VarRef | ArgRef) -> None: ...

    @abstractmethod
    def _gen(self, node: Gen) -> None: ...

    @abstractmethod
    def _select(self, node: Select) -> None: ...

    @abstractmethod
    def _mark(self, role: Role, *, begins: bool) -> None: ...


def in_text(reference: VarRef | ArgRef) -> str:
    """How a reference stands inside a formatted string until it is appended (in private-use characters)."""
    if isinstance(reference, VarRef):
        return f"\ue000v:{reference.var}\ue001"
    return f"\ue000a:{reference.name}\ue001"


def split_references(text: str) -> list[str | VarRef | ArgRef]:
    """The pieces of a formatted string: plain text (never empty) and references."""
    pieces: list[str | VarRef | ArgRef] = []
    start = 0
    for found in _REFERENCE.finditer(text):
        pieces.append(text[start : found.start()])
        kind, name = found.groups()
        pieces.append(VarRef(int(name)) if kind == "v" else ArgRef(name))
        start = found.end()
    pieces.append(text[start:])
    return [piece for piece in pieces if piece != ""]


def caller() -> Location | None:
    """The innermost line outside of this package: the user's own. Wrappers that check annotations are passed over."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        module = str(frame.f_globals.get("__name__", ""))
        file = frame.f_code.co_filename
        if not module.startswith(_PASSED_OVER) and not file.startswith("<@beartype"):
            return Location(file, frame.f_lineno)
        frame = frame.f_back
    return None


def checked_fork_count(n: int) -> int:
    if n < 1:
        raise ValueError(f"fork({n}): expected at least 1")
    return n


def unknown_name(name: str, known: Sequence[str]) -> KeyError:
    return KeyError(f"no variable {name!r} here; known are {sorted(known)}")

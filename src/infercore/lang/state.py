"""`State`: what a program works on, the same to its author whether the program is traced or run op by op."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Generic, TypeVar

from infercore.lang.ir import ArgRef, VarRef
from infercore.lang.nodes import Gen, Message, Select
from infercore.lang.symbols import Symbol
from infercore.lang.types import Role

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
        if isinstance(value, Symbol):  # first: whatever else asks for its type needs its value
            self._append_symbol(value)
            return
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
            case _:
                raise TypeError(_cannot_append(type(value).__name__))

    def _append_symbol(self, value: Symbol) -> None:
        if value.kind not in ("str", "int", "float", "bool"):
            raise TypeError(_cannot_append(value.kind))
        self._append_mixed(format(value))

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


def checked_fork_count(n: int) -> int:
    if n < 1:
        raise ValueError(f"fork({n}): expected at least 1")
    return n


def common_names(own: Sequence[Sequence[str]], order: Sequence[str]) -> list[str]:
    """Names that every fork set, in the order in which the first one knows them."""
    shared = set(own[0]).intersection(*own[1:]) if own else set()
    return [name for name in order if name in shared]


def unknown_name(name: str, known: Sequence[str]) -> KeyError:
    return KeyError(f"no variable {name!r} here; known are {sorted(known)}")


def _cannot_append(what: str) -> str:
    return (
        f"cannot append a {what}; expected text, a number, gen(...), select(...), a turn such as user(...), or a "
        'variable; write f"{value}" to append its text. Programs are text only: images are out of scope'
    )

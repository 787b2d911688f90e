"""Stand-ins for values that are not known while a program is traced."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NoReturn

from infercore.errors import TraceError
from infercore.lang.ir import ArgRef, VarRef
from infercore.lang.location import caller
from infercore.lang.references import in_text


class NeedsArgument(BaseException):  # not an Exception: the program's own `except Exception` must not catch it
    def __init__(self, name: str) -> None:
        self.name = name


class NeedsChoice(BaseException):
    def __init__(self, var: int) -> None:
        self.var = var


class Symbol:
    """Stands for a value that is not known while tracing. Only its place in text is known.

    Args:
        kind: type of the value, by name; "str" for text around other symbols.
        is_choice: it is the outcome of a `select`. where: the line that makes it.
    """

    __slots__ = ("_is_choice", "_where", "kind", "reference")

    def __init__(
        self, reference: VarRef | ArgRef, *, kind: str = "str", is_choice: bool = False, where: Any = None
    ) -> None:
        self.reference = reference
        self.kind = kind
        self._is_choice = is_choice
        self._where = where

    def __format__(self, spec: str) -> str:
        if spec:
            self._needed("is formatted with a width or a precision")
        return in_text(self.reference)

    def __add__(self, other: Any) -> Symbol:
        return self._joined(other, self, other)

    def __radd__(self, other: Any) -> Symbol:
        return self._joined(other, other, self)

    @property  # type: ignore[misc]
    def __class__(self) -> Any:  # what isinstance(value, str) asks for: no answer would be right
        self._needed("is asked for its type")

    def __deepcopy__(self, memo: Any) -> NoReturn:
        self._needed("stands inside an object")

    def _joined(self, other: Any, before: Any, after: Any) -> Symbol:
        is_text = other.kind == "str" if isinstance(other, Symbol) else isinstance(other, str)
        if self.kind != "str" or not is_text:
            self._needed("is added to something else than text")
        return SymbolText(before, after)

    def _needed(self, how: str) -> NoReturn:
        if isinstance(self.reference, ArgRef):
            raise NeedsArgument(self.reference.name)
        if self._is_choice:
            raise NeedsChoice(self.reference.var)
        raise TraceError(
            f"{caller()}: a value that is generated at {self._where} {how}, so the program cannot be traced; "
            'run it with mode="eager"'
        )

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") and name.endswith("__"):
            raise AttributeError(name)  # probes by the interpreter and libraries: no such protocol here
        self._needed(f"is asked for .{name}")


class SymbolText(Symbol):
    """Text and symbols (`parts`) side by side: still no string that Python could look into."""

    __slots__ = ("parts",)

    def __init__(self, *parts: Any) -> None:
        symbol = next(part for part in parts if isinstance(part, Symbol))
        super().__init__(symbol.reference, is_choice=symbol._is_choice, where=symbol._where)
        self.parts = parts

    def __format__(self, spec: str) -> str:
        super().__format__(spec)
        return "".join(format(part) for part in self.parts)


def _touching(name: str) -> Callable[..., NoReturn]:
    def touch(self: Symbol, *_: Any) -> NoReturn:
        self._needed(f"is used in {name}")

    return touch


_TOUCHING = (
    *("bool", "hash", "str", "repr", "int", "float", "index", "len", "iter", "getitem", "contains", "neg", "abs"),
    *("eq", "ne", "lt", "le", "gt", "ge", "sub", "rsub", "mul", "rmul", "mod", "truediv", "floordiv"),
)
for _name in _TOUCHING:
    setattr(Symbol, f"__{_name}__", _touching(_name))

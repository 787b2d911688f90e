"""Tracing: run the Python function once with stand-ins for what is not known yet, and write down what it appends.

A stand-in may be appended, formatted into a string, named and returned. Whatever else touches it needs its value:
an argument then becomes part of the program (traced again with it), the outcome of a `select` becomes a switch (traced
once per choice, up to 16 paths), and a generated value ends tracing with an error that names the line.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NoReturn

from infercore.errors import TraceError
from infercore.lang.ir import (
    ArgRef,
    Block,
    Concat,
    ForkOp,
    GenOp,
    Insert,
    JoinOp,
    MarkOp,
    Op,
    Program,
    Return,
    SelectOp,
    Switch,
    Text,
    VarRef,
)
from infercore.lang.nodes import Gen, Select
from infercore.lang.state import State, caller, checked_fork_count, in_text, split_references, unknown_name
from infercore.lang.types import Role

MAX_PATHS = 16

Body = Callable[..., Any]
"""The user's function: a state, then its arguments by name."""


class _NeedsArgument(BaseException):  # not an Exception: the program's own `except Exception` must not catch it
    def __init__(self, name: str) -> None:
        self.name = name


class _NeedsChoice(BaseException):
    def __init__(self, var: int) -> None:
        self.var = var


def trace(body: Body, name: str, arguments: Mapping[str, Any]) -> tuple[Program, dict[str, Any]]:
    """Trace `body` for these arguments.

    Returns: the program, and those of `arguments` that it takes when it runs; the others are part of it: all that are
        not text, and text that the function looks into.
    Raises: TraceError if the function looks at a generated value, takes more than 16 paths, or does not do the same
        twice; whatever the function itself raises.
    """
    constant = {key for key, value in arguments.items() if not isinstance(value, str)}
    while True:
        given = {key: value if key in constant else _Symbol(ArgRef(key)) for key, value in arguments.items()}
        try:
            block = _trace_block(body, given, {}, [])
        except _NeedsArgument as needed:
            constant.add(needed.name)
            continue
        dynamic = {key: value for key, value in arguments.items() if key not in constant}
        return Program(name, tuple(dynamic), block), dynamic


def _trace_block(body: Body, arguments: dict[str, Any], outcomes: dict[int, str], before: list[Op]) -> Block:
    """The rest of the program after the operations `before`, given the outcomes of some selects."""
    recorder = _Recorder(outcomes)
    state = _TraceState(recorder, recorder.new_state(), {})
    try:
        value = body(state, **arguments)
    except _NeedsChoice as needed:
        choices = recorder.choices[needed.var]
        _check_same_start(before, recorder.ops)
        paths = 0
        cases = []
        for choice in choices:
            case = _trace_block(body, arguments, {**outcomes, needed.var: choice}, recorder.ops)
            paths += Program("", (), case).num_paths
            if paths > MAX_PATHS:
                raise TraceError(
                    f"{recorder.wheres.get(needed.var)}: branching on what select gives makes more than {MAX_PATHS} "
                    'paths; run this program with mode="eager"'
                ) from None
            cases.append((choice, case))
        return Block(tuple(recorder.ops[len(before) :]), Switch(needed.var, tuple(cases)))
    _check_same_start(before, recorder.ops)
    names = tuple((key, _to_ir(v)) for key, v in state.names.items())
    return Block(tuple(recorder.ops[len(before) :]), Return(names, _to_ir(value)))


def _check_same_start(before: Sequence[Op], ops: Sequence[Op]) -> None:
    if list(ops[: len(before)]) != list(before):
        raise TraceError(
            "the function did something else when it was traced again (does it draw random numbers or keep state?); "
            'run it with mode="eager"'
        )


class _Recorder:
    """The operations of one run of the function, over all of its states."""

    def __init__(self, outcomes: dict[int, str]) -> None:
        self.outcomes = outcomes
        self.ops: list[Op] = []
        self.choices: dict[int, tuple[str, ...]] = {}
        self.kinds: dict[int, str] = {}
        self.wheres: dict[int, Any] = {}
        self.num_states = 0
        self.num_vars = 0

    def new_state(self) -> int:
        self.num_states += 1
        return self.num_states - 1

    def new_var(self) -> int:
        self.num_vars += 1
        return self.num_vars - 1

    def shown(self, value: Any) -> Any:
        """What the program gets to see of a stored value."""
        if isinstance(value, VarRef):
            if value.var in self.outcomes:
                return self.outcomes[value.var]
            kind = self.kinds.get(value.var, "str")
            return _Symbol(value, kind=kind, is_choice=value.var in self.choices, where=self.wheres[value.var])
        if isinstance(value, tuple):
            return tuple(self.shown(v) for v in value)
        return value


class _TraceState(State["_TraceState"]):
    def __init__(self, recorder: _Recorder, number: int, names: dict[str, Any]) -> None:
        self.recorder = recorder
        self.number = number
        self.names = names
        self.own_names: set[str] = set()

    def __getitem__(self, name: str) -> Any:
        if name not in self.names:
            raise unknown_name(name, list(self.names))
        return self.recorder.shown(self.names[name])

    def __setitem__(self, name: str, value: Any) -> None:
        self.names[name] = value
        self.own_names.add(name)

    def __contains__(self, name: str) -> bool:
        return name in self.names

    def fork(self, n: int) -> list[_TraceState]:
        children = [
            _TraceState(self.recorder, self.recorder.new_state(), dict(self.names))
            for _ in range(checked_fork_count(n))
        ]
        self.recorder.ops.append(ForkOp(self.number, tuple(c.number for c in children), caller()))
        return children

    def join(self, children: Sequence[_TraceState]) -> None:
        self.recorder.ops.append(JoinOp(self.number, tuple(c.number for c in children), caller()))
        for name in common_names([list(c.own_names) for c in children], list(children[0].names) if children else []):
            self[name] = tuple(c.names[name] for c in children)

    def _append_mixed(self, text: str) -> None:
        for piece in split_references(text):
            if isinstance(piece, str):
                self._text(piece)
            else:
                self._insert(piece)

    def _text(self, text: str) -> None:
        if text:
            self.recorder.ops.append(Text(self.number, text, caller()))

    def _insert(self, source: VarRef | ArgRef) -> None:
        self.recorder.ops.append(Insert(self.number, source, caller()))

    def _gen(self, node: Gen) -> None:
        where = caller()
        var = self.recorder.new_var()
        self.recorder.wheres[var] = where
        self.recorder.kinds[var] = node.kind
        self.recorder.ops.append(GenOp(self.number, var, node.name, node.options, node.kind, node.parse, where))
        self._name(node.name, var)

    def _select(self, node: Select) -> None:
        where = caller()
        for choice in node.choices:
            for piece in split_references(choice):
                if isinstance(piece, ArgRef):
                    raise _NeedsArgument(piece.name)
                if isinstance(piece, VarRef):
                    raise TraceError(f'{where}: a choice depends on a generated value; run it with mode="eager"')
        var = self.recorder.new_var()
        self.recorder.wheres[var] = where
        self.recorder.choices[var] = node.choices
        self.recorder.ops.append(SelectOp(self.number, var, node.name, node.choices, node.method, where))
        self._name(node.name, var)

    def _mark(self, role: Role, *, begins: bool) -> None:
        self.recorder.ops.append(MarkOp(self.number, role, begins, caller()))

    def _name(self, name: str | None, var: int) -> None:
        if name is not None:
            self[name] = VarRef(var)


class _Symbol:
    """Stands for a value that is not known while tracing. Only its place in text is known."""

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

    def __add__(self, other: Any) -> str:
        if isinstance(other, str | _Symbol):
            return f"{self}{other}"
        return NotImplemented

    def __radd__(self, other: Any) -> str:
        return f"{other}{self}" if isinstance(other, str) else NotImplemented

    def _needed(self, how: str) -> NoReturn:
        if isinstance(self.reference, ArgRef):
            raise _NeedsArgument(self.reference.name)
        if self._is_choice:
            raise _NeedsChoice(self.reference.var)
        raise TraceError(
            f"{caller()}: a value that is generated at {self._where} {how}, so the program cannot be traced; "
            'run it with mode="eager"'
        )

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") and name.endswith("__"):
            raise AttributeError(name)  # probes by the interpreter and libraries: no such protocol here
        self._needed(f"is asked for .{name}")


def _touching(name: str) -> Callable[..., NoReturn]:
    def touch(self: _Symbol, *_: Any) -> NoReturn:
        self._needed(f"is used in {name}")

    return touch


_TOUCHING = (
    *("bool", "hash", "str", "repr", "int", "float", "index", "len", "iter", "getitem", "contains", "neg", "abs"),
    *("eq", "ne", "lt", "le", "gt", "ge", "sub", "rsub", "mul", "rmul", "mod", "truediv", "floordiv"),
)
for _name in _TOUCHING:
    setattr(_Symbol, f"__{_name}__", _touching(_name))


def common_names(own: Sequence[Sequence[str]], order: Sequence[str]) -> list[str]:
    """Names that every fork set, in the order in which the first one knows them."""
    shared = set(own[0]).intersection(*own[1:]) if own else set()
    return [name for name in order if name in shared]


def _to_ir(value: Any) -> Any:
    """A named or returned value with references in place of stand-ins."""
    if isinstance(value, _Symbol):
        return value.reference
    if isinstance(value, str):
        pieces = split_references(value)
        if all(isinstance(piece, str) for piece in pieces):
            return value
        return pieces[0] if len(pieces) == 1 else Concat(tuple(pieces))
    if isinstance(value, tuple | list):
        return type(value)(_to_ir(v) for v in value) if type(value) in (tuple, list) else value
    if isinstance(value, dict):
        return {key: _to_ir(v) for key, v in value.items()}
    if isinstance(value, State):
        raise TraceError("the function returns a state; return values such as s[name], or nothing")
    return value

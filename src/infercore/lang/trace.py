"""Tracing: run the Python function once with stand-ins for what is not known yet, and write down what it appends.

A stand-in may be appended, formatted into a string, named and returned. Whatever else touches it needs its value:
an argument then becomes part of the program (traced again with it), the outcome of a `select` becomes a switch (traced
once per choice, up to 16 paths), and a generated value ends tracing with an error that names the line.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from infercore.errors import TraceError
from infercore.lang import ir
from infercore.lang.location import caller
from infercore.lang.nodes import Gen, Select
from infercore.lang.passes import bind, fold_constants
from infercore.lang.references import split_references
from infercore.lang.state import State, checked_fork_count, common_names, unknown_name
from infercore.lang.symbols import NeedsArgument, NeedsChoice, Symbol, SymbolText
from infercore.lang.types import Role

MAX_PATHS = 16

Body = Callable[..., Any]
"""The user's function: a state, then its arguments by name."""


def trace(body: Body, name: str, arguments: Mapping[str, Any]) -> ir.Program:
    """Trace `body` for these arguments, all of which become constants of the program.

    Raises: TraceError if the function looks at a generated value, takes more than 16 paths, or does not do the same
        twice; whatever the function itself raises.
    """
    return ir.Program(name, (), _trace_block(body, dict(arguments), {}, []))


def trace_with_parameters(body: Body, name: str, arguments: Mapping[str, Any]) -> tuple[ir.Program, dict[str, Any]]:
    """Trace `body` so that the program holds for other texts as well, as far as the function does not look into them.

    Returns: the program, and those of `arguments` that it takes when it runs; the others are part of it: all that are
        not text, and text that the function looks into. Where a function looks into a formatted string, which cannot
        be seen, the program differs from that of `trace`, and the latter is returned.
    Raises: as `trace`.
    """
    known = trace(body, name, arguments)
    constant = {key for key, value in arguments.items() if not isinstance(value, str)}
    while True:
        given = {key: value if key in constant else Symbol(ir.ArgRef(key)) for key, value in arguments.items()}
        try:
            block = _trace_block(body, given, {}, [])
        except NeedsArgument as needed:
            constant.add(needed.name)
            continue
        except TraceError:  # of a string with an argument in it that was changed: `known` shows that it can be traced
            return known, {}
        dynamic = {key: value for key, value in arguments.items() if key not in constant}
        program = ir.Program(name, tuple(dynamic), block)
        if fold_constants(bind(program, dynamic)) != fold_constants(known):
            return known, {}
        return program, dynamic


def _trace_block(body: Body, arguments: dict[str, Any], outcomes: dict[int, str], before: list[ir.Op]) -> ir.Block:
    """The rest of the program after the operations `before`, given the outcomes of some selects."""
    recorder = _Recorder(outcomes)
    state = _TraceState(recorder, recorder.new_state(), {})
    try:
        value = body(state, **arguments)
    except NeedsChoice as needed:
        choices = recorder.choices[needed.var]
        _check_same_start(before, recorder.ops)
        paths = 0
        cases = []
        for choice in choices:
            case = _trace_block(body, arguments, {**outcomes, needed.var: choice}, recorder.ops)
            paths += ir.Program("", (), case).num_paths
            if paths > MAX_PATHS:
                raise TraceError(
                    f"{recorder.wheres.get(needed.var)}: branching on what select gives makes more than {MAX_PATHS} "
                    'paths; run this program with mode="eager"'
                ) from None
            cases.append((choice, case))
        return ir.Block(tuple(recorder.ops[len(before) :]), ir.Switch(needed.var, tuple(cases)))
    _check_same_start(before, recorder.ops)
    names = tuple((key, _to_ir(v)) for key, v in state.names.items())
    return ir.Block(tuple(recorder.ops[len(before) :]), ir.Return(names, _to_ir(value)))


def _check_same_start(before: Sequence[ir.Op], ops: Sequence[ir.Op]) -> None:
    if list(ops[: len(before)]) != list(before):
        raise TraceError(
            "the function did something else when it was traced again (does it draw random numbers or keep state?); "
            'run it with mode="eager"'
        )


class _Recorder:
    """The operations of one run of the function, over all of its states."""

    def __init__(self, outcomes: dict[int, str]) -> None:
        self.outcomes = outcomes
        self.ops: list[ir.Op] = []
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
        if type(value) is ir.VarRef:
            if value.var in self.outcomes:
                return self.outcomes[value.var]
            kind = self.kinds.get(value.var, "str")
            return Symbol(value, kind=kind, is_choice=value.var in self.choices, where=self.wheres[value.var])
        if type(value) is tuple:
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
        self.recorder.ops.append(ir.ForkOp(self.number, tuple(c.number for c in children), caller()))
        return children

    def join(self, children: Sequence[_TraceState]) -> None:
        self.recorder.ops.append(ir.JoinOp(self.number, tuple(c.number for c in children), caller()))
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
            self.recorder.ops.append(ir.Text(self.number, text, caller()))

    def _insert(self, source: ir.VarRef | ir.ArgRef) -> None:
        self.recorder.ops.append(ir.Insert(self.number, source, caller()))

    def _gen(self, node: Gen) -> None:
        where, options = caller(), node.options
        self._check_constant([node.name, options.regex, options.schema, *options.stop, *(options.choices or ())])
        var = self.recorder.new_var()
        self.recorder.wheres[var] = where
        self.recorder.kinds[var] = node.kind
        self.recorder.ops.append(ir.GenOp(self.number, var, node.name, node.options, node.kind, node.parse, where))
        self._name(node.name, var)

    def _select(self, node: Select) -> None:
        where = caller()
        self._check_constant(node.choices)
        var = self.recorder.new_var()
        self.recorder.wheres[var] = where
        self.recorder.choices[var] = node.choices
        self.recorder.ops.append(ir.SelectOp(self.number, var, node.name, node.choices, node.method, where))
        self._name(node.name, var)

    def _check_constant(self, texts: Sequence[str | None]) -> None:
        """Options of a generation and choices are known when they are traced."""
        for piece in (piece for text in texts if text for piece in split_references(text)):
            if isinstance(piece, ir.ArgRef):
                raise NeedsArgument(piece.name)
            if isinstance(piece, ir.VarRef):
                if piece.var in self.recorder.choices:
                    raise NeedsChoice(piece.var)
                raise TraceError(
                    f"{caller()}: a choice, a name or a constraint depends on a generated value, so the program cannot "
                    'be traced; run it with mode="eager"'
                )

    def _mark(self, role: Role, *, begins: bool) -> None:
        self.recorder.ops.append(ir.MarkOp(self.number, role, begins, caller()))

    def _name(self, name: str | None, var: int) -> None:
        if name is not None:
            self[name] = ir.VarRef(var)


def _to_ir(value: Any) -> Any:
    """A named or returned value with references in place of stand-ins."""
    if isinstance(value, Symbol):
        return _to_ir(format(value)) if type(value) is SymbolText else value.reference
    if isinstance(value, str):
        pieces = split_references(value)
        if all(isinstance(piece, str) for piece in pieces):
            return value
        return ir.Concat(tuple(pieces))  # also of one variable: text, whatever its type
    if type(value) in (tuple, list):
        return type(value)(_to_ir(v) for v in value)
    if type(value) is dict:
        return {key: _to_ir(v) for key, v in value.items()}
    if isinstance(value, State):
        raise TraceError("the function returns a state; return values such as s[name], or nothing")
    try:
        copy.deepcopy(value)  # fails at a stand-in inside, which nobody would replace
    except Exception as error:
        raise TraceError(
            f"the function names or returns a {type(value).__name__} whose content cannot be traced; return plain "
            'values, tuples, lists or dictionaries, or run it with mode="eager"'
        ) from error
    return value

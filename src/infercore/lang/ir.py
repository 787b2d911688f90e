"""The typed intermediate representation of a program: what is appended to which state, in which order, from what.

A program is a block of operations that ends in the program's results, or in a switch over the outcome of a `select`.
The operations of one state depend on each other in order; operations of different states only through variables, forks
and joins. So an interpreter may run whatever is ready, in any order.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from infercore.lang.types import GenOptions, Role, SelectMethod


@dataclass(frozen=True, slots=True)
class Location:
    """A line of the user's program."""

    file: str
    line: int

    def __str__(self) -> str:
        return f"{self.file}:{self.line}"


@dataclass(frozen=True, slots=True)
class VarRef:
    """The value of a `gen` or `select`."""

    var: int


@dataclass(frozen=True, slots=True)
class ArgRef:
    """An argument that was not known when the program was traced."""

    name: str


@dataclass(frozen=True, slots=True)
class Concat:
    """Text with references in it, where a program names or returns such text instead of appending it."""

    parts: tuple[str | VarRef | ArgRef, ...]


@dataclass(frozen=True, slots=True)
class Text:
    state: int
    text: str
    where: Location | None = field(default=None, compare=False)


@dataclass(frozen=True, slots=True)
class Insert:
    """Append the text of a variable or an argument."""

    state: int
    source: VarRef | ArgRef
    where: Location | None = field(default=None, compare=False)


@dataclass(frozen=True, slots=True)
class GenOp:
    state: int
    var: int
    name: str | None
    options: GenOptions
    kind: str = "str"
    parse: Callable[[str], Any] = field(default=str, compare=False)
    where: Location | None = field(default=None, compare=False)


@dataclass(frozen=True, slots=True)
class SelectOp:
    state: int
    var: int
    name: str | None
    choices: tuple[str, ...]
    method: SelectMethod
    where: Location | None = field(default=None, compare=False)


@dataclass(frozen=True, slots=True)
class MarkOp:
    """Begin or end a chat turn."""

    state: int
    role: Role
    begins: bool
    where: Location | None = field(default=None, compare=False)


@dataclass(frozen=True, slots=True)
class ForkOp:
    """Copy a state as it is now; the children go on by themselves."""

    state: int
    children: tuple[int, ...]
    where: Location | None = field(default=None, compare=False)


@dataclass(frozen=True, slots=True)
class JoinOp:
    """Wait for the children; their variables are then the parent's, one tuple entry per child."""

    state: int
    children: tuple[int, ...]
    where: Location | None = field(default=None, compare=False)


Op: TypeAlias = Text | Insert | GenOp | SelectOp | MarkOp | ForkOp | JoinOp


@dataclass(frozen=True, slots=True)
class Return:
    """The end: names that the first state knows, and what the function returned; both may hold references."""

    names: tuple[tuple[str, Any], ...] = ()
    value: Any = None


@dataclass(frozen=True, slots=True)
class Switch:
    """Go on with the block of the choice that a `select` made."""

    var: int
    cases: tuple[tuple[str, Block], ...]


@dataclass(frozen=True, slots=True)
class Block:
    ops: tuple[Op, ...]
    end: Return | Switch


@dataclass(frozen=True, slots=True)
class Program:
    """A traced function. Equal programs have equal text, whatever file they came from."""

    name: str
    parameters: tuple[str, ...]
    body: Block

    def __str__(self) -> str:
        header = f"program {self.name}({', '.join(self.parameters)})"
        return "\n".join([header, *_lines(self.body, "  ")])

    @property
    def digest(self) -> str:
        """A hash that is the same in every process: sha256 of the printed program."""
        return hashlib.sha256(str(self).encode()).hexdigest()

    def blocks(self) -> Iterator[Block]:
        """All blocks, each before those of its switch."""
        waiting = [self.body]
        while waiting:
            block = waiting.pop()
            yield block
            if isinstance(block.end, Switch):
                waiting += [case for _, case in reversed(block.end.cases)]

    @property
    def num_paths(self) -> int:
        """How many ways through its switches there are."""
        return sum(isinstance(block.end, Return) for block in self.blocks())

    def to_dot(self) -> str:
        """Graphviz: solid arrows are the order within a state, dashed ones data."""
        return _Dot().draw(self)


def _lines(block: Block, indent: str) -> Iterator[str]:
    for op in block.ops:
        yield indent + format_op(op)
    if isinstance(block.end, Switch):
        yield f"{indent}switch %{block.end.var}"
        for choice, case in block.end.cases:
            yield f"{indent}  case {choice!r}:"
            yield from _lines(case, indent + "    ")
    else:
        for name, value in block.end.names:
            yield f"{indent}name {name} = {format_value(value)}"
        yield f"{indent}return {format_value(block.end.value)}"


def format_op(op: Op) -> str:
    """One line: the state, then what happens to it."""
    at = f"s{op.state}"
    match op:
        case Text():
            return f"{at} += {op.text!r}"
        case Insert():
            return f"{at} += {format_value(op.source)}"
        case GenOp():
            default = GenOptions()
            shown = [
                f"{name}={getattr(op.options, name)!r}"
                for name in GenOptions.__dataclass_fields__
                if getattr(op.options, name) != getattr(default, name)
            ]
            return f"{at} += %{op.var}: {op.kind} = gen({', '.join([repr(op.name), *shown])})"
        case SelectOp():
            return f"{at} += %{op.var}: str = select({op.name!r}, {list(op.choices)!r}, {op.method})"
        case MarkOp():
            return f"{at} {'begin' if op.begins else 'end'} {op.role}"
        case ForkOp():
            return f"{', '.join(f's{c}' for c in op.children)} = fork {at}"
        case JoinOp():
            return f"{at} join {', '.join(f's{c}' for c in op.children)}"


def format_value(value: Any) -> str:
    """A result with its references as %variable and $argument."""
    match value:
        case VarRef():
            return f"%{value.var}"
        case ArgRef():
            return f"${value.name}"
        case Concat():
            return " ++ ".join(format_value(v) for v in value.parts)
        case tuple() | list():
            inner = ", ".join(format_value(v) for v in value)
            return f"[{inner}]" if isinstance(value, list) else f"({inner})"
        case dict():
            return "{" + ", ".join(f"{k!r}: {format_value(v)}" for k, v in value.items()) + "}"
    return repr(value)


class _Dot:
    def __init__(self) -> None:
        self.lines: list[str] = []
        self.count = 0

    def draw(self, program: Program) -> str:
        self._block(program.body, {}, {})
        body = "\n".join(f"  {line}" for line in self.lines)
        title = program.name.replace('"', "'")
        return f'digraph "{title}" {{\n  node [shape=box, fontname="monospace"];\n{body}\n}}\n'

    def _node(self, label: str) -> str:
        self.count += 1
        escaped = label.replace("\\", "\\\\").replace('"', '\\"')
        self.lines.append(f'n{self.count} [label="{escaped}"];')
        return f"n{self.count}"

    def _block(self, block: Block, last: dict[int, str], made_by: dict[int, str]) -> None:
        last, made_by = dict(last), dict(made_by)
        for op in block.ops:
            node = self._node(format_op(op))
            if op.state in last:
                self.lines.append(f"{last[op.state]} -> {node};")
            match op:
                case Insert(source=VarRef(var=var)) if var in made_by:
                    self.lines.append(f"{made_by[var]} -> {node} [style=dashed];")
                case GenOp() | SelectOp():
                    made_by[op.var] = node
                case ForkOp():
                    last.update(dict.fromkeys(op.children, node))
                case JoinOp():
                    self.lines += [f"{last[c]} -> {node};" for c in op.children if c in last]
            last[op.state] = node
        if isinstance(block.end, Switch):
            switch = self._node(f"switch %{block.end.var}")
            if block.end.var in made_by:
                self.lines.append(f"{made_by[block.end.var]} -> {switch} [style=dashed];")
            for choice, case in block.end.cases:
                label = self._node(f"case {choice!r}")
                self.lines.append(f"{switch} -> {label};")
                self._block(case, {**last, 0: label}, made_by)

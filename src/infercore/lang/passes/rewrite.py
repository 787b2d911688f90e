"""What the passes share: a change applied to every block of a program, and the references in its results."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from infercore.lang.ir import Block, Concat, Op, Return, Switch, VarRef


def map_blocks(block: Block, change: Callable[[Block], Block]) -> Block:
    changed = change(block)
    if isinstance(changed.end, Switch):
        cases = tuple((choice, map_blocks(case, change)) for choice, case in changed.end.cases)
        return replace(changed, end=Switch(changed.end.var, cases))
    return changed


def map_ops(block: Block, change: Callable[[Op], Op]) -> Block:
    return replace(block, ops=tuple(change(op) for op in block.ops))


def map_values(block: Block, change: Callable[[Any], Any]) -> Block:
    """`change` every reference in the results of a block that ends in them."""
    if isinstance(block.end, Switch):
        return block

    def walk(value: Any) -> Any:
        if isinstance(value, Concat):
            pieces: list[Any] = []
            for piece in map(walk, value.parts):
                if isinstance(piece, str) and pieces and isinstance(pieces[-1], str):
                    pieces[-1] += piece
                elif piece != "":
                    pieces.append(piece)
            is_text = not pieces or (len(pieces) == 1 and isinstance(pieces[0], str))
            return "".join(pieces) if is_text else Concat(tuple(pieces))
        if type(value) in (tuple, list):
            return type(value)(walk(v) for v in value)
        if isinstance(value, dict):
            return {key: walk(v) for key, v in value.items()}
        return change(value)

    names = tuple((name, walk(value)) for name, value in block.end.names)
    return replace(block, end=Return(names, walk(block.end.value)))


def variables_of(value: Any) -> set[int]:
    """The variables that a named or returned value refers to."""
    match value:
        case VarRef():
            return {value.var}
        case Concat():
            return set().union(*(variables_of(p) for p in value.parts))
        case tuple() | list():
            return set().union(*(variables_of(v) for v in value))
        case dict():
            return set().union(*(variables_of(v) for v in value.values()))
    return set()

"""Constants: arguments that are known, texts side by side, and generations that can give one text only."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from infercore.lang.ir import ArgRef, Block, GenOp, Insert, Op, Program, SelectOp, Switch, Text, VarRef
from infercore.lang.passes.rewrite import map_blocks, map_ops, map_values


def bind(program: Program, arguments: Mapping[str, str]) -> Program:
    """The program with some of its arguments known."""

    def bound(op: Op) -> Op:
        if isinstance(op, Insert) and isinstance(op.source, ArgRef) and op.source.name in arguments:
            return Text(op.state, arguments[op.source.name], op.where)
        return op

    def bound_value(value: Any) -> Any:
        if isinstance(value, ArgRef) and value.name in arguments:
            return arguments[value.name]
        return value

    rest = tuple(name for name in program.parameters if name not in arguments)
    body = map_blocks(program.body, lambda block: map_values(map_ops(block, bound), bound_value))
    return Program(program.name, rest, body)


def fold_constants(program: Program) -> Program:
    """Neighbouring texts of a state become one, empty ones none.

    Also over operations of other states in between: the order between states carries no meaning.
    """

    def folded(block: Block) -> Block:
        ops: list[Op] = []
        open_text: dict[int, int] = {}  # state -> index of the text that its next text joins
        for op in block.ops:
            if isinstance(op, Text):
                if op.state in open_text:
                    before = ops[open_text[op.state]]
                    assert isinstance(before, Text)
                    ops[open_text[op.state]] = replace(before, text=before.text + op.text)
                elif op.text:
                    open_text[op.state] = len(ops)
                    ops.append(op)
                continue
            open_text.pop(op.state, None)
            ops.append(op)
        return replace(block, ops=tuple(ops))

    return replace(program, body=map_blocks(program.body, folded))


def fold_forced(program: Program) -> Program:
    """A `select` with one choice, and a `gen` that can only give one text, are that text; no backend is asked."""

    return replace(program, body=_fold_forced(program.body, {}))


def _fold_forced(block: Block, known: Mapping[int, str]) -> Block:
    """`known` holds the forced variables of the blocks before: other cases of a switch use the same numbers."""
    known = dict(known)
    ops: list[Op] = []
    for op in block.ops:
        if isinstance(op, GenOp | SelectOp) and (text := _forced_text(op)) is not None:
            known[op.var] = text
            ops.append(Text(op.state, text, op.where))
        elif isinstance(op, Insert) and isinstance(op.source, VarRef) and op.source.var in known:
            ops.append(Text(op.state, known[op.source.var], op.where))
        else:
            ops.append(op)
    if isinstance(block.end, Switch):
        if block.end.var in known:
            case = _fold_forced(dict(block.end.cases)[known[block.end.var]], known)
            return Block((*ops, *case.ops), case.end)
        cases = tuple((choice, _fold_forced(case, known)) for choice, case in block.end.cases)
        return Block(tuple(ops), Switch(block.end.var, cases))
    return map_values(
        Block(tuple(ops), block.end), lambda v: known[v.var] if isinstance(v, VarRef) and v.var in known else v
    )


def _forced_text(op: GenOp | SelectOp) -> str | None:
    if isinstance(op, SelectOp):
        return op.choices[0] if len(op.choices) == 1 else None
    choices = op.options.choices
    if op.kind != "str" or op.options.stop or choices is None or len(choices) != 1:
        return None
    return choices[0] if len(choices[0].encode()) <= op.options.max_tokens else None  # a token is at least a byte

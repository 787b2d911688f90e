"""Operations that no result depends on."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from infercore.lang.ir import Block, ForkOp, GenOp, Insert, MarkOp, Op, Program, Return, SelectOp, Switch, Text, VarRef
from infercore.lang.passes.rewrite import map_blocks, variables_of


def drop_dead(program: Program, *, outputs: Iterable[str] | None = None) -> Program:
    """Without operations that no result depends on.

    Results are the names in `outputs` (None: all names), the returned value, the switches, and with outputs None the
    text of the first state. An operation of a state matters if a later one of that state does that reads its text.
    """
    wanted = None if outputs is None else set(outputs)

    def with_wanted_names(block: Block) -> Block:
        if wanted is None or not isinstance(block.end, Return):
            return block
        return replace(block, end=replace(block.end, names=tuple(n for n in block.end.names if n[0] in wanted)))

    body = map_blocks(program.body, with_wanted_names)
    return replace(program, body=_without_dead(body, keeps_text=outputs is None)[0])


def _without_dead(block: Block, *, keeps_text: bool) -> tuple[Block, set[int], set[int]]:
    """The block without dead operations, and what it needs from before: states whose text is read, and variables."""
    states: set[int] = set()
    variables: set[int] = set()
    end: Return | Switch
    if isinstance(block.end, Switch):
        cases = []
        for choice, case in block.end.cases:
            kept, needed_states, needed_vars = _without_dead(case, keeps_text=keeps_text)
            cases.append((choice, kept))
            states |= needed_states
            variables |= needed_vars
        variables.add(block.end.var)
        end = Switch(block.end.var, tuple(cases))
    else:
        end = block.end
        if keeps_text:
            states.add(0)
        for _, value in end.names:
            variables |= variables_of(value)
        variables |= variables_of(end.value)
    ops: list[Op] = []
    for op in reversed(block.ops):
        match op:
            case GenOp() | SelectOp() if op.state in states or op.var in variables:
                states.add(op.state)  # its prompt is everything before it
            case Text() | MarkOp() if op.state in states:
                pass
            case Insert() if op.state in states:
                if isinstance(op.source, VarRef):
                    variables.add(op.source.var)
            case ForkOp() if any(c in states for c in op.children):
                states.add(op.state)
                op = replace(op, children=tuple(c for c in op.children if c in states))
            case _:  # dead; a join only waits, and what it waits for is a variable that somebody needs
                continue
        ops.append(op)
    return Block(tuple(reversed(ops)), end), states, variables

"""Optimiser passes: functions from program to program. Law of each: no backend can tell by the results.

A result is every name, the returned value and the text of the first state; what a backend does meanwhile is fewer,
earlier or smaller jobs. `optimise` applies them all; the batch-wide pass is `shared_beginning`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from infercore.lang.beginnings import common_beginning
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


def optimise(program: Program, *, outputs: Iterable[str] | None = None) -> Program:
    """All passes in the order in which they help each other.

    Args:
        outputs: the names that are wanted; what only serves others is dropped. None: all, and the returned value.
    """
    program = fold_forced(program)
    program = drop_dead(program, outputs=outputs)
    program = hoist_forks(program)
    return fold_constants(program)


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
    body = _map_blocks(program.body, lambda block: _map_values(_map_ops(block, bound), bound_value))
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

    return replace(program, body=_map_blocks(program.body, folded))


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
    return _map_values(
        Block(tuple(ops), block.end), lambda v: known[v.var] if isinstance(v, VarRef) and v.var in known else v
    )


def _forced_text(op: GenOp | SelectOp) -> str | None:
    if isinstance(op, SelectOp):
        return op.choices[0] if len(op.choices) == 1 else None
    choices = op.options.choices
    if op.kind != "str" or op.options.stop or choices is None or len(choices) != 1:
        return None
    return choices[0] if len(choices[0].encode()) <= op.options.max_tokens else None  # a token is at least a byte


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

    body = _map_blocks(program.body, with_wanted_names)
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
            variables |= _variables(value)
        variables |= _variables(end.value)
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


def hoist_forks(program: Program) -> Program:
    """Text with which all forks of a state begin is appended once, before they part.

    It goes to a state between the two, so that the parent may go on without it. Marks of turns move with it.
    """
    states = [op.state for block in program.blocks() for op in block.ops]
    states += [c for block in program.blocks() for op in block.ops if isinstance(op, ForkOp) for c in op.children]
    fresh = [max(states, default=0) + 1]

    def hoisted(block: Block) -> Block:
        ops = list(block.ops)
        i = 0
        while i < len(ops):
            op = ops[i]
            if isinstance(op, ForkOp) and len(op.children) > 1:
                moved, ops = _take_shared(ops, i + 1, op.children)
                if moved:
                    between = fresh[0]
                    fresh[0] += 1
                    ops[i : i + 1] = [
                        ForkOp(op.state, (between,), op.where),
                        *(replace(m, state=between) for m in moved),
                        replace(op, state=between),
                    ]
                    i += 1 + len(moved)
            i += 1
        return replace(block, ops=tuple(ops))

    return replace(program, body=_map_blocks(program.body, hoisted))


def _take_shared(ops: list[Op], first: int, children: Sequence[int]) -> tuple[list[Text | MarkOp], list[Op]]:
    """What all `children` append first, if it is the same constant; and the operations without it."""
    moved: list[Text | MarkOp] = []
    ops = list(ops)
    while True:
        heads = {c: next((j for j in range(first, len(ops)) if _touches(ops[j], c)), None) for c in children}
        found = [None if j is None else ops[j] for j in heads.values()]
        if all(isinstance(op, MarkOp) for op in found):
            marks = {(op.role, op.begins) for op in found if isinstance(op, MarkOp)}
            if len(marks) > 1:
                return moved, ops
            cut = None
        elif all(isinstance(op, Text) for op in found):
            common = common_beginning([op.text for op in found if isinstance(op, Text)])
            if not common:
                return moved, ops
            cut = len(common)
        else:
            return moved, ops
        head = found[0]
        assert isinstance(head, Text | MarkOp)
        moved.append(replace(head, text=head.text[:cut]) if isinstance(head, Text) else head)
        rest: dict[int, Op | None] = {}
        for j in heads.values():
            assert j is not None
            op = ops[j]
            rest[j] = replace(op, text=op.text[cut:]) if isinstance(op, Text) and len(op.text) > (cut or 0) else None
        ops = [rest.get(j, op) for j, op in enumerate(ops) if rest.get(j, op) is not None]  # type: ignore[misc]
        if any(op is not None for op in rest.values()):
            return moved, ops


def _touches(op: Op, state: int) -> bool:
    return op.state == state or (isinstance(op, JoinOp) and state in op.children)


def shared_beginning(programs: Sequence[Program]) -> str:
    """The longest constant text, turns left out, with which every program's first state begins: computed once."""
    texts = []
    for program in programs:
        text = ""
        for op in program.body.ops:
            if op.state == 0:
                if isinstance(op, Text):
                    text += op.text
                elif not isinstance(op, ForkOp | MarkOp):
                    break
        texts.append(text)
    return common_beginning(texts)


def schedule(program: Program) -> list[list[Op]]:
    """The first block's operations in levels that need only earlier ones: generations of a level run side by side."""
    level_of_state: dict[int, int] = {0: 0}
    level_of_var: dict[int, int] = {}
    levels: list[list[Op]] = []
    for op in program.body.ops:
        level = level_of_state.get(op.state, 0)
        if isinstance(op, Insert) and isinstance(op.source, VarRef):
            level = max(level, level_of_var.get(op.source.var, 0))
        if isinstance(op, JoinOp):
            level = max([level, *(level_of_state.get(c, 0) for c in op.children)])
        while len(levels) <= level:
            levels.append([])
        levels[level].append(op)
        after = level + 1 if isinstance(op, GenOp | SelectOp) else level
        level_of_state[op.state] = after
        if isinstance(op, GenOp | SelectOp):
            level_of_var[op.var] = after
        if isinstance(op, ForkOp):
            level_of_state.update(dict.fromkeys(op.children, level))
    return levels


def _map_blocks(block: Block, change: Callable[[Block], Block]) -> Block:
    changed = change(block)
    if isinstance(changed.end, Switch):
        cases = tuple((choice, _map_blocks(case, change)) for choice, case in changed.end.cases)
        return replace(changed, end=Switch(changed.end.var, cases))
    return changed


def _map_ops(block: Block, change: Callable[[Op], Op]) -> Block:
    return replace(block, ops=tuple(change(op) for op in block.ops))


def _map_values(block: Block, change: Callable[[Any], Any]) -> Block:
    """`change` every reference in the results of a block that ends in them."""
    if isinstance(block.end, Switch):
        return block

    def walk(value: Any) -> Any:
        if isinstance(value, Concat):
            pieces = [walk(piece) for piece in value.parts]
            return "".join(pieces) if all(isinstance(p, str) for p in pieces) else Concat(tuple(pieces))
        if type(value) in (tuple, list):
            return type(value)(walk(v) for v in value)
        if isinstance(value, dict):
            return {key: walk(v) for key, v in value.items()}
        return change(value)

    names = tuple((name, walk(value)) for name, value in block.end.names)
    return replace(block, end=Return(names, walk(block.end.value)))


def _variables(value: Any) -> set[int]:
    """The variables that a named or returned value refers to."""
    match value:
        case VarRef():
            return {value.var}
        case Concat():
            return set().union(*(_variables(p) for p in value.parts))
        case tuple() | list():
            return set().union(*(_variables(v) for v in value))
        case dict():
            return set().union(*(_variables(v) for v in value.values()))
    return set()

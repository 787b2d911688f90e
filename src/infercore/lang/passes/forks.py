"""What all forks of a state begin with, appended once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from infercore.lang.beginnings import common_beginning
from infercore.lang.ir import Block, ForkOp, JoinOp, MarkOp, Op, Program, Text
from infercore.lang.passes.rewrite import map_blocks


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

    return replace(program, body=map_blocks(program.body, hoisted))


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

"""What may run side by side, read off a program without running it."""

from __future__ import annotations

from infercore.lang.ir import ForkOp, GenOp, Insert, JoinOp, Op, Program, SelectOp, VarRef


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

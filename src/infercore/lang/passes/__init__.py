"""Optimiser passes: functions from program to program. Law of each: no backend can tell by the results.

A result is every name, the returned value and the text of the first state; what a backend does meanwhile is fewer,
earlier or smaller jobs. `optimise` applies them all. What a batch shares is found when it runs, on the texts as they
are then: the interpreter runs whatever is ready, longest shared beginnings first.

Files in reading order: `constants.py`, `dead.py` (which also lets a state go on before its forks are done), `forks.py`,
`schedule.py` (what may run side by side), `rewrite.py`.
"""

from collections.abc import Iterable

from infercore.lang.ir import Program
from infercore.lang.passes.constants import bind, fold_constants, fold_forced
from infercore.lang.passes.dead import drop_dead
from infercore.lang.passes.forks import hoist_forks
from infercore.lang.passes.schedule import schedule

__all__ = ["bind", "drop_dead", "fold_constants", "fold_forced", "hoist_forks", "optimise", "schedule"]


def optimise(program: Program, *, outputs: Iterable[str] | None = None) -> Program:
    """All passes in the order in which they help each other.

    Args:
        outputs: the names that are wanted; what only serves others is dropped. None: all, and the returned value.
    """
    program = fold_forced(program)
    program = drop_dead(program, outputs=outputs)
    program = hoist_forks(fold_constants(program))
    return fold_constants(program)

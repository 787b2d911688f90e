"""`fill_batch`: the masks of a batch whose sequences have grammars of their own, on several threads."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

from infercore.constrained.bitmask import Bitmask
from infercore.constrained.grammar import Grammar


def fill_batch(
    grammars: Sequence[Grammar],
    states: Sequence[int],
    bitmask: Bitmask,
    *,
    budgets: Sequence[int | None] | None = None,
    pool: ThreadPoolExecutor | None = None,
) -> None:
    """Write the allowed tokens of each sequence to its row of `bitmask`, int32 [>= len(states), words] on the CPU.

    Rows of one grammar stay on one thread, for a grammar is not thread-safe; the loops behind a mask that is met for
    the first time run without the GIL, the Python around them does not.

    Args:
        grammars, states: of each sequence; a grammar may stand there more than once.
        budgets: as in `Grammar.fill_bitmask`; None for a sequence without one.
        pool: whose threads are used; None: this one alone.
    Raises: ValueError if the lengths differ; what `Grammar.fill_bitmask` raises, when all threads are done.
    """
    if len(grammars) != len(states) or (budgets is not None and len(budgets) != len(states)):
        raise ValueError(
            f"got {len(grammars)} grammars, {len(states)} states and "
            f"{'no' if budgets is None else len(budgets)} budgets; pass one of each for every sequence"
        )
    rows: dict[int, list[int]] = {}
    for row, grammar in enumerate(grammars):
        rows.setdefault(id(grammar), []).append(row)

    def fill(own: list[int]) -> None:
        for row in own:
            budget = None if budgets is None else budgets[row]
            grammars[row].fill_bitmask(
                [states[row]], bitmask[row : row + 1], budgets=None if budget is None else [budget]
            )

    if pool is None or len(rows) < 2:
        for own in rows.values():
            fill(own)
        return
    running = [pool.submit(fill, own) for own in rows.values()]
    errors = [error for task in running if (error := task.exception()) is not None]
    if errors:
        raise errors[0]

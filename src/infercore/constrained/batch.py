"""`fill_batch`: the masks of a batch whose sequences have grammars of their own, on several threads."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

from infercore.constrained.bitmask import Bitmask
from infercore.constrained.grammar import Grammar

_MAX_TASKS = 8  # that a batch is shared out to; each costs some 30 µs


def fill_batch(
    grammars: Sequence[Grammar],
    states: Sequence[int],
    bitmask: Bitmask,
    *,
    budgets: Sequence[int | None] | None = None,
    pool: ThreadPoolExecutor | None = None,
) -> None:
    """Write the allowed tokens of each sequence to its row of `bitmask`, int32 [>= len(states), words] on the CPU.

    Masks that are kept are copied on the calling thread. The others are shared out, rows of one grammar to one thread,
    for a grammar is not thread-safe. Their loops run without the GIL, but most of them are short, and the Python around
    them takes longer: with two threads on two cores a batch of 32 MaskBench schemas took 1.6 times as long as alone,
    one of 40 regexes 1.2 times (bench/results/constrained-fill.md). A pool pays where single masks take milliseconds.

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

    def fill(row: int) -> None:
        budget = None if budgets is None else budgets[row]
        grammars[row].fill_bitmask([states[row]], bitmask[row : row + 1], budgets=None if budget is None else [budget])

    def fill_all(several: list[list[int]]) -> None:
        for rows in several:
            for row in rows:
                fill(row)

    missing: dict[int, list[int]] = {}
    for row, grammar in enumerate(grammars):
        is_plain = budgets is None or budgets[row] is None
        if pool is None or (is_plain and grammar.has_mask(states[row])):
            fill(row)
        else:
            missing.setdefault(id(grammar), []).append(row)
    if pool is None or not missing:
        return
    shares = [share for n in range(_MAX_TASKS) if (share := list(missing.values())[n::_MAX_TASKS])]
    running = [pool.submit(fill_all, share) for share in shares[1:]]
    errors: list[BaseException] = []
    try:
        fill_all(shares[0])
    except Exception as error:
        errors.append(error)
    errors += [failure for task in running if (failure := task.exception()) is not None]
    if errors:
        raise errors[0]

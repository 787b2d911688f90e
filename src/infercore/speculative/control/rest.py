"""`Rest`: when drafters are asked at all, and what a step takes for which they are not."""

import math
from enum import Enum

from infercore.speculative.control.cost_curve import CostCurve

_LOOK, _LONGEST_LOOK = 11, 44  # steps of rest between two looks whether drafts would pay again; each in vain doubles
_LOOK_WATCHED = 200  # the same where drafts are watched meanwhile: only for what asking costs
_KEPT = 8  # times of a size whose lower quartile counts: a busy machine, or code that is loaded, only ever adds
_MEASURE = 4  # steps of rest that are taken for their time alone, and not watched
_REMEASURE, _LAST_REMEASURE = 25, 400  # steps with drafts, after which that time is taken again; at first, and at last
_CLEAR = 3.0  # an advantage of drafts that leaves no doubt
_HIDDEN = 1.15  # of a step's time: watched ones that take longer are watched no more


class Kind(Enum):
    """What a step was."""

    ALONE = "nobody was asked for drafts, nor did it start behind the one before"
    ASKED = "drafters were asked"
    BEHIND = "started behind the one before"
    WATCHED = "the same, and drafts were made meanwhile, to be judged"


class Rest:
    """Steps without drafts: how long they go on, and what they take where each is started behind the one before.

    Such an overlapped step hides what the host does. One for which drafters are asked cannot, whatever is verified in
    it. So the times of overlapped steps are kept apart, by the number of rows to the nearest power of two. A rest ends
    by a step for which drafters are asked, never by the count alone: it may be asked for twice, before and after
    another step, and answers the same.
    """

    def __init__(self) -> None:
        self.overlaps = False
        """Steps without drafts have been overlapping lately."""
        self._times: dict[int, list[float]] = {}
        self._watched: dict[int, list[float]] = {}  # of steps meanwhile watched
        self._ages: dict[int, int] = {}
        self._due: dict[int, int] = {}
        self._look = _LOOK
        self._is_resting = False
        self._num_rested = 0
        self._is_watched = False
        self._num_alone = 0
        self._num_measuring = 1  # the very first step rests, which shows whether steps overlap

    @property
    def is_over(self) -> bool:
        """Drafters are to be asked for the next step."""
        if self._num_measuring > 0:
            return False
        return not self._is_resting or self._num_rested >= (_LOOK_WATCHED if self._is_watched else self._look)

    @property
    def is_blind(self) -> bool:
        """Nobody drafted in the last step, not even to be watched: what drafts promised before that is old."""
        return self._is_resting and not self._is_watched

    def begin(self) -> None:
        """Nobody is to be asked from now on; after a look that was in vain, for longer than before it."""
        if self._is_resting:
            self._look = min(2 * self._look, _LONGEST_LOOK)
        self._is_resting, self._num_rested = True, 0

    def end(self) -> None:
        self._is_resting, self._look = False, _LOOK

    def may_watch(self, num_rows: int) -> bool:
        """Whether drafts may be made meanwhile: not where a step's time is being taken, nor where that showed."""
        if self._num_measuring > 0:
            return False
        size = _size(num_rows)
        alone, watched = self._times.get(size), self._watched.get(size)
        return not alone or not watched or len(watched) < _KEPT or _typical(watched) <= _HIDDEN * _typical(alone)

    # ----------------------------------------------------------------------------------------------------------- steps

    def start_behind(self) -> None:
        """A step without drafts was started behind the one before it."""
        self.overlaps = True
        if not self._times:
            self._num_measuring = _MEASURE

    def count(self, kind: Kind, num_rows: int, seconds: float) -> None:
        """A step is over; `num_rows` of it were no drafts."""
        self._num_measuring -= self._num_measuring > 0
        size = _size(num_rows)
        self._num_alone = self._num_alone + 1 if kind is Kind.ALONE else 0
        if kind is Kind.ASKED:
            self._ages[size] = self._ages.get(size, 0) + 1
            return
        self._num_rested += 1
        self._is_watched = kind is Kind.WATCHED
        if kind is not Kind.ALONE:
            self._ages[size] = 0
            times = self._watched if kind is Kind.WATCHED else self._times
            times[size] = [*times.get(size, ())[-_KEPT + 1 :], seconds]
        elif self._num_alone > 1:  # the first one after a draft cannot overlap yet; the second one could
            self.overlaps, self._num_measuring = False, 0

    # ---------------------------------------------------------------------------------------------------------- prices

    def seconds(self, num_rows: int, curve: CostCurve) -> float:
        """What a step of `num_rows` without drafts takes, steps being as they have been lately.

        Where its size was never seen overlapping, the nearest one says how much of the curve's time it is.
        """
        if not self.overlaps or not self._times:
            return curve.step(num_rows)
        size = _size(num_rows)
        if size in self._times:
            return _typical(self._times[size])
        known = min(self._times, key=lambda other: abs(other - size))
        return _typical(self._times[known]) * curve.step(num_rows) / curve.step(2**known)

    def measure_if_due(self, num_rows: int, advantage: float) -> None:
        """Rest for a few steps, if what they take is not known well enough to tell whether drafts pay.

        advantage: of steps with drafts over those without, as tokens over time.
        """
        if not self.overlaps or advantage >= _CLEAR:
            return
        size = _size(num_rows)
        due = self._due.get(size, _REMEASURE)
        if size not in self._times:
            self._num_measuring = _MEASURE + 1  # the first one does not overlap yet
        elif self._ages[size] >= due:
            self._due[size] = min(4 * due, _LAST_REMEASURE)
            self._num_measuring = _MEASURE + 1

    def table(self) -> dict[int, float]:
        """Rows and seconds of overlapped steps."""
        return {2**size: _typical(times) for size, times in sorted(self._times.items())}


def _typical(times: list[float]) -> float:
    return sorted(times)[len(times) // 4]


def _size(num_rows: int) -> int:
    return round(math.log2(max(1, num_rows)))

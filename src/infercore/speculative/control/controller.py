"""`SpeedController`: verifies as many draft tokens as make the whole batch faster, and none where none do."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from infercore.speculative.control.cost_curve import CostCurve
from infercore.speculative.control.survival import Survival
from infercore.speculative.tree import TokenTree
from infercore.speculative.types import Verdict

_REQUEST_MEMORY = 0.8  # a request's own hits and misses fade by this per step
_REQUEST_PRIOR = 0.5
_MISS_BOUND = 3.0  # the rule of three: no hit in n tries leaves a chance of at most 3 / n, with 95% confidence
_MANY_MISSES = 6  # in a row: from there on the bound falls faster than the rule of three
_RATE_MEMORY = 0.98
_CHEAP_DRAFT = 0.01  # of a plain step: drafts that cost less go on while nothing is verified
_REST_STEPS = 11  # steps without drafting, between two steps that look whether drafting would pay again


class SpeedController:
    """Cuts the trees of a batch to the nodes that are worth their time.

    A node is worth its chance of being accepted (`Survival`, times how this request has been doing lately). n nodes
    cost what `CostCurve` says n more rows do. With r the price of time, the n likeliest nodes of the whole batch are
    verified for which expected tokens - r * time is largest: the rule that maximises tokens over time in the long run
    (renewal-reward). r is the tokens per second that are being reached, or those of this step at its best where they
    are more: good drafts come in stretches, and a token that is left to the next step costs less there.

    Speculation is off for a step when that n is 0. Drafts are still made, and judged by the tokens that come; so it
    is on again as soon as they would have been right. A drafter that costs more than 1% of a plain step is asked only
    every 12th step while it is off. Trees that were drawn (`draft_probs`) cannot be cut for what they hold: they are
    asked for or not, before they are drawn.

    Args:
        curve: a measured curve; None learns it from the steps.
        max_nodes: most nodes of one request.
        margin: share of a plain step's tokens that speculation must promise to gain.
        clock: seconds; what passes between `budget` and `select` is the drafter's cost.
    """

    def __init__(
        self,
        curve: CostCurve | None = None,
        *,
        max_nodes: int = 32,
        margin: float = 0.01,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        if max_nodes < 1:
            raise ValueError(f"max_nodes is {max_nodes}; expected at least 1, or take FixedBudget(0)")
        if margin < 0:
            raise ValueError(f"margin is {margin}; expected 0 or more")
        self.curve = curve or CostCurve()
        self.survival = Survival()
        self.decisions = Decisions()
        self._max_nodes = max_nodes
        self._clock = clock
        self._margin = margin
        self._requests: dict[int, _Record] = {}
        self._speed_up = 1.0
        self._draft_s = 0.0
        self._asked_at: float | None = None
        self._num_asked = 0
        self._was_asked = False  # for the step that is under way
        self._num_idle = 0  # proposals in a row of which nothing was verified
        self._is_resting = False
        self._num_rested = 0

    def budget(self, request_ids: Sequence[int], *, num_other_rows: int = 0) -> list[int]:
        self._asked_at = self._clock()
        self._num_asked = len(request_ids)
        num_rows = len(request_ids) + num_other_rows
        if not self.curve.knows(num_rows):
            self._asked_at = None
            return [0] * len(request_ids)  # what a plain step costs is the first thing to learn
        if self._is_resting and self._num_rested < _REST_STEPS:
            self._asked_at = None
            return [0] * len(request_ids)
        return [self._max_nodes] * len(request_ids)

    def select(
        self, request_ids: Sequence[int], trees: Sequence[TokenTree], *, num_other_rows: int = 0
    ) -> list[TokenTree]:
        self._was_asked = True
        if self._asked_at is not None:
            spent = self._clock() - self._asked_at
            self._draft_s += 0.1 * (min(spent, 10 * self._draft_s or spent) - self._draft_s)
        num_requests = max(len(trees), self._num_asked)  # those that got no draft take part in the forward as well
        num_rows = num_requests + num_other_rows
        chances = np.empty(sum(tree.num_nodes for tree in trees if tree.draft_probs is None), np.float32)
        start = 0
        for request_id, tree in zip(request_ids, trees, strict=True):
            record = self._record(request_id)
            record.proposed = tree
            if tree.draft_probs is not None:
                num_rows += tree.num_nodes
                continue
            own = chances[start : start + tree.num_nodes]
            start += tree.num_nodes
            factor = record.factor(self.survival.chances_into(tree, own))
            if factor < 1:
                own *= np.float32(factor)
        if not start:
            return list(trees)
        count, keep = self.curve.select(
            chances, num_rows=num_rows, num_turns=num_requests, speed_up=self._speed_up, margin=self._margin
        )
        return list(trees) if count == start else _cut(trees, keep, count)

    def update(
        self,
        request_ids: Sequence[int],
        trees: Sequence[TokenTree],
        verdicts: Sequence[Verdict],
        *,
        step_time_s: float,
        num_other_rows: int = 0,
    ) -> None:
        num_nodes = sum(tree.num_nodes for tree in trees)
        num_rows = len(trees) + num_other_rows
        self.curve.observe(max(1, num_rows + num_nodes), step_time_s)
        was_asked, self._was_asked = self._was_asked, False
        if not trees:
            return
        num_gained = 0
        was_offered = False
        for request_id, tree, verdict in zip(request_ids, trees, verdicts, strict=True):
            num_gained += verdict.accept_length
            if tree.num_nodes:
                self.survival.count(tree, verdict.path)
            record = self._record(request_id)
            if record.proposed is not None and record.proposed.num_nodes:
                was_offered = True
                hits, predicted = self.survival.learn(record.proposed, verdict.token_ids(tree))
                record.hits = _REQUEST_MEMORY * record.hits + hits
                record.predicted = _REQUEST_MEMORY * record.predicted + predicted
                record.num_misses = 0 if hits else record.num_misses + 1
            record.proposed = None
        gained = num_gained / len(trees) * self.curve.step(num_rows) / self.curve.step(num_rows + num_nodes)
        self._speed_up += (1 - _RATE_MEMORY) * (gained - self._speed_up)
        if was_asked:
            self._num_idle = 0 if num_nodes else self._num_idle + was_offered
            is_dear = self._draft_s > _CHEAP_DRAFT * self.curve.step(num_rows)
            self._is_resting, self._num_rested = is_dear and self._num_idle > 2, 0
        else:
            self._num_rested += 1
        self.decisions.add(num_nodes, num_gained, len(trees))

    def close(self, request_id: int) -> None:
        self._requests.pop(request_id, None)

    def report(self) -> str:
        """What was decided, and why: steps, acceptance per drafter and depth, the cost curve."""
        lines = [str(self.decisions)]
        for source, counts in self.survival.acceptance().items():
            rates = ", ".join(f"{accepted}/{drafted}" for drafted, accepted in counts)
            lines.append(f"drafter {source}: accepted per depth {rates}")
        curve = ", ".join(f"{rows}: {seconds * 1e3:.2f}" for rows, seconds in self.curve.table().items())
        lines.append(f"forward, ms by rows: {curve}")
        return "\n".join(lines)

    def _record(self, request_id: int) -> "_Record":
        record = self._requests.get(request_id)
        if record is None:
            record = self._requests[request_id] = _Record()
        return record


@dataclass(slots=True)
class Decisions:
    """What a controller has done so far."""

    num_plain_steps: int = 0
    num_speculative_steps: int = 0
    num_nodes: int = 0
    num_gained: int = 0
    num_turns: int = 0

    def add(self, num_nodes: int, num_gained: int, num_turns: int) -> None:
        if num_nodes:
            self.num_speculative_steps += 1
        else:
            self.num_plain_steps += 1
        self.num_nodes += num_nodes
        self.num_gained += num_gained
        self.num_turns += num_turns

    def __str__(self) -> str:
        steps = self.num_speculative_steps + self.num_plain_steps
        return (
            f"speculated in {self.num_speculative_steps} of {steps} steps, "
            f"{self.num_nodes / max(1, self.num_speculative_steps):.1f} nodes each; "
            f"accept length {self.num_gained / max(1, self.num_turns):.3f}"
        )


@dataclass(slots=True)
class _Record:
    """How one request's drafts have been doing lately, and the tree proposed in this step, before it was cut."""

    hits: float = 0.0
    predicted: float = 0.0
    num_misses: int = 0
    """Proposals in a row whose first tokens were all wrong."""
    proposed: TokenTree | None = None

    def factor(self, first: float) -> float:
        """What to take off a tree's chances; `first` is the chance that any of the root's children is right.

        1, falling steeply to 0 where fewer than half of the predicted hits come: the draft has lost the thread. And n
        misses in a row leave no more than a chance of 3 / n for the next hit, whatever was predicted; of many, less:
        where rows cost next to nothing, as on a GPU, even that would keep a useless draft alive for hundreds of steps.
        """
        share = (self.hits + _REQUEST_PRIOR) / (self.predicted + _REQUEST_PRIOR)
        at_most = _MISS_BOUND / (self.num_misses + 1) * min(1.0, _MANY_MISSES / max(1, self.num_misses)) ** 3
        return min(min(1.0, 2 * share) ** 3, at_most / max(first, at_most))


def _cut(trees: Sequence[TokenTree], keep: npt.NDArray[np.bool_], count: int) -> list[TokenTree]:
    """The `count` nodes of `keep`, which holds all trees that were not drawn, one after another."""
    if not count:
        return [tree if tree.draft_probs is not None else TokenTree.empty() for tree in trees]
    cut, start = [], 0
    for tree in trees:
        if tree.draft_probs is not None:
            cut.append(tree)
            continue
        kept = keep[start : start + tree.num_nodes]
        start += tree.num_nodes
        cut.append(tree if len(trees) > 1 and kept.all() else tree.truncate(kept))
    return cut

"""`SpeedController`: verifies as many draft tokens as make the whole batch faster, and none where none do."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from infercore.speculative.control.cost_curve import CostCurve
from infercore.speculative.control.rest import Kind, Rest
from infercore.speculative.control.survival import Survival
from infercore.speculative.tree import TokenTree
from infercore.speculative.types import Verdict

_REQUEST_MEMORY = 0.8  # a request's own hits and misses fade by this per step
_REQUEST_PRIOR = 0.5
_MISS_BOUND = 3.0  # the rule of three: no hit in n tries leaves a chance of at most 3 / n, with 95% confidence
_MANY_MISSES = 6  # in a row: from there on the bound falls faster than the rule of three
_RATE_MEMORY = 0.98
_CHEAP_DRAFT = 0.01  # of a plain step: drafts that cost less go on while nothing is verified
_HIDDEN_DRAFT = 0.35  # of a plain step that overlaps: drafts that cost less are made while the device works
_PROMISE_MEMORY = 0.7
_KEEPING_MEMORY = 0.95  # of how far promises were kept, by a step with drafts
_KEEPING_FADE = 0.995  # by a step without
_KEEPING_PRIOR = 8.0  # tokens


class SpeedController:
    """Cuts the trees of a batch to the nodes that are worth their time.

    A node is worth its chance of being accepted (`Survival`, times how this request has been doing lately). n nodes
    cost what `CostCurve` says n more rows do. With r the price of time, the n likeliest nodes of the whole batch are
    verified for which expected tokens - r * time is largest: the rule that maximises tokens over time in the long run
    (renewal-reward). r is the tokens per second that are being reached, or those of this step at its best where they
    are more: good drafts come in stretches, and a token that is left to the next step costs less there.

    Speculation is off for a step when that n is 0. Drafts are still made, and judged by the tokens that come; so it
    is on again as soon as they would have been right. A drafter that costs more than 1% of a plain step is asked only
    every 12th step while it is off.

    Where steps overlap (`watch` is called), a step for which drafters are asked costs more than one for which they are
    not, even if nothing is verified: `Rest` knows by how much. What steps with drafts promise, in the mean of the last
    few, must be worth that as well, or nobody is asked. The drafts of such steps are watched: made while the device
    works, judged by the tokens that come, never verified.

    Trees that were drawn (`draft_probs`) cannot be cut for what they hold: they are asked for or not, before they are
    drawn.

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
        self._is_watching = False  # the trees that come are for a step that is under way without them
        self._kind = Kind.ALONE  # of the step under way, as far as is known
        self._num_idle = 0  # proposals in a row of which nothing was verified
        self._promise: float | None = None
        self._extra = 0.0  # tokens that the drafts of this step should bring
        self._promised = self._kept = 0.0  # such tokens of late, and those that came
        self._rest = Rest()

    def budget(self, request_ids: Sequence[int], *, num_other_rows: int = 0) -> list[int]:
        self._is_watching = False
        is_known = self.curve.knows(len(request_ids) + num_other_rows)  # what a plain step costs is the first to learn
        return self._ask(request_ids, is_asked=is_known and self._rest.is_over)

    def watch(self, request_ids: Sequence[int], *, num_other_rows: int = 0) -> list[int]:
        self._is_watching, self._kind = True, Kind.BEHIND
        self._rest.start_behind()
        num_rows = len(request_ids) + num_other_rows
        is_hidden = self._draft_s <= _HIDDEN_DRAFT * self._rest.seconds(num_rows, self.curve)
        return self._ask(request_ids, is_asked=is_hidden and self._rest.may_watch(num_rows))

    def _ask(self, request_ids: Sequence[int], *, is_asked: bool) -> list[int]:
        self._num_asked = len(request_ids)
        self._asked_at = self._clock() if is_asked else None
        return [self._max_nodes if is_asked else 0] * len(request_ids)

    def select(
        self, request_ids: Sequence[int], trees: Sequence[TokenTree], *, num_other_rows: int = 0
    ) -> list[TokenTree]:
        self._kind = Kind.WATCHED if self._is_watching else Kind.ASKED
        self._note_draft_time()
        num_requests = max(len(trees), self._num_asked)  # those that got no draft take part in the forward as well
        num_plain = num_rows = num_requests + num_other_rows
        chances = np.empty(sum(tree.num_nodes for tree in trees if tree.draft_probs is None), np.float32)
        start = 0
        tokens = float(num_requests)
        for request_id, tree in zip(request_ids, trees, strict=True):
            record = self._record(request_id)
            record.proposed = tree
            if tree.draft_probs is not None:
                num_rows += tree.num_nodes
                own = np.empty(tree.num_nodes, np.float32)
            else:
                own = chances[start : start + tree.num_nodes]
                start += tree.num_nodes
            factor = record.factor(self.survival.chances_into(tree, own))
            if factor < 1:
                own *= np.float32(factor)
            if tree.draft_probs is not None:
                tokens += float(own.sum())
        count, cut = 0, list(trees)
        if start:
            count, keep = self.curve.select(
                chances, num_rows=num_rows, num_turns=num_requests, speed_up=self._speed_up, margin=self._margin
            )
            tokens += float(chances[keep].sum())
            if count < start:
                cut = _cut(trees, keep, count)
        self._extra = tokens - num_requests
        if num_requests:
            trust = (self._kept + _KEEPING_PRIOR) / (self._promised + _KEEPING_PRIOR)
            promise = (
                (1 + trust * self._extra / num_requests)
                * self.curve.step(num_plain)
                / self.curve.step(num_rows + count)
            )
            is_stale = self._kind is Kind.ASKED and self._rest.is_blind
            last = promise if self._promise is None or is_stale else self._promise
            self._promise = promise + _PROMISE_MEMORY * (last - promise)
        return cut

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
        kind, self._kind = self._kind, Kind.ALONE
        self._learn_time(kind, max(1, num_rows), num_nodes, step_time_s)
        self._rest.count(kind, num_rows, step_time_s)
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
        plain_s = self.curve.step(num_rows)
        rest_s = self._rest.seconds(num_rows, self.curve)
        is_behind = kind in (Kind.BEHIND, Kind.WATCHED)
        gained = num_gained / len(trees) * plain_s / (rest_s if is_behind else self.curve.step(num_rows + num_nodes))
        self._speed_up += (1 - _RATE_MEMORY) * (gained - self._speed_up)
        advantage = (1.0 if self._promise is None else self._promise) * rest_s / plain_s
        memory = _KEEPING_MEMORY if kind is Kind.ASKED else _KEEPING_FADE
        self._promised *= memory
        self._kept *= memory
        if kind is Kind.ASKED:
            self._promised += self._extra
            self._kept += num_gained - len(trees)
            self._num_idle = 0 if num_nodes else self._num_idle + was_offered
            if self._rest.overlaps:
                is_worth_it = advantage >= 1 + self._margin
            else:
                is_worth_it = self._draft_s <= _CHEAP_DRAFT * plain_s or self._num_idle <= 2
            if is_worth_it:
                self._rest.end()
                if num_other_rows <= len(trees):  # beside a prompt's rows: the steps that come are no such ones
                    self._rest.measure_if_due(num_rows, advantage)
            else:
                self._rest.begin()
        elif kind is Kind.WATCHED and advantage >= 1 + self._margin:
            self._rest.end()
        self.decisions.add(num_nodes, num_gained, len(trees))

    def _learn_time(self, kind: Kind, num_rows: int, num_nodes: int, seconds: float) -> None:
        """The curve is that of steps with drafts, and of all where steps do not overlap."""
        is_known = self.curve.knows(num_rows + num_nodes)
        if kind in (Kind.BEHIND, Kind.WATCHED):
            if is_known:
                self.curve.let_pass()
            else:
                ratio = self.curve.step(num_rows) / self._rest.seconds(num_rows, self.curve)
                self.curve.observe(num_rows, seconds * ratio)
        elif kind is Kind.ASKED or not self._rest.overlaps or not is_known:
            self.curve.observe(num_rows + num_nodes, seconds)

    def _note_draft_time(self) -> None:
        if self._asked_at is None:
            return
        spent = min(self._clock() - self._asked_at, 10 * self._draft_s or np.inf)
        rate = 0.5 if 2 * spent < self._draft_s else 0.1  # a first call that loads or compiles is soon forgotten
        self._draft_s += rate * (spent - self._draft_s)

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
        if rest := ", ".join(f"{rows}: {seconds * 1e3:.2f}" for rows, seconds in self._rest.table().items()):
            lines.append(f"steps without drafts that overlap, ms by rows: {rest}")
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

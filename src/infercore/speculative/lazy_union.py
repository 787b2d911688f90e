"""`LazyUnion`: a costly drafter is asked only in steps in which it gains more than it costs."""

import time
from bisect import bisect_right
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Int32
from torch import Tensor

from infercore.speculative import _compiled
from infercore.speculative.tree import TokenTree
from infercore.speculative.types import Drafter, DraftRequest
from infercore.speculative.union import Union

_PROMISES = (0.0, 0.25, 0.5, 1.0, 1.5, 2.5, 4.0)  # bounds of what the cheap draft promises, in accepted tokens
_FIRST_GAIN = 1.0  # tokens that the costly draft is believed to add before anything is known
_GAIN_MEMORY = 40  # trials
_OWN_MEMORY = 0.9  # of a request's gains, per trial
_OWN_PRIOR = 2.0  # tokens: what a request's own gains are weighed against
_TIME_RATE = 0.05
_TIME_TRIALS = 4  # steps of each kind, from which on their times are believed
_MOST_SURPRISE = 1.5  # of one step's time: a pause of the caller, or a capture, decides nothing
_TRY_EVERY = 32  # steps that would not ask: one of them does, to see whether that has changed


class LazyUnion(Union):
    """`Union(cheap, costly)`, but `costly` is asked only where its tokens are worth its time.

        drafter = LazyUnion(SuffixDrafter(), eagle)

    An automaton over the text drafts for some microseconds of the host; a head takes a third of a small model's step.
    Where the automaton follows a long repetition, the head adds little, and elsewhere nearly all. So what the head adds
    is learnt by what the cheap draft promises (the sum of its scores), from steps in which both were asked: tokens that
    came less those that the cheap tree holds of them; and for each request, how its gains compare with that. What a
    step costs with the head and without is the time from one `propose` to the next. The head is asked where the gain,
    summed over the batch, exceeds that difference times the tokens per second that are being reached. Every 32nd step
    that would do without asks all the same.

    Outputs are exact in any case; which drafts are made depends on the clock and on the whole batch, so that accept
    lengths vary a little. Trees that the costly drafter draws (`draft_probs`) are kept whole, as by `Union`.

    Args:
        cheap: its draft is made in every step.
        costly: where it starts drafts ahead (`StartsAhead`), it is told for whom that is worthwhile.
        clock: seconds.
    """

    def __init__(self, cheap: Drafter, costly: Drafter, *, clock: Callable[[], float] = time.perf_counter) -> None:
        super().__init__(cheap, costly)
        self._growers = [None, None]  # both bring trees
        self._only_growers = False
        self._cheap, self._costly = cheap, costly
        self._ahead = costly if isinstance(costly, StartsAhead) else None
        self._clock = clock
        self._gains = [_FIRST_GAIN] * len(_PROMISES)
        self._trials = [0] * len(_PROMISES)
        self._own: dict[int, _Own] = {}
        self._times: dict[int, _Times] = {}  # by size of the batch
        self._last: _Step | None = None
        self._num_skipped = 0
        self.num_steps = 0
        self.num_asked = 0

    def propose(self, requests: Sequence[DraftRequest]) -> list[TokenTree]:
        now = self._clock()
        ids = tuple(request.request_id for request in requests)
        self._learn_time(now, ids)
        trees = first = self._cheap.propose(requests)
        promises = [_promise(tree) for tree in first]
        times = self._times.setdefault(len(requests).bit_length(), _Times())
        worthwhile = self._is_worthwhile(ids, promises, times)
        has_started = self._ahead is not None and all(map(self._ahead.has_started, ids))
        asks = has_started or worthwhile  # what was started holds up the forward, wanted or not
        if asks:
            second = self._costly.propose(requests)
            trees = [self._tree(request, pair) for request, *pair in zip(requests, first, second, strict=True)]
        if self._ahead is not None:
            self._ahead.expect(ids if worthwhile else ())
        self.num_steps += 1
        self.num_asked += asks
        drafts = dict(zip(ids, zip(first, promises, strict=True), strict=True)) if asks else {}
        self._last = _Step(now, asks, times, ids, drafts)
        return trees

    def commit(
        self, request_id: int, accepted_token_ids: Int32[np.ndarray, "n"], features: Tensor | None = None
    ) -> None:
        self._learn_gain(request_id, accepted_token_ids)
        super().commit(request_id, accepted_token_ids, features)

    def close(self, request_id: int) -> None:
        self._own.pop(request_id, None)
        super().close(request_id)

    def report(self) -> str:
        """How often the costly drafter was asked, and what it added where."""
        lines = [f"asked {self._costly.__class__.__name__} in {self.num_asked} of {self.num_steps} steps"]
        for bound, gain, trials in zip(_PROMISES, self._gains, self._trials, strict=True):
            lines.append(f"promised {bound:g} or more: {gain:.2f} tokens gained ({trials:.0f} trials)")
        for size, times in sorted(self._times.items()):
            lines.append(f"batch below {2**size}: {times}")
        return "\n".join(lines)

    def _is_worthwhile(self, ids: Sequence[int], promises: Sequence[int], times: "_Times") -> bool:
        if min(times.counts) < _TIME_TRIALS:
            return times.counts[1] <= times.counts[0]  # in turn, until both are known
        gain = 0.0
        for request_id, promise in zip(ids, promises, strict=True):
            own = self._own.get(request_id)
            gain += self._gains[promise] * (1.0 if own is None else own.factor)
        if gain > times.tokens_per_s * (times.seconds[1] - times.seconds[0]):
            return True
        self._num_skipped += 1
        return self._num_skipped % _TRY_EVERY == 0

    def _learn_time(self, now: float, ids: tuple[int, ...]) -> None:
        """The step that ends now, if all that happened since the last draft was that one step of the same requests."""
        last, self._last = self._last, None
        if last is not None and last.ids == ids and last.num_committed == len(ids):
            last.times.add(int(last.asked), now - last.start, last.num_tokens)

    def _learn_gain(self, request_id: int, token_ids: Int32[np.ndarray, "n"]) -> None:
        last = self._last
        if last is None or request_id not in last.ids:
            return
        last.num_committed += 1
        last.num_tokens += len(token_ids)
        if request_id in last.drafts:
            tree, promise = last.drafts.pop(request_id)
            added = len(token_ids) - min(len(token_ids), 1 + _num_matched(tree, token_ids))
            self._own.setdefault(request_id, _Own()).add(added, self._gains[promise])
            self._trials[promise] = trials = min(self._trials[promise] + 1, _GAIN_MEMORY)
            self._gains[promise] += (added - self._gains[promise]) / trials


@runtime_checkable
class StartsAhead(Protocol):
    """A drafter that may begin a draft before it is asked for it, as soon as features come."""

    def expect(self, request_ids: Collection[int]) -> None:
        """Whose next drafts are likely to be asked for; others are not to be begun ahead."""
        ...

    def has_started(self, request_id: int) -> bool:
        """Whether the draft that would be asked for now is under way."""
        ...


class _Times:
    """Seconds of a step without the costly drafter and with it, and tokens per second of both."""

    def __init__(self) -> None:
        self.seconds = [0.0, 0.0]
        self.counts = [0, 0]
        self._tokens = self._elapsed = 0.0

    @property
    def tokens_per_s(self) -> float:
        return self._tokens / self._elapsed if self._elapsed else 0.0

    def add(self, kind: int, seconds: float, num_tokens: int) -> None:
        self.counts[kind] += 1
        known = self.seconds[kind]
        if self.counts[kind] > 1:
            seconds = min(max(seconds, known / _MOST_SURPRISE), known * _MOST_SURPRISE)
        self.seconds[kind] += max(_TIME_RATE, 1 / self.counts[kind]) * (seconds - known)
        self._tokens = (1 - _TIME_RATE) * self._tokens + num_tokens
        self._elapsed = (1 - _TIME_RATE) * self._elapsed + seconds

    def __str__(self) -> str:
        without, with_it = (1e3 * each for each in self.seconds)
        return f"{without:.2f} ms a step, {with_it:.2f} with it; {self.tokens_per_s:.0f} tokens a second"


@dataclass(slots=True)
class _Own:
    """What the costly drafter added lately to one request, and what was expected."""

    added: float = 0.0
    expected: float = 0.0

    @property
    def factor(self) -> float:
        return (self.added + _OWN_PRIOR) / (self.expected + _OWN_PRIOR)

    def add(self, added: int, expected: float) -> None:
        self.added = _OWN_MEMORY * self.added + added
        self.expected = _OWN_MEMORY * self.expected + expected


@dataclass(slots=True)
class _Step:
    """A draft, and what has come of it so far.

    Args: drafts: where the costly drafter was asked, of each request whose tokens have not come yet the cheap tree and
        its place in `_PROMISES`.
    """

    start: float
    asked: bool
    times: _Times
    ids: tuple[int, ...]
    drafts: dict[int, tuple[TokenTree, int]]
    num_committed: int = 0
    num_tokens: int = 0


def _promise(tree: TokenTree) -> int:
    """Place in `_PROMISES` of the tokens that the tree's scores say will be accepted."""
    if not tree.num_nodes:
        return 0
    return bisect_right(_PROMISES, tree.num_nodes if tree.scores is None else float(tree.scores.sum())) - 1


def _num_matched(tree: TokenTree, token_ids: Int32[np.ndarray, "n"]) -> int:
    """How many of `token_ids` the tree holds, from the root down."""
    return int(_compiled.num_matched(tree.token_ids, tree.parents, token_ids))

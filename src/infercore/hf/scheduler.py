"""Who runs in a step and with how many rows: admission, chunked prefill under a row budget, preemption."""

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from infercore.hf.state import RequestState
from infercore.radix import KVPool, PrefixCache, Sequence
from infercore.radix.host import Arrival

WORTH_WAITING = 16  # tokens: rows that a request must save to let a step pass without it, if pages are smaller


@dataclass(slots=True)
class Share:
    """What one request does in a step: `num_causal` rows of its chain, and whether the last of them is sampled from."""

    state: RequestState
    num_causal: int
    samples: bool


@dataclass(slots=True)
class Landing:
    """A request whose prefix is on its way back from host memory; it runs when the copies have ended."""

    state: RequestState
    arrival: Arrival


class Scheduler:
    """Waiting and running requests, first come first served.

    A request waits while pages are short, or while a running one is computing a prefix that both share. A running one
    is preempted, youngest first, when an older one needs its pages; it goes to the head of the queue and finds most of
    its tokens in the prefix cache when it resumes.

    Where the cache has a host tier, a request whose prefix goes on there is between the two: its prefix is copied while
    the others run, and it joins them when that has ended, or at once where nobody runs.
    """

    def __init__(self, cache: PrefixCache, *, max_running: int) -> None:
        self.cache = cache
        self.max_running = max_running
        self.waiting: deque[RequestState] = deque()
        self.running: list[RequestState] = []
        self.landing: list[Landing] = []

    def admit(self) -> None:
        """Move waiting requests to the running ones while they fit."""
        for landing in [landing for landing in self.landing if landing.arrival.is_ready]:
            self._land(landing)
        self._admit_waiting()
        if not self.running and self.landing:
            self._land(self.landing[0])  # the device waits for the copies, the host does not

    def _admit_waiting(self) -> None:
        while self.waiting and len(self.running) + len(self.landing) < self.max_running:
            state = self.waiting[0]
            if self._prefix_in_progress(state):
                return
            sequence = self.cache.open(state.tokens[: state.num_reusable], namespace=state.request.namespace)
            new_tokens = state.num_tokens - sequence.num_tokens
            pages = -(-(sequence.num_tokens + new_tokens) // self.cache.page_size) - sequence.num_pages
            others = len(self.running) + len(self.landing)
            if others and pages + others > self.cache.num_available_pages:
                sequence.close(insert=False)  # a page for each running request stays free, else it is preempted at once
                return
            arrival = self._fetch(state, sequence)
            self.waiting.popleft()
            if arrival is not None:
                self.landing.append(Landing(state, arrival))
            else:
                self._start(state, sequence)

    def _fetch(self, state: RequestState, sequence: Sequence) -> Arrival | None:
        if self.cache.host is None:
            return None
        try:
            return self.cache.host.fetch(sequence, state.tokens[: state.num_reusable])
        except BaseException:
            sequence.close(insert=False)
            raise

    def _land(self, landing: Landing) -> None:
        """Let a request run whose prefix has come back, or is about to: the device waits for it then."""
        num_tokens = landing.arrival.finish()
        self.landing.remove(landing)
        landing.state.stats.num_host_tokens += num_tokens
        self._start(landing.state, landing.arrival.sequence)

    def call_off(self) -> bool:
        """Let the youngest request whose prefix is coming back wait again without; False if there is none.

        Its pages are free then, for whoever runs.
        """
        if not self.landing:
            return False
        landing = self.landing.pop()
        landing.arrival.cancel()
        landing.arrival.sequence.close(insert=False)
        self.waiting.appendleft(landing.state)
        return True

    def _start(self, state: RequestState, sequence: Sequence) -> None:
        state.sequence = sequence
        if state.page_observers:
            self._begin(state, sequence)
        if state.stats.num_forwards == 0:
            state.stats.num_reused_tokens = min(sequence.num_tokens, state.num_prompt)
        self.running.append(state)

    def _begin(self, state: RequestState, sequence: Sequence) -> None:
        """Tell drafters of the pages it goes on with.

        Where they know the text and lack the features of its last token, that row is computed again, in a copy of its
        page, if there is a page for that.
        """
        is_wanted = self.show_pages(state, sequence)
        pages = 1 - sequence.num_pages - (-state.num_tokens // self.cache.page_size)
        others = len(self.running) + len(self.landing)
        if is_wanted and sequence.num_tokens and pages + others <= self.cache.num_available_pages:
            sequence.rollback(1)

    def show_pages(self, state: RequestState, sequence: Sequence) -> bool:
        """Tell `state`'s drafters of the pages it goes on with; whether any of them wants the last row once more."""
        pool = self.cache.store
        if not isinstance(pool, KVPool):
            return False
        wanted = [observer.begin(state.request_id, sequence, pool) for observer in state.page_observers]  # all are told
        return any(wanted)

    def num_prefill_rows(self) -> int:
        """Tokens of running requests that are still to be computed, but for the one that each decodes."""
        return sum(count for state in self.running if (count := state.num_to_compute) > 1)

    def shares(self, max_rows: int) -> list[Share]:
        """Rows for this step: whoever decodes first, then prefill chunks in order while the budget lasts."""
        left = max_rows
        needed = [state.num_to_compute for state in self.running]
        granted = [1 if count == 1 else 0 for count in needed]
        left -= sum(granted)
        if len(needed) > sum(granted):
            for i, count in enumerate(needed):
                if count > 1 and left > 0:
                    granted[i] = min(count, left)
                    left -= granted[i]
        return [
            Share(state, rows, rows == count and state.finish_reason is None)
            for state, rows, count in zip(self.running, granted, needed, strict=True)
            if rows
        ]

    def mend(self) -> None:
        """Put right what a step that was cut off left: reserved slots, rows and draws that nobody read, copies."""
        for state in self.running:
            state.source = None
            state.undraw()
            if state.sequence is not None and state.sequence.num_reserved:
                state.sequence.commit([])
        for state in list(self.running):
            if state.followers and state.num_output:
                for follower in state.followers:
                    if follower.sequence is None:
                        self.waiting.appendleft(follower)
                    elif follower not in self.running:
                        self.running.append(follower)
                state.followers = []
        for state in self.running:
            if state.finish_reason is None and state.num_to_compute == 0:
                assert state.sequence is not None
                state.sequence.rollback(1)

    def rename(self, namespace_of: Callable[[Any], Any]) -> None:
        """Give every request, none of which holds a sequence, another namespace."""
        for state in self.waiting:
            for each in (state, *state.followers):
                each.request = replace(each.request, namespace=namespace_of(each.request.namespace))

    def preempt(self, state: RequestState) -> None:
        """Take `state` out of the batch; its computed pages stay in the prefix cache as long as nobody needs them."""
        state.close_sequence()
        state.stats.num_preemptions += 1
        self.running.remove(state)
        self.waiting.appendleft(state)

    def remove(self, state: RequestState) -> None:
        """Forget a finished request, wherever it is. Copies of its prompt that waited for its prefill go on alone."""
        for landing in [landing for landing in self.landing if landing.state is state]:
            self.landing.remove(landing)
            landing.arrival.cancel()
            landing.arrival.sequence.close(insert=False)
        if state in self.running:
            self.running.remove(state)
        elif state in self.waiting:
            self.waiting.remove(state)
        for other in (*self.running, *self.waiting, *(landing.state for landing in self.landing)):
            if state in other.followers:
                other.followers.remove(state)
        if state.followers:
            heir, *rest = state.followers
            heir.followers, state.followers = rest, []
            self.waiting.appendleft(heir)

    def _prefix_in_progress(self, state: RequestState) -> bool:
        """Pages of this one's prompt that the cache lacks, enough to wait for, are about to be there.

        A running request computes them, or they come back from the host.
        """
        known, page_size = -1, self.cache.page_size
        soon = [(other, other.num_tokens) for other in self.running if other.num_to_compute > 1]
        soon += [(each.state, each.arrival.sequence.num_tokens + each.arrival.num_tokens) for each in self.landing]
        for other, count in soon:
            if other.request.namespace != state.request.namespace:
                continue
            length = min(state.num_reusable, count)
            differs = state.tokens[:length] != other.tokens[:length]
            common = int(np.argmax(differs)) if differs.any() else length
            if common < page_size:
                continue
            if known < 0:
                match = self.cache.match(state.tokens[: state.num_reusable], namespace=state.request.namespace)
                known = match.num_tokens
            if common // page_size * page_size - known >= max(page_size, WORTH_WAITING):
                return True
        return False

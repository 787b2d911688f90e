"""Who runs in a step and with how many rows: admission, chunked prefill under a row budget, preemption."""

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from infercore.hf.state import RequestState
from infercore.radix import PrefixCache

WORTH_WAITING = 16  # tokens: rows that a request must save to let a step pass without it, if pages are smaller


@dataclass(slots=True)
class Share:
    """What one request does in a step: `num_causal` rows of its chain, and whether the last of them is sampled from."""

    state: RequestState
    num_causal: int
    samples: bool


class Scheduler:
    """Waiting and running requests, first come first served.

    A request waits while pages are short, or while a running one is computing a prefix that both share. A running one
    is preempted, youngest first, when an older one needs its pages; it goes to the head of the queue and finds most of
    its tokens in the prefix cache when it resumes.
    """

    def __init__(self, cache: PrefixCache, *, max_running: int) -> None:
        self.cache = cache
        self.max_running = max_running
        self.waiting: deque[RequestState] = deque()
        self.running: list[RequestState] = []

    def admit(self) -> None:
        """Move waiting requests to the running ones while they fit."""
        while self.waiting and len(self.running) < self.max_running:
            state = self.waiting[0]
            if self._prefix_in_progress(state):
                return
            sequence = self.cache.open(state.tokens[: state.num_reusable], namespace=state.request.namespace)
            new_tokens = state.num_tokens - sequence.num_tokens
            pages = -(-(sequence.num_tokens + new_tokens) // self.cache.page_size) - sequence.num_pages
            if self.running and pages + len(self.running) > self.cache.num_available_pages:
                sequence.close(insert=False)  # a page for each running request stays free, else it is preempted at once
                return
            self.waiting.popleft()
            state.sequence = sequence
            if state.stats.num_forwards == 0:
                state.stats.num_reused_tokens = min(sequence.num_tokens, state.num_prompt)
            self.running.append(state)

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
        """Put right what a step that was cut off left: reserved slots, rows that nobody read, copies left behind."""
        for state in self.running:
            state.source = None
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
        assert state.sequence is not None
        state.sequence.close()
        state.sequence = None
        state.stats.num_preemptions += 1
        self.running.remove(state)
        self.waiting.appendleft(state)

    def remove(self, state: RequestState) -> None:
        """Forget a finished request, wherever it is. Copies of its prompt that waited for its prefill go on alone."""
        if state in self.running:
            self.running.remove(state)
        elif state in self.waiting:
            self.waiting.remove(state)
        for other in (*self.running, *self.waiting):
            if state in other.followers:
                other.followers.remove(state)
        if state.followers:
            heir, *rest = state.followers
            heir.followers, state.followers = rest, []
            self.waiting.appendleft(heir)

    def _prefix_in_progress(self, state: RequestState) -> bool:
        """A running request is about to compute pages of this one's prompt that the cache lacks, enough to wait for."""
        known, page_size = -1, self.cache.page_size
        for other in self.running:
            if other.num_to_compute <= 1 or other.request.namespace != state.request.namespace:
                continue
            assert other.sequence is not None
            length = min(state.num_reusable, other.num_tokens)
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

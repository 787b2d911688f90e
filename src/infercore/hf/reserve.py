"""Slots for a step's rows: from the pages that are free, else from requests that are younger."""

from collections.abc import Sequence as Seq

import numpy as np
import numpy.typing as npt

from infercore.errors import OutOfPages
from infercore.hf.plan import Rows
from infercore.hf.scheduler import Scheduler, Share
from infercore.hf.state import RequestState
from infercore.speculative import TokenTree

_NO_TREE = TokenTree.empty()
_UNKNOWN = np.zeros(1, np.int32)  # stands for a token that is on the device only

Work = list[tuple[Share, Rows]]
"""What each request does in a step."""


def reserve(scheduler: Scheduler, shares: Seq[Share], trees: dict[int, TokenTree]) -> Work:
    """Slots for every share, oldest request first; where pages are short its draft goes, then younger requests."""
    work: Work = []
    for share in shares:
        state = share.state
        if state.sequence is None:
            continue  # preempted a moment ago for an older one
        tree = trees.get(state.request_id, _NO_TREE)
        slots = _slots(scheduler, state, share.num_causal + tree.num_nodes, last_resort=tree.num_nodes == 0)
        if slots is None and tree.num_nodes:
            tree = _NO_TREE
            slots = _slots(scheduler, state, share.num_causal, last_resort=True)
        if slots is None:
            continue
        computed = state.sequence.num_tokens
        token_ids = state.tokens[computed : computed + share.num_causal]
        work.append((share, Rows(state.sequence, token_ids, tree, slots, _first_logits_row(share, computed))))
    return work


def reserve_spare(shares: Seq[Share]) -> Work:
    """Slots for every share where pages are not short; else none for anyone. Nobody brings a draft.

    A token that was chosen and not read yet may be the first of a request's rows.
    """
    work: Work = []
    for share in shares:
        state = share.state
        assert state.sequence is not None
        computed = state.sequence.num_tokens
        try:
            slots = state.sequence.append(share.num_causal)
        except OutOfPages:
            for other, _ in work:
                assert other.state.sequence is not None
                other.state.sequence.commit([])
            return []
        if state.source is None:
            token_ids, source = state.tokens[computed : computed + share.num_causal], -1
        else:
            token_ids, source = _UNKNOWN, state.source
        rows = Rows(state.sequence, token_ids, _NO_TREE, slots, _first_logits_row(share, computed), source)
        work.append((share, rows))
    return work


def _slots(scheduler: Scheduler, state: RequestState, count: int, *, last_resort: bool) -> npt.NDArray[np.int64] | None:
    """`count` slots for `state`, or None. As a last resort others give up theirs, then this one itself."""
    running = scheduler.running
    while True:
        assert state.sequence is not None
        try:
            slots = state.sequence.append(count)
        except OutOfPages as error:
            if not last_resort:
                return None
            if scheduler.call_off():
                continue
            victim = running[-1]
            if victim is state and len(running) == 1:
                state.fail(error)  # nobody else holds pages that could be taken: the caller does
                return None
            scheduler.preempt(victim)
            if victim is state:
                return None
        else:
            return slots


def _first_logits_row(share: Share, computed: int) -> int:
    """First row of a request whose logits are wanted, counted within its rows."""
    state = share.state
    if state.request.keeps_rows:
        return min(max(0, state.num_prompt - 1 + state.num_recorded - computed), share.num_causal)
    return share.num_causal - 1 if share.samples else share.num_causal

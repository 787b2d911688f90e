"""What a step's verdicts change: first what the next step needs to know, and the rest once that one is under way."""

import time
from collections.abc import Sequence as Seq

import numpy as np

from infercore.hf.choose import Turn, keep_chosen
from infercore.hf.features import feature_observers
from infercore.hf.flight import Flight
from infercore.hf.plan import Rows
from infercore.hf.request import Event, TokenEvent
from infercore.hf.scheduler import Scheduler
from infercore.hf.state import RequestState
from infercore.hf.stats import EngineStats
from infercore.radix import KVPool
from infercore.speculative import Verdict

Outcomes = Seq[Verdict | Exception | None]


def settle(scheduler: Scheduler, pool: KVPool, flight: Flight, outcomes: Outcomes) -> None:
    """Append the chosen tokens, commit the rows that lead to them, and fork copies of finished prompts."""
    pool.gather_moves()  # nobody takes pages meanwhile
    try:
        _settle(scheduler, flight, outcomes)
    finally:
        pool.move_gathered()


def _settle(scheduler: Scheduler, flight: Flight, outcomes: Outcomes) -> None:
    for turn, outcome in zip(flight.turns, outcomes, strict=True):
        state, rows = turn.state, turn.rows
        state.source = None
        if rows is None and state.sequence is None:
            continue  # a copy whose leader failed a moment ago: the scheduler lets it go on alone
        is_first = outcome is not None and not state.num_output
        if isinstance(outcome, Exception):
            state.fail(outcome)
        elif outcome is not None:
            turn.num_kept = append(state, turn, outcome)
        if rows is not None and not flight.is_committed:
            _commit(state, rows, outcome, max(0, turn.num_kept))
        if state.error is not None:
            continue
        if turn.samples and state.followers:
            _fork_followers(scheduler, state)
        if is_first:
            assert state.sequence is not None
            state.sequence.insert()  # the prompt may be shared from now on
            state.stats.time_to_first_token_s = time.perf_counter() - state.submitted_at


def append(state: RequestState, turn: Turn, verdict: Verdict) -> int:
    """Append what `verdict` gives and what the grammar then forces.

    Returns: how many accepted nodes were kept; -1 where the request failed.
    """
    try:
        before = state.num_tokens
        token_ids = turn.tree.token_ids[verdict.path].tolist() if verdict.num_accepted else []
        token_ids.append(verdict.next_token_id)
        count = state.append(token_ids)
        state.keep_draw()
        if state.pending_rows:
            keep_chosen(state, count)
        if state.grammar is not None:
            state.append_forced()
        if state.speculates and state.request.drafter is not None:
            state.request.drafter.commit(state.request_id, state.tokens[before : state.num_tokens].copy())
    except Exception as error:  # the caller's criteria, tokenizer or drafter: it ends this request, not the others
        state.fail(error)
        return -1
    return min(count, verdict.num_accepted)


def tell(flight: Flight, outcomes: Outcomes, stats: EngineStats, events: list[Event]) -> None:
    """Count what the step did, and add an event for every request that got tokens which none was told of yet."""
    for share, _ in flight.work:
        share.state.stats.num_forwards += 1
    for turn, outcome in zip(flight.turns, outcomes, strict=True):
        state, num_nodes = turn.state, turn.tree.num_nodes
        if turn.num_kept >= 0 and isinstance(outcome, Verdict):
            if num_nodes and state.request.drafter is not None:
                stats.add_draft(state.request.drafter, turn.tree, outcome.path[: turn.num_kept])
            state.stats.num_sampling_forwards += 1
            state.stats.num_drafted_tokens += num_nodes
            state.stats.num_accepted_tokens += turn.num_kept
        tell_of(state, events)


def tell_of(state: RequestState, events: list[Event]) -> None:
    """Add an event, if a request got tokens that no event has told of and did not fail."""
    if state.num_tokens > state.num_told and state.error is None:
        new = state.tokens[state.num_told : state.num_tokens]
        state.num_told = state.num_tokens
        events.append(TokenEvent(state.request_id, tuple(new.tolist())))


def _commit(state: RequestState, rows: Rows, outcome: Verdict | Exception | None, num_kept: int) -> None:
    """The chain and the first `num_kept` accepted nodes become part of the sequence; every other slot goes back."""
    sequence = rows.sequence
    num_causal = len(rows.token_ids)
    if state.error is not None:
        sequence.commit([])
    elif num_kept and isinstance(outcome, Verdict):
        first = sequence.num_tokens
        token_ids = state.tokens[first : first + num_causal + num_kept]  # accepted nodes stand behind the chain
        path = outcome.path[:num_kept]
        if path[-1] == num_kept - 1:  # the first nodes: their rows stand where they belong
            sequence.commit(token_ids)
        else:
            kept = np.arange(num_causal + num_kept)
            kept[num_causal:] = num_causal + path
            sequence.commit(token_ids, kept)
    else:
        sequence.commit(rows.token_ids)


def _fork_followers(scheduler: Scheduler, state: RequestState) -> None:
    assert state.sequence is not None
    while state.followers:
        follower = state.followers[0]
        follower.sequence = state.sequence.fork()
        follower.stats.num_reused_tokens = follower.num_prompt
        for observer in feature_observers(follower.request.drafter):
            observer.fork(state.request_id, follower.request_id)
        scheduler.show_pages(follower, follower.sequence)
        scheduler.running.append(follower)
        del state.followers[0]

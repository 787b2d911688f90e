"""One step of the engine: draft, reserve slots, run the packed forward, choose tokens, commit what was kept."""

import time
from collections.abc import Sequence as Seq

import numpy as np
import numpy.typing as npt

from infercore.errors import OutOfPages
from infercore.hf.choose import Turn, choose, keep_chosen
from infercore.hf.draft import draft, show_drafters, teach_controller
from infercore.hf.graphs import StepGraphs
from infercore.hf.packed_model import PackedModel
from infercore.hf.plan import Rows, build_plan, count_rows
from infercore.hf.request import TokenEvent
from infercore.hf.scheduler import Scheduler, Share
from infercore.hf.state import RequestState
from infercore.hf.stats import EngineStats
from infercore.radix import KVPool
from infercore.speculative import Controller, TokenTree, Verdict

_NO_TREE = TokenTree.empty()


class Stepper:
    """Runs steps over a scheduler's requests.

    An exception anywhere leaves every request as it was before the step: slots that were reserved go back at the next
    call, tokens are appended before they are committed, and what was not committed is computed again.
    """

    def __init__(
        self,
        scheduler: Scheduler,
        pool: KVPool,
        model: PackedModel,
        *,
        max_rows: int,
        controller: Controller | None,
        stats: EngineStats,
        graphs: StepGraphs | None = None,
    ) -> None:
        self.scheduler = scheduler
        self.pool = pool
        self.model = model
        self.max_rows = max_rows
        self.controller = controller
        self.stats = stats
        self.graphs = graphs
        self._reserved: list[RequestState] = []

    def recover(self) -> None:
        """Give back slots that an interrupted step had reserved."""
        for state in self._reserved:
            if state.sequence is not None:
                state.sequence.commit([])
        self._reserved.clear()

    def run(self) -> list[TokenEvent]:
        """One forward over all running requests; returns what it added. Those that are done now are for the caller."""
        clock = time.perf_counter
        start = clock()
        self.recover()
        self.scheduler.admit()
        shares = self.scheduler.shares(self.max_rows)
        if not shares:
            return []
        drafting = clock()
        trees = draft(shares, self.controller)
        drafted = clock()
        work = self._reserve([s for s in shares if s.state.error is None], trees)
        if not work:
            return []
        packed = [rows for _, rows in work]
        turns = _turns(work)
        num_rows = count_rows(packed)
        before_forward = clock()
        with self.model.faster(num_rows):
            logits = self.graphs.forward(packed) if self.graphs is not None else None
            if logits is None:
                logits = self.model.forward(build_plan(packed, self.pool, self.model.device))
            after_forward = clock()
            outcomes = choose(turns, logits)
            show_drafters(turns, outcomes, logits)
        chosen = clock()
        events = self._apply(work, turns, outcomes)
        self._reserved.clear()
        teach_controller(self.controller, turns, outcomes, num_rows=num_rows, step_time_s=chosen - before_forward)
        times_s = (clock() - start, after_forward - before_forward, chosen - after_forward, drafted - drafting)
        self._count(work, num_rows, times_s)
        return events

    def _reserve(self, shares: Seq[Share], trees: dict[int, TokenTree]) -> list[tuple[Share, Rows]]:
        """Slots for every share, oldest request first; where pages are short its draft goes, then younger requests."""
        work: list[tuple[Share, Rows]] = []
        for share in shares:
            state = share.state
            if state.sequence is None:
                continue  # preempted a moment ago for an older one
            tree = trees.get(state.request_id, _NO_TREE)
            slots = self._slots(state, share.num_causal + tree.num_nodes, last_resort=tree.num_nodes == 0)
            if slots is None and tree.num_nodes:
                tree = _NO_TREE
                slots = self._slots(state, share.num_causal, last_resort=True)
            if slots is None:
                continue
            computed = state.sequence.num_tokens
            rows = Rows(
                state.sequence,
                state.tokens[computed : computed + share.num_causal],
                tree,
                slots,
                _first_logits_row(share, computed),
            )
            work.append((share, rows))
        return work

    def _slots(self, state: RequestState, count: int, *, last_resort: bool) -> npt.NDArray[np.int64] | None:
        """`count` slots for `state`, or None. As a last resort younger requests are preempted, then this one itself."""
        running = self.scheduler.running
        while True:
            assert state.sequence is not None
            try:
                slots = state.sequence.append(count)
            except OutOfPages as error:
                if not last_resort:
                    return None
                victim = running[-1]
                if victim is state and len(running) == 1:
                    state.fail(error)  # nobody else holds pages that could be taken: the caller does
                    return None
                self.scheduler.preempt(victim)
                if victim is state:
                    return None
            else:
                self._reserved.append(state)
                return slots

    def _apply(
        self,
        work: Seq[tuple[Share, Rows]],
        turns: Seq[Turn],
        outcomes: Seq[Verdict | Exception | None],
    ) -> list[TokenEvent]:
        """Append the chosen tokens, commit the rows that lead to them, and fork copies of finished prompts."""
        rows_of = {share.state.request_id: rows for share, rows in work}
        events: list[TokenEvent] = []
        for turn, outcome in zip(turns, outcomes, strict=True):
            state = turn.state
            before, kept = state.num_output, 0
            rows = rows_of.get(state.request_id)
            if rows is None and state.sequence is None:
                continue  # a copy whose leader failed a moment ago: the scheduler lets it go on alone
            if isinstance(outcome, Exception):
                state.fail(outcome)
            elif outcome is not None:
                kept = self._append(state, turn.tree, outcome)
            if rows is not None:
                _commit(state, rows, outcome, kept)
            if state.error is not None:
                continue
            if turn.samples and state.followers:
                self._fork_followers(state)
            if turn.samples and before == 0:
                assert state.sequence is not None
                state.sequence.insert()  # the prompt may be shared from now on
                state.stats.time_to_first_token_s = time.perf_counter() - state.submitted_at
            if state.num_output > before:
                new = state.tokens[state.num_prompt + before : state.num_tokens]
                events.append(TokenEvent(state.request_id, tuple(new.tolist())))
        return events

    def _append(self, state: RequestState, tree: TokenTree, verdict: Verdict) -> int:
        """Append what `verdict` gives and what the grammar then forces; returns how many accepted nodes were kept."""
        try:
            token_ids = verdict.token_ids(tree).tolist()
            count = state.append(token_ids)
            keep_chosen(state, count)
            forced = state.append_forced()
            if state.speculates and state.request.drafter is not None:
                appended = np.array(token_ids[:count] + forced, np.int32)
                state.request.drafter.commit(state.request_id, appended)
        except Exception as error:  # the caller's criteria, tokenizer or drafter: it ends this request, not the others
            state.fail(error)
            return 0
        kept = min(count, verdict.num_accepted)
        if tree.num_nodes and state.request.drafter is not None:
            self.stats.add_draft(state.request.drafter, tree, verdict.path[:kept])
        stats = state.stats
        stats.num_sampling_forwards += 1
        stats.num_drafted_tokens += tree.num_nodes
        stats.num_accepted_tokens += kept
        return kept

    def _fork_followers(self, state: RequestState) -> None:
        assert state.sequence is not None
        while state.followers:
            follower = state.followers[0]
            follower.sequence = state.sequence.fork()
            follower.stats.num_reused_tokens = follower.num_prompt
            self.scheduler.running.append(follower)
            del state.followers[0]

    def _count(self, work: Seq[tuple[Share, Rows]], num_rows: int, times_s: tuple[float, float, float, float]) -> None:
        self.stats.num_forwards += 1
        self.stats.num_rows += num_rows
        for share, _ in work:
            share.state.stats.num_forwards += 1
        step, forward, chosen, draft = times_s
        self.stats.step_time_s += step
        self.stats.forward_time_s += forward
        self.stats.choose_time_s += chosen
        self.stats.draft_time_s += draft


def _first_logits_row(share: Share, computed: int) -> int:
    """First row of a request whose logits are wanted, counted within its rows."""
    state = share.state
    if state.request.keeps_rows:
        return min(max(0, state.num_prompt - 1 + state.num_recorded - computed), share.num_causal)
    return share.num_causal - 1 if share.samples else share.num_causal


def _turns(work: Seq[tuple[Share, Rows]]) -> list[Turn]:
    """Where each request's logits lie; copies of a prompt look at the rows of the one that computed it."""
    turns: list[Turn] = []
    first = 0
    for share, rows in work:
        num_causal_logits = share.num_causal - rows.first_logits_row
        num_known = num_causal_logits - 1 if share.samples else num_causal_logits
        state = share.state
        turns.append(Turn(state, first, num_known, share.samples, rows.tree))
        if share.samples:
            turns.extend(Turn(f, first + num_known, 0, True, _NO_TREE) for f in state.followers)
        first += num_causal_logits + rows.tree.num_nodes
    return turns


def _commit(state: RequestState, rows: Rows, outcome: Verdict | Exception | None, kept: int) -> None:
    """The chain and the first `kept` accepted nodes become part of the sequence; every other slot goes back."""
    assert state.sequence is not None
    if state.error is not None:
        state.sequence.commit([])
    elif kept and isinstance(outcome, Verdict):
        num_causal = len(rows.token_ids)
        path = outcome.path[:kept]
        token_ids = np.concatenate([rows.token_ids, rows.tree.token_ids[path]])
        state.sequence.commit(token_ids, np.concatenate([np.arange(num_causal), num_causal + path]))
    else:
        state.sequence.commit(rows.token_ids)

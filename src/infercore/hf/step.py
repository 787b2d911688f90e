"""One step of the engine: draft, reserve slots, run the packed forward, choose tokens, commit what was kept.

On a GPU steps overlap: while the tokens of one are on their way to the host, the forward of the next, which begins with
them, is already queued, and the host does its part of both behind the GPU's back.
"""

import time
from collections.abc import Sequence as Seq
from functools import partial

import numpy as np
import numpy.typing as npt
import torch

from infercore.errors import OutOfPages
from infercore.hf.choose import choose, keep_chosen
from infercore.hf.chosen import ChosenTokens
from infercore.hf.draft import (
    draft,
    lessons_of,
    num_top_tokens,
    show_drafters,
    show_features,
    teach_controller,
    top_tokens_of,
)
from infercore.hf.features import feature_observers
from infercore.hf.flight import Flight, turns_of
from infercore.hf.graphs import StepGraphs
from infercore.hf.packed_model import PackedModel
from infercore.hf.plan import Rows, build_plan, count_rows
from infercore.hf.request import TokenEvent
from infercore.hf.scheduler import Scheduler, Share
from infercore.hf.state import RequestState
from infercore.hf.stats import EngineStats
from infercore.kernels import apply_token_bitmask_
from infercore.radix import KVPool
from infercore.speculative import Controller, TokenTree, Verdict

_NO_TREE = TokenTree.empty()
_UNKNOWN = np.zeros(1, np.int32)  # stands for a token that is on the device only
_MAX_CHOSEN = 256  # rows of a step whose tokens are chosen on the device, where no graphs say


class Stepper:
    """Runs steps over a scheduler's requests.

    An exception anywhere leaves every request as it was before the step: slots that were reserved go back at the next
    call, and what was computed but not committed, or committed but not looked at, is computed again.

    Args:
        overlap: start the next forward before the tokens of the last one are read, where nothing but a greedy choice,
            with a grammar or without, is asked for.
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
        overlap: bool = False,
    ) -> None:
        self.scheduler = scheduler
        self.pool = pool
        self.model = model
        self.max_rows = max_rows
        self.controller = controller
        self.stats = stats
        self.graphs = graphs
        self.overlap = overlap
        self.chooses_on_device = overlap or model.device.type == "cuda"
        room = torch.zeros(_MAX_CHOSEN, dtype=torch.int64, device=model.device)
        self._chosen = ChosenTokens(room if graphs is None else graphs.chosen)
        self._flight: Flight | None = None

    def compile_kernels(self) -> None:
        """Run once what steps run outside of their forward on a GPU: masks, the choice, the moving of slots."""
        for dtype in {self.model.dtype, torch.float32}:
            logits = torch.zeros(1, self.model.vocab_size, dtype=dtype, device=self.model.device)
            bitmask = torch.full((1, -(-logits.shape[1] // 32)), -1, dtype=torch.int32, device=self.model.device)
            apply_token_bitmask_(logits, bitmask)
        self._chosen.launch([], logits.to(self.model.dtype))
        self.pool.move_slots(np.zeros(1, np.int64), np.zeros(1, np.int64))  # within the page that nobody owns

    def recover(self) -> None:
        """Put right what an interrupted step left."""
        if self._flight is None:
            self.scheduler.mend()

    def drop(self) -> None:
        """Forget a step that was started: its rows will be computed again."""
        self._flight = None
        self.scheduler.mend()

    def run(self) -> list[TokenEvent]:
        """Finish one forward over all running requests; returns what it added. The caller ends those that are done."""
        clock = time.perf_counter
        start = clock()
        flight, self._flight = self._flight, None
        outcomes: list[Verdict | Exception | None] | None = None
        if flight is not None:
            before_forward = reading = clock()
            flight.forget_finished()
        else:
            self.scheduler.mend()
            self.scheduler.admit()
            shares = self.scheduler.shares(self.max_rows)
            drafting = clock()
            trees = draft(shares, self.controller)
            self.stats.draft_time_s += clock() - drafting
            work = self._reserve([s for s in shares if s.state.error is None], trees)
            if not work:
                return []
            before_forward = clock()
            with self.model.faster(count_rows([rows for _, rows in work])):
                flight = self._depart(work)
                self._start_choice(flight)
                reading = clock()
                if not self.overlap:
                    outcomes = self._read(flight)
        following = None
        if outcomes is None:
            following = self._depart_behind(flight)
            reading = clock()
            outcomes = self._read(flight)
        chosen = clock()
        lessons = lessons_of(flight.turns, outcomes)
        events = self._apply(flight, outcomes)
        showing = clock()
        show_drafters(lessons, self._chosen.top_tokens if flight.on_device else partial(top_tokens_of, flight.logits))
        shown = clock()
        step_time_s = chosen - before_forward
        teach_controller(self.controller, flight.turns, outcomes, num_rows=flight.num_rows, step_time_s=step_time_s)
        if following is not None and following.learn_tokens():
            self._start_choice(following)
            self._flight = following
        self.stats.add_step(
            flight.num_rows,
            clock() - start,
            forward_s=reading - before_forward,
            choose_s=chosen - reading + shown - showing,
        )
        return events

    def _depart(self, work: list[tuple[Share, Rows]]) -> Flight:
        """Start the forward of `work`."""
        packed = [rows for _, rows in work]
        turns = turns_of(work)
        logits = self.graphs.forward(packed) if self.graphs is not None else None
        if logits is None:
            logits = self.model.forward(build_plan(packed, self.pool, self.model.device, self._chosen.tokens))
        for share, _ in work:
            share.state.stats.num_forwards += 1
        return Flight(work, turns, logits, count_rows(packed))

    def _start_choice(self, flight: Flight) -> None:
        """Let the device choose, if it can: the host reads the tokens when it needs them."""
        flight.on_device = self.chooses_on_device and self._chosen.serves(flight.turns, len(flight.logits))
        if flight.on_device:
            self._chosen.launch(flight.turns, flight.logits, num_top=num_top_tokens(flight.turns))

    def _read(self, flight: Flight) -> list[Verdict | Exception | None]:
        if flight.on_device:
            outcomes = self._chosen.read(flight.turns)
        else:
            outcomes = choose(flight.turns, flight.logits)
        show_features(self.model, flight.work, flight.turns, outcomes)
        return outcomes

    def _depart_behind(self, flight: Flight) -> Flight | None:
        """Start the step behind `flight`, whose tokens are on the device; None where it depends on what they are.

        What a request adds to it is known but for that one token. One that turns out to have ended runs a row in vain.
        """
        if not (self.overlap and flight.on_device and _all_plain(self.scheduler.running)):
            return None
        for share, rows in flight.work:
            assert share.state.sequence is not None
            share.state.sequence.commit(rows.token_ids)
        flight.is_committed = True
        for turn in flight.turns:
            if turn.samples:
                turn.state.source = turn.first_row + turn.num_known  # its one row: drafts do not fly ahead
        self.scheduler.admit()
        if not _all_plain(self.scheduler.running):
            return None  # a newcomer drafts, or has copies: it begins with the next step
        work = self._reserve_spare(self.scheduler.shares(self.max_rows))
        if not work:
            return None
        with self.model.faster(count_rows([rows for _, rows in work])):
            return self._depart(work)

    def _reserve_spare(self, shares: Seq[Share]) -> list[tuple[Share, Rows]]:
        """Slots for every share where pages are not short; else none for anyone."""
        work: list[tuple[Share, Rows]] = []
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
                return slots

    def _apply(self, flight: Flight, outcomes: Seq[Verdict | Exception | None]) -> list[TokenEvent]:
        """Append the chosen tokens, commit the rows that lead to them, and fork copies of finished prompts."""
        rows_of = {share.state.request_id: rows for share, rows in flight.work}
        events: list[TokenEvent] = []
        for turn, outcome in zip(flight.turns, outcomes, strict=True):
            state = turn.state
            state.source = None
            before, kept = state.num_output, 0
            rows = rows_of.get(state.request_id)
            if rows is None and state.sequence is None:
                continue  # a copy whose leader failed a moment ago: the scheduler lets it go on alone
            if isinstance(outcome, Exception):
                state.fail(outcome)
            elif outcome is not None:
                kept = self._append(state, turn.tree, outcome)
            if rows is not None and not flight.is_committed:
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
            for observer in feature_observers(follower.request.drafter):
                observer.fork(state.request_id, follower.request_id)
            self.scheduler.running.append(follower)
            del state.followers[0]


def _all_plain(running: Seq[RequestState]) -> bool:
    """Nobody drafts or has copies: what the next step does for them depends on no more than one token each."""
    return not any(state.followers or (state.speculates and state.request.drafter is not None) for state in running)


def _first_logits_row(share: Share, computed: int) -> int:
    """First row of a request whose logits are wanted, counted within its rows."""
    state = share.state
    if state.request.keeps_rows:
        return min(max(0, state.num_prompt - 1 + state.num_recorded - computed), share.num_causal)
    return share.num_causal - 1 if share.samples else share.num_causal


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

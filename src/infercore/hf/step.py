"""One step of the engine: draft, reserve slots, run the packed forward, choose tokens, commit what was kept.

On a GPU steps overlap: while the tokens of one are on their way to the host, the forward of the next, which begins with
them, is already queued. Where the next step depends on what the tokens are, because it drafts, its forward is started
as soon as they are known; whatever can wait (events, counts, the caller's loop) happens behind the GPU's back. So do
drafts for a step that runs without them, made only to see whether they would have been right.
"""

import time
from collections.abc import Container
from collections.abc import Sequence as Seq
from functools import partial

import numpy as np
import torch

from infercore.hf.choices import Choices, choices_size
from infercore.hf.choose import choose
from infercore.hf.chosen import ChosenTokens
from infercore.hf.draft import (
    draft,
    lessons_of,
    num_top_tokens,
    show_drafters,
    show_features,
    show_passing_features,
    teach_controller,
    top_tokens_of,
    watch,
)
from infercore.hf.flight import Flight, turns_of
from infercore.hf.graphs import ROWS, StepGraphs
from infercore.hf.packed_model import PackedModel
from infercore.hf.plan import build_plan, count_rows
from infercore.hf.prefix_groups import PrefixGrouping
from infercore.hf.request import Event
from infercore.hf.reserve import Work, reserve, reserve_spare
from infercore.hf.scheduler import Scheduler
from infercore.hf.settle import Outcomes, settle, tell
from infercore.hf.state import RequestState
from infercore.hf.stats import EngineStats
from infercore.kernels import apply_token_bitmask_
from infercore.radix import KVPool
from infercore.speculative import Controller, Verdict

_MAX_CHOSEN = 256  # rows of a step whose tokens are chosen on the device, where no graphs say


class Stepper:
    """Runs steps over a scheduler's requests.

    An exception anywhere leaves every request as it was before the step: slots that were reserved go back at the next
    call, and what was computed but not committed, or committed but not looked at, is computed again. Tokens that an
    interrupted step had appended are told of by the next one.

    Args:
        overlap: start the next forward as early as can be: before the tokens of the last one are read, where nothing
            but a choice or a draw, with a grammar or without, is asked for; else as soon as they are.
        prefill_by_graphs: up to so many rows of prefill are run in steps that graphs serve; more of them at once.
        grouping: finds sequences that begin with the same pages, for attention to read these once; None: nobody does.
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
        prefill_by_graphs: int = 0,
        overlap: bool = False,
        grouping: PrefixGrouping | None = None,
    ) -> None:
        self.scheduler = scheduler
        self.pool = pool
        self.model = model
        self.max_rows = max_rows
        self.prefill_by_graphs = prefill_by_graphs
        self.controller = controller
        self.stats = stats
        self.overlap = overlap
        self.grouping = grouping
        self.chooses_on_device = overlap or model.device.type == "cuda"
        self._flight: Flight | None = None
        self._last_read = 0.0
        self._gap_since: float | None = None  # tokens were read then, and no forward has been started since
        self.use_graphs(graphs)

    def use_graphs(self, graphs: StepGraphs | None) -> None:
        """Run steps by these from now on."""
        self.graphs = graphs
        if graphs is not None:
            self._chosen = ChosenTokens(graphs.choices)
        else:
            memory = torch.zeros(choices_size(_MAX_CHOSEN), dtype=torch.uint8, device=self.model.device)
            self._chosen = ChosenTokens(Choices(memory, _MAX_CHOSEN))

    def compile_kernels(self) -> None:
        """Run once what steps run outside of their forward on a GPU: masks, the choice, the moving of slots."""
        for dtype in {self.model.dtype, torch.float32}:
            logits = torch.zeros(1, self.model.vocab_size, dtype=dtype, device=self.model.device)
            bitmask = torch.full((1, -(-logits.shape[1] // 32)), -1, dtype=torch.int32, device=self.model.device)
            apply_token_bitmask_(logits, bitmask)
        self._chosen.launch([], logits.to(self.model.dtype))
        for count in (1, 16):  # few and many of them, each onto itself
            self.pool.move_slots(np.arange(count), np.arange(count))

    def recover(self) -> None:
        """Put right what an interrupted step left."""
        if self._flight is None:
            self.scheduler.mend()

    def drop(self) -> None:
        """Forget a step that was started: its rows will be computed again."""
        self._flight = None
        self.scheduler.mend()

    def run(self, events: list[Event]) -> None:
        """Finish one forward over all running requests; what it added goes to `events`.

        The caller ends those that are done.
        """
        start = time.perf_counter()
        flight, self._flight = self._flight, None
        if flight is not None:
            flight.forget_finished()
        else:
            self.scheduler.mend()
            flight = self._depart_next()
            if flight is None:
                return
        following = self._depart_behind(flight)
        outcomes = self._read(flight)
        step_time_s = self._time(flight, is_gap=following is None)
        self._learn(flight, outcomes, step_time_s)
        if any(turn.samples and outcome is None for turn, outcome in zip(flight.turns, outcomes, strict=True)):
            self.drop()  # a draw could not be made: its row is computed again
        elif following is not None and following.learn_tokens():
            self._start_choice(following)
            self._flight = following
            self._watch(following)
        elif self.overlap and not any(state.is_done for state in self.scheduler.running):
            self._flight = self._depart_next()
            if self._flight is not None:
                self._flight.started_at = self._last_read  # what the host does in between belongs to the step as well
        tell(flight, outcomes, self.stats, events)
        self.stats.num_forwards += 1
        self.stats.num_rows += flight.num_rows
        self.stats.step_time_s += time.perf_counter() - start

    def _depart_next(self) -> Flight | None:
        """Start the next step, all tokens being known; None if there is nothing to do."""
        self.scheduler.admit()
        shares = self.scheduler.shares(self._most_rows())
        drafting = time.perf_counter()
        trees = draft(shares, self.controller)
        self.stats.draft_time_s += time.perf_counter() - drafting
        work = reserve(self.scheduler, [s for s in shares if s.state.error is None], trees)
        if not work:
            self._gap_since = None
            return None
        with self.model.faster(count_rows([rows for _, rows in work])):
            flight = self._depart(work)
            self._start_choice(flight)
            show_passing_features(self.model, flight.work, flight.num_rows)
            if not self.overlap:
                flight.outcomes = self._read(flight)
        return flight

    def _depart_behind(self, flight: Flight) -> Flight | None:
        """Start the step behind `flight`, whose tokens are on the device; None where it depends on what they are.

        What a request adds to it is known but for that one token. One that turns out to have ended runs a row in vain.
        """
        if not (self.overlap and flight.on_device):
            return None
        resting = self._resting(flight)
        if not _all_plain(self.scheduler.running, resting):
            return None
        for share, rows in flight.work:
            assert share.state.sequence is not None
            share.state.sequence.commit(rows.token_ids)
        flight.is_committed = True
        for turn in flight.turns:
            if turn.samples:
                turn.state.source = turn.first_row + turn.num_known  # its one row: drafts do not fly ahead
        self.scheduler.admit()
        if not _all_plain(self.scheduler.running, resting):
            return None  # a newcomer drafts, or has copies: it begins with the next step
        work = reserve_spare(self.scheduler.shares(self._most_rows()))
        if not work:
            return None
        with self.model.faster(count_rows([rows for _, rows in work])):
            return self._depart(work)

    def _most_rows(self) -> int:
        """Of a step: what a graph serves, where little prefill waits and some steps by graphs are done sooner.

        Not where those who decode would leave it less than half of such a step.
        """
        if self.graphs is None or not self.graphs.serves or len(self.scheduler.running) > ROWS[-1] // 2:
            return self.max_rows
        by_graphs = self.scheduler.num_prefill_rows() <= self.prefill_by_graphs
        return min(self.max_rows, ROWS[-1]) if by_graphs else self.max_rows

    def _resting(self, flight: Flight) -> set[int]:
        """Requests that could draft, but of which the controller wants nothing in the next step, nor wanted in this."""
        if self.controller is None or any(turn.tree.num_nodes for turn in flight.turns):
            return set()
        running = self.scheduler.running
        ids = [state.request_id for state in running if state.speculates and not state.feature_observers]
        if not ids or any(self.controller.budget(ids, num_other_rows=len(running) - len(ids))):
            return set()
        return set(ids)

    def _watch(self, flight: Flight) -> None:
        """Drafts for `flight`, which is under way without any: to be judged, in time that the host has anyway."""
        if self.controller is not None:
            start = time.perf_counter()
            watch([share for share, _ in flight.work], self.controller)
            self.stats.draft_time_s += time.perf_counter() - start

    def _depart(self, work: Work) -> Flight:
        """Start the forward of `work`."""
        start = time.perf_counter()
        groups = None
        if self.grouping is not None:
            work, groups = self.grouping.of(work)
        packed = [rows for _, rows in work]
        logits = self.graphs.forward(packed, groups) if self.graphs is not None else None
        by_graph = logits is not None
        if logits is None:
            chosen = self._chosen.choices.tokens
            logits = self.model.forward(build_plan(packed, self.pool, self.model.device, chosen, groups))
        launched = time.perf_counter()
        if self._gap_since is not None:
            self.stats.gap_time_s += launched - self._gap_since
            self._gap_since = None
        self.stats.forward_time_s += launched - start
        return Flight(work, turns_of(work, all_rows=by_graph), logits, count_rows(packed), by_graph, start)

    def _start_choice(self, flight: Flight) -> None:
        """Let the device choose, if it can: the host reads the tokens when it needs them."""
        start = time.perf_counter()
        turns = flight.turns
        flight.on_device = self.chooses_on_device and self._chosen.serves(turns, len(flight.logits))
        if flight.on_device:
            self._chosen.launch(turns, flight.logits, is_chosen=flight.by_graph, num_top=num_top_tokens(turns))
        self.stats.forward_time_s += time.perf_counter() - start

    def _read(self, flight: Flight) -> list[Verdict | Exception | None]:
        """What came out of it, waiting for that if need be."""
        if flight.outcomes is not None:
            return flight.outcomes
        start = time.perf_counter()
        outcomes = self._chosen.read(flight.turns) if flight.on_device else choose(flight.turns, flight.logits)
        show_features(self.model, flight.work, flight.turns, outcomes)
        self.stats.choose_time_s += time.perf_counter() - start
        return outcomes

    def _time(self, flight: Flight, *, is_gap: bool) -> float:
        """Seconds of a step whose tokens were read now, from its start or the end of the one before.

        is_gap: no other forward is under way.
        """
        now = time.perf_counter()
        step_time_s = now - max(flight.started_at, self._last_read)
        self._last_read = now
        self._gap_since = now if is_gap else None
        return step_time_s

    def _learn(self, flight: Flight, outcomes: Outcomes, step_time_s: float) -> None:
        """What the next step needs to know: tokens, pages, and what drafters and controller make of the outcome."""
        lessons = lessons_of(flight.turns, outcomes)
        settle(self.scheduler, self.pool, flight, outcomes)
        if lessons:
            start = time.perf_counter()
            top_of = self._chosen.top_tokens if flight.on_device else partial(top_tokens_of, flight.logits)
            show_drafters(lessons, top_of)
            self.stats.choose_time_s += time.perf_counter() - start
        if self.controller is not None:
            teach_controller(self.controller, flight.turns, outcomes, num_rows=flight.num_rows, step_time_s=step_time_s)


def _all_plain(running: Seq[RequestState], resting: Container[int]) -> bool:
    """Nobody drafts or has copies: what the next step does for them depends on no more than one token each.

    A drafter that works on features reads them between two forwards: its requests are never plain.
    """
    return not any(
        state.followers or (state.speculates and state.request.drafter is not None and state.request_id not in resting)
        for state in running
    )

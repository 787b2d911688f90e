"""Drafts of a step: who proposes what for whom, cut to what can be reached; and what drafters and controller learn."""

from collections.abc import Callable
from collections.abc import Sequence as Seq
from dataclasses import dataclass, field, replace

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from infercore.hf.choose import Turn
from infercore.hf.grammar_state import IntGrammarState
from infercore.hf.packed_model import PackedModel
from infercore.hf.plan import Rows
from infercore.hf.scheduler import Share
from infercore.hf.state import RequestState
from infercore.speculative import (
    Controller,
    Drafter,
    DraftRequest,
    FeatureObserver,
    TokenTree,
    TopTokenObserver,
    Verdict,
    top_tokens,
)

_NO_TOKENS = np.zeros(0, np.int32)


def draft(shares: Seq[Share], controller: Controller | None) -> dict[int, TokenTree]:
    """A tree for each request that speculates now, pruned by its grammar, its length and the controller."""
    states = _drafting(shares)
    if not states:
        return {}
    ids, other_rows = _rows_of(shares, states)
    budgets = None if controller is None else controller.budget(ids, num_other_rows=other_rows)
    asked = _within(states, budgets)
    trees = _propose(asked)
    if controller is not None and asked:
        selected = controller.select(list(trees), list(trees.values()), num_other_rows=other_rows)
        trees = dict(zip(trees, selected, strict=True))
    return trees


def watch(shares: Seq[Share], controller: Controller) -> None:
    """Let the controller see what would have been drafted for a step that is under way without drafts.

    Not of requests that are sampled: a drafter that draws would use up their generator. Nor of those whose drafters
    read features, which come with the step.
    """
    states = [s for s in _drafting(shares) if s.request.sampling.is_greedy and not s.feature_observers]
    ids, other_rows = _rows_of(shares, states)
    asked = _within(states, controller.watch(ids, num_other_rows=other_rows))
    trees = _propose(asked)
    if asked:
        controller.select(list(trees), list(trees.values()), num_other_rows=other_rows)


def _drafting(shares: Seq[Share]) -> list[RequestState]:
    return [
        s.state for s in shares if s.samples and s.state.speculates and s.state.remaining > 1 and not s.state.followers
    ]


def _rows_of(shares: Seq[Share], states: Seq[RequestState]) -> tuple[list[int], int]:
    """Ids of `states`, and the rows of the step besides one of each."""
    return [s.request_id for s in states], sum(s.num_causal for s in shares) - len(states)


def _within(states: Seq[RequestState], budgets: Seq[int] | None) -> list[tuple[RequestState, int]]:
    """Those that may have a draft, and of how many nodes."""
    limits = [s.request.max_draft_nodes for s in states]
    if budgets is not None:
        limits = [min(a, b) for a, b in zip(limits, budgets, strict=True)]
    return [
        (state, limit)
        for state, limit in zip(states, limits, strict=True)
        if limit > 0 and state.request.drafter is not None
    ]


def _propose(asked: Seq[tuple[RequestState, int]]) -> dict[int, TokenTree]:
    """What drafters have to say, without what cannot be reached; one that breaks its law ends its own requests."""
    trees: dict[int, TokenTree] = {}
    by_drafter: dict[int, tuple[Drafter, list[tuple[RequestState, int]]]] = {}
    for state, limit in asked:
        drafter = state.request.drafter
        assert drafter is not None
        by_drafter.setdefault(id(drafter), (drafter, []))[1].append((state, limit))
    for drafter, members in by_drafter.values():
        try:
            proposed = drafter.propose([_draft_request(state, limit) for state, limit in members])
            if len(proposed) != len(members):
                raise ValueError(f"{drafter} gave {len(proposed)} trees for {len(members)} requests")
        except Exception as error:
            for state, _ in members:
                state.fail(error)
            continue
        for (state, limit), tree in zip(members, proposed, strict=True):
            if tree.num_nodes > limit:
                state.fail(ValueError(f"{drafter} gave {tree.num_nodes} nodes, asked for at most {limit}"))
            elif tree.num_nodes:
                trees[state.request_id] = _prune(tree, state)
    return trees


@dataclass(slots=True)
class Lesson:
    """Tokens that were pending or accepted in a step, and the rows of its logits behind them, for one drafter.

    A piece for each request.
    """

    observer: TopTokenObserver
    token_ids: list[npt.NDArray[np.int32]]
    rows: list[npt.NDArray[np.int64]]


def lessons_of(turns: Seq[Turn], outcomes: Seq[Verdict | Exception | None]) -> list[Lesson]:
    """What drafters that learn from the likeliest tokens will be shown; to be taken before tokens are appended."""
    seen: dict[int, Lesson] = {}
    for turn, verdict in zip(turns, outcomes, strict=True):
        observer = turn.state.top_observer
        if observer is not None and observer.num_top_tokens and isinstance(verdict, Verdict):
            lesson = seen.get(id(observer))
            if lesson is None:
                lesson = seen[id(observer)] = Lesson(observer, [], [])
            path, first = verdict.path, turn.first_row + turn.num_known
            token_ids, rows = np.empty(len(path) + 1, np.int32), np.empty(len(path) + 1, np.int64)
            token_ids[0], rows[0] = turn.state.tokens[turn.state.num_tokens - 1], first
            if len(path):
                token_ids[1:] = turn.tree.token_ids[path]
                rows[1:] = path
                rows[1:] += first + 1
            lesson.token_ids.append(token_ids)
            lesson.rows.append(rows)
    return list(seen.values())


def show_drafters(
    lessons: Seq[Lesson], top_of: Callable[[npt.NDArray[np.int64], int], npt.NDArray[np.integer]]
) -> None:
    """Give each drafter the likeliest tokens of its rows; `top_of(rows, count)` has them, likeliest first."""
    for lesson in lessons:
        alone = len(lesson.rows) == 1
        rows = lesson.rows[0] if alone else np.concatenate(lesson.rows)
        token_ids = lesson.token_ids[0] if alone else np.concatenate(lesson.token_ids)
        lesson.observer.observe(token_ids, top_of(rows, lesson.observer.num_top_tokens))


def num_top_tokens(turns: Seq[Turn]) -> int:
    """The most of a row's likeliest tokens that a drafter of these requests learns from; 0 where none does."""
    most = 0
    for turn in turns:
        if (observer := turn.state.top_observer) is not None:
            most = max(most, observer.num_top_tokens)
    return most


def top_tokens_of(logits: Tensor, rows: npt.NDArray[np.int64], count: int) -> npt.NDArray[np.integer]:
    """The likeliest tokens of some rows; on a GPU with a wait."""
    if logits.device.type == "cpu" and logits.dtype is torch.float32:
        return top_tokens(logits.detach().numpy(), rows, count)
    top: npt.NDArray[np.int64] = logits[torch.from_numpy(rows).to(logits.device)].topk(count).indices.cpu().numpy()
    return top


@dataclass(slots=True)
class _Shown:
    """What one `FeatureObserver` is about to see."""

    observer: FeatureObserver
    request_ids: list[int] = field(default_factory=list)
    positions: list[int] = field(default_factory=list)
    rows: list[npt.NDArray[np.int64]] = field(default_factory=list)
    texts: list[npt.NDArray[np.int32]] = field(default_factory=list)
    gained: list[npt.NDArray[np.int32]] = field(default_factory=list)


def show_passing_features(model: PackedModel, work: Seq[tuple[Share, Rows]], num_rows: int) -> None:
    """Hidden states of a forward that was launched just now, for drafters that keep them until they know which stay."""
    told: set[int] = set()
    for share, _ in work:
        for observer in share.state.feature_observers:
            if id(observer) not in told and hasattr(observer, "passed"):  # a `PassingObserver`; `isinstance` is slow
                told.add(id(observer))
                observer.passed(model.features(observer.feature_layers, num_rows))


def show_features(
    model: PackedModel, work: Seq[tuple[Share, Rows]], turns: Seq[Turn], outcomes: Seq[Verdict | Exception | None]
) -> None:
    """Hidden states of the rows that stay, chains and accepted nodes, for drafters that work on them."""
    seen: dict[int, _Shown] = {}
    verdicts: dict[int, Verdict | Exception | None] = {}
    start = 0
    for share, rows in work:
        state, first = share.state, start
        start += len(rows.slots)
        if not state.feature_observers:
            continue
        if not verdicts:
            verdicts = {turn.state.request_id: outcome for turn, outcome in zip(turns, outcomes, strict=True)}
        chain = len(rows.token_ids)
        verdict = verdicts.get(state.request_id)
        gained, path = _NO_TOKENS, _NO_TOKENS
        if isinstance(verdict, Verdict):
            gained, path = verdict.token_ids(rows.tree), verdict.path
        kept = np.arange(first, first + chain + len(path))
        if len(path):
            kept[chain:] = path
            kept[chain:] += first + chain
        for observer in state.feature_observers:
            shown = seen.setdefault(id(observer), _Shown(observer))
            shown.request_ids.append(state.request_id)
            shown.positions.append(rows.sequence.num_tokens)
            shown.rows.append(kept)
            shown.texts.append(state.tokens[: state.num_tokens])
            shown.gained.append(gained)
    for shown in seen.values():
        features = model.features(shown.observer.feature_layers, start)
        shown.observer.see(shown.request_ids, shown.positions, shown.rows, features, shown.texts, gained=shown.gained)


def teach_controller(
    controller: Controller | None,
    turns: Seq[Turn],
    outcomes: Seq[Verdict | Exception | None],
    *,
    num_rows: int,
    step_time_s: float,
) -> None:
    if controller is None:
        return
    judged = [
        (turn, verdict)
        for turn, verdict in zip(turns, outcomes, strict=True)
        if isinstance(verdict, Verdict) and turn.state.speculates
    ]
    controller.update(
        [turn.state.request_id for turn, _ in judged],
        [turn.tree for turn, _ in judged],
        [verdict for _, verdict in judged],
        step_time_s=step_time_s,
        num_other_rows=num_rows - sum(1 + turn.tree.num_nodes for turn, _ in judged),
    )


def _draft_request(state: RequestState, max_nodes: int) -> DraftRequest:
    grammar = state.grammar if isinstance(state.grammar, IntGrammarState) else None
    return DraftRequest(
        state.request_id,
        state.tokens[: state.num_tokens],
        max_nodes,
        grammar=None if grammar is None else grammar.grammar,
        grammar_state=None if grammar is None else grammar.state,
        temperature=state.request.sampling.temperature,
        generator=state.draft_generator,
    )


def _prune(tree: TokenTree, state: RequestState) -> TokenTree:
    """Drop nodes that can never be reached: too deep for the length that is left, or refused by the grammar.

    Where forced tokens are appended, nodes that force some go as well, with all below them: as the token after the
    accepted path they bring the forced ones along, in the one spelling that plain decoding gives them. Nodes that were
    drawn from a distribution stay: their probability is part of the verification. `RequestState.append` then stops
    there. The tree carries its grammar states from here on.
    """
    if tree.num_nodes >= state.remaining:  # else no node is that deep
        tree = tree.truncate(tree.depths < state.remaining)
    if state.grammar is None or not tree.num_nodes:
        return tree
    states = state.grammar.walk(tree)
    tree = replace(tree, grammar_states=states)
    if tree.draft_probs is not None:
        return tree
    keep = states >= 0
    if state.request.jump_forward:
        keep &= ~state.grammar.forces(tree)
        for node, parent in enumerate(tree.parents.tolist()):
            keep[node] &= parent < 0 or keep[parent]
    return tree if keep.all() else tree.truncate(keep)

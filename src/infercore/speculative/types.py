"""The records and protocols of this part."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Int32, Int64, Integer
from torch import Tensor

from infercore.speculative.tree import TokenTree


@runtime_checkable
class DraftGrammar(Protocol):
    """What drafters use of a grammar: states are ints, so a tree of states costs nothing to keep."""

    def advance(self, state: int, token_id: int) -> int:
        """The state after `token_id`; -1: refused."""
        ...

    def forced_tokens(self, state: int) -> Int32[np.ndarray, "n"]:
        """The only tokens that may follow, possibly none."""
        ...


@dataclass(frozen=True, slots=True)
class DraftRequest:
    """One sequence that wants a draft in this step."""

    request_id: int
    token_ids: Int32[np.ndarray, "tokens"] | Int64[np.ndarray, "tokens"]
    """Prompt and output so far, the pending token (the tree's root) last. A view into the caller's buffer is fine:
    drafters copy what they keep."""
    max_nodes: int
    features: Tensor | None = None
    """The target's hidden states, for drafters that ask for them."""
    grammar: DraftGrammar | None = None
    grammar_state: int | None = None
    """State of `grammar` after the pending token."""
    temperature: float = 0.0
    """0: the target decodes greedily. A drafter with probabilities may draw at another temperature all the same."""
    generator: torch.Generator | None = None
    """The drafter's only randomness for this request; another one than verification uses."""


@runtime_checkable
class Drafter(Protocol):
    """Proposes tokens; verification decides. `commit` tells which were kept, so that tables and features can follow.

    Laws: `propose` returns one tree per request, in order, with at most `max_nodes` nodes, none for `max_nodes <= 0`;
    siblings carry different tokens unless drawn independently; what it proposes depends on earlier calls, never on
    the other requests of the same call. `commit` and `close` accept ids that were never proposed for.
    """

    def propose(self, requests: Sequence[DraftRequest]) -> list[TokenTree]:
        """A tree for every request of the batch: one forward per depth, not per request."""
        ...

    def commit(
        self, request_id: int, accepted_token_ids: Int32[np.ndarray, "n"], features: Tensor | None = None
    ) -> None:
        """The tokens that the step appended to the request: the accepted path, and the token after it."""
        ...

    def close(self, request_id: int) -> None:
        """The request is finished, or aborted: its state may go. Idempotent."""
        ...


@runtime_checkable
class TreeGrower(Protocol):
    """A drafter that can write its tree into the caller's array; `Union` then builds one tree in place of several."""

    def grow(self, request: DraftRequest, nodes: Int32[np.ndarray, "3 capacity"], start: int) -> int:
        """The tree that `propose` would give, in the columns of `nodes` from `start` on; returns its number of nodes.

        Row 0 takes token ids, row 1 parents (counted from `start`), row 2 the bits of float32 scores. There is room for
        `request.max_nodes` more columns.
        """
        ...


@runtime_checkable
class TopTokenObserver(Protocol):
    """A drafter that learns from the target's logits; a decoding loop calls `observe` where it finds it.

    Rows that were computed anyway are enough: the pending token's, accepted nodes', rejected ones'.
    """

    num_top_tokens: int
    """Columns that `observe` wants; 0: do not call it."""

    def observe(self, token_ids: Integer[np.ndarray, "rows"], top_token_ids: Integer[np.ndarray, "rows top"]) -> None:
        """The target's `num_top_tokens` likeliest tokens after each of `token_ids`, likeliest first.

        -1 may stand where fewer are possible at all.
        """
        ...


@runtime_checkable
class FeatureObserver(Protocol):
    """A drafter that works on the target's hidden states; a decoding loop hands over those of every row that it keeps.

    Laws: `see` comes after each forward, before the `commit` of what it gained; what it tells stands until `see` tells
    otherwise of the same positions. Positions that are never told (a prefix that came from a cache) are not known.
    """

    feature_layers: tuple[int, ...]
    """Columns of `features`, one behind the other: the inputs of these layers of the target (their number: the output
    of the last one); -1: the last hidden state as the output embeddings take it."""

    def see(
        self,
        request_ids: Sequence[int],
        first_positions: Sequence[int],
        rows: Sequence[Int64[np.ndarray, "_"]],
        features: Tensor,
        texts: Sequence[Integer[np.ndarray, "_"]],
        gained: Sequence[Integer[np.ndarray, "_"]] = (),
    ) -> None:
        """Per request the rows of `features` that stand for its tokens from `first_positions` on, and its text so far.

        `features` is valid during the call only, and for what is queued on the device in it. The text may be longer or
        shorter than what the rows stand for. `gained`: the tokens that each text is about to go on with, where they are
        known, so that a draft may start while the host does its bookkeeping.
        """
        ...

    def fork(self, request_id: int, new_request_id: int) -> None:
        """What was seen of one request holds for another as well, which continues the same text."""
        ...


@dataclass(frozen=True, slots=True, eq=False)
class Verdict:
    """What one step adds to one sequence: the accepted nodes, and one more token from the target itself."""

    path: Int32[np.ndarray, "accepted"]
    """Indices of the accepted nodes, from the root's child down."""
    next_token_id: int
    """The next pending token; it is no node of the tree."""

    @property
    def num_accepted(self) -> int:
        return len(self.path)

    @property
    def accept_length(self) -> int:
        """Tokens gained by this forward."""
        return len(self.path) + 1

    def token_ids(self, tree: TokenTree) -> Int32[np.ndarray, "gained"]:
        """The `accept_length` tokens that this step appends to the sequence."""
        token_ids = np.empty(len(self.path) + 1, np.int32)
        token_ids[:-1] = tree.token_ids[self.path]
        token_ids[-1] = self.next_token_id
        return token_ids


@runtime_checkable
class Controller(Protocol):
    """Decides how many draft tokens a step verifies. All methods take the whole batch and run on the host.

    A step is: `budget`, then the drafter's `propose` with those budgets, `select`, the forward, `update`. Where all
    budgets are 0 there is neither `propose` nor `select`. Where steps overlap, `budget` is also asked before the
    `update` of the step under way: 0 for all, and the next step begins behind it without another question; else
    `budget` is asked again once that `update` has come, and should not have changed its mind without a reason. Of a
    step that begins behind another one `watch` is told.
    """

    def budget(self, request_ids: Sequence[int], *, num_other_rows: int = 0) -> list[int]:
        """Most nodes worth drafting per request; 0: do not draft.

        `num_other_rows`: rows of this forward that are there anyway (prefill chunks, forced tokens), without the one
        pending token of each request.
        """
        ...

    def watch(self, request_ids: Sequence[int], *, num_other_rows: int = 0) -> list[int]:
        """A step without drafts was started behind the one before: most nodes to draft only to be judged; 0: none.

        `request_ids`: those that could have a draft now, possibly nobody. Where any of the numbers is not 0, `propose`
        and `select` follow, and what that returns is thrown away. `update` of the step comes with empty trees.
        """
        ...

    def select(
        self, request_ids: Sequence[int], trees: Sequence[TokenTree], *, num_other_rows: int = 0
    ) -> list[TokenTree]:
        """The trees cut to what is worth verifying in one forward; the same objects where nothing is cut.

        Those of requests for which nothing was proposed may be left out, even all of them.
        """
        ...

    def update(
        self,
        request_ids: Sequence[int],
        trees: Sequence[TokenTree],
        verdicts: Sequence[Verdict],
        *,
        step_time_s: float,
        num_other_rows: int = 0,
    ) -> None:
        """What the step brought: `trees` as they were verified; `step_time_s` of the forward and what belongs to it."""
        ...

    def close(self, request_id: int) -> None:
        """The request is finished. Idempotent."""
        ...


@runtime_checkable
class ForwardFn(Protocol):
    """A causal language model as `DraftModelDrafter` calls it; `infercore.hf` implements it."""

    def forward(
        self,
        request_ids: Sequence[int],
        texts: Sequence[Integer[np.ndarray, "_"]],
        trees: Sequence[TokenTree],
    ) -> list[Tensor]:
        """Logits `[1 + num_nodes, vocab]` per request: after the whole text, and after each node below its end.

        The implementation keeps the KV of what the text has in common with the one of the last call for the same id,
        and drops that of the trees.
        """
        ...

    def close(self, request_id: int) -> None:
        """The KV of this request may go. Idempotent."""
        ...

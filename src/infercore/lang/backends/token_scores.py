"""Log probabilities of several continuations of one prompt, over a token tree, in the prompt's own forward.

The engine verifies draft trees in one packed forward and shows the logits of every node to logits processors. So the
continuations are handed in as a draft: their common beginnings are computed once, and scoring adds no forward.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from infercore.hf import Engine, RequestHandle
from infercore.speculative import DraftRequest, TokenTree


class TreeScorer:
    """Scores `continuations` (token ids, each at least one) after `prompt`. Poll it after each step of the engine."""

    def __init__(self, engine: Engine, prompt: npt.NDArray[np.int32], continuations: Sequence[Sequence[int]]) -> None:
        self._engine = engine
        self._prompt = prompt
        self._continuations = [list(c) for c in continuations]
        self._reader = _NodeReader(len(prompt), self._continuations)
        self._handle: RequestHandle | None = self._submit()
        self._rest: dict[int, RequestHandle] = {}
        self._scores: list[list[float] | None] = [None] * len(self._continuations)

    def poll(self) -> list[list[float]] | None:
        """Per continuation the log probability of each of its tokens; None while they are not known."""
        if self._handle is not None:
            if not self._reader.seen and not self._handle.is_done:
                return None
            completion = self._handle.completion
            if completion is not None and completion.error is not None:
                raise completion.error
            self._handle.cancel()
            self._handle = None
            for i, continuation in enumerate(self._continuations):
                self._scores[i] = self._reader.scores(continuation)
                if self._scores[i] is None:  # a controller cut the tree, or the request ended early
                    self._rest[i] = self._score_alone(continuation)
        for i, handle in list(self._rest.items()):
            if handle.completion is not None:
                if handle.completion.error is not None:
                    raise handle.completion.error
                self._scores[i] = [entry.logprob for entry in handle.completion.logprobs or ()]
                del self._rest[i]
        known = [row for row in self._scores if row is not None]
        return known if len(known) == len(self._scores) else None

    def cancel(self) -> None:
        for handle in (self._handle, *self._rest.values()):
            if handle is not None:
                handle.cancel()

    def _submit(self) -> RequestHandle:
        longest = max(len(c) for c in self._continuations)
        request = self._engine.request(
            self._prompt,
            max_new_tokens=longest + 1,  # a node at depth d is drafted while more than d tokens may follow
            logits_processors=(self._reader,),
            drafter=self._reader,
            max_draft_nodes=self._reader.tree.num_nodes,
            eos_token_ids=(),
        )
        return self._engine.submit(request)[0]

    def _score_alone(self, continuation: list[int]) -> RequestHandle:
        request = self._engine.request(self._prompt, logprobs=0)
        return self._engine.submit(replace(request, completion_ids=np.array(continuation, np.int32)))[0]


class _NodeReader:
    """The drafter that proposes the tree, and the processor that reads what the model says at its nodes."""

    keeps_state = False  # what it keeps does not change its answer: scores pass through as they are

    def __init__(self, num_prompt: int, continuations: Sequence[list[int]]) -> None:
        self._num_prompt = num_prompt
        self._children: dict[tuple[int, ...], list[int]] = {}
        for continuation in continuations:
            for depth, token_id in enumerate(continuation):
                children = self._children.setdefault(tuple(continuation[:depth]), [])
                if token_id not in children:
                    children.append(token_id)
        self.tree = _tree_of(list(self._children))
        self._logprobs: dict[tuple[int, ...], dict[int, float]] = {}

    @property
    def seen(self) -> bool:
        """The prompt's forward has run."""
        return () in self._logprobs

    def scores(self, continuation: list[int]) -> list[float] | None:
        row = []
        for depth, token_id in enumerate(continuation):
            known = self._logprobs.get(tuple(continuation[:depth]))
            if known is None:
                return None
            row.append(known[token_id])
        return row

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        path = tuple(input_ids[0, self._num_prompt :].tolist())
        children = self._children.get(path)
        if children is not None and path not in self._logprobs:
            normaliser = torch.logsumexp(scores[0].float(), -1)
            values = (scores[0, children].float() - normaliser).tolist()
            self._logprobs[path] = dict(zip(children, values, strict=True))
        return scores

    def propose(self, requests: Sequence[DraftRequest]) -> list[TokenTree]:
        return [TokenTree.empty() if len(r.token_ids) > self._num_prompt else self.tree for r in requests]

    def commit(
        self, request_id: int, accepted_token_ids: npt.NDArray[np.int32], features: Tensor | None = None
    ) -> None: ...

    def close(self, request_id: int) -> None: ...


def _tree_of(paths: list[tuple[int, ...]]) -> TokenTree:
    """A tree with a node for every path but the empty one; every path's beginnings are among the paths."""
    nodes = {path: i for i, path in enumerate(sorted((p for p in paths if p), key=len))}
    if not nodes:
        return TokenTree.empty()
    return TokenTree.of([path[-1] for path in nodes], [nodes.get(path[:-1], -1) for path in nodes])


def common_length(a: npt.NDArray[np.int32], b: npt.NDArray[np.int32]) -> int:
    """How many leading entries are equal."""
    n = min(len(a), len(b))
    differs = a[:n] != b[:n]
    return int(np.argmax(differs)) if differs.any() else n

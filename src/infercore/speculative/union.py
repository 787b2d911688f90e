"""`Union`: several drafters, one tree."""

from collections.abc import Sequence
from itertools import accumulate
from typing import Any

import numpy as np
import torch
from jaxtyping import Int32, Integer
from torch import Tensor

from infercore.speculative import _compiled
from infercore.speculative.tree import TokenTree
from infercore.speculative.types import Drafter, DraftRequest, TopTokenObserver


class Union:
    """Merges what its drafters propose by path, and keeps the nodes of the highest scores within the budget.

    A path that two propose is one node, with the higher score. `TokenTree.sources` tells which drafter each node came
    from, in the order of the arguments (a `Union` inside counts as one). Trees that were drawn (`draft_probs`) are
    kept whole and come first, because cutting them would bias the output; chosen nodes fill what is left.
    """

    def __init__(self, *drafters: Drafter) -> None:
        if not 1 <= len(drafters) <= 127:
            raise ValueError(f"{len(drafters)} drafters, expected 1 to 127")
        self._drafters = drafters
        self._observers = [drafter for drafter in drafters if isinstance(drafter, TopTokenObserver)]
        self.num_top_tokens = max((drafter.num_top_tokens for drafter in self._observers), default=0)

    @property
    def drafters(self) -> tuple[Drafter, ...]:
        return self._drafters

    def propose(self, requests: Sequence[DraftRequest]) -> list[TokenTree]:
        proposals = [drafter.propose(requests) for drafter in self._drafters]
        return [
            _merge([trees[index] for trees in proposals], request.max_nodes) for index, request in enumerate(requests)
        ]

    def observe(self, token_ids: Integer[np.ndarray, "rows"], top_token_ids: Integer[np.ndarray, "rows top"]) -> None:
        for drafter in self._observers:
            drafter.observe(token_ids, top_token_ids)

    def commit(
        self, request_id: int, accepted_token_ids: Int32[np.ndarray, "n"], features: Tensor | None = None
    ) -> None:
        for drafter in self._drafters:
            drafter.commit(request_id, accepted_token_ids, features)

    def close(self, request_id: int) -> None:
        for drafter in self._drafters:
            drafter.close(request_id)


def _merge(trees: list[TokenTree], max_nodes: int) -> TokenTree:
    chosen = [(source, tree) for source, tree in enumerate(trees) if tree.num_nodes and tree.draft_probs is None]
    drawn = [(source, tree) for source, tree in enumerate(trees) if tree.num_nodes and tree.draft_probs is not None]
    num_drawn = sum(tree.num_nodes for _, tree in drawn)
    merged = _merge_chosen(chosen, max_nodes - num_drawn)
    return _append_drawn(drawn, merged) if drawn else merged


def _merge_chosen(trees: list[tuple[int, TokenTree]], max_nodes: int) -> TokenTree:
    if not trees or max_nodes <= 0:
        return TokenTree.empty()
    first_nodes = np.array(list(accumulate((len(tree.token_ids) for _, tree in trees), initial=0)))
    num_nodes = int(first_nodes[-1])
    sources, merged_sources = np.empty((2, num_nodes), np.int8)
    for index, (source, _) in enumerate(trees):
        sources[first_nodes[index] :] = source
    token_ids, parents = np.empty((2, num_nodes), np.int32)
    scores = np.empty(num_nodes, np.float32)
    num_merged = _compiled.merge(
        np.concatenate([tree.token_ids for _, tree in trees]),
        np.concatenate([tree.parents for _, tree in trees]),
        np.concatenate([_scores(tree) for _, tree in trees]),
        sources,
        first_nodes,
        token_ids,
        parents,
        scores,
        merged_sources,
    )
    merged = TokenTree(
        token_ids[:num_merged], parents[:num_merged], None, scores[:num_merged], merged_sources[:num_merged]
    )
    if num_merged <= max_nodes:
        return merged
    return merged.truncate(_compiled.best_nodes(merged.scores, max_nodes))


def _scores(tree: TokenTree) -> Any:
    return tree.scores if tree.scores is not None else (0.5**tree.depths).astype(np.float32)


def _append_drawn(drawn: list[tuple[int, TokenTree]], chosen: TokenTree) -> TokenTree:
    """All trees side by side; a chosen node gets a point mass as its distribution."""
    parts = [tree for _, tree in drawn] + ([chosen] if chosen.num_nodes else [])
    offsets = np.array([0, *(tree.num_nodes for tree in parts)]).cumsum()
    first = drawn[0][1].draft_probs
    assert first is not None
    points = torch.zeros(chosen.num_nodes, first.shape[1], dtype=first.dtype, device=first.device)
    points[torch.arange(chosen.num_nodes), torch.from_numpy(chosen.token_ids.astype(np.int64))] = 1
    sources = [np.full(tree.num_nodes, source, np.int8) for source, tree in drawn]
    if chosen.num_nodes:
        assert chosen.sources is not None
        sources.append(chosen.sources)
    return TokenTree(
        np.concatenate([tree.token_ids for tree in parts]),
        np.concatenate(
            [
                np.where(tree.parents < 0, -1, tree.parents + offset)
                for tree, offset in zip(parts, offsets[:-1], strict=True)
            ]
        ).astype(np.int32),
        torch.cat([tree.draft_probs for tree in parts if tree.draft_probs is not None] + [points]),
        np.concatenate([_scores(tree) for tree in parts]),
        np.concatenate(sources),
    )

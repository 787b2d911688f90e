"""`Union`: several drafters, one tree."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from jaxtyping import Int32, Integer
from torch import Tensor

from infercore.speculative import _compiled
from infercore.speculative.tree import TokenTree
from infercore.speculative.types import Drafter, DraftRequest, TopTokenObserver, TreeGrower


class Union:
    """Merges what its drafters propose by path, and keeps the nodes of the highest scores within the budget.

    A path that two propose with scores a and b is one node of score 1 - (1 - a)(1 - b), as if they erred independently;
    the controller's calibration takes back what that says too much. `TokenTree.sources` tells which drafter gave a node
    the highest score, in the order of the arguments (a `Union` inside counts as one). Trees that were drawn
    (`draft_probs`) are kept whole and come first, because cutting them would bias the output; chosen nodes fill what is
    left.
    """

    def __init__(self, *drafters: Drafter) -> None:
        if not 1 <= len(drafters) <= 127:
            raise ValueError(f"{len(drafters)} drafters, expected 1 to 127")
        self._drafters = drafters
        self._growers = [drafter if isinstance(drafter, TreeGrower) else None for drafter in drafters]
        self._only_growers = None not in self._growers
        self._nodes = np.empty((3, 0), np.int32)
        self._ends = np.zeros(len(drafters) + 1, np.int64)
        self._observers = [drafter for drafter in drafters if isinstance(drafter, TopTokenObserver)]
        self.num_top_tokens = max((drafter.num_top_tokens for drafter in self._observers), default=0)

    @property
    def drafters(self) -> tuple[Drafter, ...]:
        return self._drafters

    def propose(self, requests: Sequence[DraftRequest]) -> list[TokenTree]:
        if self._only_growers:
            return [self._chosen(request, self._drafters, request.max_nodes) for request in requests]
        proposals = [
            [None] * len(requests) if grower is not None else drafter.propose(requests)
            for drafter, grower in zip(self._drafters, self._growers, strict=True)
        ]
        return [self._tree(request, trees) for request, *trees in zip(requests, *proposals, strict=True)]

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

    def _tree(self, request: DraftRequest, trees: Sequence[TokenTree | None]) -> TokenTree:
        """One tree of what growers write now, and of what the others proposed (`trees`, None for growers)."""
        drawn = [
            (source, tree)
            for source, tree in enumerate(trees)
            if tree is not None and tree.num_nodes and tree.draft_probs is not None
        ]
        max_nodes = request.max_nodes
        for _, tree in drawn:
            max_nodes -= tree.num_nodes
        parts = [
            grower or (tree if tree is not None and tree.draft_probs is None else None)
            for grower, tree in zip(self._growers, trees, strict=True)
        ]
        chosen = self._chosen(request, parts, max_nodes)
        return _append_drawn(drawn, chosen) if drawn else chosen

    def _chosen(self, request: DraftRequest, parts: Sequence[Any], max_nodes: int) -> TokenTree:
        """The best `max_nodes` of all parts: growers, trees, and None for nothing."""
        if max_nodes <= 0:
            return TokenTree.empty()
        nodes, ends, end = self._nodes, self._ends, 0
        for index, part in enumerate(parts):
            room = request.max_nodes if not isinstance(part, TokenTree) else part.num_nodes
            if nodes.shape[1] < end + room:
                nodes = self._nodes = _widened(nodes, end, (len(parts) - index) * (end + room))
            if isinstance(part, TokenTree):
                _write(part, nodes[:, end:])
                end += room
            elif part is not None:
                end += part.grow(request, nodes, end)
            ends[index + 1] = end
        if not end:
            return TokenTree.empty()
        token_ids, parents, scores, sources = _compiled.merge(nodes, ends, max_nodes)
        return TokenTree(token_ids, parents, None, scores, sources)


def _widened(nodes: npt.NDArray[np.int32], end: int, capacity: int) -> npt.NDArray[np.int32]:
    wider = np.empty((3, capacity), np.int32)
    wider[:, :end] = nodes[:, :end]
    return wider


def _write(tree: TokenTree, nodes: npt.NDArray[np.int32]) -> None:
    """Put a tree into the first columns of `nodes`."""
    nodes[0, : tree.num_nodes], nodes[1, : tree.num_nodes] = tree.token_ids, tree.parents
    nodes[2, : tree.num_nodes] = _scores(tree).view(np.int32)


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

"""`DraftModelDrafter`: trees from a smaller language model of the same vocabulary."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from jaxtyping import Int32
from torch import Tensor

from infercore.speculative import _compiled
from infercore.speculative.tree import TokenTree
from infercore.speculative.types import DraftRequest, ForwardFn


class DraftModelDrafter:
    """Expands the likeliest nodes depth by depth, one forward of the draft model per depth for the whole batch.

    For a greedy request the best children are chosen, and at the end the best nodes of all depths are kept. For a
    sampling request (temperature above 0, with a generator) children are drawn without replacement at that temperature,
    and the tree carries the distributions they were drawn from; how many are drawn is settled before they are seen.

    Args:
        forward: the draft model.
        max_depth: forwards per proposal, and the longest path.
        branching: children of the root; half as many at each depth below it when drawn, as many when chosen.
        num_expanded: nodes of each depth that get children.
    Source: Li et al. 2024 (EAGLE-2, arXiv 2406.16858), section 4, for expansion and reranking; Jeon et al. 2024
        (arXiv 2402.14160) for drawing without replacement.
    """

    def __init__(self, forward: ForwardFn, *, max_depth: int = 4, branching: int = 4, num_expanded: int = 4) -> None:
        if min(max_depth, branching, num_expanded) < 1:
            raise ValueError(
                f"max_depth, branching and num_expanded are {max_depth}, {branching}, {num_expanded}; "
                "all must be at least 1"
            )
        self._forward = forward
        self._max_depth = max_depth
        self._branching = branching
        self._num_expanded = num_expanded

    def propose(self, requests: Sequence[DraftRequest]) -> list[TokenTree]:
        growing = [_Growing(request) for request in requests]
        for depth in range(self._max_depth):
            active = [tree for tree in growing if tree.frontier and tree.room > 0]
            if not active:
                break
            logits = self._forward.forward(
                [tree.request.request_id for tree in active],
                [tree.request.token_ids for tree in active],
                [tree.expanded() for tree in active],
            )
            for tree, rows in zip(active, logits, strict=True):
                if tree.is_drawn:
                    tree.draw(rows, max(1, self._branching >> depth), self._num_expanded)
                else:
                    tree.choose(rows, self._branching, self._num_expanded)
        return [tree.finished() for tree in growing]

    def commit(
        self, request_id: int, accepted_token_ids: Int32[np.ndarray, "n"], features: Tensor | None = None
    ) -> None:
        """Nothing to keep: the next request carries its text, and the model its KV."""

    def close(self, request_id: int) -> None:
        self._forward.close(request_id)


@dataclass(slots=True)
class _Growing:
    """A tree while it grows. Node i is row `order.index(i) + 1` of the forward if it was expanded before."""

    request: DraftRequest
    token_ids: list[int] = field(default_factory=list)
    parents: list[int] = field(default_factory=list)
    scores: list[float] = field(default_factory=list)
    draft_probs: list[Tensor] = field(default_factory=list)
    frontier: list[int] = field(default_factory=lambda: [-1])
    order: list[int] = field(default_factory=list)
    """Nodes that are in the forward's tree, parents first: everything that was or is on the frontier."""

    @property
    def is_drawn(self) -> bool:
        return self.request.temperature > 0 and self.request.generator is not None

    @property
    def room(self) -> int:
        """Nodes that may still be added; chosen trees may outgrow the budget, because they are cut at the end."""
        return self.request.max_nodes - (len(self.token_ids) if self.is_drawn else 0)

    def expanded(self) -> TokenTree:
        row_of = {-1: -1, **{node: row for row, node in enumerate(self.order)}}
        return TokenTree(
            np.array([self.token_ids[node] for node in self.order], np.int32),
            np.array([row_of[self.parents[node]] for node in self.order], np.int32),
        )

    def choose(self, rows: Tensor, branching: int, num_expanded: int) -> None:
        """Give every node of the frontier its likeliest children; the best of those are the next frontier."""
        probs = torch.softmax(self._frontier_rows(rows).float(), -1)
        top = probs.topk(min(branching, probs.shape[1]))
        best, ids = top.values.tolist(), top.indices.tolist()
        first = len(self.token_ids)
        for node, chances, token_ids in zip(self.frontier, best, ids, strict=True):
            for chance, token_id in zip(chances, token_ids, strict=True):
                self._add(token_id, node, chance)
        self._next_frontier(first, num_expanded)

    def draw(self, rows: Tensor, width: int, num_expanded: int) -> None:
        """Draw `width` children of each node of the frontier, as long as there is room."""
        probs = torch.softmax(self._frontier_rows(rows).float() / self.request.temperature, -1)
        first = len(self.token_ids)
        for node, row in zip(self.frontier, probs, strict=True):
            number = min(width, self.room)  # settled before the tokens are seen
            if number < 1:
                break
            row = row.cpu()
            number = min(number, int((row > 0).sum()))
            for token_id in torch.multinomial(row, number, generator=self.request.generator).tolist():
                self._add(token_id, node, float(row[token_id]))
                self.draft_probs.append(row)
        self._next_frontier(first, num_expanded)

    def finished(self) -> TokenTree:
        if not self.token_ids or self.request.max_nodes <= 0:
            return TokenTree.empty()
        tree = TokenTree(
            np.array(self.token_ids, np.int32),
            np.array(self.parents, np.int32),
            torch.stack(self.draft_probs) if self.draft_probs else None,
            np.array(self.scores, np.float32),
        )
        if tree.num_nodes <= self.request.max_nodes:
            return tree
        return tree.truncate(_compiled.best_nodes(tree.scores, self.request.max_nodes))

    def _frontier_rows(self, rows: Tensor) -> Tensor:
        if self.frontier == [-1]:
            return rows[:1]
        return rows[len(self.order) - len(self.frontier) + 1 :]

    def _add(self, token_id: int, parent: int, chance: float) -> None:
        self.token_ids.append(token_id)
        self.parents.append(parent)
        self.scores.append(chance * (self.scores[parent] if parent >= 0 else 1.0))

    def _next_frontier(self, first: int, num_expanded: int) -> None:
        new = sorted(range(first, len(self.token_ids)), key=lambda node: -self.scores[node])
        self.frontier = new[:num_expanded]
        self.order += self.frontier

"""`TokenTree`: a draft of several continuations that share their beginnings."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

import numpy as np
import numpy.typing as npt
from jaxtyping import Bool, Float32, Int8, Int32, Int64
from torch import Tensor

from infercore.speculative import _compiled
from infercore.typing import TokenIds, as_token_ids


@final
@dataclass(frozen=True, slots=True, eq=False)
class TokenTree:
    """Draft tokens in topological order below the pending token, which is the root and no node of the tree.

    The constructor trusts its caller, because drafters build a tree per sequence and step; `TokenTree.of` converts
    and checks. Nodes are never changed in place.
    """

    token_ids: Int32[np.ndarray, "nodes"]
    parents: Int32[np.ndarray, "nodes"]
    """-1: child of the root; a parent comes before its children."""
    draft_probs: Float32[Tensor, "nodes vocab"] | None = None
    """Row i is the distribution node i was drawn from. Siblings drawn from one distribution, without replacement and
    in the order of their nodes, carry the same row, the one before anything was removed. A node that was chosen, not
    drawn, has all mass on its own token. None: no node was drawn."""
    scores: Float32[np.ndarray, "nodes"] | None = None
    """The drafter's estimate that node i and all its ancestors are accepted; never above the parent's."""
    sources: Int8[np.ndarray, "nodes"] | None = None
    """Which drafter of a `Union` proposed node i; None: one drafter, number 0."""
    grammar_states: Int64[np.ndarray, "nodes"] | None = None
    """State of the request's grammar after node i, -1 where the node or one above it is refused; None: not walked."""

    @classmethod
    def of(
        cls,
        token_ids: TokenIds,
        parents: Sequence[int] | npt.NDArray[np.integer],
        *,
        draft_probs: Float32[Tensor, "nodes vocab"] | None = None,
        scores: Sequence[float] | npt.NDArray[np.floating] | None = None,
    ) -> "TokenTree":
        """A checked tree from anything array-like.

        Raises: ValueError if lengths differ or a parent does not come before its child.
        """
        ids = as_token_ids(token_ids)
        parent_ids = np.ascontiguousarray(parents, dtype=np.int32)
        num_nodes = len(ids)
        if parent_ids.shape != (num_nodes,):
            raise ValueError(f"parents has shape {parent_ids.shape}, expected ({num_nodes},): one entry per token")
        if (node := _compiled.check_parents(parent_ids)) >= 0:
            raise ValueError(
                f"node {node} has parent {parent_ids[node]}, expected -1 to {node - 1}; list parents before children"
            )
        if draft_probs is not None and draft_probs.shape[0] != num_nodes:
            raise ValueError(f"draft_probs has {draft_probs.shape[0]} rows, expected {num_nodes}: one per node")
        node_scores = None if scores is None else np.ascontiguousarray(scores, dtype=np.float32)
        if node_scores is not None and node_scores.shape != (num_nodes,):
            raise ValueError(f"scores has shape {node_scores.shape}, expected ({num_nodes},): one per node")
        return TokenTree(ids, parent_ids, draft_probs, node_scores)

    @classmethod
    def chain(cls, token_ids: TokenIds) -> "TokenTree":
        """A tree without branches."""
        ids = as_token_ids(token_ids)
        return TokenTree(ids, np.arange(-1, len(ids) - 1, dtype=np.int32))

    @classmethod
    def empty(cls) -> "TokenTree":
        """No draft: the step is a plain decoding step."""
        return TokenTree(_NO_NODES, _NO_NODES)

    @classmethod
    def from_columns(cls, nodes: Int32[np.ndarray, "3 capacity"], num_nodes: int) -> "TokenTree":
        """The first `num_nodes` columns of an array as `TreeGrower.grow` fills it; a view."""
        return TokenTree(nodes[0, :num_nodes], nodes[1, :num_nodes], None, nodes[2, :num_nodes].view(np.float32))

    @property
    def num_nodes(self) -> int:
        return len(self.token_ids)

    @property
    def depths(self) -> Int32[np.ndarray, "nodes"]:
        """Steps from the root; its children have depth 1. Computed at each access, about 1 µs."""
        depths: npt.NDArray[np.int32] = _compiled.tree_depths(self.parents)
        return depths

    def position_ids(self, context_len: int) -> Int64[np.ndarray, "nodes"]:
        """Position of each node when the root, the pending token, is at position `context_len`."""
        return self.depths + np.int64(context_len)

    def ancestor_bits(self, num_words: int | None = None) -> Int32[np.ndarray, "nodes words"]:
        """Bit j of row i, counted from the lowest of word 0, is set iff node j is i or an ancestor of i.

        Args:
            num_words: words per row, at least ceil(num_nodes / 32), which is the default.
        Raises: ValueError if `num_words` cannot hold the tree.
        """
        needed = (self.num_nodes + 31) // 32
        words = needed if num_words is None else num_words
        if words < needed:
            raise ValueError(f"num_words is {words}, but {self.num_nodes} nodes need {needed}")
        bits: npt.NDArray[np.int32] = _compiled.tree_ancestor_bits(self.parents, words)
        return bits

    def children(self, node: int = -1) -> Int32[np.ndarray, "children"]:
        """Children of `node` in order, of the root by default."""
        return np.flatnonzero(self.parents == node).astype(np.int32)

    def truncate(self, keep: Bool[np.ndarray, "nodes"]) -> "TokenTree":
        """The tree of the kept nodes, renumbered, in the same order.

        Cutting a tree with `draft_probs` by the tokens it holds would bias verification: see `verify`.

        Raises: ValueError if a kept node's parent is dropped, or the length is wrong.
        """
        if keep.shape != (self.num_nodes,):
            raise ValueError(f"keep has shape {keep.shape}, expected ({self.num_nodes},): one entry per node")
        num_nodes = self.num_nodes
        if not num_nodes:
            return self
        scores = self.scores if self.scores is not None else np.zeros(num_nodes, np.float32)
        sources = self.sources if self.sources is not None else np.zeros(num_nodes, np.int8)
        token_ids, parents, scores, sources, is_whole = _compiled.kept_nodes(
            self.token_ids, self.parents, scores, sources, keep
        )
        if not is_whole:
            raise ValueError("keep drops the parent of a kept node; drop its whole subtree or keep its ancestors")
        return TokenTree(
            token_ids,
            parents,
            None if self.draft_probs is None else self.draft_probs[np.flatnonzero(keep)],
            None if self.scores is None else scores,
            None if self.sources is None else sources,
            None if self.grammar_states is None else self.grammar_states[keep],
        )

    def best(self, max_nodes: int) -> "TokenTree":
        """The `max_nodes` nodes of the highest scores, the earlier one where they are equal.

        A node's score is never above its parent's, so its ancestors are among them. Not for trees that were drawn.
        """
        assert self.scores is not None
        if self.num_nodes <= max_nodes:
            return self
        return self.truncate(_compiled.best_nodes(self.scores, max_nodes))


_NO_NODES = np.empty(0, np.int32)
_NO_NODES.flags.writeable = False

"""`RecyclingDrafter`: a table of the likeliest followers of each token, taken from the target's own logits."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from jaxtyping import Int32, Integer
from torch import Tensor

from infercore.speculative import _compiled
from infercore.speculative.tree import TokenTree
from infercore.speculative.types import DraftRequest

# Chance that the follower of rank r in the table is the next token, before anything is learnt: greedy traces, see
# docs/log/speculative.md. Later steps are remembered for about _MEMORY_STEPS tokens.
_RANK_TRUST = np.array([0.36, 0.083, 0.054, 0.034, 0.021, 0.02, 0.013, 0.013])
_MEMORY_STEPS = 4096.0


class RecyclingDrafter:
    """What the target thought the last time it saw this token: the top followers of each token, grown into a tree.

    The table is shared by all requests; `observe` feeds it with the top tokens of any logits rows that were computed
    anyway, rejected nodes too. Without `observe` it learns from committed text alone, one follower a token.

    Args:
        vocab_size: rows of the table.
        num_top_tokens: followers kept per token, at most 8.
        max_depth: longest path of a tree.
    Cost: about 10 µs per tree of 32 nodes; 4 * num_top_tokens bytes per vocabulary entry.
    Source: Luo et al. 2024 (Token Recycling, arXiv 2408.08696). We differ: no fixed tree shape; the best-first tree
        follows the hit rate of each rank, which is learnt as text is committed.
    """

    def __init__(self, vocab_size: int, *, num_top_tokens: int = 8, max_depth: int = 8) -> None:
        if vocab_size < 1:
            raise ValueError(f"vocab_size is {vocab_size}; expected the number of logits columns")
        if not 1 <= num_top_tokens <= len(_RANK_TRUST):
            raise ValueError(f"num_top_tokens is {num_top_tokens}; expected 1 to {len(_RANK_TRUST)}")
        if max_depth < 1:
            raise ValueError(f"max_depth is {max_depth}; expected at least 1")
        self.num_top_tokens = num_top_tokens
        self._max_depth = max_depth
        self._followers = np.full((vocab_size, num_top_tokens), -1, np.int32)
        self._rank_trust = _RANK_TRUST[:num_top_tokens].copy()
        self._observed: list[tuple[npt.NDArray[np.int32], npt.NDArray[np.int32]]] = []
        self._last: dict[int, int] = {}

    def propose(self, requests: Sequence[DraftRequest]) -> list[TokenTree]:
        return [self._tree(request) for request in requests]

    def grow(self, request: DraftRequest, nodes: Int32[np.ndarray, "3 capacity"], start: int) -> int:
        if self._observed:
            self._remember()
        if request.max_nodes <= 0 or not len(request.token_ids):
            return 0
        last = self._last[request.request_id] = int(request.token_ids[-1])
        num_nodes = _compiled.grow_followers(
            self._followers, self._rank_trust, last, self._max_depth, request.max_nodes, nodes, start
        )
        return int(num_nodes)

    def observe(self, token_ids: Integer[np.ndarray, "rows"], top_token_ids: Integer[np.ndarray, "rows top"]) -> None:
        """The target's likeliest tokens after each of `token_ids`, likeliest first; later rows win over earlier ones.

        They count from the next `propose` on, so the order of `observe` and `commit` does not matter.

        Raises: ValueError if there are fewer than `num_top_tokens` columns. `propose` raises it for token ids that are
            none of the vocabulary, and forgets their rows.
        """
        if top_token_ids.shape[1] < self.num_top_tokens:
            raise ValueError(
                f"top_token_ids has {top_token_ids.shape[1]} columns, expected {self.num_top_tokens} or more"
            )
        self._observed.append(
            (np.ascontiguousarray(token_ids, np.int32), np.ascontiguousarray(top_token_ids, np.int32))
        )

    def commit(
        self, request_id: int, accepted_token_ids: Int32[np.ndarray, "n"], features: Tensor | None = None
    ) -> None:
        if not len(accepted_token_ids):
            return
        last = self._last.get(request_id, -1)
        _compiled.learn_followers(self._followers, self._rank_trust, last, accepted_token_ids, 1 / _MEMORY_STEPS)
        self._last[request_id] = int(accepted_token_ids[-1])

    def close(self, request_id: int) -> None:
        self._last.pop(request_id, None)

    @property
    def rank_trust(self) -> npt.NDArray[np.float64]:
        """Learnt chance that the follower of each rank is the next token."""
        return self._rank_trust.copy()

    def _remember(self) -> None:
        observed, self._observed = self._observed, []
        for token_ids, top_token_ids in observed:
            bad = _compiled.remember_followers(self._followers, token_ids, top_token_ids)
            if bad >= 0:
                raise ValueError(
                    f"observe was given token id {token_ids[bad]}; expected 0 to {len(self._followers) - 1}, "
                    "the vocab_size of this drafter less 1"
                )

    def _tree(self, request: DraftRequest) -> TokenTree:
        nodes = np.empty((3, max(0, request.max_nodes)), np.int32)
        return TokenTree.from_columns(nodes, self.grow(request, nodes, 0))

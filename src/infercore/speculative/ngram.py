"""`NGramDrafter`: what followed the last tokens before, found by scanning the request's own text."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Int32
from torch import Tensor

from infercore.speculative import _compiled
from infercore.speculative.tree import TokenTree
from infercore.speculative.types import DraftRequest


class NGramDrafter:
    """Prompt lookup with branches: the continuations of earlier occurrences of the longest suffix, merged into a tree.

    Keeps no state, so one object serves any number of requests and needs no `commit`. `SuffixDrafter` finds longer
    matches in less time, and counts them; take this one where nothing may be kept between steps.

    Args:
        max_ngram: longest suffix that is compared.
        min_ngram: shortest suffix worth a proposal.
        max_matches: occurrences merged into one tree, longest match first, then latest.
        max_depth: longest continuation.
    Cost: one pass over the text, about 0.5 ns a token.
    """

    def __init__(self, max_ngram: int = 8, min_ngram: int = 1, *, max_matches: int = 8, max_depth: int = 16) -> None:
        if not 1 <= min_ngram <= max_ngram:
            raise ValueError(
                f"min_ngram is {min_ngram} and max_ngram {max_ngram}; expected 1 <= min_ngram <= max_ngram"
            )
        if max_matches < 1 or max_depth < 1:
            raise ValueError(f"max_matches is {max_matches} and max_depth {max_depth}; both must be at least 1")
        self._max_ngram = max_ngram
        self._min_ngram = min_ngram
        self._max_matches = max_matches
        self._max_depth = max_depth

    def propose(self, requests: Sequence[DraftRequest]) -> list[TokenTree]:
        return [self._tree(request) for request in requests]

    def grow(self, request: DraftRequest, nodes: Int32[np.ndarray, "3 capacity"], start: int) -> int:
        if request.max_nodes <= 0 or len(request.token_ids) < 2:
            return 0
        num_nodes = _compiled.ngram_tree(
            request.token_ids,
            self._min_ngram,
            self._max_ngram,
            self._max_matches,
            self._max_depth,
            request.max_nodes,
            nodes,
            start,
        )
        return int(num_nodes)

    def commit(
        self, request_id: int, accepted_token_ids: Int32[np.ndarray, "n"], features: Tensor | None = None
    ) -> None:
        """Nothing to keep: the next request carries its whole text."""

    def close(self, request_id: int) -> None:
        """Nothing to let go."""

    def _tree(self, request: DraftRequest) -> TokenTree:
        nodes = np.empty((3, max(0, request.max_nodes)), np.int32)
        return TokenTree.from_columns(nodes, self.grow(request, nodes, 0))

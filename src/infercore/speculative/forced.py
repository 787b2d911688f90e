"""`ForcedTokenDrafter`: what the grammar leaves no choice about."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Int32
from torch import Tensor

from infercore.speculative.tree import TokenTree
from infercore.speculative.types import DraftRequest


class ForcedTokenDrafter:
    """A chain of the tokens that the request's grammar forces next; they are accepted for certain.

    For loops that do not append forced tokens to the prompt themselves. Requests without a grammar get no draft.
    """

    def propose(self, requests: Sequence[DraftRequest]) -> list[TokenTree]:
        return [self._chain(request) for request in requests]

    def commit(
        self, request_id: int, accepted_token_ids: Int32[np.ndarray, "n"], features: Tensor | None = None
    ) -> None:
        """Nothing to keep: the next request carries its grammar's state."""

    def close(self, request_id: int) -> None:
        """Nothing to let go."""

    def _chain(self, request: DraftRequest) -> TokenTree:
        if request.grammar is None or request.grammar_state is None or request.max_nodes <= 0:
            return TokenTree.empty()
        token_ids = np.array(request.grammar.forced_tokens(request.grammar_state)[: request.max_nodes], np.int32)
        length = len(token_ids)
        return TokenTree(token_ids, np.arange(-1, length - 1, dtype=np.int32), None, np.ones(length, np.float32))

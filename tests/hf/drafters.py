"""Drafters that know the answer: right, wrong and half-right trees for any prompt."""

import numpy as np

from infercore.speculative import TokenTree


class OracleDrafter:
    """Proposes trees around the true continuation: a chain of it with wrong siblings, cut or spoilt as asked.

    Args:
        outputs: true output by prompt.
        kind: "right", "wrong" (no node is true) or "half" (true for two tokens, then wrong).
    """

    def __init__(self, outputs: dict[tuple[int, ...], list[int]], kind: str, vocab_size: int, depth: int = 4) -> None:
        self.outputs = outputs
        self.kind = kind
        self.vocab_size = vocab_size
        self.depth = depth
        self.closed: list[int] = []
        self.committed: dict[int, list[int]] = {}

    def propose(self, requests):
        return [self._tree(request) for request in requests]

    def commit(self, request_id, accepted_token_ids, features=None):
        self.committed.setdefault(request_id, []).extend(accepted_token_ids.tolist())

    def close(self, request_id):
        self.closed.append(request_id)

    def _tree(self, request):
        ids = request.token_ids.tolist()
        prompt = next(p for p in self.outputs if tuple(ids[: len(p)]) == p)
        true = self.outputs[prompt][len(ids) - len(prompt) :][: min(self.depth, request.max_nodes // 2)]
        tokens, parents, parent = [], [], -1
        for depth, token in enumerate(true):
            wrong = (token + 1) % self.vocab_size
            spoilt = self.kind == "wrong" or (self.kind == "half" and depth >= 2)
            tokens += [wrong, (wrong + 1) % self.vocab_size if spoilt else token]
            parents += [parent, parent]
            parent = len(tokens) - 1
        return TokenTree.of(np.array(tokens, np.int32), parents)

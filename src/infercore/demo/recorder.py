"""A drafter that remembers what became of each draft, to be shown."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Int32
from torch import Tensor

from infercore.speculative import Drafter, DraftRequest, TokenTree


@dataclass(frozen=True, slots=True)
class Draft:
    """One proposed tree, the token it hangs on, and the nodes that were accepted, from the root down."""

    root_token_id: int
    tree: TokenTree
    accepted_nodes: list[int]
    next_token_id: int


class Recorder:
    """Passes everything on to `drafter` and keeps the drafts of all requests."""

    def __init__(self, drafter: Drafter) -> None:
        self._drafter = drafter
        self._open: dict[int, tuple[int, TokenTree]] = {}
        self.drafts: list[Draft] = []

    @property
    def drafters(self) -> tuple[Drafter]:
        """The one that drafts: what it wants to see of the target is given to it."""
        return (self._drafter,)

    def propose(self, requests: Sequence[DraftRequest]) -> list[TokenTree]:
        trees = self._drafter.propose(requests)
        for request, tree in zip(requests, trees, strict=True):
            self._open[request.request_id] = (int(request.token_ids[-1]), tree)
        return trees

    def commit(
        self, request_id: int, accepted_token_ids: Int32[np.ndarray, "n"], features: Tensor | None = None
    ) -> None:
        self._drafter.commit(request_id, accepted_token_ids, features)
        if request_id in self._open:
            root_token_id, tree = self._open.pop(request_id)
            *kept, last = accepted_token_ids.tolist()
            self.drafts.append(Draft(root_token_id, tree, _path(tree, kept), last))

    def close(self, request_id: int) -> None:
        self._drafter.close(request_id)
        self._open.pop(request_id, None)

    def most_telling(self) -> Draft | None:
        """The draft to show: one with branches and a long accepted path; None where nothing was drafted."""
        return max(self.drafts, key=_interest, default=None)


def _path(tree: TokenTree, token_ids: list[int]) -> list[int]:
    """The nodes of `tree` along `token_ids`, as far as the tree has them."""
    path: list[int] = []
    node = -1
    for token_id in token_ids:
        match = [int(child) for child in tree.children(node) if tree.token_ids[child] == token_id]
        if not match:
            break
        node = match[0]
        path.append(node)
    return path


def _interest(draft: Draft) -> tuple[bool, int, int]:
    """Branches first (a refused one beside the accepted path), then the length of that path, then the smaller tree."""
    branches = len(set(draft.tree.parents.tolist())) < draft.tree.num_nodes
    return branches and bool(draft.accepted_nodes), len(draft.accepted_nodes), -draft.tree.num_nodes

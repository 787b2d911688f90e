"""`OneDepth`: a head as `DraftModelDrafter` calls it, for drafts that are drawn."""

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import torch
from jaxtyping import Integer
from torch import Tensor

from infercore.hf.heads.kv import below
from infercore.hf.heads.seen import Seen
from infercore.speculative import TokenTree

if TYPE_CHECKING:
    from infercore.hf.heads.drafter import EagleDrafter


class OneDepth:
    """The head as `DraftModelDrafter` calls it, one depth a call: only nodes that are new since the last are run."""

    def __init__(self, drafter: "EagleDrafter") -> None:
        self._drafter = drafter

    def forward(
        self,
        request_ids: Sequence[int],
        texts: Sequence[Integer[np.ndarray, "_"]],
        trees: Sequence[TokenTree],
    ) -> list[Tensor]:
        drafter = self._drafter
        logits = []
        for request_id, text, tree in zip(request_ids, texts, trees, strict=True):
            seen = drafter._seen[request_id]
            if tree.num_nodes == 0:
                drafter._absorb(seen, text, leave=1)
                seen.outputs, seen.places = [], []
            self._extend(seen, text, tree)
            logits.append(self._over_target_vocabulary(drafter.head.logits(torch.stack(seen.outputs))))
        return logits

    def close(self, request_id: int) -> None:
        """The drafter closes what it keeps."""

    def _extend(self, seen: Seen, text: Integer[np.ndarray, "_"], tree: TokenTree) -> None:
        """Outputs of the root's entry and of the tree's nodes, as far as they are not there."""
        drafter, head = self._drafter, self._drafter.head
        feature = drafter._new(seen)[-1:]
        device = feature.device
        first = len(seen.outputs)  # the root's is the first
        rows = list(range(max(first - 1, 0), tree.num_nodes))
        depths = tree.depths
        if first == 0:
            seen.places = [[seen.length]]
            token_ids, hidden = [int(text[-1])], head.project(feature)
        else:
            seen.places += [[*seen.places[int(tree.parents[row]) + 1], seen.length + 1 + row] for row in rows]
            token_ids = [int(tree.token_ids[row]) for row in rows]
            hidden = torch.stack([seen.outputs[int(tree.parents[row]) + 1] for row in rows])
        if not token_ids:
            return
        drafter._kv.reserve(seen.length + 1 + tree.num_nodes)
        slots = torch.tensor([seen.slot], device=device)
        new = seen.places[first:]
        longest = max(map(len, new))
        ancestors = torch.tensor([[[path[0]] * (longest - len(path)) + path for path in new]], device=device)
        places = below(torch.tensor([seen.length], device=device), ancestors, seen.length + 1 + tree.num_nodes, slots)
        position = seen.first + seen.length
        at = [position] if first == 0 else [position + int(depths[row]) for row in rows]
        out = head(
            torch.tensor([token_ids], device=device),
            hidden[None],
            torch.tensor([at], device=device),
            partial(drafter._kv.attend, places),
        )
        seen.outputs += list(out[0])

    def _over_target_vocabulary(self, logits: Tensor) -> Tensor:
        head, size = self._drafter.head, self._drafter._vocab_size
        if logits.shape[1] == size:
            return logits
        wide = logits.new_full((len(logits), size), float("-inf"))
        wide[:, head.target_ids(torch.arange(logits.shape[1], device=logits.device))] = logits
        return wide

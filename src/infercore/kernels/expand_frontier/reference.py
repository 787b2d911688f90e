"""The specification of `expand_frontier` in plain torch."""

import torch
from torch import Tensor


def expand_frontier(
    logits: Tensor, node_scores: Tensor, branching: int, width: int, id_offsets: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Token ids, scores and frontier."""
    best = logits.log_softmax(-1, dtype=torch.float32).topk(branching)
    scores = node_scores[..., None] + best.values
    token_ids = best.indices if id_offsets is None else best.indices + id_offsets[best.indices]
    return token_ids, scores, scores.flatten(1).topk(width).indices

"""The specification of `apply_token_bitmask_` in plain torch."""

import torch
from jaxtyping import Float, Int32
from torch import Tensor


def apply_token_bitmask(
    logits: Float[Tensor, "rows vocab"], bitmask: Int32[Tensor, "rows words"]
) -> Float[Tensor, "rows vocab"]:
    """A copy of `logits` with -inf where the token's bit is 0."""
    token = torch.arange(logits.shape[1], device=logits.device)
    allowed = (bitmask[:, token // 32] >> (token % 32)) & 1
    return logits.masked_fill(allowed == 0, float("-inf"))

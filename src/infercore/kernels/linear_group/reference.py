"""The specification of `linear_group` in plain torch."""

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor


def linear_group(x: Tensor, weights: Sequence[Tensor]) -> list[Tensor]:
    """x @ w.T for each w."""
    return [F.linear(x, w) for w in weights]

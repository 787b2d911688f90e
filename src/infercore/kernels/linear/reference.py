"""The specification of `linear` in plain torch."""

from jaxtyping import Float
from torch import Tensor


def linear(
    x: Float[Tensor, "*rows inputs"], weight: Float[Tensor, "outputs inputs"], bias: Float[Tensor, " outputs"] | None
) -> Float[Tensor, "*rows outputs"]:
    """x @ weight.T + bias."""
    product = x @ weight.T
    return product if bias is None else product + bias

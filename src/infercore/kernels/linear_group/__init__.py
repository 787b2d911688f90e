"""`linear_group`: a few rows times one to three weight matrices in one launch, at the speed of memory.

Use it for decoding and verifying drafts on a GPU, where q, k and v, or gate and up, take the same input: one launch for
all of them keeps every multiprocessor reading, which a product of 1024 outputs alone cannot, and no second kernel has
to add up parts. Files: `reference.py`, `triton.py`.

    q, k, v = linear_group(x, [wq, wk, wv])     # [rows, inputs] x [outputs, inputs] each -> [rows, outputs] each
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from infercore.kernels.impl import Impl, choose_impl
from infercore.kernels.linear_group.reference import linear_group as _reference

__all__ = ["MAX_ROWS", "MAX_WEIGHTS", "is_fast", "linear_group"]

MAX_ROWS = 64
MAX_WEIGHTS = 3


def linear_group(
    x: Float[Tensor, "rows inputs"],
    weights: Sequence[Float[Tensor, "_ inputs"]],
    *,
    impl: Impl = "auto",
) -> list[Float[Tensor, "rows _"]]:
    """x @ w.T for each of `weights`; sums in float32, the output in x's dtype.

    Args:
        weights: one to three, `[outputs, inputs]` each, of x's dtype, contiguous rows.
        impl: "auto" runs the kernel where `is_fast` says so, else `torch.nn.functional.linear` for each.
    Raises: ValueError for shapes, dtypes or devices that do not fit, or where `impl="triton"` cannot run.
    Cost: reads every weight once. The order of the sums depends on neither rows nor neighbours.
    """
    if not 1 <= len(weights) <= MAX_WEIGHTS:
        raise ValueError(f"{len(weights)} weights, expected 1 to {MAX_WEIGHTS}")
    for w in weights:
        if x.ndim != 2 or w.ndim != 2 or x.shape[1] != w.shape[1]:
            raise ValueError(f"x {tuple(x.shape)}, weight {tuple(w.shape)}: expected [rows, inputs], [outputs, inputs]")
        if w.dtype != x.dtype or w.device != x.device:
            raise ValueError(f"x is {x.dtype} on {x.device}, a weight {w.dtype} on {w.device}; they must be alike")
    if impl == "auto" and not is_fast(x, weights):
        return _reference(x, weights)
    if choose_impl(impl, x, cpu="reference") == "reference":
        return _reference(x, weights)
    if not _fits(x, weights):
        raise ValueError(
            f'impl="triton" takes at most {MAX_ROWS} rows of bfloat16 or float16, inputs a multiple of 64, and '
            f'contiguous weights; got {tuple(x.shape)} of {x.dtype}; use impl="auto"'
        )
    from infercore.kernels.linear_group.triton import linear_group as on_gpu

    return on_gpu(x, weights)


def is_fast(x: Tensor, weights: Sequence[Tensor]) -> bool:
    """Whether the kernel serves this product, and wins over the library's."""
    return x.is_cuda and _fits(x, weights)


def _fits(x: Tensor, weights: Sequence[Tensor]) -> bool:
    return (
        x.dtype in (torch.bfloat16, torch.float16)
        and 0 < x.shape[0] <= MAX_ROWS
        and x.shape[1] % 64 == 0
        and all(w.is_contiguous() for w in weights)
    )

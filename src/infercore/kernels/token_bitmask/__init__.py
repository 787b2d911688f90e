"""`apply_token_bitmask_`: ban every token whose bit is 0, in place. Files: `reference.py`, `triton.py`.

bitmask = torch.full((batch, -(-vocab_size // 32)), -1, dtype=torch.int32)   # -1: all allowed
apply_token_bitmask_(logits, bitmask)
"""

from jaxtyping import Float, Int32
from torch import Tensor

from infercore.kernels.impl import Impl, choose_impl
from infercore.kernels.token_bitmask.reference import apply_token_bitmask as _reference

__all__ = ["apply_token_bitmask", "apply_token_bitmask_"]


def apply_token_bitmask_(
    logits: Float[Tensor, "rows vocab"], bitmask: Int32[Tensor, "rows words"], *, impl: Impl = "auto"
) -> Float[Tensor, "rows vocab"]:
    """Set `logits[i, t]` to -inf where bit `t % 32` of `bitmask[i, t // 32]` is 0; returns `logits`, changed in place.

    Args:
        logits: any float dtype; rows may be strided, the last dimension is contiguous.
        bitmask: `words = ceil(vocab / 32)`, lowest bit first, 1 = allowed; bits past the vocabulary do not matter.
    Raises: ValueError for shapes, dtypes or devices that do not fit, before anything is changed.
    Cost: reads the bitmask and writes only what is banned; nothing of size [rows, vocab] is stored beside `logits`.
    """
    if logits.ndim != 2 or bitmask.ndim != 2 or len(logits) != len(bitmask):
        raise ValueError(
            f"logits {tuple(logits.shape)} and bitmask {tuple(bitmask.shape)} must be [rows, vocab] and [rows, words]"
        )
    words = -(-logits.shape[1] // 32)
    if bitmask.shape[1] != words:
        raise ValueError(
            f"bitmask has {bitmask.shape[1]} words, but vocab_size {logits.shape[1]} needs {words}; "
            f"allocate it with allocate_bitmask({len(logits)}, {logits.shape[1]})"
        )
    if str(bitmask.dtype) != "torch.int32":
        raise ValueError(f"bitmask is {bitmask.dtype}, expected torch.int32")
    if bitmask.device != logits.device:
        raise ValueError(f"bitmask is on {bitmask.device}, logits on {logits.device}; move the bitmask")
    if choose_impl(impl, logits, cpu="reference") == "reference":
        return logits.copy_(_reference(logits, bitmask))
    from infercore.kernels.token_bitmask.triton import apply_token_bitmask_ as on_gpu

    return on_gpu(logits, bitmask)


def apply_token_bitmask(
    logits: Float[Tensor, "rows vocab"], bitmask: Int32[Tensor, "rows words"], *, impl: Impl = "auto"
) -> Float[Tensor, "rows vocab"]:
    """`apply_token_bitmask_` on a copy of `logits`."""
    return apply_token_bitmask_(logits.clone(), bitmask, impl=impl)

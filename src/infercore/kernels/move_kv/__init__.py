"""`move_kv`: copy keys and values between slots of the pool: compaction of accepted drafts, copy-on-write of a page.

`slot_mover` does it in all layers of a pool with one launch. Files: `reference.py`, `triton.py`, `triton_layers.py`.

    move_kv(k_pages, v_pages, src_slots=torch.tensor([37, 41]), dst_slots=torch.tensor([35, 36]))
    pool = KVPool(num_pages, make_mover=slot_mover)
"""

from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt
from jaxtyping import Float, Int64
from torch import Tensor

from infercore.kernels.impl import Impl, choose_impl
from infercore.kernels.move_kv.reference import move_kv as _reference

__all__ = ["move_kv", "slot_mover"]


def move_kv(
    k_pages: Float[Tensor, "num_pages page_size kv_heads k_dim"],
    v_pages: Float[Tensor, "num_pages page_size kv_heads v_dim"],
    src_slots: Int64[Tensor, " n"],
    dst_slots: Int64[Tensor, " n"],
    *,
    impl: Impl = "auto",
) -> None:
    """Copy slot `src_slots[i]` to `dst_slots[i]` for all i at once: everything is read before anything is written.

    So sources and destinations may overlap in any way; destinations differ from each other.

    Args:
        k_pages, v_pages: the pool of one layer, changed in place; contiguous.
    Raises: ValueError for shapes, dtypes or devices that do not fit, before anything is written. Slots beyond the pool
        are not looked for: that would read device memory.
    Cost: reads each moved slot once and writes it once, and as much again in a scratch copy.
    """
    if k_pages.ndim != 4 or k_pages.shape[:3] != v_pages.shape[:3]:
        raise ValueError(
            f"k_pages {tuple(k_pages.shape)} and v_pages {tuple(v_pages.shape)} must be "
            "[num_pages, page_size, kv_heads, head_dim], equal but for head_dim"
        )
    if not (k_pages.is_contiguous() and v_pages.is_contiguous()):
        raise ValueError("k_pages and v_pages must be contiguous; pass the pool's own tensors, not slices of them")
    if src_slots.ndim != 1 or src_slots.shape != dst_slots.shape:
        raise ValueError(
            f"src_slots {tuple(src_slots.shape)} and dst_slots {tuple(dst_slots.shape)} must be vectors of one length"
        )
    if not src_slots.numel():
        return
    if choose_impl(impl, k_pages, cpu="reference") == "reference":
        _reference(k_pages, v_pages, src_slots, dst_slots)
        return
    from infercore.kernels.move_kv.triton import move_kv as on_gpu

    on_gpu(k_pages, v_pages, src_slots, dst_slots)


def slot_mover(
    tensors: Sequence[Float[Tensor, "num_pages page_size heads dim"]],
) -> Callable[[npt.NDArray[np.int64], npt.NDArray[np.int64]], bool] | None:
    """What moves slots in all of these at once: `mover(src, dst)` copies slot `src[i]` to `dst[i]` in each of them.

    It gives False, and has done nothing, where a destination is a source of a later move: these cannot go one by one.

    Args:
        tensors: K and V of every layer, contiguous; they may differ in heads, sizes and dtypes.
    Returns: None on a CPU, on several devices, or where a slot is no multiple of 4 bytes.
    Cost: one launch, whatever the number of layers.
    """
    if not tensors or not tensors[0].is_cuda:
        return None
    from infercore.kernels.move_kv.triton_layers import SlotMover, fits

    return SlotMover(tensors) if fits(tensors) else None

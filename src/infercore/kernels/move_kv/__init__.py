"""`move_kv`: copy keys and values between slots of the pool: compaction of accepted drafts, copy-on-write of a page.

Files: `reference.py`, `triton.py`.

    move_kv(k_pages, v_pages, src_slots=torch.tensor([37, 41]), dst_slots=torch.tensor([35, 36]))
"""

from jaxtyping import Float, Int64
from torch import Tensor

from infercore.kernels.impl import Impl, choose_impl
from infercore.kernels.move_kv.reference import move_kv as _reference

__all__ = ["move_kv"]


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

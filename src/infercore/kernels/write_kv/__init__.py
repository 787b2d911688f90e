"""`write_kv`: store the keys and values of new rows in their slots of the paged pool.

Use it in front of attention: what it wrote is what `tree_attention` reads. Files: `reference.py`, `triton.py`.

    slot_mapping = torch.tensor([page_id * page_size + offset, ..., -1])      # -1: a padded row, not written
    write_kv(key, value, k_pages, v_pages, slot_mapping)
"""

from jaxtyping import Float, Int64
from torch import Tensor

from infercore.kernels.impl import Impl, choose_impl
from infercore.kernels.write_kv.reference import write_kv as _reference

__all__ = ["write_kv"]


def write_kv(
    k: Float[Tensor, "rows kv_heads k_dim"],
    v: Float[Tensor, "rows kv_heads v_dim"],
    k_pages: Float[Tensor, "num_pages page_size kv_heads k_dim"],
    v_pages: Float[Tensor, "num_pages page_size kv_heads v_dim"],
    slot_mapping: Int64[Tensor, " rows"],
    *,
    impl: Impl = "auto",
) -> None:
    """Copy row i of `k` and `v` to slot `slot_mapping[i]`, that is page `slot // page_size`, offset `slot % page_size`.

    Args:
        k, v: new rows; any strides, last dimension contiguous.
        k_pages, v_pages: the pool of one layer, changed in place; contiguous.
        slot_mapping: -1 leaves its row out. Slots differ from each other; a slot given twice keeps one of its rows.
    Raises: ValueError for shapes, dtypes or devices that do not fit, before anything is written. Slots beyond the pool
        are not looked for: that would read device memory.
    Cost: reads and writes each row once.
    """
    check_rows_and_pages(k, v, k_pages, v_pages)
    if slot_mapping.shape != (k.shape[0],):
        raise ValueError(f"slot_mapping has shape {tuple(slot_mapping.shape)}, but k has {k.shape[0]} rows")
    if choose_impl(impl, k_pages, cpu="reference") == "reference":
        _reference(k, v, k_pages, v_pages, slot_mapping)
        return
    from infercore.kernels.write_kv.triton import write_kv as on_gpu

    on_gpu(k, v, k_pages, v_pages, slot_mapping)


def check_rows_and_pages(k: Tensor, v: Tensor, k_pages: Tensor, v_pages: Tensor) -> None:
    """Raise ValueError unless rows `k`, `v` fit the pool `k_pages`, `v_pages`."""
    if k_pages.shape[:3] != v_pages.shape[:3] or k_pages.ndim != 4:
        raise ValueError(
            f"k_pages {tuple(k_pages.shape)} and v_pages {tuple(v_pages.shape)} must be "
            "[num_pages, page_size, kv_heads, head_dim], equal but for head_dim"
        )
    if k.shape[1:] != k_pages.shape[2:] or v.shape[1:] != v_pages.shape[2:] or len(k) != len(v):
        raise ValueError(
            f"k {tuple(k.shape)} and v {tuple(v.shape)} do not fit pages of "
            f"{tuple(k_pages.shape[2:])} and {tuple(v_pages.shape[2:])} per slot; expected [rows, kv_heads, head_dim]"
        )
    if k.dtype != k_pages.dtype or v.dtype != v_pages.dtype:
        raise ValueError(
            f"rows are {k.dtype} and {v.dtype}, but the pool holds {k_pages.dtype} and {v_pages.dtype}; "
            "make the pool in the model's dtype"
        )
    if not (k_pages.is_contiguous() and v_pages.is_contiguous()):
        raise ValueError("k_pages and v_pages must be contiguous; pass the pool's own tensors, not slices of them")

"""The specification of `write_kv` in plain torch."""

from jaxtyping import Float, Int64
from torch import Tensor


def write_kv(
    k: Float[Tensor, "rows kv_heads k_dim"],
    v: Float[Tensor, "rows kv_heads v_dim"],
    k_pages: Float[Tensor, "num_pages page_size kv_heads k_dim"],
    v_pages: Float[Tensor, "num_pages page_size kv_heads v_dim"],
    slot_mapping: Int64[Tensor, " rows"],
) -> None:
    """Copy rows into slots, in place; -1 is skipped."""
    slots = slot_mapping
    if slots.numel() and int(slots.min()) < 0:  # a read of one number: this path is for the CPU
        kept = slots >= 0
        k, v, slots = k[kept], v[kept], slots[kept]
    k_pages.view(-1, *k_pages.shape[2:]).index_copy_(0, slots, k)
    v_pages.view(-1, *v_pages.shape[2:]).index_copy_(0, slots, v)

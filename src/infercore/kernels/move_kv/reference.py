"""The specification of `move_kv` in plain torch."""

from jaxtyping import Float, Int64
from torch import Tensor


def move_kv(
    k_pages: Float[Tensor, "num_pages page_size kv_heads k_dim"],
    v_pages: Float[Tensor, "num_pages page_size kv_heads v_dim"],
    src_slots: Int64[Tensor, " n"],
    dst_slots: Int64[Tensor, " n"],
) -> None:
    """Gather all sources, then scatter them; in place."""
    for pages in (k_pages, v_pages):
        slots = pages.view(-1, *pages.shape[2:])
        slots.index_copy_(0, dst_slots, slots.index_select(0, src_slots))

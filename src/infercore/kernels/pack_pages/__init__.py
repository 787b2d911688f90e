"""`page_packer`: the pages of all layers in one block of bytes each, and back, with one launch.

For copies between a pool and memory elsewhere: one block a page is one piece to send, however many layers there are.
Files: `reference.py`, `triton.py`.

    packer = page_packer(tensors)                                  # K and V of every layer
    packer.pack(page_ids, blocks)                                  # [n, packer.page_bytes] uint8
    packer.unpack(blocks, other_page_ids)
"""

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

from jaxtyping import Int64, Shaped, UInt8
from torch import Tensor

from infercore.kernels.impl import Impl, choose_impl

__all__ = ["PagePacker", "page_packer"]


@runtime_checkable
class PagePacker(Protocol):
    """Copies whole pages bit for bit; `page_bytes` are those of one page in all tensors, which stand in their order.

    Laws: `unpack(pack(pages), pages)` changes nothing; pages that are not named stay as they are. `page_ids` of
    `unpack` differ from each other. Page ids are not checked: that would read device memory.
    """

    page_bytes: int

    def pack(self, page_ids: Int64[Tensor, " n"], blocks: UInt8[Tensor, "n page_bytes"]) -> None: ...
    def unpack(self, blocks: UInt8[Tensor, "n page_bytes"], page_ids: Int64[Tensor, " n"]) -> None: ...


def page_packer(
    tensors: Sequence[Shaped[Tensor, "_ _ _ _"]],
    *,
    impl: Impl = "auto",
) -> PagePacker:
    """What packs and unpacks pages of these tensors, `[num_pages, page_size, heads, dim]` each, of any dtypes.

    They are contiguous and on one device, and may differ in heads and sizes.

    Raises: ValueError for none, for tensors on several devices, and for such that are not contiguous.
    Cost: reads and writes each byte once; one launch on a GPU, one copy a tensor on a CPU. No host sync.
    """
    if not tensors:
        raise ValueError("there are no tensors to pack pages of; write K/V of a layer first")
    if len({tensor.device for tensor in tensors}) > 1:
        raise ValueError(f"tensors are on {sorted({str(t.device) for t in tensors})}; make one packer per device")
    if not all(tensor.is_contiguous() for tensor in tensors):
        raise ValueError("tensors must be contiguous; pass the pool's own tensors, not slices of them")
    if choose_impl(impl, tensors[0], cpu="reference") == "reference":
        from infercore.kernels.pack_pages.reference import ReferencePacker

        return ReferencePacker(tensors)
    from infercore.kernels.pack_pages.triton import TritonPacker

    return TritonPacker(tensors)

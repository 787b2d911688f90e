"""`page_packer` on the GPU: a page of every tensor in one launch, each byte read once and written once.

A program copies one piece of one page in one tensor. Pages of a tensor are contiguous, and so are blocks: all accesses
are whole cache lines, in words as large as the sizes of the tensors' pages allow.
"""

import typing
from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from jaxtyping import Int64, UInt8
from torch import Tensor

_BLOCK = 1024
_WORDS = {8: torch.int64, 4: torch.int32, 2: torch.int16, 1: torch.int8}


@triton.jit(do_not_specialize=["num_tensors", "block_words"])
@typing.no_type_check
def _copy_pages_kernel(
    table_ptr,  # [3, num_tensors] int64: address, words of a page, first word in a block
    page_ids_ptr,  # [n] int64
    blocks_ptr,  # [n, block_words], words
    num_tensors,
    block_words,
    UNPACK: tl.constexpr,  # from the blocks to the pages
    BLOCK: tl.constexpr,
):
    place = tl.program_id(0).to(tl.int64)
    tensor = tl.program_id(1)
    words = tl.load(table_ptr + num_tensors + tensor)
    first = tl.load(table_ptr + 2 * num_tensors + tensor)
    pages_ptr = tl.load(table_ptr + tensor).to(blocks_ptr.dtype)
    page = tl.load(page_ids_ptr + place)
    word = tl.program_id(2) * BLOCK + tl.arange(0, BLOCK)
    inside = word < words
    in_page = pages_ptr + page * words + word
    in_block = blocks_ptr + place * block_words + first + word
    if UNPACK:
        tl.store(in_page, tl.load(in_block, mask=inside), mask=inside)
    else:
        tl.store(in_block, tl.load(in_page, mask=inside), mask=inside)


class TritonPacker:
    """See `page_packer`."""

    def __init__(self, tensors: Sequence[Tensor]) -> None:
        sizes = [tensor[0].numel() * tensor.element_size() for tensor in tensors]
        self.page_bytes = sum(sizes)
        size = next(size for size in _WORDS if all(s % size == 0 for s in sizes))
        self._dtype, self._num_words = _WORDS[size], self.page_bytes // size
        words = [s // size for s in sizes]
        firsts = [sum(words[:i]) for i in range(len(words))]
        self._tensors = list(tensors)  # kept alive: the table holds their addresses
        table = torch.tensor([[t.data_ptr() for t in tensors], words, firsts], dtype=torch.int64)
        self._table = table.to(tensors[0].device)
        self._grid = (len(words), triton.cdiv(max(words), _BLOCK))

    def pack(self, page_ids: Int64[Tensor, " n"], blocks: UInt8[Tensor, "n page_bytes"]) -> None:
        self._copy(page_ids, blocks, unpack=False)

    def unpack(self, blocks: UInt8[Tensor, "n page_bytes"], page_ids: Int64[Tensor, " n"]) -> None:
        self._copy(page_ids, blocks, unpack=True)

    def _copy(self, page_ids: Tensor, blocks: Tensor, *, unpack: bool) -> None:
        if not len(page_ids):
            return
        if not blocks.is_contiguous():
            raise ValueError(f"blocks of shape {tuple(blocks.shape)} must be contiguous; pass whole rows")
        with torch.cuda.device_of(self._table):
            _copy_pages_kernel[len(page_ids), *self._grid](
                self._table, page_ids, blocks.view(self._dtype), len(self._tensors), self._num_words,
                UNPACK=unpack, BLOCK=_BLOCK,
            )  # fmt: skip

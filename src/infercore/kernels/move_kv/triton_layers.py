"""`slot_mover` on the GPU: all tensors of a pool in one launch.

A program takes one piece of a slot, in one tensor, through all moves in their order: what an earlier move read, a later
one may write, but not the other way round.
"""

import typing
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
import triton
import triton.language as tl
from torch import Tensor

_WORD = 4  # bytes that are copied at a time
_BLOCK = 256
_FEW = 4  # moves that are passed as arguments


@triton.jit(do_not_specialize=["count", "num_tensors"])
@typing.no_type_check
def _move_slots_kernel(
    table_ptr,  # [2, num_tensors] int64: address, words of a slot
    moves_ptr,  # [2, count] int64: sources, destinations
    count,
    num_tensors,
    BLOCK: tl.constexpr,
):
    tensor = tl.program_id(0)
    words = tl.load(table_ptr + num_tensors + tensor)
    pages_ptr = tl.load(table_ptr + tensor).to(tl.pointer_type(tl.int32))
    word = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = word < words
    for i in range(count):
        src, dst = tl.load(moves_ptr + i), tl.load(moves_ptr + count + i)
        moved = tl.load(pages_ptr + src * words + word, mask=inside)
        tl.store(pages_ptr + dst * words + word, moved, mask=inside)


@triton.jit(do_not_specialize=["num_tensors", "src0", "dst0", "src1", "dst1", "src2", "dst2", "src3", "dst3"])
@typing.no_type_check
def _move_few_kernel(
    table_ptr,  # as above
    num_tensors,
    src0,
    dst0,
    src1,
    dst1,
    src2,
    dst2,
    src3,
    dst3,  # moves that are too many: slot 0, which nobody owns, onto itself
    BLOCK: tl.constexpr,
):
    tensor = tl.program_id(0)
    words = tl.load(table_ptr + num_tensors + tensor)  # int64, and so the offsets below
    pages_ptr = tl.load(table_ptr + tensor).to(tl.pointer_type(tl.int32))
    word = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = word < words
    tl.store(pages_ptr + dst0 * words + word, tl.load(pages_ptr + src0 * words + word, mask=inside), mask=inside)
    tl.store(pages_ptr + dst1 * words + word, tl.load(pages_ptr + src1 * words + word, mask=inside), mask=inside)
    tl.store(pages_ptr + dst2 * words + word, tl.load(pages_ptr + src2 * words + word, mask=inside), mask=inside)
    tl.store(pages_ptr + dst3 * words + word, tl.load(pages_ptr + src3 * words + word, mask=inside), mask=inside)


class SlotMover:
    """Moves slots in these tensors, `[num_pages, page_size, heads, dim]` each, contiguous, on one device."""

    def __init__(self, tensors: Sequence[Tensor]) -> None:
        words = [t.shape[2] * t.shape[3] * t.element_size() // _WORD for t in tensors]
        self._tensors = tensors  # kept alive: the table holds their addresses
        self._table = torch.tensor([[t.data_ptr() for t in tensors], words], dtype=torch.int64).to(tensors[0].device)
        self._grid = (len(tensors), triton.cdiv(max(words), _BLOCK))

    def __call__(self, src: npt.NDArray[np.int64], dst: npt.NDArray[np.int64]) -> bool:
        """Copy slot `src[i]` to `dst[i]` in every tensor, without waiting for the device.

        Returns: False, having done nothing, where a destination is a source of a later move.
        """
        count = len(src)
        if count <= _FEW:  # no copy of the moves to the device: an accepted path is short
            sources, targets = src.tolist(), dst.tolist()
            if any(targets[i] in sources[i + 1 :] for i in range(count - 1)):
                return False
            rest = [0] * (_FEW - count)
            moves = [slot for pair in zip(sources + rest, targets + rest, strict=True) for slot in pair]
            with torch.cuda.device_of(self._table):  # type: ignore[no-untyped-call]
                _move_few_kernel[self._grid](self._table, len(self._tensors), *moves, BLOCK=_BLOCK, num_stages=1)
            return True
        if np.triu(dst[:, None] == src[None, :], 1).any():
            return False
        both = torch.from_numpy(np.stack([src, dst]))
        if self._table.is_cuda:
            both = both.pin_memory()
        with torch.cuda.device_of(self._table):  # type: ignore[no-untyped-call]
            _move_slots_kernel[self._grid](
                self._table, both.to(self._table.device, non_blocking=True), len(src), len(self._tensors),
                BLOCK=_BLOCK, num_stages=1,
            )  # fmt: skip
        return True


def fits(tensors: Sequence[Tensor]) -> bool:
    """Whether their slots are whole words, and all are on one device."""
    sizes = [t.shape[2] * t.shape[3] * t.element_size() for t in tensors]
    return all(size % _WORD == 0 for size in sizes) and len({t.device for t in tensors}) == 1

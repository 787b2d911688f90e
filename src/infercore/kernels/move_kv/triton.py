"""`move_kv` on the GPU: gather into a scratch copy, then scatter, as two launches.

Sources and destinations may overlap, so nothing may be written before everything was read; between programs only the
end of a launch guarantees that. The scratch copy holds the moved slots, nothing more.
"""

import typing

import torch
import triton
import triton.language as tl
from torch import Tensor


@triton.jit
@typing.no_type_check
def _copy_slots_kernel(
    src_ptr,  # [slots, WIDTH]
    dst_ptr,  # [slots, WIDTH]
    src_slots_ptr,  # [n] int64; ignored without GATHER: row i then comes from row i
    dst_slots_ptr,  # [n] int64; ignored with GATHER: row i then goes to row i
    WIDTH: tl.constexpr,
    BLOCK: tl.constexpr,
    GATHER: tl.constexpr,
):
    i = tl.program_id(0).to(tl.int64)
    x = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = x < WIDTH
    if GATHER:
        src, dst = tl.load(src_slots_ptr + i).to(tl.int64), i
    else:
        src, dst = i, tl.load(dst_slots_ptr + i).to(tl.int64)
    tl.store(dst_ptr + dst * WIDTH + x, tl.load(src_ptr + src * WIDTH + x, mask=inside), mask=inside)


def move_kv(k_pages: Tensor, v_pages: Tensor, src_slots: Tensor, dst_slots: Tensor) -> None:
    """Launch; arguments have been checked, at least one slot moves."""
    n = len(src_slots)
    src_slots, dst_slots = src_slots.contiguous(), dst_slots.contiguous()
    with torch.cuda.device_of(k_pages):
        moves = []
        for pages in (k_pages, v_pages):
            width = pages.shape[2] * pages.shape[3]
            block = min(triton.next_power_of_2(width), 1024)
            scratch = torch.empty(n, width, dtype=pages.dtype, device=pages.device)
            moves.append((pages, scratch, (n, triton.cdiv(width, block)), width, block))
        for pages, scratch, grid, width, block in moves:
            _copy_slots_kernel[grid](pages, scratch, src_slots, dst_slots, WIDTH=width, BLOCK=block, GATHER=True)
        for pages, scratch, grid, width, block in moves:
            _copy_slots_kernel[grid](scratch, pages, src_slots, dst_slots, WIDTH=width, BLOCK=block, GATHER=False)

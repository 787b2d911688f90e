"""`write_kv` on the GPU: one program per row copies its key and value; each byte is read once and written once."""

import typing

import torch
import triton
import triton.language as tl
from torch import Tensor


@triton.jit(do_not_specialize=["k_row_stride", "k_head_stride", "v_row_stride", "v_head_stride"])
@typing.no_type_check
def _write_kv_kernel(
    k_ptr,  # [rows, HEADS, K_DIM], strided
    v_ptr,  # [rows, HEADS, V_DIM], strided
    k_pages_ptr,  # [slots, HEADS, K_DIM]
    v_pages_ptr,  # [slots, HEADS, V_DIM]
    slot_mapping_ptr,  # [rows] int64, -1: not written
    k_row_stride,
    k_head_stride,
    v_row_stride,
    v_head_stride,
    HEADS: tl.constexpr,
    K_DIM: tl.constexpr,
    V_DIM: tl.constexpr,
    BLOCK: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    slot = tl.load(slot_mapping_ptr + row).to(tl.int64)
    if slot >= 0:
        for start in range(0, HEADS * K_DIM, BLOCK):
            x = start + tl.arange(0, BLOCK)
            inside = x < HEADS * K_DIM
            k = tl.load(k_ptr + row * k_row_stride + x // K_DIM * k_head_stride + x % K_DIM, mask=inside)
            tl.store(k_pages_ptr + slot * (HEADS * K_DIM) + x, k, mask=inside)
        for start in range(0, HEADS * V_DIM, BLOCK):
            x = start + tl.arange(0, BLOCK)
            inside = x < HEADS * V_DIM
            v = tl.load(v_ptr + row * v_row_stride + x // V_DIM * v_head_stride + x % V_DIM, mask=inside)
            tl.store(v_pages_ptr + slot * (HEADS * V_DIM) + x, v, mask=inside)


def write_kv(k: Tensor, v: Tensor, k_pages: Tensor, v_pages: Tensor, slot_mapping: Tensor) -> None:
    """Launch; arguments have been checked. Copies `k` or `v` first if its last dimension is strided."""
    rows, heads, k_dim = k.shape
    if rows == 0:
        return
    k = k if k.stride(2) == 1 else k.contiguous()
    v = v if v.stride(2) == 1 else v.contiguous()
    v_dim = v.shape[2]
    block = min(triton.next_power_of_2(heads * max(k_dim, v_dim)), 2048)
    with torch.cuda.device_of(k_pages):
        _write_kv_kernel[(rows,)](
            k,
            v,
            k_pages,
            v_pages,
            slot_mapping.contiguous(),
            k.stride(0),
            k.stride(1),
            v.stride(0),
            v.stride(1),
            HEADS=heads,
            K_DIM=k_dim,
            V_DIM=v_dim,
            BLOCK=block,
            num_warps=4,
        )

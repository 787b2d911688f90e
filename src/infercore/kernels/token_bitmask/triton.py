"""`apply_token_bitmask_` on the GPU: reads one bit per token and writes only banned logits; no logit is ever read."""

import typing

import torch
import triton
import triton.language as tl
from torch import Tensor

_BLOCK = 4096


@triton.jit(do_not_specialize=["logits_row_stride", "bitmask_row_stride"])
@typing.no_type_check
def _apply_token_bitmask_kernel(
    logits_ptr,  # [rows, vocab], changed in place
    bitmask_ptr,  # [rows, words] int32
    logits_row_stride,
    bitmask_row_stride,
    vocab_size,
    BLOCK: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)  # int64: row * stride passes 2**31 at batch 16k with a 128k vocabulary
    token = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    in_vocab = token < vocab_size
    word = tl.load(bitmask_ptr + row * bitmask_row_stride + token // 32, mask=in_vocab, other=-1)
    allowed = (word >> (token % 32)) & 1
    banned = in_vocab & (allowed == 0)
    tl.store(logits_ptr + row * logits_row_stride + token, float("-inf"), mask=banned)


def apply_token_bitmask_(logits: Tensor, bitmask: Tensor) -> Tensor:
    """Launch; arguments have been checked."""
    rows, vocab_size = logits.shape
    if rows and vocab_size:
        if logits.stride(1) != 1:
            raise ValueError(f"logits has strides {logits.stride()}; its last dimension must be contiguous")
        block = min(_BLOCK, triton.next_power_of_2(vocab_size))
        with torch.cuda.device_of(logits):
            _apply_token_bitmask_kernel[(rows, triton.cdiv(vocab_size, block))](
                logits,
                bitmask if bitmask.stride(1) == 1 else bitmask.contiguous(),
                logits.stride(0),
                bitmask.stride(0) if bitmask.stride(1) == 1 else bitmask.shape[1],
                vocab_size,
                BLOCK=block,
            )
    return logits

"""`linear_group` on the GPU: every program streams a block of weight rows through the tensor cores."""

import typing
from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

_CONFIGS = {  # rows of a tile: (outputs of a program, inputs of a step, stages, warps)
    16: (64, 128, 6, 4),
    32: (64, 128, 6, 4),
    64: (64, 128, 5, 4),
}


@triton.jit(do_not_specialize=["num_rows"])
@typing.no_type_check
def _linear_group_kernel(
    x_ptr,  # [num_rows, inputs]
    w0_ptr,  # [n0, inputs] each
    w1_ptr,
    w2_ptr,
    y0_ptr,  # [num_rows, n0] each
    y1_ptr,
    y2_ptr,
    num_rows,
    n0,
    n1,
    n2,
    inputs,
    blocks0,  # programs of the first weight, and of the first two
    blocks01,
    ROWS: tl.constexpr,
    OUTPUTS: tl.constexpr,
    STEP: tl.constexpr,
    IS_WHOLE: tl.constexpr,  # inputs are a multiple of STEP
):
    inputs = inputs // 64 * 64  # as the caller checked: rows are aligned, so that loads are wide and run ahead
    block = tl.program_id(0)
    is_last, is_later = block >= blocks01, block >= blocks0
    # selected, not branched for: behind a branch Triton no longer knows pointers as aligned, and loads without stages
    w_ptr = tl.where(is_last, w2_ptr, tl.where(is_later, w1_ptr, w0_ptr))
    y_ptr = tl.where(is_last, y2_ptr, tl.where(is_later, y1_ptr, y0_ptr))
    outputs = tl.where(is_last, n2, tl.where(is_later, n1, n0))
    block -= tl.where(is_last, blocks01, tl.where(is_later, blocks0, 0))
    output = block * OUTPUTS + tl.arange(0, OUTPUTS)
    row = tl.arange(0, ROWS)
    column = tl.arange(0, STEP)
    is_output, is_row = output < outputs, row < num_rows
    w_at = w_ptr + output.to(tl.int64)[:, None] * inputs + column[None, :]
    x_at = x_ptr + row[None, :] * inputs + column[:, None]
    sums = tl.zeros((OUTPUTS, ROWS), tl.float32)
    for start in range(0, inputs, STEP):
        if IS_WHOLE:
            w = tl.load(w_at + start, mask=is_output[:, None], other=0.0)
            x = tl.load(x_at + start, mask=is_row[None, :], other=0.0)
        else:
            is_left = start + column < inputs
            w = tl.load(w_at + start, mask=is_output[:, None] & is_left[None, :], other=0.0)
            x = tl.load(x_at + start, mask=is_row[None, :] & is_left[:, None], other=0.0)
        sums = tl.dot(w, x, sums)
    at = row[None, :] * outputs + output[:, None]
    tl.store(y_ptr + at, sums.to(y_ptr.dtype.element_ty), mask=is_output[:, None] & is_row[None, :])


def linear_group(
    x: Tensor, weights: Sequence[Tensor], *, config: tuple[int, int, int, int] | None = None
) -> list[Tensor]:
    """Launch; arguments have been checked."""
    num_rows, inputs = x.shape
    x = x.contiguous()
    rows = max(16, triton.next_power_of_2(num_rows))
    outputs, step, stages, warps = config or _CONFIGS[rows]
    ys = [x.new_empty(num_rows, len(w)) for w in weights]
    sizes = [len(w) for w in weights] + [0] * (3 - len(weights))
    blocks = [triton.cdiv(n, outputs) for n in sizes]
    ws, outs = [[*tensors, *[tensors[0]] * (3 - len(weights))] for tensors in (list(weights), ys)]
    with torch.cuda.device_of(x):
        _linear_group_kernel[(sum(blocks),)](
            x, *ws, *outs, num_rows, *sizes, inputs, blocks[0], blocks[0] + blocks[1],
            ROWS=rows, OUTPUTS=outputs, STEP=step, IS_WHOLE=inputs % step == 0, num_stages=stages, num_warps=warps,
        )  # fmt: skip
    return ys

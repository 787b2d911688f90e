"""Combines partial results of `tree_attention`: those of the splits of a tile, and those of keys shared in a group.

A partial result is a weighted mean of values and the log of its denominator; the mean of all is their mean weighted by
denominators. Bytes: each partial result once, from the second-level cache where it was just written. For 16-bit pools
partial results are kept in float16 as shares of their row's largest magnitude, which is kept beside them: half the
bytes of float32, no overflow, and an error (2**-12 of that magnitude) below the rounding of the result.
"""

import typing
from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from infercore.kernels.tree_attention.triton_plan import ROW_FIELDS, WorkPlan

_TILES = 2048, 4096  # values that a program holds at a time, at least and at most: 64 or 128 registers of its one warp
_PROGRAMS = 512  # enough for every multiprocessor; starting more costs a nanosecond each


@dataclass(frozen=True, slots=True, eq=False)
class Partials:
    """Results of single splits: `values` [items * kv_heads, block_m, v_dim], `lse` and `magnitude` [.., block_m]."""

    values: Tensor
    lse: Tensor  # float32: log2 of the denominators
    magnitude: Tensor  # float32: what `values` are to be multiplied by; `lse` itself if there is none


def allocate(count: int, out: Tensor, *, block_m: int) -> Partials:
    """Workspace for `count` partial results of `out`."""
    v_dim, is_half = out.shape[2], out.element_size() == 2
    values = torch.empty(count, block_m, v_dim, dtype=torch.float16 if is_half else torch.float32, device=out.device)
    lse = torch.empty(count, block_m, dtype=torch.float32, device=out.device)
    return Partials(values, lse, torch.empty_like(lse) if is_half else lse)


def merge(
    out: Tensor,
    partials: Partials,
    plan: WorkPlan,
    sinks: Tensor | None,
    *,
    kv_heads: int,
    usual_splits: int,
    overlap: bool,
) -> None:
    """Launch; rows whose result stands already are left alone.

    Args:
        usual_splits: splits of a tile that most rows have; the order of the sums depends on this alone. More are right
            too, and take more steps.
    """
    num_rows, heads, v_dim = out.shape
    v_pad = max(16, triton.next_power_of_2(v_dim))
    at_once = min(triton.next_power_of_2(usual_splits), 64)
    tile = triton.next_power_of_2(max(1, num_rows * heads * at_once * v_pad // _PROGRAMS))
    tile = min(max(tile, _TILES[0]), _TILES[1])
    v_block = min(v_pad, max(16, tile // at_once))
    units = max(1, tile // (at_once * v_block))
    _merge_kernel[(triton.cdiv(num_rows * heads, units), v_pad // v_block)](
        out,
        partials.values,
        partials.lse,
        partials.magnitude,
        plan.rows,
        out if sinks is None else sinks,
        num_rows * heads,
        HEADS=heads,
        GROUP=heads // kv_heads,
        V_DIM=v_dim,
        V_BLOCK=v_block,
        ROW_FIELDS=ROW_FIELDS,
        BLOCK_M=partials.lse.shape[1],
        UNITS=units,
        SPLITS=at_once,
        HAS_MAGNITUDE=partials.magnitude is not partials.lse,
        HAS_SINKS=sinks is not None,
        HAS_GROUPS=plan.has_groups,
        OVERLAP=overlap,
        num_warps=1,  # no sum crosses a warp, so that nothing waits at a barrier
        enable_fp_fusion=True,
        **({"launch_pdl": True} if overlap else {}),
    )


@triton.jit
@typing.no_type_check
def _add_splits(
    high, total, acc, values_ptr, lse_ptr, magnitude_ptr, first_item, tiles, splits, place, head, v_dim,
    HEADS: tl.constexpr, GROUP: tl.constexpr, V_DIM: tl.constexpr, BLOCK_M: tl.constexpr, SPLITS: tl.constexpr,
    HAS_MAGNITUDE: tl.constexpr,
):  # fmt: skip
    """Add what a row's items gave; splits lie `tiles` items apart, because tiles run faster than splits."""
    packed = place * GROUP + head % GROUP
    first_item += packed // BLOCK_M
    for first in tl.range(0, tl.max(splits, 0), SPLITS):
        split = first + tl.arange(0, SPLITS)
        item = first_item[:, None] + split[None, :] * tiles[:, None]
        tile = (item * (HEADS // GROUP) + (head // GROUP)[:, None]).to(tl.int64)
        at = tile * BLOCK_M + (packed % BLOCK_M)[:, None]
        exists = split[None, :] < splits[:, None]  # [units, splits]
        lse = tl.load(lse_ptr + at, mask=exists, other=-float("inf"))
        values = tl.load(
            values_ptr + at[:, :, None] * V_DIM + v_dim[None, None, :],
            mask=exists[:, :, None] & (v_dim < V_DIM)[None, None, :],
            other=0.0,
        )
        new_high = tl.maximum(high, tl.max(lse, 1))
        shift = tl.where(new_high == -float("inf"), 0.0, new_high)
        weights = tl.exp2(lse - shift[:, None])
        decay = tl.exp2(high - shift)
        total = total * decay + tl.sum(weights, 1)
        if HAS_MAGNITUDE:
            weights = weights * tl.load(magnitude_ptr + at, mask=exists, other=0.0)
        acc = acc * decay[:, None] + tl.sum(values.to(tl.float32) * weights[:, :, None], 1)
        high = new_high
    return high, total, acc


@triton.jit(do_not_specialize=["num_units"])
@typing.no_type_check
def _merge_kernel(
    out_ptr,  # [rows, HEADS, V_DIM]
    values_ptr,  # see Partials
    lse_ptr,
    magnitude_ptr,
    rows_ptr,  # [rows, ROW_FIELDS] int32
    sinks_ptr,  # [HEADS]
    num_units,
    HEADS: tl.constexpr,
    GROUP: tl.constexpr,
    V_DIM: tl.constexpr,
    V_BLOCK: tl.constexpr,
    ROW_FIELDS: tl.constexpr,
    BLOCK_M: tl.constexpr,
    UNITS: tl.constexpr,
    SPLITS: tl.constexpr,
    HAS_MAGNITUDE: tl.constexpr,
    HAS_SINKS: tl.constexpr,
    HAS_GROUPS: tl.constexpr,
    OVERLAP: tl.constexpr,
):
    """One program per V_BLOCK values of UNITS results, a result being one head of one row."""
    unit = tl.program_id(0) * UNITS + tl.arange(0, UNITS)
    inside = unit < num_units
    head = unit % HEADS
    # Rows were planned before the launch in front of this one began, so they may be read before that one has ended.
    record = rows_ptr + unit // HEADS * ROW_FIELDS
    first_item = tl.load(record, mask=inside, other=0)
    tiles = tl.load(record + 1, mask=inside, other=0)
    splits = tl.load(record + 2, mask=inside, other=0)
    place = tl.load(record + 3, mask=inside, other=0)
    inside = splits > 0
    v_dim = tl.program_id(1) * V_BLOCK + tl.arange(0, V_BLOCK)
    if OVERLAP:  # before any return: when this launch ends, the one before must have ended too
        tl.extra.cuda.gdc_launch_dependents()
        tl.extra.cuda.gdc_wait()
    if tl.max(splits, 0) == 0:
        return
    if HAS_SINKS:
        high = tl.load(sinks_ptr + head).to(tl.float32) * 1.4426950408889634
        total = tl.full([UNITS], 1.0, tl.float32)
    else:
        high = tl.full([UNITS], -float("inf"), tl.float32)
        total = tl.full([UNITS], 0.0, tl.float32)
    acc = tl.zeros([UNITS, V_BLOCK], tl.float32)
    high, total, acc = _add_splits(
        high, total, acc, values_ptr, lse_ptr, magnitude_ptr, first_item, tiles, splits, place, head, v_dim,
        HEADS, GROUP, V_DIM, BLOCK_M, SPLITS, HAS_MAGNITUDE,
    )  # fmt: skip
    if HAS_GROUPS:
        first_item = tl.load(record + 4, mask=inside, other=0)
        tiles = tl.load(record + 5, mask=inside, other=0)
        splits = tl.load(record + 6, mask=inside, other=0)
        place = tl.load(record + 7, mask=inside, other=0)
        high, total, acc = _add_splits(
            high, total, acc, values_ptr, lse_ptr, magnitude_ptr, first_item, tiles, splits, place, head, v_dim,
            HEADS, GROUP, V_DIM, BLOCK_M, SPLITS, HAS_MAGNITUDE,
        )  # fmt: skip
    result = acc / tl.where(total > 0, total, 1.0)[:, None]
    tl.store(
        out_ptr + unit.to(tl.int64)[:, None] * V_DIM + v_dim[None, :],
        result.to(out_ptr.dtype.element_ty),
        mask=inside[:, None] & (v_dim < V_DIM)[None, :],
    )

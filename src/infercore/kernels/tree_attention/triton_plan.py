"""Which program of `tree_attention` attends to what: planned on the device, once a step for all layers.

All query heads of a KV head and up to BLOCK_M / group rows of one sequence form a tile; the keys of a tile are cut into
splits so that about `target` programs per KV head have equal shares, however ragged the lengths are. One small program
writes that down: a record per program of the attention kernel ("item"), and one per row for the merge. So the host
reads no lengths, grids depend on shapes alone, the launches can be captured, and no layer plans again.

Sequences that share pages form a group: the group's rows attend together to the shared keys, in items of their own
(a cascade), and each sequence's items begin behind them.
"""

import typing
from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from infercore.kernels.tree_attention.rows import PreparedRows

ITEM_FIELDS = 16
"""int32 per item: [0] row of the block table, -1: no work; [1] first row; [2] rows; [3] keys before these rows;
[4] causal rows, -1: these rows own no keys (a group's, or padding); [5] tile; [6] split; [7] splits; [8] first block of
keys; [9] 1: write the result, 0: a partial one; [10..] unused, so that a record is one memory transaction."""
ROW_FIELDS = 8
"""int32 per row, twice four: first item, tiles, splits (0: nothing to merge) and the row's place among the rows of its
sequence; then the same for the group."""
SHARED_STEP = 128  # a multiple of every BLOCK_N: groups share whole blocks of keys, the rest stays with the sequences


@dataclass(frozen=True, slots=True)
class PlanKey:
    """What a plan depends on beside the rows' tensors."""

    group: int  # query heads of a KV head
    block_m: int
    block_n: int
    target: int  # programs per KV head to cut the keys for; 0: do not split
    split_keys: int  # batch_invariant: keys per split; 0: by target
    sliding_window: int  # 0: none


@dataclass(frozen=True, slots=True, eq=False)
class WorkPlan:
    """Work of one step for one tile shape: `items` [num_items, ITEM_FIELDS], `rows` [num_rows, ROW_FIELDS] int32."""

    items: Tensor
    rows: Tensor
    num_items: int
    has_groups: bool


def work_plan(rows: PreparedRows, key: PlanKey) -> tuple[WorkPlan, bool]:
    """The plan of a step, from `rows.plans` if a layer before has asked for it, and whether this call has made it.

    Inside a CUDA graph's capture only plans made in that capture count: lengths are read anew by every replay. Rows
    that were prepared before the capture began are planned again by every call.
    """
    keep = rows.captured or not _is_capturing(rows.position_ids)
    known: WorkPlan | None = rows.plans.get(key) if keep else None
    if known is not None:
        return known, False
    num_seqs = len(rows.context_lens)
    has_groups = rows.group_starts is not None and not key.sliding_window and not key.split_keys
    num_groups = len(rows.group_starts) - 1 if has_groups and rows.group_starts is not None else 0
    num_items = most_items(rows, key, num_groups)
    device = rows.position_ids.device
    items = torch.empty(num_items, ITEM_FIELDS, dtype=torch.int32, device=device)
    row_records = torch.empty(rows.num_rows, ROW_FIELDS, dtype=torch.int32, device=device)
    units = triton.next_power_of_2(num_seqs + 1 + num_groups)
    scratch = torch.empty(5, units, dtype=torch.int32, device=device)
    with torch.cuda.device_of(rows.position_ids):
        _plan_kernel[(1,)](
            rows.row_starts,
            rows.context_lens,
            rows.num_causal_rows,
            rows.group_starts if num_groups else rows.row_starts,
            rows.shared_lens if num_groups else rows.row_starts,
            items,
            row_records,
            scratch,
            num_seqs,
            num_groups,
            rows.num_rows,
            num_items,
            key.target,
            key.sliding_window,
            GROUP=key.group,
            BLOCK_M=key.block_m,
            BLOCK_N=key.block_n,
            SPLIT_KEYS=key.split_keys,
            SHARED_STEP=SHARED_STEP,
            UNITS=units,
            STEPS=units.bit_length(),
            ITEM_FIELDS=ITEM_FIELDS,
            ROW_FIELDS=ROW_FIELDS,
            num_warps=8,
        )
    plan = WorkPlan(items, row_records, num_items, num_groups > 0)
    if keep:
        rows.plans[key] = plan
    return plan, True


def most_items(rows: PreparedRows, key: PlanKey, num_groups: int) -> int:
    """How many items there can be: from shapes, because lengths are on the device."""
    num_seqs = len(rows.context_lens)
    packed = rows.num_rows * key.group
    # Every sequence, and the padding, may end in a tile that is not full; no tile is empty.
    tiles = min(rows.num_rows * -(-key.group // key.block_m), packed // key.block_m + num_seqs + 1)
    if key.split_keys:
        return tiles * most_splits(rows, key)
    shared_tiles = packed // key.block_m + num_groups if num_groups else 0
    return tiles + shared_tiles + key.target


def most_splits(rows: PreparedRows, key: PlanKey) -> int:
    """An upper bound of the splits of a tile."""
    most_keys = rows.block_table.shape[1] * rows.page_size
    if key.split_keys:
        return max(1, -(-most_keys // key.split_keys))
    return max(1, min(key.target, -(-most_keys // key.block_n)))


def _is_capturing(tensor: Tensor) -> bool:
    return tensor.device.type == "cuda" and torch.cuda.is_current_stream_capturing()


@triton.jit
@typing.no_type_check
def _last_at_most(sorted_ptr, count, value, steps: tl.constexpr):
    """Index of the last of `count` ascending numbers that is <= value (the first one is); `value` is a vector."""
    low = tl.zeros_like(value)
    high = tl.zeros_like(value) + count  # the answer is in [low, high)
    for _ in tl.static_range(steps):
        middle = (low + high) // 2
        below = tl.load(sorted_ptr + middle, mask=middle < count, other=2147483647) <= value
        inside = low + 1 < high
        low = tl.where(inside & below, middle, low)
        high = tl.where(inside & (below == 0), middle, high)
    return low


@triton.jit(do_not_specialize=["num_seqs", "num_groups", "num_rows", "num_items", "target", "sliding_window"])
@typing.no_type_check
def _plan_kernel(
    row_starts_ptr,  # [num_seqs + 1]
    context_lens_ptr,  # [num_seqs]
    num_causal_rows_ptr,  # [num_seqs]
    group_starts_ptr,  # [num_groups + 1], in sequences
    shared_lens_ptr,  # [num_groups]
    items_ptr,  # [num_items, ITEM_FIELDS]
    rows_ptr,  # [num_rows, ROW_FIELDS]
    scratch_ptr,  # [5, UNITS]: first item, tiles, splits, shared keys of each unit; shared keys of each group
    num_seqs,
    num_groups,
    num_rows,
    num_items,
    target,
    sliding_window,
    GROUP: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    SPLIT_KEYS: tl.constexpr,
    SHARED_STEP: tl.constexpr,
    UNITS: tl.constexpr,
    STEPS: tl.constexpr,  # of a binary search among the units
    ITEM_FIELDS: tl.constexpr,
    ROW_FIELDS: tl.constexpr,
):
    """One program. Units: the sequences, then the padding rows, then the groups."""
    CHUNK: tl.constexpr = 256
    unit = tl.arange(0, UNITS)
    is_seq = unit < num_seqs
    group = unit - num_seqs - 1
    is_group = (group >= 0) & (group < num_groups)
    first_seq = tl.load(group_starts_ptr + group, mask=is_group, other=0)
    last_seq = tl.load(group_starts_ptr + group + 1, mask=is_group, other=0)
    start = tl.load(row_starts_ptr + tl.where(is_group, first_seq, unit), mask=is_group | (unit <= num_seqs), other=0)
    stop = tl.load(row_starts_ptr + tl.where(is_group, last_seq, unit + 1), mask=is_group | is_seq, other=0)
    rows = tl.where(unit == num_seqs, num_rows, stop) - start
    rows = tl.where(is_group | (unit <= num_seqs), rows, 0)
    shared = tl.load(shared_lens_ptr + group, mask=is_group & (last_seq - first_seq > 1), other=0)
    shared = shared // SHARED_STEP * SHARED_STEP
    if num_groups > 0:
        tl.store(scratch_ptr + 4 * UNITS + group, shared, mask=is_group)
        tl.debug_barrier()
        own_group = _last_at_most(group_starts_ptr, num_groups + 1, unit, STEPS)
        own_group_ok = is_seq & (own_group < num_groups)
        shared += tl.load(scratch_ptr + 4 * UNITS + own_group, mask=own_group_ok, other=0)  # of a sequence: its group's
    rows = tl.where(is_group & (shared == 0), 0, rows)
    context_len = tl.load(context_lens_ptr + unit, mask=is_seq, other=0)
    keys = tl.where(is_seq, context_len + rows - shared, shared)
    tiles = (rows * GROUP + BLOCK_M - 1) // BLOCK_M
    if SPLIT_KEYS > 0:  # batch_invariant: a split is so many keys, whatever else is in the batch
        splits = tl.maximum((keys + SPLIT_KEYS - 1) // SPLIT_KEYS, 1)
    else:
        if sliding_window > 0:
            keys = tl.minimum(keys, rows + sliding_window + BLOCK_N)
        blocks = (keys + BLOCK_N - 1) // BLOCK_N
        total = tl.maximum(tl.sum((tiles * blocks).to(tl.int64), 0), 1)
        splits = (blocks.to(tl.int64) * target // total).to(tl.int32)
        splits = tl.maximum(tl.minimum(splits, blocks), 1)
    count = tiles * splits
    first_item = tl.cumsum(count, 0) - count
    tl.store(scratch_ptr + unit, first_item)
    tl.store(scratch_ptr + UNITS + unit, tiles)
    tl.store(scratch_ptr + 2 * UNITS + unit, splits)
    tl.store(scratch_ptr + 3 * UNITS + unit, shared)
    used = tl.sum(count, 0)
    num_units = num_seqs + 1 + num_groups
    tl.debug_barrier()

    for begin in tl.range(0, num_items, CHUNK):
        item = begin + tl.arange(0, CHUNK)
        inside = item < num_items
        works = item < used
        u = _last_at_most(scratch_ptr, num_units, item, STEPS)
        local = item - tl.load(scratch_ptr + u)
        u_tiles = tl.maximum(tl.load(scratch_ptr + UNITS + u), 1)
        u_splits = tl.load(scratch_ptr + 2 * UNITS + u)
        u_shared = tl.load(scratch_ptr + 3 * UNITS + u)
        of_group = u > num_seqs
        of_seq = u < num_seqs
        g = u - num_seqs - 1
        table_row = tl.where(of_seq, u, tl.load(group_starts_ptr + g, mask=of_group & works, other=0))
        u_start = tl.load(row_starts_ptr + tl.minimum(tl.where(of_group, table_row, u), num_seqs))
        after = tl.load(group_starts_ptr + g + 1, mask=of_group & works, other=0)
        u_stop = tl.load(row_starts_ptr + tl.where(of_group, after, tl.minimum(u + 1, num_seqs)))
        u_stop = tl.where(u == num_seqs, num_rows, u_stop)
        before = tl.load(context_lens_ptr + u, mask=of_seq & works, other=0)
        causal = tl.load(num_causal_rows_ptr + u, mask=of_seq & works, other=-1)
        record = items_ptr + item * ITEM_FIELDS
        tl.store(record, tl.where(works, tl.where(u == num_seqs, 0, table_row), -1), mask=inside)
        tl.store(record + 1, u_start, mask=inside)
        tl.store(record + 2, u_stop - u_start, mask=inside)
        tl.store(record + 3, tl.where(of_seq, before, u_shared), mask=inside)
        tl.store(record + 4, causal, mask=inside)
        tl.store(record + 5, local % u_tiles, mask=inside)
        tl.store(record + 6, local // u_tiles, mask=inside)
        tl.store(record + 7, u_splits, mask=inside)
        tl.store(record + 8, tl.where(of_seq, u_shared // BLOCK_N, 0), mask=inside)
        direct = (u_splits == 1) & (of_group == 0) & ((of_seq == 0) | (u_shared == 0))
        tl.store(record + 9, direct.to(tl.int32), mask=inside)

    for begin in tl.range(0, num_rows, CHUNK):
        row = begin + tl.arange(0, CHUNK)
        inside = row < num_rows
        u = _last_at_most(row_starts_ptr, num_seqs + 1, row, STEPS)
        of_seq = inside & (u < num_seqs)
        u_splits = tl.load(scratch_ptr + 2 * UNITS + u, mask=of_seq, other=0)
        u_shared = tl.load(scratch_ptr + 3 * UNITS + u, mask=of_seq, other=0)
        record = rows_ptr + row * ROW_FIELDS
        merged = of_seq & ((u_splits > 1) | (u_shared > 0))
        tl.store(record, tl.load(scratch_ptr + u, mask=of_seq, other=0), mask=inside)
        tl.store(record + 1, tl.load(scratch_ptr + UNITS + u, mask=of_seq, other=0), mask=inside)
        tl.store(record + 2, tl.where(merged, u_splits, 0), mask=inside)
        tl.store(record + 3, row - tl.load(row_starts_ptr + u), mask=inside)
        in_group = of_seq & (u_shared > 0)
        g = tl.zeros_like(u)
        first = tl.zeros_like(u)
        if num_groups > 0:
            g = tl.minimum(_last_at_most(group_starts_ptr, num_groups + 1, u, STEPS), num_groups - 1)
            first = tl.load(row_starts_ptr + tl.load(group_starts_ptr + g, mask=in_group, other=0))
        group_unit = num_seqs + 1 + g
        tl.store(record + 4, tl.load(scratch_ptr + group_unit, mask=in_group, other=0), mask=inside)
        tl.store(record + 5, tl.load(scratch_ptr + UNITS + group_unit, mask=in_group, other=0), mask=inside)
        tl.store(record + 6, tl.load(scratch_ptr + 2 * UNITS + group_unit, mask=in_group, other=0), mask=inside)
        tl.store(record + 7, row - first, mask=inside)

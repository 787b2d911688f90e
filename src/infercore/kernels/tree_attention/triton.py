"""`tree_attention` on the GPU: every key and value is read once per tile of rows x query heads of its KV head.

What is saved: scores never leave the chip; the tree costs N x N bits, not an [N, context + N] mask; nothing is gathered
or repeated for grouped heads. Floor: the bytes of K and V of all sequences, once, at memory bandwidth.

The work is planned on the device. All query heads of a KV head and up to BLOCK_M / group rows of one sequence form a
tile; the keys of a tile are cut into splits so that about `TARGET` programs per KV head have equal shares, however
ragged the lengths are; every program finds its own (sequence, split, tile) by summing over the sequences' lengths. So
the host reads nothing, the grid depends on shapes alone, and the launch can be captured. Tiles cut into several splits
leave partial results that `_merge_kernel` combines; the others write their result at once.
"""

import typing

import torch
import triton
import triton.language as tl
from torch import Tensor

from infercore.kernels.tree_attention.config import INVARIANT_SPLIT_KEYS, Config, choose_config, device_limits
from infercore.kernels.tree_attention.rows import PreparedRows

_LOG2_E = 1.4426950408889634


def tree_attention(
    query: Tensor,
    k_pages: Tensor,
    v_pages: Tensor,
    rows: PreparedRows,
    out: Tensor,
    *,
    scaling: float,
    sliding_window: int | None,
    softcap: float | None,
    sinks: Tensor | None,
    batch_invariant: bool = False,
    config: Config | None = None,
    target: int | None = None,
) -> Tensor:
    """Launch; arguments have been checked. Nothing here depends on what device tensors hold.

    Args:
        config, target: for tuning and tests: instead of the table's config, and of the number of programs per KV head
            among which the keys are shared out.
    """
    num_rows, heads, k_dim = query.shape
    if num_rows == 0:
        return out
    _, page_size, kv_heads, v_dim = v_pages.shape
    num_seqs, max_pages = rows.block_table.shape
    group = heads // kv_heads
    query = query if query.stride(2) == 1 else query.contiguous()
    k_pad, v_pad = (max(16, triton.next_power_of_2(d)) for d in (k_dim, v_dim))
    device_name, multiprocessors, shared_bytes, can_overlap = device_limits(query.device)
    if config is None:
        config = choose_config(
            -(-num_rows // max(num_seqs, 1)) * group,
            k_pad=k_pad,
            v_pad=v_pad,
            itemsize=query.element_size(),
            shared_bytes=shared_bytes,
            device_name=device_name,
            batch_invariant=batch_invariant,
        )
    # Every sequence, and the padding, may end in a tile that is not full; no tile is empty.
    most_tiles = min(num_rows * triton.cdiv(group, config.block_m), num_rows * group // config.block_m + num_seqs + 1)
    if batch_invariant:
        target, most_splits = 0, triton.cdiv(max_pages * page_size, INVARIANT_SPLIT_KEYS)
        items, splits_at_once = most_tiles * max(most_splits, 1), 16
    else:
        if target is None:
            target = config.waves * multiprocessors // kv_heads
            if num_rows * group // config.block_m >= target:  # tiles enough without splitting
                target = 0
        most_splits = min(max(target, 1), triton.cdiv(max_pages * page_size, config.block_n))
        items, splits_at_once = most_tiles + target, min(triton.next_power_of_2(most_splits), 64)
    if most_splits > 1:
        partial = torch.empty(items * kv_heads, config.block_m, v_dim, dtype=torch.float32, device=query.device)
        lse = torch.empty(items * kv_heads, config.block_m, dtype=torch.float32, device=query.device)
    else:
        partial = lse = out  # never touched
    has_bits = rows.ancestor_bits is not None
    scale_log2 = scaling * _LOG2_E if softcap is None else 2 * scaling * _LOG2_E / softcap
    plan = {
        "KV_HEADS": kv_heads,
        "GROUP": group,
        "V_DIM": v_dim,
        "V_PAD": v_pad,
        "SEQS": triton.next_power_of_2(num_seqs + 1),
        "BLOCK_M": config.block_m,
        "BLOCK_N": config.block_n,
        "TARGET": target,
        "SPLIT_KEYS": INVARIANT_SPLIT_KEYS if batch_invariant else 0,
        "HAS_WINDOW": sliding_window is not None,
        "HAS_SINKS": sinks is not None,
        "OVERLAP_MERGE": can_overlap and most_splits > 1,
    }
    with torch.cuda.device_of(query):
        _attend_kernel[(items * kv_heads,)](
            query,
            k_pages,
            v_pages,
            out,
            partial,
            lse,
            rows.position_ids,
            rows.row_starts,
            rows.context_lens,
            rows.num_causal_rows,
            rows.block_table,
            rows.ancestor_bits if has_bits else rows.row_starts,
            out if sinks is None else sinks,
            scale_log2,
            0.0 if softcap is None else softcap * _LOG2_E,
            sliding_window or 0,
            query.stride(0),
            query.stride(1),
            num_seqs,
            num_rows,
            rows.block_table.stride(0),
            rows.ancestor_bits.stride(0) if rows.ancestor_bits is not None else 0,
            K_DIM=k_dim,
            K_PAD=k_pad,
            PAGE_SIZE=page_size,
            STAGES=config.stages,
            HAS_SOFTCAP=softcap is not None,
            HAS_BITS=has_bits,
            PRECISION=_precision(query),
            num_warps=config.warps,
            enable_fp_fusion=True,  # stated, because its default changes with the Triton version
            **plan,
        )
        if most_splits > 1:
            _merge_kernel[(num_rows * heads,)](
                out,
                partial,
                lse,
                rows.row_starts,
                rows.context_lens,
                out if sinks is None else sinks,
                sliding_window or 0,
                num_seqs,
                num_rows,
                SPLITS=splits_at_once,
                num_warps=2,
                enable_fp_fusion=True,
                **({"launch_pdl": True} if plan["OVERLAP_MERGE"] else {}),
                **plan,
            )
    return out


def _precision(query: Tensor) -> str:
    """How dot products are taken: exactly in float32, where "tf32" would drop 13 bits; for 16-bit inputs it is moot."""
    if query.dtype == torch.float32:
        return "ieee"
    return "upcast" if query.dtype == torch.bfloat16 and query.device.type == "cpu" else "tf32"


@triton.jit
@typing.no_type_check
def _plan(
    row_starts_ptr, context_lens_ptr, num_seqs, num_rows, sliding_window,
    GROUP: tl.constexpr, SEQS: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
    TARGET: tl.constexpr, SPLIT_KEYS: tl.constexpr, HAS_WINDOW: tl.constexpr,
):  # fmt: skip
    """Tiles and splits per tile of every sequence, `[SEQS]` each; sequence `num_seqs` stands for the padding rows."""
    seq = tl.arange(0, SEQS)
    start = tl.load(row_starts_ptr + seq, mask=seq <= num_seqs, other=num_rows)
    stop = tl.load(row_starts_ptr + seq + 1, mask=seq < num_seqs, other=num_rows)
    context_len = tl.load(context_lens_ptr + seq, mask=seq < num_seqs, other=0)
    rows = stop - start
    tiles = (rows * GROUP + BLOCK_M - 1) // BLOCK_M
    keys = tl.where((seq < num_seqs) & (rows > 0), context_len + rows, 0)
    if SPLIT_KEYS > 0:  # batch_invariant: a split is so many keys, whatever else is in the batch
        splits = tl.maximum((keys + SPLIT_KEYS - 1) // SPLIT_KEYS, 1)
    else:
        if HAS_WINDOW:
            keys = tl.minimum(keys, rows + sliding_window + BLOCK_N)
        blocks = (keys + BLOCK_N - 1) // BLOCK_N
        total = tl.maximum(tl.sum((tiles * blocks).to(tl.int64), 0), 1)
        splits = (blocks.to(tl.int64) * TARGET // total).to(tl.int32)
        splits = tl.maximum(tl.minimum(splits, blocks), 1)
    return tiles, splits


@triton.jit
@typing.no_type_check
def _load_rows(pages_ptr, slot_head, dim, seen, DIM: tl.constexpr, PADDED: tl.constexpr, MASKED: tl.constexpr):
    """[BLOCK_N, PADDED] of keys or values; with MASKED, rows that are not `seen` are zero and never read."""
    pointers = pages_ptr + slot_head[:, None] * DIM + dim[None, :]
    if MASKED:
        if DIM == PADDED:
            return tl.load(pointers, mask=seen[:, None], other=0.0)
        return tl.load(pointers, mask=seen[:, None] & (dim < DIM)[None, :], other=0.0)
    if DIM == PADDED:
        return tl.load(pointers)
    return tl.load(pointers, mask=(dim < DIM)[None, :], other=0.0)


@triton.jit
@typing.no_type_check
def _dot(a, b, acc, PRECISION: tl.constexpr):
    """acc + a . b; PRECISION "upcast" is for Triton's interpreter, which multiplies the bits of bfloat16."""
    if PRECISION == "upcast":
        return tl.dot(a.to(tl.float32), b.to(tl.float32), acc)
    return tl.dot(a, b, acc, input_precision=PRECISION)


@triton.jit
@typing.no_type_check
def _scores(q, k, scale_log2, softcap, HAS_SOFTCAP: tl.constexpr, PRECISION: tl.constexpr):
    """q . k in base-2 logits."""
    nothing = tl.zeros([q.shape[0], k.shape[0]], tl.float32)
    scores = _dot(q, tl.trans(k), nothing, PRECISION) * scale_log2
    if HAS_SOFTCAP:  # scale_log2 then holds 2 * log2(e) * scaling / softcap, and tanh(x) = 1 - 2 / (1 + e**2x)
        scores = (1.0 - 2.0 / (1.0 + tl.exp2(scores))) * softcap
    return scores


@triton.jit
@typing.no_type_check
def _accumulate(scores, v, high, total, acc, PRECISION: tl.constexpr, GUARDED: tl.constexpr):
    """One step of the running softmax; GUARDED where a row may have seen nothing yet (its `high` is -inf)."""
    new_high = tl.maximum(high, tl.max(scores, 1))
    shift = new_high
    if GUARDED:
        shift = tl.where(new_high == -float("inf"), 0.0, new_high)
    weights = tl.exp2(scores - shift[:, None])
    decay = tl.exp2(high - shift)
    total = total * decay + tl.sum(weights, 1)
    acc = acc * decay[:, None]
    acc = _dot(weights.to(v.dtype), v, acc, PRECISION)
    return new_high, total, acc


@triton.jit
@typing.no_type_check
def _masked_block(
    q, high, total, acc, key, k_pages_ptr, v_pages_ptr, table_ptr, position_ids_ptr, bits_row_ptr, start, row,
    row_inside, row_position, h, context_len, num_causal, num_own, scale_log2, softcap, sliding_window, k_dim, v_dim,
    KV_HEADS: tl.constexpr, K_DIM: tl.constexpr, V_DIM: tl.constexpr, K_PAD: tl.constexpr, V_PAD: tl.constexpr,
    PAGE_SIZE: tl.constexpr, HAS_WINDOW: tl.constexpr, HAS_SOFTCAP: tl.constexpr, HAS_BITS: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """One block of keys of which some rows may see only some."""
    own = key - context_len  # which row of the sequence a key belongs to; negative: the prefix
    inside = own < num_own
    node = own - num_causal
    visible = own[None, :] <= row[:, None]
    if HAS_BITS:
        is_tree = (row >= num_causal) & row_inside
        asked = is_tree[:, None] & ((node >= 0) & inside)[None, :]
        word = tl.load(bits_row_ptr[:, None] + (node // 32)[None, :], mask=asked, other=0)
        by_bits = ((word >> (tl.maximum(node, 0) % 32)[None, :]) & 1) != 0
        visible = tl.where(is_tree[:, None], (node < 0)[None, :] | by_bits, visible)
    visible = visible & inside[None, :] & row_inside[:, None]
    if HAS_WINDOW:
        own_position = tl.load(position_ids_ptr + start + own, mask=(own >= 0) & inside, other=0).to(tl.int32)
        key_position = tl.where(own < 0, key, own_position)
        visible = visible & (row_position[:, None] - key_position[None, :] < sliding_window)
    seen = tl.max(visible.to(tl.int32), 0) > 0  # what nobody sees may be NaN, and 0 x NaN is NaN
    page = tl.load(table_ptr + key // PAGE_SIZE, mask=seen, other=0).to(tl.int64)
    slot_head = (page * PAGE_SIZE + key % PAGE_SIZE) * KV_HEADS + h
    k = _load_rows(k_pages_ptr, slot_head, k_dim, seen, K_DIM, K_PAD, True)
    scores = _scores(q, k, scale_log2, softcap, HAS_SOFTCAP, PRECISION)
    scores = tl.where(visible, scores, -float("inf"))
    v = _load_rows(v_pages_ptr, slot_head, v_dim, seen, V_DIM, V_PAD, True)
    return _accumulate(scores, v, high, total, acc, PRECISION, True)


@triton.jit(do_not_specialize=["num_seqs", "num_rows", "table_stride", "bits_stride", "sliding_window"])
@typing.no_type_check
def _attend_kernel(
    query_ptr,  # [rows, KV_HEADS * GROUP, K_DIM], strided
    k_pages_ptr,  # [slots, KV_HEADS, K_DIM]
    v_pages_ptr,  # [slots, KV_HEADS, V_DIM]
    out_ptr,  # [rows, KV_HEADS * GROUP, V_DIM]
    partial_ptr,  # [items * KV_HEADS, BLOCK_M, V_DIM] float32: results of single splits
    lse_ptr,  # [items * KV_HEADS, BLOCK_M] float32: log2 of their denominators
    position_ids_ptr,  # [rows] int64
    row_starts_ptr,  # [num_seqs + 1]
    context_lens_ptr,  # [num_seqs]
    num_causal_rows_ptr,  # [num_seqs]
    block_table_ptr,  # [num_seqs, table_stride]
    ancestor_bits_ptr,  # [rows, bits_stride]
    sinks_ptr,  # [KV_HEADS * GROUP]
    scale_log2,
    softcap,
    sliding_window,
    query_row_stride,
    query_head_stride,
    num_seqs,
    num_rows,
    table_stride,
    bits_stride,
    KV_HEADS: tl.constexpr,
    GROUP: tl.constexpr,
    K_DIM: tl.constexpr,
    V_DIM: tl.constexpr,
    K_PAD: tl.constexpr,
    V_PAD: tl.constexpr,
    PAGE_SIZE: tl.constexpr,
    SEQS: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    STAGES: tl.constexpr,
    TARGET: tl.constexpr,
    SPLIT_KEYS: tl.constexpr,
    HAS_WINDOW: tl.constexpr,
    HAS_SOFTCAP: tl.constexpr,
    HAS_SINKS: tl.constexpr,
    HAS_BITS: tl.constexpr,
    PRECISION: tl.constexpr,
    OVERLAP_MERGE: tl.constexpr,
):
    item = tl.program_id(0) // KV_HEADS
    h = tl.program_id(0) % KV_HEADS
    tiles_of, splits_of = _plan(
        row_starts_ptr, context_lens_ptr, num_seqs, num_rows, sliding_window,
        GROUP, SEQS, BLOCK_M, BLOCK_N, TARGET, SPLIT_KEYS, HAS_WINDOW,
    )  # fmt: skip
    index = tl.arange(0, SEQS)
    ends = tl.cumsum(tiles_of * splits_of, 0)
    s = tl.sum((ends <= item).to(tl.int32), 0)
    if s > num_seqs:  # more programs than items: the grid is a bound
        return
    local = item - tl.sum(tl.where(index < s, tiles_of * splits_of, 0), 0)
    tiles = tl.sum(tl.where(index == s, tiles_of, 0), 0)
    splits = tl.sum(tl.where(index == s, splits_of, 0), 0)
    tile = local % tiles
    split = local // tiles
    is_padding = s == num_seqs
    start = tl.load(row_starts_ptr + s)
    stop = num_rows
    context_len = 0
    num_causal = 0
    if s < num_seqs:
        stop = tl.load(row_starts_ptr + s + 1)
        context_len = tl.load(context_lens_ptr + s)
        num_causal = tl.load(num_causal_rows_ptr + s)
    num_own = stop - start

    packed = tile * BLOCK_M + tl.arange(0, BLOCK_M)
    row = packed // GROUP
    row_inside = row < num_own
    head = h * GROUP + packed % GROUP
    k_dim = tl.arange(0, K_PAD)
    v_dim = tl.arange(0, V_PAD)
    global_row = (start + row).to(tl.int64)
    q = tl.load(
        query_ptr + global_row[:, None] * query_row_stride + head[:, None] * query_head_stride + k_dim[None, :],
        mask=row_inside[:, None] & (k_dim < K_DIM)[None, :],
        other=0.0,
    )
    row_position = tl.load(position_ids_ptr + global_row, mask=row_inside, other=0).to(tl.int32)

    # Keys from first_key to last_key concern this tile; those from full_from to full_to are seen by all of its rows.
    first_row = tile * BLOCK_M // GROUP
    last_row = tl.minimum((tile * BLOCK_M + BLOCK_M - 1) // GROUP, num_own - 1)
    first_key = 0
    full_from = 0
    last_key = context_len + num_own
    full_to = context_len
    if last_row < num_causal:  # a tile of the causal chain alone
        last_key = context_len + last_row + 1
        full_to = context_len + first_row + 1
    if HAS_WINDOW:
        lowest = tl.min(tl.where(row_inside, row_position, 2147483647), 0)
        highest = tl.max(tl.where(row_inside, row_position, 0), 0)
        first_key = tl.minimum(tl.maximum(lowest - sliding_window + 1, 0), context_len)
        full_from = tl.minimum(tl.maximum(highest - sliding_window + 1, 0), last_key)
        full_to = tl.minimum(full_to, context_len)  # positions of own rows are not their indices
    if is_padding:
        last_key = 0
        full_to = 0
    first_block = first_key // BLOCK_N
    end_block = (last_key + BLOCK_N - 1) // BLOCK_N
    if SPLIT_KEYS > 0:
        low = tl.maximum(split * (SPLIT_KEYS // BLOCK_N), first_block)
        end = tl.minimum((split + 1) * (SPLIT_KEYS // BLOCK_N), end_block)
    else:
        low = first_block + split * (end_block - first_block) // splits
        end = first_block + (split + 1) * (end_block - first_block) // splits
    full_low = tl.minimum(tl.maximum((full_from + BLOCK_N - 1) // BLOCK_N, low), tl.maximum(end, low))
    full_end = tl.maximum(tl.minimum(full_to // BLOCK_N, end), full_low)

    high = tl.full([BLOCK_M], -float("inf"), tl.float32)
    total = tl.zeros([BLOCK_M], tl.float32)
    acc = tl.zeros([BLOCK_M, V_PAD], tl.float32)
    table_ptr = block_table_ptr + s.to(tl.int64) * table_stride
    bits_row_ptr = ancestor_bits_ptr + global_row * bits_stride
    block_key = tl.arange(0, BLOCK_N)
    if HAS_WINDOW:
        for block in tl.range(low, full_low, num_stages=1):
            high, total, acc = _masked_block(
                q, high, total, acc, block * BLOCK_N + block_key, k_pages_ptr, v_pages_ptr, table_ptr, position_ids_ptr,
                bits_row_ptr, start, row, row_inside, row_position, h, context_len, num_causal, num_own, scale_log2,
                softcap, sliding_window, k_dim, v_dim, KV_HEADS, K_DIM, V_DIM, K_PAD, V_PAD, PAGE_SIZE, HAS_WINDOW,
                HAS_SOFTCAP, HAS_BITS, PRECISION,
            )  # fmt: skip
    next_page = tl.load(
        table_ptr + (full_low * BLOCK_N + block_key) // PAGE_SIZE,
        mask=full_low * BLOCK_N + block_key < full_end * BLOCK_N,
        other=0,
    )
    for block in tl.range(full_low, full_end, num_stages=STAGES):
        page = next_page.to(tl.int64)
        ahead = (block + 1) * BLOCK_N + block_key  # the next block's page ids arrive while this block is computed
        next_page = tl.load(table_ptr + ahead // PAGE_SIZE, mask=ahead < full_end * BLOCK_N, other=0)
        slot_head = (page * PAGE_SIZE + (block * BLOCK_N + block_key) % PAGE_SIZE) * KV_HEADS + h
        k = _load_rows(k_pages_ptr, slot_head, k_dim, block_key, K_DIM, K_PAD, False)
        scores = _scores(q, k, scale_log2, softcap, HAS_SOFTCAP, PRECISION)
        v = _load_rows(v_pages_ptr, slot_head, v_dim, block_key, V_DIM, V_PAD, False)
        high, total, acc = _accumulate(scores, v, high, total, acc, PRECISION, False)
    for block in tl.range(full_end, end, num_stages=1):
        high, total, acc = _masked_block(
            q, high, total, acc, block * BLOCK_N + block_key, k_pages_ptr, v_pages_ptr, table_ptr, position_ids_ptr,
            bits_row_ptr, start, row, row_inside, row_position, h, context_len, num_causal, num_own, scale_log2,
            softcap, sliding_window, k_dim, v_dim, KV_HEADS, K_DIM, V_DIM, K_PAD, V_PAD, PAGE_SIZE, HAS_WINDOW,
            HAS_SOFTCAP, HAS_BITS, PRECISION,
        )  # fmt: skip

    if OVERLAP_MERGE:
        tl.extra.cuda.gdc_launch_dependents()
    if splits == 1:
        if HAS_SINKS:
            sink = tl.load(sinks_ptr + head).to(tl.float32) * 1.4426950408889634
            new_high = tl.maximum(high, sink)
            decay = tl.exp2(high - new_high)
            total = total * decay + tl.exp2(sink - new_high)
            acc = acc * decay[:, None]
        result = acc / tl.where(total > 0, total, 1.0)[:, None]
        tl.store(
            out_ptr + (global_row * (KV_HEADS * GROUP) + head)[:, None] * V_DIM + v_dim[None, :],
            result.to(out_ptr.dtype.element_ty),
            mask=row_inside[:, None] & (v_dim < V_DIM)[None, :],
        )
    else:
        place = tl.program_id(0).to(tl.int64) * BLOCK_M + tl.arange(0, BLOCK_M)
        tl.store(
            partial_ptr + place[:, None] * V_DIM + v_dim[None, :],
            acc / tl.where(total > 0, total, 1.0)[:, None],
            mask=row_inside[:, None] & (v_dim < V_DIM)[None, :],
        )
        tl.store(
            lse_ptr + place,
            tl.where(total > 0, high + tl.log2(tl.where(total > 0, total, 1.0)), -float("inf")),
            mask=row_inside,
        )


@triton.jit(do_not_specialize=["num_seqs", "num_rows", "sliding_window"])
@typing.no_type_check
def _merge_kernel(
    out_ptr,  # [rows, KV_HEADS * GROUP, V_DIM]
    partial_ptr,  # as in _attend_kernel
    lse_ptr,
    row_starts_ptr,
    context_lens_ptr,
    sinks_ptr,
    sliding_window,
    num_seqs,
    num_rows,
    KV_HEADS: tl.constexpr,
    GROUP: tl.constexpr,
    V_DIM: tl.constexpr,
    V_PAD: tl.constexpr,
    SEQS: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    TARGET: tl.constexpr,
    SPLIT_KEYS: tl.constexpr,
    SPLITS: tl.constexpr,  # splits taken at a time; the order of the sums depends on this alone
    HAS_WINDOW: tl.constexpr,
    HAS_SINKS: tl.constexpr,
    OVERLAP_MERGE: tl.constexpr,
):
    """One program per row and head: partial results weighted by their share of the denominator."""
    global_row = tl.program_id(0) // (KV_HEADS * GROUP)
    head = tl.program_id(0) % (KV_HEADS * GROUP)
    tiles_of, splits_of = _plan(
        row_starts_ptr, context_lens_ptr, num_seqs, num_rows, sliding_window,
        GROUP, SEQS, BLOCK_M, BLOCK_N, TARGET, SPLIT_KEYS, HAS_WINDOW,
    )  # fmt: skip
    index = tl.arange(0, SEQS)
    stops = tl.load(row_starts_ptr + index + 1, mask=index < num_seqs, other=2147483647)
    s = tl.sum((stops <= global_row).to(tl.int32), 0)
    before = tl.sum(tl.where(index < s, tiles_of * splits_of, 0), 0)
    tiles = tl.sum(tl.where(index == s, tiles_of, 0), 0)
    splits = tl.sum(tl.where(index == s, splits_of, 0), 0)
    if OVERLAP_MERGE:  # before any return: when this launch ends, the one before must have ended too
        tl.extra.cuda.gdc_wait()
    if splits <= 1:
        return
    packed = (global_row - tl.load(row_starts_ptr + s)) * GROUP + head % GROUP
    tile = packed // BLOCK_M
    v_dim = tl.arange(0, V_PAD)
    if HAS_SINKS:
        high = tl.load(sinks_ptr + head).to(tl.float32) * 1.4426950408889634
        total = tl.full([], 1.0, tl.float32)
    else:
        high = tl.full([], -float("inf"), tl.float32)
        total = tl.full([], 0.0, tl.float32)
    acc = tl.zeros([V_PAD], tl.float32)
    for first in tl.range(0, splits, SPLITS):
        split = first + tl.arange(0, SPLITS)
        item = before + split * tiles + tile
        place = (item * KV_HEADS + head // GROUP).to(tl.int64) * BLOCK_M + packed % BLOCK_M
        lse = tl.load(lse_ptr + place, mask=split < splits, other=-float("inf"))
        part = tl.load(
            partial_ptr + place[:, None] * V_DIM + v_dim[None, :],
            mask=(split < splits)[:, None] & (v_dim < V_DIM)[None, :],
            other=0.0,
        )
        new_high = tl.maximum(high, tl.max(lse, 0))
        shift = tl.where(new_high == -float("inf"), 0.0, new_high)
        weights = tl.exp2(lse - shift)
        decay = tl.exp2(high - shift)
        total = total * decay + tl.sum(weights, 0)
        acc = acc * decay + tl.sum(part * weights[:, None], 0)
        high = new_high
    result = acc / tl.where(total > 0, total, 1.0)
    place_out = (global_row.to(tl.int64) * (KV_HEADS * GROUP) + head) * V_DIM + v_dim
    tl.store(out_ptr + place_out, result.to(out_ptr.dtype.element_ty), mask=v_dim < V_DIM)

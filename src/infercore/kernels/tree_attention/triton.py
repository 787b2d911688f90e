"""`tree_attention` on the GPU: every key and value is read once per tile of rows x query heads of its KV head.

What is saved: scores never leave the chip; the tree costs N x N bits, not an [N, context + N] mask; nothing is gathered
or repeated for grouped heads. Floor: the bytes of K and V of all sequences, once, at memory bandwidth.

`triton_plan.py` says which program attends to what; a program reads its record, then walks its blocks of keys: those
that all rows of the tile see, then those that need a mask. Results of tiles whose keys were cut into splits, or shared
with other sequences, are combined by `triton_merge.py`; the others are written at once.
"""

import typing

import torch
import triton
import triton.language as tl
from torch import Tensor

from infercore.kernels.tree_attention.config import INVARIANT_SPLIT_KEYS, Config, choose_config, device_limits
from infercore.kernels.tree_attention.rows import PreparedRows
from infercore.kernels.tree_attention.triton_merge import allocate, merge
from infercore.kernels.tree_attention.triton_plan import ITEM_FIELDS, PlanKey, most_splits, work_plan

_LOG2_E = 1.4426950408889634
_OWN_TAIL = 16  # splits of a tile from which the blocks of keys that need a mask have a split of their own


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
    group = heads // kv_heads
    query = query if query.stride(2) == 1 else query.contiguous()
    k_pad, v_pad = (max(16, triton.next_power_of_2(d)) for d in (k_dim, v_dim))
    device_name, multiprocessors, shared_bytes, can_overlap = device_limits(query.device)
    if config is None:
        config = choose_config(
            _usual_rows(rows) * group,
            load=len(rows.context_lens) * kv_heads / multiprocessors,
            k_pad=k_pad,
            v_pad=v_pad,
            itemsize=query.element_size(),
            shared_bytes=shared_bytes,
            device_name=device_name,
            batch_invariant=batch_invariant,
        )
    # About how many, per KV head; padding rows, which no sequence may own, make one as well.
    num_tiles = max(1, num_rows * group // config.block_m, min(num_rows, len(rows.context_lens)))
    if batch_invariant:
        target = 0
    elif target is None:
        programs = config.waves * multiprocessors // kv_heads
        target = _programs_to_share_among(programs, num_tiles, is_decode=config.block_m <= 16)
    key = PlanKey(
        group,
        config.block_m,
        config.block_n,
        target,
        INVARIANT_SPLIT_KEYS if batch_invariant else 0,
        sliding_window or 0,
    )
    plan, plan_is_new = work_plan(rows, key)
    merges = most_splits(rows, key) > 1 or plan.has_groups
    partials = allocate(plan.num_items * kv_heads if merges else 1, out, block_m=config.block_m)
    has_bits = rows.ancestor_bits is not None
    scale_log2 = scaling * _LOG2_E if softcap is None else 2 * scaling * _LOG2_E / softcap
    overlap = {"launch_pdl": True} if can_overlap else {}
    with torch.cuda.device_of(query):
        _attend_kernel[(plan.num_items * kv_heads,)](
            query,
            k_pages,
            v_pages,
            out,
            partials.values,
            partials.lse,
            partials.magnitude,
            plan.items,
            rows.position_ids,
            rows.block_table,
            rows.ancestor_bits if has_bits else rows.row_starts,
            out if sinks is None else sinks,
            scale_log2,
            0.0 if softcap is None else softcap * _LOG2_E,
            sliding_window or 0,
            query.stride(0),
            query.stride(1),
            rows.block_table.stride(0),
            rows.ancestor_bits.stride(0) if rows.ancestor_bits is not None else 0,
            int(plan_is_new),
            KV_HEADS=kv_heads,
            GROUP=group,
            K_DIM=k_dim,
            V_DIM=v_dim,
            K_PAD=k_pad,
            V_PAD=v_pad,
            PAGE_SIZE=page_size,
            ITEM_FIELDS=ITEM_FIELDS,
            BLOCK_M=config.block_m,
            BLOCK_N=config.block_n,
            STAGES=config.stages,
            SPLIT_KEYS=key.split_keys,
            OWN_TAIL=_OWN_TAIL,
            HAS_WINDOW=sliding_window is not None,
            HAS_SOFTCAP=softcap is not None,
            HAS_SINKS=sinks is not None,
            HAS_BITS=has_bits,
            HAS_MAGNITUDE=partials.magnitude is not partials.lse,
            PRECISION=_precision(query),
            SMALL_POOL=max(k_pages.numel(), v_pages.numel()) < 2**31,
            OVERLAP=can_overlap,
            num_warps=config.warps,
            enable_fp_fusion=True,  # stated, because its default changes with the Triton version
            **overlap,
        )
        if merges:
            usual = 16 if batch_invariant else max(1, target // num_tiles)
            merge(out, partials, plan, sinks, kv_heads=kv_heads, usual_splits=usual, overlap=can_overlap)
    return out


def _usual_rows(rows: PreparedRows) -> int:
    """Rows that attend to the same keys: of a sequence, or of a group, on average."""
    if rows.rows_together is not None:
        return rows.rows_together
    members = len(rows.context_lens) if rows.shared_lens is None else len(rows.shared_lens)
    return -(-rows.num_rows // max(members, 1))


def _programs_to_share_among(programs: int, num_tiles: int, *, is_decode: bool) -> int:
    """How many programs per KV head the keys of `num_tiles` tiles are cut for; 0: one for each tile.

    With a program for each tile, only sequences longer than the mean are still split, to share out ragged work; where
    many tiles wait for each multiprocessor, even that is not needed. Few splits more than a power of two would cost the
    merge, which works with powers of two, more than they gain; for single rows, whose merge is small, the split for the
    masked blocks comes on top.
    """
    if num_tiles >= 4 * programs:
        return 0
    splits = max(programs // num_tiles, 1)
    power = 1 << (splits.bit_length() - 1)
    if splits * 8 > power * 9:
        return max(programs, num_tiles)
    return num_tiles * (power + 1 if is_decode and power >= _OWN_TAIL else power)


def _precision(query: Tensor) -> str:
    """How dot products are taken: exactly in float32, where "tf32" would drop 13 bits; for 16-bit inputs it is moot."""
    if query.dtype == torch.float32:
        return "ieee"
    return "upcast" if query.dtype == torch.bfloat16 and query.device.type == "cpu" else "tf32"


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
    """q . k, still to be multiplied by scale_log2; with a softcap, base-2 logits."""
    nothing = tl.zeros([q.shape[0], k.shape[0]], tl.float32)
    scores = _dot(q, tl.trans(k), nothing, PRECISION)
    if HAS_SOFTCAP:  # scale_log2 then holds 2 * log2(e) * scaling / softcap, and tanh(x) = 1 - 2 / (1 + e**2x)
        scores = (1.0 - 2.0 / (1.0 + tl.exp2(scores * scale_log2))) * softcap
    return scores


@triton.jit
@typing.no_type_check
def _accumulate(
    scores, scale, v, high, total, acc, HAS_SOFTCAP: tl.constexpr, PRECISION: tl.constexpr,
    MASKED: tl.constexpr,
):  # fmt: skip
    """One step of the running softmax; where blocks are MASKED, a row may have seen nothing yet, its `high` is -inf.

    The positive `scale` is applied to the maxima, and inside the exponent, where it is one multiply-add with the shift.
    """
    if HAS_SOFTCAP:
        block_high = tl.max(scores, 1)
    else:
        block_high = tl.max(scores, 1) * scale
    new_high = tl.maximum(high, block_high)
    shift = new_high
    if MASKED:
        shift = tl.where(new_high == -float("inf"), 0.0, new_high)
    if HAS_SOFTCAP:
        weights = tl.exp2(scores - shift[:, None])
    else:
        weights = tl.exp2(scores * scale - shift[:, None])
    decay = tl.exp2(high - shift)
    total = total * decay + tl.sum(weights, 1)
    acc = acc * decay[:, None]
    acc = _dot(weights.to(v.dtype), v, acc, PRECISION)
    return new_high, total, acc


@triton.jit
@typing.no_type_check
def _lowest_bits(count):
    """A word whose `count` lowest bits are set; none below 0, all from 32 on."""
    count = tl.minimum(tl.maximum(count, 0), 32)
    return tl.where(count == 32, -1, (1 << tl.minimum(count, 31)) - 1)


@triton.jit
@typing.no_type_check
def _visible_word(own, bits_row_ptr, row, row_inside, num_causal, num_own, HAS_BITS: tl.constexpr):
    """[rows] int32: which of 32 keys a row sees by the contract of the op, windows aside.

    `own` says which row of the sequence the first of these keys belongs to; keys below 0 are the prefix.
    """
    word = _lowest_bits(row + 1 - own)
    if HAS_BITS:
        node = own - num_causal  # the tree's first node has bit 0 of its rows' first word
        is_tree = row >= num_causal
        at = tl.zeros_like(row) + (node >> 5)
        asked = is_tree & row_inside
        num_nodes = num_own - num_causal
        low = tl.load(bits_row_ptr + at, mask=asked & (at >= 0) & (at * 32 < num_nodes), other=0)
        high = tl.load(bits_row_ptr + at + 1, mask=asked & (at >= -1) & (at * 32 + 32 < num_nodes), other=0)
        shift = node & 31
        low = low.to(tl.uint32, bitcast=True) >> shift.to(tl.uint32)
        high = (high.to(tl.uint32, bitcast=True) << 1) << (31 - shift).to(tl.uint32)
        nodes = (low | high).to(tl.int32, bitcast=True) | _lowest_bits(-node)
        word = tl.where(is_tree, nodes, word)
    return tl.where(row_inside, word & _lowest_bits(num_own - own), 0)


@triton.jit
@typing.no_type_check
def _or(a, b):
    return a | b


@triton.jit
@typing.no_type_check
def _visible(
    block, position_ids_ptr, bits_row_ptr, start, row, row_inside, row_position, context_len, num_causal, num_own,
    sliding_window, BLOCK_N: tl.constexpr, HAS_WINDOW: tl.constexpr, HAS_BITS: tl.constexpr,
):  # fmt: skip
    """[rows, keys]: which keys of a block a row sees; [keys]: which some row sees."""
    block_key = tl.arange(0, BLOCK_N)
    own = block * BLOCK_N - context_len
    word = _visible_word(own, bits_row_ptr, row, row_inside, num_causal, num_own, HAS_BITS)
    words = word[:, None]
    any_word = tl.reduce(word, 0, _or)
    for w in tl.static_range(1, (BLOCK_N + 31) // 32):
        word = _visible_word(own + 32 * w, bits_row_ptr, row, row_inside, num_causal, num_own, HAS_BITS)
        words = tl.where((block_key < 32 * w)[None, :], words, word[:, None])
        any_word = tl.where(block_key < 32 * w, any_word, tl.reduce(word, 0, _or))
    visible = ((words >> (block_key & 31)[None, :]) & 1) != 0
    seen = ((any_word >> (block_key & 31)) & 1) != 0
    if HAS_WINDOW:
        own_key = own + block_key
        is_own = (own_key >= 0) & (own_key < num_own)
        own_position = tl.load(position_ids_ptr + start + own_key, mask=is_own, other=0).to(tl.int32)
        key_position = tl.where(own_key < 0, own_key + context_len, own_position)
        visible = visible & (row_position[:, None] - key_position[None, :] < sliding_window)
        seen = tl.max(visible.to(tl.int32), 0) > 0
    return visible, seen


@triton.jit
@typing.no_type_check
def _page_ids(table_ptr, block, end_key, BLOCK_N: tl.constexpr, PAGE_SIZE: tl.constexpr):
    """[BLOCK_N]: the pages of a block's keys, of those before `end_key`."""
    key = block * BLOCK_N + tl.arange(0, BLOCK_N)
    return tl.load(table_ptr + key // PAGE_SIZE, mask=key < end_key, other=0)


@triton.jit
@typing.no_type_check
def _masked_block(
    q, high, total, acc, block, page, k_pages_ptr, v_pages_ptr, position_ids_ptr, bits_row_ptr, start, row, row_inside,
    row_position, h, context_len, num_causal, num_own, scale_log2, softcap, sliding_window, k_dim, v_dim,
    KV_HEADS: tl.constexpr, K_DIM: tl.constexpr, V_DIM: tl.constexpr, K_PAD: tl.constexpr, V_PAD: tl.constexpr,
    PAGE_SIZE: tl.constexpr, BLOCK_N: tl.constexpr, HAS_WINDOW: tl.constexpr, HAS_SOFTCAP: tl.constexpr,
    HAS_BITS: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """One block of keys, in the pages `page`, of which some rows may see only some."""
    visible, seen = _visible(
        block, position_ids_ptr, bits_row_ptr, start, row, row_inside, row_position, context_len, num_causal, num_own,
        sliding_window, BLOCK_N, HAS_WINDOW, HAS_BITS,
    )  # fmt: skip
    key = block * BLOCK_N + tl.arange(0, BLOCK_N)
    slot_head = (page.to(tl.int64) * PAGE_SIZE + key % PAGE_SIZE) * KV_HEADS + h
    # What nobody sees is not read: it may be NaN, and 0 x NaN is NaN.
    k = _load_rows(k_pages_ptr, slot_head, k_dim, seen, K_DIM, K_PAD, True)
    v = _load_rows(v_pages_ptr, slot_head, v_dim, seen, V_DIM, V_PAD, True)  # before the scores: both loads in flight
    scores = _scores(q, k, scale_log2, softcap, HAS_SOFTCAP, PRECISION)
    scores = tl.where(visible, scores, -float("inf"))
    return _accumulate(scores, scale_log2, v, high, total, acc, HAS_SOFTCAP, PRECISION, True)


@triton.jit(do_not_specialize=["table_stride", "bits_stride", "sliding_window", "plan_is_new"])
@typing.no_type_check
def _attend_kernel(
    query_ptr,  # [rows, KV_HEADS * GROUP, K_DIM], strided
    k_pages_ptr,  # [slots, KV_HEADS, K_DIM]
    v_pages_ptr,  # [slots, KV_HEADS, V_DIM]
    out_ptr,  # [rows, KV_HEADS * GROUP, V_DIM]
    values_ptr,  # see triton_merge.Partials: results of single splits
    lse_ptr,
    magnitude_ptr,
    items_ptr,  # [items, ITEM_FIELDS] int32
    position_ids_ptr,  # [rows] int64
    block_table_ptr,  # [num_seqs, table_stride]
    ancestor_bits_ptr,  # [rows, bits_stride]
    sinks_ptr,  # [KV_HEADS * GROUP]
    scale_log2,
    softcap,
    sliding_window,
    query_row_stride,
    query_head_stride,
    table_stride,
    bits_stride,
    plan_is_new,  # 1: written by the launch in front of this one
    KV_HEADS: tl.constexpr,
    GROUP: tl.constexpr,
    K_DIM: tl.constexpr,
    V_DIM: tl.constexpr,
    K_PAD: tl.constexpr,
    V_PAD: tl.constexpr,
    PAGE_SIZE: tl.constexpr,
    ITEM_FIELDS: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    STAGES: tl.constexpr,
    SPLIT_KEYS: tl.constexpr,
    OWN_TAIL: tl.constexpr,
    HAS_WINDOW: tl.constexpr,
    HAS_SOFTCAP: tl.constexpr,
    HAS_SINKS: tl.constexpr,
    HAS_BITS: tl.constexpr,
    HAS_MAGNITUDE: tl.constexpr,
    PRECISION: tl.constexpr,
    SMALL_POOL: tl.constexpr,  # offsets into the pool fit 31 bits: half the arithmetic on addresses
    OVERLAP: tl.constexpr,
):
    if OVERLAP:  # the launch began while the one before was ending, and sees what that one wrote from its wait on
        if plan_is_new != 0:
            tl.extra.cuda.gdc_wait()
    record = items_ptr + (tl.program_id(0) // KV_HEADS) * ITEM_FIELDS
    h = tl.program_id(0) % KV_HEADS
    table_row = tl.load(record)
    start = tl.load(record + 1)
    num_own = tl.load(record + 2)
    context_len = tl.load(record + 3)
    num_causal = tl.load(record + 4)
    tile = tl.load(record + 5)
    split = tl.load(record + 6)
    splits = tl.load(record + 7)
    skipped_blocks = tl.load(record + 8)
    is_direct = tl.load(record + 9)
    if table_row < 0:  # more programs than work: the grid is a bound
        if OVERLAP:
            tl.extra.cuda.gdc_wait()
        return
    owns_keys = num_causal >= 0
    num_causal = tl.where(owns_keys, num_causal, num_own)  # rows without keys of their own are no tree rows
    packed = tile * BLOCK_M + tl.arange(0, BLOCK_M)
    row = packed // GROUP
    row_inside = row < num_own
    head = h * GROUP + packed % GROUP
    k_dim = tl.arange(0, K_PAD)
    v_dim = tl.arange(0, V_PAD)
    global_row = (start + row).to(tl.int64)
    row_position = tl.load(position_ids_ptr + global_row, mask=row_inside, other=0).to(tl.int32)

    # Keys from first_key to last_key concern this tile; those from full_from to full_to are seen by all of its rows.
    first_row = tile * BLOCK_M // GROUP
    last_row = tl.minimum((tile * BLOCK_M + BLOCK_M - 1) // GROUP, num_own - 1)
    first_key = 0
    full_from = 0
    last_key = context_len + tl.where(owns_keys, num_own, 0)
    full_to = context_len
    if owns_keys & (last_row < num_causal):  # a tile of the causal chain alone
        last_key = context_len + last_row + 1
        full_to = context_len + first_row + 1
    if HAS_WINDOW:
        lowest = tl.min(tl.where(row_inside, row_position, 2147483647), 0)
        highest = tl.max(tl.where(row_inside, row_position, 0), 0)
        first_key = tl.minimum(tl.maximum(lowest - sliding_window + 1, 0), context_len)
        full_from = tl.minimum(tl.maximum(highest - sliding_window + 1, 0), last_key)
        full_to = tl.minimum(full_to, context_len)  # positions of own rows are not their indices
    first_block = tl.maximum(first_key // BLOCK_N, skipped_blocks)
    end_block = (last_key + BLOCK_N - 1) // BLOCK_N
    full_stop = tl.minimum(tl.maximum(full_to // BLOCK_N, first_block), end_block)
    if SPLIT_KEYS > 0:
        low = tl.maximum(split * (SPLIT_KEYS // BLOCK_N), first_block)
        end = tl.minimum((split + 1) * (SPLIT_KEYS // BLOCK_N), end_block)
    elif not HAS_WINDOW and splits >= OWN_TAIL:  # masked blocks, which cannot be loaded ahead, to the last split alone
        low = first_block + split * (full_stop - first_block) // (splits - 1)
        end = first_block + (split + 1) * (full_stop - first_block) // (splits - 1)
        if split == splits - 1:
            low = full_stop
            end = end_block
    else:
        low = first_block + split * (end_block - first_block) // splits
        end = first_block + (split + 1) * (end_block - first_block) // splits
    full_low = tl.minimum(tl.maximum((full_from + BLOCK_N - 1) // BLOCK_N, low), tl.maximum(end, low))
    full_end = tl.maximum(tl.minimum(full_to // BLOCK_N, end), full_low)

    high = tl.full([BLOCK_M], -float("inf"), tl.float32)
    total = tl.zeros([BLOCK_M], tl.float32)
    acc = tl.zeros([BLOCK_M, V_PAD], tl.float32)
    table_ptr = block_table_ptr + table_row.to(tl.int64) * table_stride
    bits_row_ptr = ancestor_bits_ptr + global_row * bits_stride
    block_key = tl.arange(0, BLOCK_N)
    next_page = _page_ids(table_ptr, full_low, full_end * BLOCK_N, BLOCK_N, PAGE_SIZE)
    masked_page = _page_ids(table_ptr, full_end, last_key, BLOCK_N, PAGE_SIZE)
    if OVERLAP:
        tl.extra.cuda.gdc_wait()
    q = tl.load(
        query_ptr + global_row[:, None] * query_row_stride + head[:, None] * query_head_stride + k_dim[None, :],
        mask=row_inside[:, None] & (k_dim < K_DIM)[None, :],
        other=0.0,
    )
    if HAS_WINDOW:
        page = _page_ids(table_ptr, low, last_key, BLOCK_N, PAGE_SIZE)
        for block in tl.range(low, full_low, num_stages=1):  # where the windows of the rows begin
            high, total, acc = _masked_block(
                q, high, total, acc, block, page, k_pages_ptr, v_pages_ptr, position_ids_ptr, bits_row_ptr, start,
                row, row_inside, row_position, h, context_len, num_causal, num_own, scale_log2, softcap,
                sliding_window, k_dim, v_dim, KV_HEADS, K_DIM, V_DIM, K_PAD, V_PAD, PAGE_SIZE, BLOCK_N, HAS_WINDOW,
                HAS_SOFTCAP, HAS_BITS, PRECISION,
            )  # fmt: skip
            page = _page_ids(table_ptr, block + 1, last_key, BLOCK_N, PAGE_SIZE)
    for block in tl.range(full_low, full_end, num_stages=STAGES):
        page = next_page if SMALL_POOL else next_page.to(tl.int64)
        # The next block's page ids arrive while this block is computed. The bound is whole blocks: one test for all.
        next_page = _page_ids(table_ptr, block + 1, full_end * BLOCK_N, BLOCK_N, PAGE_SIZE)
        slot_head = (page * PAGE_SIZE + (block * BLOCK_N + block_key) % PAGE_SIZE) * KV_HEADS + h
        k = _load_rows(k_pages_ptr, slot_head, k_dim, block_key, K_DIM, K_PAD, False)
        scores = _scores(q, k, scale_log2, softcap, HAS_SOFTCAP, PRECISION)
        v = _load_rows(v_pages_ptr, slot_head, v_dim, block_key, V_DIM, V_PAD, False)
        high, total, acc = _accumulate(scores, scale_log2, v, high, total, acc, HAS_SOFTCAP, PRECISION, False)
    for block in tl.range(full_end, end, num_stages=1):
        high, total, acc = _masked_block(
            q, high, total, acc, block, masked_page, k_pages_ptr, v_pages_ptr, position_ids_ptr, bits_row_ptr, start,
            row, row_inside, row_position, h, context_len, num_causal, num_own, scale_log2, softcap,
            sliding_window, k_dim, v_dim, KV_HEADS, K_DIM, V_DIM, K_PAD, V_PAD, PAGE_SIZE, BLOCK_N, HAS_WINDOW,
            HAS_SOFTCAP, HAS_BITS, PRECISION,
        )  # fmt: skip
        masked_page = _page_ids(table_ptr, block + 1, last_key, BLOCK_N, PAGE_SIZE)

    if OVERLAP:
        tl.extra.cuda.gdc_launch_dependents()
    if is_direct != 0:
        if HAS_SINKS:
            sink = tl.load(sinks_ptr + head).to(tl.float32) * 1.4426950408889634
            new_high = tl.maximum(high, sink)
            decay = tl.exp2(high - new_high)
            total = total * decay + tl.exp2(sink - new_high)
            acc = acc * decay[:, None]
        result = acc * (1.0 / tl.where(total > 0, total, 1.0))[:, None]
        tl.store(
            out_ptr + (global_row * (KV_HEADS * GROUP) + head)[:, None] * V_DIM + v_dim[None, :],
            result.to(out_ptr.dtype.element_ty),
            mask=row_inside[:, None] & (v_dim < V_DIM)[None, :],
        )
    else:
        place = tl.program_id(0).to(tl.int64) * BLOCK_M + tl.arange(0, BLOCK_M)
        share = 1.0 / tl.where(total > 0, total, 1.0)
        if HAS_MAGNITUDE:
            magnitude = tl.max(tl.abs(acc), 1)
            magnitude = tl.where(magnitude > 0, magnitude, 1.0)
            tl.store(magnitude_ptr + place, magnitude * share, mask=row_inside)
            share = 1.0 / magnitude
        values = acc * share[:, None]
        tl.store(
            values_ptr + place[:, None] * V_DIM + v_dim[None, :],
            values.to(values_ptr.dtype.element_ty),
            mask=row_inside[:, None] & (v_dim < V_DIM)[None, :],
        )
        tl.store(
            lse_ptr + place,
            tl.where(total > 0, high + tl.log2(tl.where(total > 0, total, 1.0)), -float("inf")),
            mask=row_inside,
        )

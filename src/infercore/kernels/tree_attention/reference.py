"""The specification of `tree_attention` in plain torch: one sequence at a time, gathered keys, an explicit mask."""

import torch
from jaxtyping import Bool, Float, Int32, Int64
from torch import Tensor


def tree_attention(
    query: Float[Tensor, "rows heads k_dim"],
    k_pages: Float[Tensor, "num_pages page_size kv_heads k_dim"],
    v_pages: Float[Tensor, "num_pages page_size kv_heads v_dim"],
    *,
    position_ids: Int64[Tensor, " rows"],
    row_starts: Int32[Tensor, " starts"],
    context_lens: Int32[Tensor, " seqs"],
    num_causal_rows: Int32[Tensor, " seqs"],
    block_table: Int32[Tensor, "seqs max_pages"],
    ancestor_bits: Int32[Tensor, "rows words"] | None,
    scaling: float,
    sliding_window: int | None = None,
    softcap: float | None = None,
    sinks: Float[Tensor, " heads"] | None = None,
) -> Float[Tensor, "rows heads v_dim"]:
    """Attention of packed rows over their sequence's pages; the contract stands in the op's `__init__`.

    Computes in float32 (in float64 for float64 inputs). Keys that no row of the sequence may see are set to zero first,
    values too: an unwritten slot may hold NaN, and 0 x NaN is NaN.
    """
    compute = torch.float64 if query.dtype == torch.float64 else torch.float32
    page_size, kv_heads = k_pages.shape[1:3]
    group = query.shape[1] // kv_heads
    out = torch.zeros(*query.shape[:2], v_pages.shape[3], dtype=query.dtype, device=query.device)
    starts = row_starts.tolist()
    for s, (context_len, num_causal) in enumerate(zip(context_lens.tolist(), num_causal_rows.tolist(), strict=True)):
        rows = slice(starts[s], starts[s + 1])
        num_rows = rows.stop - rows.start
        if num_rows == 0:
            continue
        index = torch.arange(context_len + num_rows, device=query.device)
        slots = block_table[s, index // page_size].long() * page_size + index % page_size
        visible = visible_keys(
            position_ids[rows],
            context_len,
            num_causal,
            None if ancestor_bits is None else ancestor_bits[rows],
            sliding_window,
        )
        seen = visible.any(0)[:, None, None]
        k = torch.where(seen, k_pages.flatten(0, 1)[slots], 0).to(compute).repeat_interleave(group, 1)
        v = torch.where(seen, v_pages.flatten(0, 1)[slots], 0).to(compute).repeat_interleave(group, 1)
        scores = torch.einsum("rhd,khd->hrk", query[rows].to(compute), k) * scaling
        if softcap is not None:
            scores = softcap * torch.tanh(scores / softcap)
        scores = scores.masked_fill(~visible, float("-inf"))
        if sinks is not None:  # one more logit per head, whose value is zero
            sink = sinks.to(compute)[:, None, None].expand(-1, num_rows, 1)
            weights = torch.softmax(torch.cat([scores, sink], -1), -1)[..., :-1]
        else:
            weights = torch.softmax(scores, -1)
        out[rows] = torch.einsum("hrk,khd->rhd", weights, v).to(query.dtype)
    return out


def visible_keys(
    position_ids: Int64[Tensor, " rows"],
    context_len: int,
    num_causal_rows: int,
    ancestor_bits: Int32[Tensor, "rows words"] | None,
    sliding_window: int | None,
) -> Bool[Tensor, "rows keys"]:
    """Which keys (the prefix, then the sequence's own rows) each row of one sequence may see."""
    num_rows, device = len(position_ids), position_ids.device
    row = torch.arange(num_rows, device=device)
    among_rows = row[:, None] >= row[None, :]
    num_tree = num_rows - num_causal_rows
    if num_tree > 0:
        if ancestor_bits is None:
            raise ValueError(f"a sequence has {num_tree} tree rows, but ancestor_bits is None")
        node = torch.arange(num_tree, device=device)
        bits = (ancestor_bits[num_causal_rows:, node // 32] >> (node % 32)) & 1
        among_rows[num_causal_rows:, num_causal_rows:] = bits == 1
    prefix = torch.ones(num_rows, context_len, dtype=torch.bool, device=device)
    visible = torch.cat([prefix, among_rows], 1)
    if sliding_window is not None:
        key_positions = torch.cat([torch.arange(context_len, device=device), position_ids])
        visible &= position_ids[:, None] - key_positions[None, :] < sliding_window
    return visible

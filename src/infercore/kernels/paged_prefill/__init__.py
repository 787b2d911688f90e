"""`paged_prefill`: causal attention of ragged prompt chunks over their paged prefixes, one call for all sequences.

A chunk is a run of new rows behind a context that stands in the pool already: a whole prompt behind nothing, the next
part of a long one, or the tail of a prompt whose beginning was cached.

    from infercore.kernels import paged_prefill, write_kv
    write_kv(key, value, k_pages, v_pages, slot_mapping)
    out = paged_prefill(query, k_pages, v_pages, row_starts=row_starts, context_lens=context_lens,
                        block_table=block_table, scaling=head_dim**-0.5)

It is `tree_attention` for rows that are no tree, on the same kernel; steps that mix chunks, single rows and draft trees
call that one.
"""

import torch
from jaxtyping import Float, Int32
from torch import Tensor

from infercore.kernels.impl import Impl
from infercore.kernels.tree_attention import tree_attention


def paged_prefill(
    query: Float[Tensor, "rows heads k_dim"],
    k_pages: Float[Tensor, "num_pages page_size kv_heads k_dim"],
    v_pages: Float[Tensor, "num_pages page_size kv_heads v_dim"],
    *,
    row_starts: Int32[Tensor, " starts"],
    context_lens: Int32[Tensor, " seqs"],
    block_table: Int32[Tensor, "seqs max_pages"],
    scaling: float,
    sliding_window: int | None = None,
    softcap: float | None = None,
    sinks: Float[Tensor, " heads"] | None = None,
    out: Float[Tensor, "rows heads v_dim"] | None = None,
    batch_invariant: bool = False,
    impl: Impl = "auto",
) -> Float[Tensor, "rows heads v_dim"]:
    """Attention of rows `row_starts[s]` to `row_starts[s + 1]`, at positions from `context_lens[s]` on, causal.

    Row i of sequence s sees the logical indices 0 to `context_lens[s] + i`. Arguments, errors and cost are those of
    `tree_attention`, which reads and plans its rows once for many layers if it is given `prepared`.

    Returns: `[rows, heads, v_dim]` in the dtype of `query`; zeros for rows past the last sequence.
    """
    num_rows = row_starts.diff()
    rows = torch.arange(len(query), dtype=torch.int64, device=query.device)
    position_ids = rows
    if sliding_window is not None and len(num_rows):  # nothing else reads positions
        sequence = torch.searchsorted(row_starts, rows, right=True, out_int32=True).sub_(1).clamp_(0, len(num_rows) - 1)
        position_ids = rows - row_starts[sequence] + context_lens[sequence]
    return tree_attention(
        query,
        k_pages,
        v_pages,
        position_ids=position_ids,
        row_starts=row_starts,
        context_lens=context_lens,
        num_causal_rows=num_rows,
        block_table=block_table,
        ancestor_bits=None,
        scaling=scaling,
        sliding_window=sliding_window,
        softcap=softcap,
        sinks=sinks,
        out=out,
        batch_invariant=batch_invariant,
        impl=impl,
    )

"""`tree_attention`: attention of packed rows (prefill chunks, decode tokens, draft trees) over a paged KV pool.

Use it as the one attention of a packed forward: each sequence brings a run of rows, first a causal chain, then
optionally a draft tree whose rows see their ancestors only. Write the rows' keys and values with `write_kv` first.

    prepared = prepare(position_ids=p, row_starts=r, context_lens=c, num_causal_rows=n, block_table=t,
                       ancestor_bits=bits, page_size=16)                        # once per step
    for layer in layers:                                                        # the same rows in every layer
        out = tree_attention(query, k_pages, v_pages, position_ids=p, row_starts=r, context_lens=c, num_causal_rows=n,
                             block_table=t, ancestor_bits=bits, scaling=0.125, prepared=prepared)

Files in reading order: `reference.py` (what it means), `rows.py` and `cpu_rows.py` (what is prepared once per step),
`cpu.py`, `cpu_shared.py` and `_compiled.py`, `config.py`, `triton.py`.
"""

from jaxtyping import Float, Int32, Int64
from torch import Tensor

from infercore.kernels.impl import Impl, choose_impl
from infercore.kernels.tree_attention.reference import tree_attention as reference
from infercore.kernels.tree_attention.rows import PreparedRows, prepare

__all__ = ["PreparedRows", "prepare", "tree_attention"]


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
    out: Float[Tensor, "rows heads v_dim"] | None = None,
    prepared: PreparedRows | None = None,
    batch_invariant: bool = False,
    impl: Impl = "auto",
) -> Float[Tensor, "rows heads v_dim"]:
    """Attention of every row over the keys that it may see.

    Rows `row_starts[s]` to `row_starts[s + 1]` belong to sequence s; row i of them has its key and value in the pool at
    logical index `context_lens[s] + i`. It sees the whole prefix (indices below `context_lens[s]`) and then: if
    `i < num_causal_rows[s]`, the rows 0 to i of its sequence; else, being tree row `t = i - num_causal_rows[s]`, all
    causal rows and those tree rows j for which bit j of its `ancestor_bits` is set (bit t, itself, included).

    Args:
        query: any strides, last dimension contiguous; `heads` is a multiple of `kv_heads`.
        k_pages, v_pages: the pool of one layer. Index j of sequence s lies in page `block_table[s, j // page_size]` at
            offset `j % page_size`. Slots that no row sees may hold anything, NaN included.
        position_ids: position of each row; a prefix key's position is its index. Used by `sliding_window` only.
        row_starts: `seqs + 1` numbers from 0, not decreasing. Rows past the last one (padding) give zeros.
        block_table: -1 past the end of a sequence.
        ancestor_bits: lowest bit first, 32 per word; None if no sequence has tree rows.
        scaling: factor of the scores. sliding_window: see only keys less than so many positions back. softcap: scores
            become `softcap * tanh(score / softcap)`. sinks: per head one more logit in the softmax's denominator.
        out: where to write the result; allocated if None.
        prepared: from `prepare` with these same tensors: their checks, and on the CPU their reading, then happen once
            per step and not once per layer.
        batch_invariant: fix the order of all sums, so that a sequence's rows come out bit for bit the same whatever
            else is in the batch. On a GPU that costs speed (splits of a fixed length, one tile for all shapes) and a
            larger workspace; on the CPU, that keys which sequences share are met once. Without it only a tolerance is
            promised.
    Returns: `[rows, heads, v_dim]` in the dtype of `query`; accumulated in float32.
    Raises: ValueError for shapes, dtypes or devices that do not fit, or an unknown `impl`. What is *in* device tensors
        (lengths, pages, bits) is not checked on a GPU: that would stall it. On the CPU, `prepare` checks it.
    Cost: each key and value of a sequence is read once per tile of rows x query heads of its KV head; no host sync.
    """
    check_tensors(query, k_pages, v_pages, sinks, out)
    if not scaling > 0:
        raise ValueError(f"scaling is {scaling}, expected a positive number such as head_dim**-0.5")
    if sliding_window is not None and sliding_window < 1:
        raise ValueError(f"sliding_window is {sliding_window}, expected at least 1; pass None for no window")
    if softcap is not None and not softcap > 0:
        raise ValueError(f"softcap is {softcap}, expected a positive number; pass None for no cap")
    if prepared is None:
        prepared = prepare(
            position_ids=position_ids,
            row_starts=row_starts,
            context_lens=context_lens,
            num_causal_rows=num_causal_rows,
            block_table=block_table,
            ancestor_bits=ancestor_bits,
            page_size=k_pages.shape[1],
        )
    prepared.check_fits(query, k_pages)
    chosen = choose_impl(impl, query, cpu="cpu")
    if out is None:
        out = query.new_empty(*query.shape[:2], v_pages.shape[3])
    if chosen == "cpu":
        from infercore.kernels.tree_attention.cpu import tree_attention as on_cpu  # here: it loads numba

        return on_cpu(
            query,
            k_pages,
            v_pages,
            prepared.on_cpu,
            out,
            scaling=scaling,
            sliding_window=sliding_window,
            softcap=softcap,
            sinks=sinks,
            batch_invariant=batch_invariant,
        )
    if chosen == "triton":
        from infercore.kernels.tree_attention.triton import tree_attention as on_gpu

        return on_gpu(
            query,
            k_pages,
            v_pages,
            prepared,
            out,
            scaling=scaling,
            sliding_window=sliding_window,
            softcap=softcap,
            sinks=sinks,
            batch_invariant=batch_invariant,
        )
    result = reference(
        query,
        k_pages,
        v_pages,
        position_ids=position_ids,
        row_starts=row_starts,
        context_lens=context_lens,
        num_causal_rows=num_causal_rows,
        block_table=block_table,
        ancestor_bits=ancestor_bits,
        scaling=scaling,
        sliding_window=sliding_window,
        softcap=softcap,
        sinks=sinks,
    )
    return out.copy_(result)


def check_tensors(query: Tensor, k_pages: Tensor, v_pages: Tensor, sinks: Tensor | None, out: Tensor | None) -> None:
    """Raise ValueError unless the tensors that change from layer to layer fit each other. A few microseconds."""
    if query.ndim != 3 or k_pages.ndim != 4 or v_pages.ndim != 4:
        raise ValueError(
            f"query {tuple(query.shape)}, k_pages {tuple(k_pages.shape)}, v_pages {tuple(v_pages.shape)}: expected "
            "[rows, heads, k_dim] and twice [num_pages, page_size, kv_heads, head_dim]"
        )
    num_rows, heads, k_dim = query.shape
    num_pages, page_size, kv_heads, pool_dim = k_pages.shape
    if v_pages.shape[:3] != (num_pages, page_size, kv_heads):
        raise ValueError(f"v_pages {tuple(v_pages.shape)} must equal k_pages {tuple(k_pages.shape)} but for head_dim")
    if pool_dim != k_dim:
        raise ValueError(f"query has head size {k_dim}, but k_pages holds {pool_dim}")
    if heads % kv_heads:
        raise ValueError(f"query has {heads} heads, not a multiple of the pool's {kv_heads} KV heads")
    dtype, device = query.dtype, query.device
    if k_pages.dtype != dtype or v_pages.dtype != dtype:
        raise ValueError(f"query is {dtype}, but the pool holds {k_pages.dtype} and {v_pages.dtype}; use one dtype")
    if k_pages.device != device or v_pages.device != device:
        raise ValueError(f"query is on {device}, but the pool on {k_pages.device} and {v_pages.device}")
    if sinks is not None and (sinks.shape != (heads,) or sinks.device != device):
        raise ValueError(f"sinks {tuple(sinks.shape)} on {sinks.device}: expected [{heads}] on {device}")
    if out is not None and (
        out.shape != (num_rows, heads, v_pages.shape[3]) or out.dtype != dtype or out.device != device
    ):
        raise ValueError(
            f"out is {tuple(out.shape)} {out.dtype} on {out.device}, expected "
            f"{(num_rows, heads, v_pages.shape[3])} {dtype} on {device}"
        )
    if out is not None and not out.is_contiguous():
        raise ValueError("out must be contiguous; pass a tensor of its own, or None")

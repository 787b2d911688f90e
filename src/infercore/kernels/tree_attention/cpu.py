"""`tree_attention` on the CPU, near what its memory allows: no gather where a sequence's pages lie in a row.

A sequence with few rows (decode, draft trees) goes through the compiled loops of `_compiled.py` in float32, all such
sequences in one call, after `cpu_shared.py` has met the keys that several of them share. Longer runs (prefill chunks)
and other dtypes go sequence by sequence through torch, as views of the pool where the pages are contiguous:
`scaled_dot_product_attention`, or two matrix products where a softcap or sinks rule it out.
"""

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from infercore._jit import is_compiled
from infercore.kernels.tree_attention._compiled import attend
from infercore.kernels.tree_attention.cpu_rows import CpuRows, SequenceView
from infercore.kernels.tree_attention.cpu_shared import attend_shared

_MAX_SCORES = 1 << 23  # scores held at a time where torch multiplies the matrices itself
_NO_SINKS = np.zeros(0, np.float32)
_NO_LSE = np.zeros((0, 0), np.float32)


def tree_attention(
    query: Float[Tensor, "rows heads k_dim"],
    k_pages: Float[Tensor, "num_pages page_size kv_heads k_dim"],
    v_pages: Float[Tensor, "num_pages page_size kv_heads v_dim"],
    rows: CpuRows,
    out: Float[Tensor, "rows heads v_dim"],
    *,
    scaling: float,
    sliding_window: int | None,
    softcap: float | None,
    sinks: Float[Tensor, " heads"] | None,
    batch_invariant: bool,
) -> Float[Tensor, "rows heads v_dim"]:
    """Fill `out`; the contract stands in the op's `__init__`."""
    if rows.highest_page >= len(k_pages):
        raise ValueError(f"block_table names page {rows.highest_page}, but the pool has {len(k_pages)} pages")
    if rows.num_used < len(out):
        out[rows.num_used :] = 0
    long = rows.all
    if query.dtype == torch.float32 and is_compiled():
        is_plain = sliding_window is None and softcap is None and sinks is None
        work = rows.cascade if is_plain and not batch_invariant else rows.alone
        long = work.long
    if len(long) < len(rows.all):
        known_lse = _NO_LSE
        if work.groups:
            known_lse = attend_shared(query, k_pages, v_pages, work.groups, out, scaling).numpy()
        attend(
            query.detach().contiguous().numpy(),
            k_pages.detach().numpy(),
            v_pages.detach().numpy(),
            out.detach().numpy(),
            work.short,
            work.first_keys,
            known_lse,
            rows.row_starts,
            rows.context_lens,
            rows.num_causal_rows,
            rows.block_table,
            rows.position_ids,
            rows.ancestor_bits,
            float(scaling),
            sliding_window or 0,
            float(softcap or 0.0),
            _NO_SINKS if sinks is None else sinks.detach().to(torch.float32).numpy(),
        )
    for s in long:
        view = rows.view(s, sliding_window, query.dtype)
        part = slice(view.first_row, view.last_row)
        k, v = _keys(k_pages, view), _keys(v_pages, view)
        if softcap is None and sinks is None:
            out[part] = _by_sdpa(query[part], k, v, view, scaling)
        else:
            _by_matmul(query[part], k, v, view, scaling, softcap, sinks, out[part])
    return out


def _keys(pages: Tensor, view: SequenceView) -> Float[Tensor, "kv_heads keys dim"]:
    return pages.flatten(0, 1)[view.slots].transpose(0, 1)


def _by_sdpa(query: Tensor, k: Tensor, v: Tensor, view: SequenceView, scaling: float) -> Tensor:
    """KV heads stand in the batch dimension and their query heads share them with stride 0: nothing is copied."""
    num_rows, heads, k_dim = query.shape
    kv_heads = k.shape[0]
    shared = (kv_heads, heads // kv_heads, -1, -1)
    out = F.scaled_dot_product_attention(
        query.view(num_rows, kv_heads, -1, k_dim).permute(1, 2, 0, 3),
        k[:, None].expand(shared),
        v[:, None].expand(shared),
        attn_mask=view.mask,
        is_causal=view.is_causal,
        scale=scaling,
    )
    return out.permute(2, 0, 1, 3).reshape(num_rows, heads, -1)


def _by_matmul(
    query: Tensor,
    k: Tensor,
    v: Tensor,
    view: SequenceView,
    scaling: float,
    softcap: float | None,
    sinks: Tensor | None,
    out: Tensor,
) -> None:
    """Two matrix products around a softmax over explicit scores, a bounded number of rows at a time."""
    num_rows, heads, k_dim = query.shape
    kv_heads, num_keys = k.shape[:2]
    group = heads // kv_heads
    step = max(1, _MAX_SCORES // (heads * num_keys))
    mask = view.mask
    if view.is_causal:
        mask = torch.full((num_rows, num_keys), float("-inf"), dtype=query.dtype).triu_(1)
    for first in range(0, num_rows, step):
        part = query[first : first + step]
        n = len(part)
        packed = part.view(n, kv_heads, group, k_dim).permute(1, 2, 0, 3).reshape(kv_heads, group * n, k_dim)
        scores = (
            torch.bmm(packed.float() if _is_half(query) else packed, k.transpose(1, 2).to(_compute(query))) * scaling
        )
        if softcap is not None:
            scores = softcap * torch.tanh(scores / softcap)
        scores = scores.view(kv_heads, group, n, num_keys)
        if mask is not None:
            scores = scores + mask[first : first + n]
        if sinks is None:
            weights = torch.softmax(scores, -1)
        else:
            sink = sinks.to(scores.dtype).view(kv_heads, group, 1, 1).expand(-1, -1, n, 1)
            weights = torch.softmax(torch.cat([scores, sink], -1), -1)[..., :-1]
        result = torch.bmm(weights.reshape(kv_heads, group * n, num_keys), v.to(weights.dtype))
        out[first : first + n] = result.view(kv_heads, group, n, -1).permute(2, 0, 1, 3).reshape(n, heads, -1)


def _is_half(query: Tensor) -> bool:
    return query.dtype in (torch.bfloat16, torch.float16)


def _compute(query: Tensor) -> torch.dtype:
    return torch.float32 if _is_half(query) else query.dtype

"""`tree_attention` on the CPU, near what its memory allows: no gather where a sequence's pages lie in a row.

A sequence with few rows (decode, draft trees) goes through the compiled loops of `_compiled.py` in float32, all such
sequences in one call. Longer runs (prefill chunks) and other dtypes go sequence by sequence through torch, as views of
the pool where the pages are contiguous: `scaled_dot_product_attention`, or two matrix products where a softcap or sinks
rule it out.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from infercore._jit import is_compiled
from infercore.kernels.tree_attention._compiled import attend
from infercore.kernels.tree_attention.reference import visible_keys

if TYPE_CHECKING:
    from infercore.kernels.tree_attention.rows import PreparedRows

FEW_ROWS = 16  # rows of one sequence up to which the compiled loops win over torch on one core
_MAX_SCORES = 1 << 23  # scores held at a time where torch multiplies the matrices itself
_NO_BITS = np.zeros((0, 0), np.int32)
_NO_SINKS = np.zeros(0, np.float32)


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
) -> Float[Tensor, "rows heads v_dim"]:
    """Fill `out`; the contract stands in the op's `__init__`."""
    if rows.highest_page >= len(k_pages):
        raise ValueError(f"block_table names page {rows.highest_page}, but the pool has {len(k_pages)} pages")
    if rows.num_used < len(out):
        out[rows.num_used :] = 0
    long = rows.long if query.dtype == torch.float32 and is_compiled() else rows.all
    if len(long) < len(rows.all):
        attend(
            query.detach().contiguous().numpy(),
            k_pages.detach().numpy(),
            v_pages.detach().numpy(),
            out.detach().numpy(),
            rows.short,
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


@dataclass(frozen=True, eq=False)
class SequenceView:
    """The rows and keys of one sequence, ready for torch. `slots` is a slice where the pages are contiguous."""

    first_row: int
    last_row: int
    slots: slice | Tensor
    mask: Tensor | None  # [rows, keys], 0 or -inf; None: see is_causal
    is_causal: bool


@dataclass(eq=False)
class CpuRows:
    """A step's rows as numpy arrays and Python ints, and the masks and views made from them so far."""

    source: PreparedRows
    row_starts: np.ndarray = field(init=False)
    views: dict[tuple[int, int | None, torch.dtype], SequenceView] = field(init=False, default_factory=dict)

    def __post_init__(self) -> None:
        source = self.source
        self.row_starts = source.row_starts.numpy()
        self.context_lens = source.context_lens.numpy()
        self.num_causal_rows = source.num_causal_rows.numpy()
        self.block_table = source.block_table.numpy()
        self.position_ids = source.position_ids.numpy()
        self.ancestor_bits = _NO_BITS if source.ancestor_bits is None else source.ancestor_bits.numpy()
        self.num_used = int(self.row_starts[-1])
        num_rows = np.diff(self.row_starts)
        self.all: list[int] = np.flatnonzero(num_rows > 0).tolist()
        self.long: list[int] = np.flatnonzero(num_rows > FEW_ROWS).tolist()
        self.short = np.flatnonzero((num_rows > 0) & (num_rows <= FEW_ROWS))
        used = -(-(self.context_lens + num_rows) // source.page_size)
        self.num_pages = np.where(num_rows > 0, used, 0)
        table = self.block_table
        self._used_pages = table[np.arange(table.shape[1]) < self.num_pages[:, None]]
        self.highest_page = int(self._used_pages.max()) if self._used_pages.size else -1

    def check(self) -> None:
        """Raise ValueError for contents that cannot be meant."""
        num_rows = np.diff(self.row_starts)
        if len(num_rows) and (int(self.row_starts[0]) != 0 or int(num_rows.min()) < 0):
            raise ValueError(f"row_starts is {self.row_starts.tolist()}, expected to start at 0 and never to decrease")
        if self.num_used > self.source.num_rows:
            raise ValueError(f"row_starts ends at {self.num_used}, but there are {self.source.num_rows} rows")
        if (self.context_lens < 0).any():
            raise ValueError(f"context_lens is {self.context_lens.tolist()}, expected no negative lengths")
        num_tree = num_rows - self.num_causal_rows
        if (self.num_causal_rows < 0).any() or (num_tree < 0).any():
            raise ValueError(
                f"num_causal_rows is {self.num_causal_rows.tolist()}, expected 0 to the sequence's rows, "
                f"{num_rows.tolist()}"
            )
        most = int(num_tree.max()) if len(num_tree) else 0
        if most > 32 * self.ancestor_bits.shape[1]:
            raise ValueError(
                f"a sequence has {most} tree rows, but ancestor_bits has {self.ancestor_bits.shape[1]} words; "
                f"pass [{self.source.num_rows}, {-(-most // 32)}]"
            )
        if (self.num_pages > self.block_table.shape[1]).any():
            raise ValueError(
                f"a sequence needs {int(self.num_pages.max())} pages, but block_table has "
                f"{self.block_table.shape[1]} columns"
            )
        if self._used_pages.size and int(self._used_pages.min()) < 0:
            raise ValueError("block_table has -1 where a sequence has keys; give it a page for every used index")

    def view(self, s: int, sliding_window: int | None, dtype: torch.dtype) -> SequenceView:
        """Rows, slots and mask of sequence s, made once per step for each window and dtype."""
        key = (s, sliding_window, dtype)
        if key not in self.views:
            self.views[key] = self._make_view(s, sliding_window, dtype)
        return self.views[key]

    def _make_view(self, s: int, sliding_window: int | None, dtype: torch.dtype) -> SequenceView:
        source, page_size = self.source, self.source.page_size
        first, last = int(self.row_starts[s]), int(self.row_starts[s + 1])
        context_len, num_causal = int(self.context_lens[s]), int(self.num_causal_rows[s])
        positions = source.position_ids[first:last]
        skipped = 0
        if sliding_window is not None:
            skipped = min(max(int(positions.min()) - sliding_window + 1, 0), context_len)
        num_keys = context_len + last - first
        pages = self.block_table[s, : self.num_pages[s]]
        slots: slice | Tensor
        if (np.diff(pages[skipped // page_size :]) == 1).all():
            begin = (int(pages[skipped // page_size]) - skipped // page_size) * page_size
            slots = slice(begin + skipped, begin + num_keys)
        else:
            index = torch.arange(skipped, num_keys)
            slots = torch.from_numpy(pages).long()[index // page_size] * page_size + index % page_size
        only_causal = num_causal == last - first
        if only_causal and (last - first == 1 or (context_len == 0 and sliding_window is None)):
            return SequenceView(first, last, slots, None, is_causal=last - first > 1)
        bits = None if source.ancestor_bits is None else source.ancestor_bits[first:last]
        visible = visible_keys(positions, context_len, num_causal, bits, sliding_window)[:, skipped:]
        mask = torch.zeros(visible.shape, dtype=dtype).masked_fill_(~visible, float("-inf"))
        return SequenceView(first, last, slots, mask, is_causal=False)


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

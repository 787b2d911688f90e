"""A step's rows as the CPU path wants them: numpy arrays and Python ints, and masks made once per step."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from infercore.kernels.tree_attention.cpu_shared import Cascade, find_shared
from infercore.kernels.tree_attention.reference import visible_keys

if TYPE_CHECKING:
    from infercore.kernels.tree_attention.rows import PreparedRows

FEW_ROWS = 16  # rows of one sequence up to which the compiled loops win over torch on one core
_NO_BITS = np.zeros((0, 0), np.int32)


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
    few_rows: int = field(init=False, default=FEW_ROWS)
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

    @cached_property
    def alone(self) -> Cascade:
        """Every sequence by itself."""
        return Cascade([], self.short, self.long, np.zeros(len(self.context_lens), np.int64))

    @cached_property
    def cascade(self) -> Cascade:
        """Sequences that begin with the same pages, together."""
        return find_shared(self)

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

"""Sequences of a step that begin with the same pages: their rows meet those keys in one matrix product.

The compiled loops read a sequence's keys once for its few rows, on one core. Where many sequences share a long prefix
(questions behind one prompt, forks), its keys are multiplied with the rows of all of them at once, and the loops go on
from there with the keys of each sequence alone (a cascade).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

if TYPE_CHECKING:
    from infercore.kernels.tree_attention.cpu_rows import CpuRows

_MIN_WORK = 4096  # rows x shared keys from which the product pays for its calls
_MAX_ROWS = 64  # of a member: what is left of its keys goes through the loops, which are made for few rows
_MAX_SCORES = 1 << 20  # held at a time: 4 MB
_LOG2_E = 1.4426950408889634


@dataclass(frozen=True, eq=False)
class SharedKeys:
    """Some sequences' rows, and the slots of the keys that all of these rows see."""

    rows: Tensor
    slots: slice | Tensor


@dataclass(frozen=True, eq=False)
class Cascade:
    """Which sequences go through the loops from which key on, which through torch, and what comes before."""

    groups: list[SharedKeys]
    short: np.ndarray
    long: list[int]
    first_keys: np.ndarray


def find_shared(rows: CpuRows) -> Cascade:
    """Group sequences by their first page; a group shares the leading pages that all its members have in common."""
    page_size, table = rows.source.page_size, rows.block_table
    num_rows = np.diff(rows.row_starts)
    first_keys = np.zeros(len(num_rows), np.int64)
    candidates = np.flatnonzero((num_rows > 0) & (num_rows <= _MAX_ROWS) & (rows.context_lens >= page_size))
    groups: list[SharedKeys] = []
    if len(candidates) > 1:
        first_pages = table[candidates, 0]
        for page in np.unique(first_pages):
            members = candidates[first_pages == page]
            most = int(rows.context_lens[members].min()) // page_size
            differs = (table[members, :most] != table[members[0], :most]).any(0)
            pages = table[members[0], : int(np.argmax(differs)) if differs.any() else most]
            if len(members) < 2 or num_rows[members].sum() * len(pages) * page_size < _MIN_WORK:
                continue
            first_keys[members] = len(pages) * page_size
            member_rows = np.concatenate([np.arange(rows.row_starts[s], rows.row_starts[s + 1]) for s in members])
            groups.append(SharedKeys(torch.from_numpy(member_rows), _slots(pages, page_size)))
    in_group = first_keys > 0
    short = np.flatnonzero(in_group | ((num_rows > 0) & (num_rows <= rows.few_rows)))
    return Cascade(groups, short, [s for s in rows.long if not in_group[s]], first_keys)


def attend_shared(
    query: Float[Tensor, "rows heads k_dim"],
    k_pages: Float[Tensor, "num_pages page_size kv_heads k_dim"],
    v_pages: Float[Tensor, "num_pages page_size kv_heads v_dim"],
    groups: list[SharedKeys],
    out: Float[Tensor, "rows heads v_dim"],
    scaling: float,
) -> Float[Tensor, "rows heads"]:
    """Write the attention over shared keys alone into `out`; returns log2 of its sums of weights, -inf elsewhere."""
    num_rows, heads, k_dim = query.shape
    kv_heads = k_pages.shape[2]
    lse = query.new_full((num_rows, heads), float("-inf"))
    for group in groups:
        k = k_pages.flatten(0, 1)[group.slots].permute(1, 2, 0)
        v = v_pages.flatten(0, 1)[group.slots].transpose(0, 1)
        step = max(1, _MAX_SCORES // (heads * k.shape[2]))
        for rows in torch.split(group.rows, step):
            packed = (query[rows] * scaling).view(len(rows), kv_heads, -1, k_dim).transpose(0, 1)
            scores = torch.bmm(packed.reshape(kv_heads, -1, k_dim), k)
            highest = scores.amax(-1, keepdim=True)
            weights = scores.sub_(highest).exp_()
            sums = weights.sum(-1, keepdim=True)
            result = torch.bmm(weights, v).div_(sums)
            out[rows] = result.view(kv_heads, len(rows), -1, v.shape[2]).transpose(0, 1).flatten(1, 2)
            lse[rows] = (
                (sums.log_().add_(highest).mul_(_LOG2_E)).view(kv_heads, len(rows), -1).transpose(0, 1).flatten(1)
            )
    return lse


def _slots(pages: np.ndarray, page_size: int) -> slice | Tensor:
    if (np.diff(pages) == 1).all():
        return slice(int(pages[0]) * page_size, (int(pages[-1]) + 1) * page_size)
    return torch.from_numpy((pages[:, None].astype(np.int64) * page_size + np.arange(page_size)).reshape(-1))

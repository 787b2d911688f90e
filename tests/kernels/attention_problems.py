"""Random ragged attention problems over a shuffled, poisoned pool, and the brute-force answer."""

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

FEATURES = {
    "plain": {},
    "window": {"sliding_window": 7},
    "softcap": {"softcap": 2.0},
    "sinks": {"with_sinks": True},
    "one head": {"heads": 1, "kv_heads": 1},
    "mha": {"heads": 3, "kv_heads": 3},
    "other v_dim": {"v_dim": 24},
    "odd dims": {"k_dim": 13, "v_dim": 5},
    "page 1": {"page_size": 1},
    "page 5": {"page_size": 5},
    "page 32": {"page_size": 32},
    "contiguous": {"contiguous": True},
    "padding": {"num_padding": 3},
    "all": {"sliding_window": 9, "softcap": 3.0, "with_sinks": True, "heads": 6, "v_dim": 8, "num_padding": 1},
}
# Sums in the dtype's own products; bf16 and fp16 round the inputs' products and the result.
TOLERANCE = {torch.float64: 1e-12, torch.float32: 2e-6, torch.bfloat16: 2e-2, torch.float16: 3e-3}


@dataclass
class Problem:
    """One call of `tree_attention`: `args` positional, `rows` what `prepare` takes, `options` the rest."""

    args: tuple[Tensor, Tensor, Tensor]
    rows: dict[str, Any]
    options: dict[str, Any]

    def to(self, dtype: torch.dtype) -> "Problem":
        sinks = self.options["sinks"]
        options = {**self.options, "sinks": None if sinks is None else sinks.to(dtype)}
        return Problem(tuple(x.to(dtype) for x in self.args), self.rows, options)


def random_problem(
    lengths: list[tuple[int, int, int]],  # per sequence: context_len, causal rows, tree rows
    *,
    heads: int = 4,
    kv_heads: int = 2,
    k_dim: int = 16,
    v_dim: int | None = None,
    page_size: int = 16,
    num_padding: int = 0,
    contiguous: bool = False,
    extra_pages: int = 2,
    sliding_window: int | None = None,
    softcap: float | None = None,
    with_sinks: bool = False,
    shape: str = "random",
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
) -> Problem:
    """Every slot that no sequence wrote is NaN, the block table ends in -1, pages are shuffled unless `contiguous`."""
    g = torch.Generator().manual_seed(seed)
    v_dim = k_dim if v_dim is None else v_dim
    totals = [sum(x) for x in lengths]
    pages_of = [-(-n // page_size) for n in totals]
    num_pages = 1 + sum(pages_of) + extra_pages
    order = torch.arange(1, num_pages) if contiguous else torch.randperm(num_pages - 1, generator=g) + 1
    max_pages = max([*pages_of, 1]) + 1
    block_table = torch.full((len(lengths), max_pages), -1, dtype=torch.int32)
    k_pages = torch.full((num_pages, page_size, kv_heads, k_dim), math.nan)
    v_pages = torch.full((num_pages, page_size, kv_heads, v_dim), math.nan)
    positions, starts, used = [], [0], 0
    num_words = max([1, *(-(-t // 32) for _, _, t in lengths)])
    bits_rows: list[list[int]] = []
    for s, (context_len, num_causal, num_tree) in enumerate(lengths):
        pages = order[used : used + pages_of[s]]
        used += pages_of[s]
        block_table[s, : len(pages)] = pages.int()
        total = context_len + num_causal + num_tree
        slots = (pages[:, None] * page_size + torch.arange(page_size)).flatten()[:total]
        k_pages.view(-1, kv_heads, k_dim)[slots] = torch.randn(total, kv_heads, k_dim, generator=g)
        v_pages.view(-1, kv_heads, v_dim)[slots] = torch.randn(total, kv_heads, v_dim, generator=g)
        positions += list(range(context_len, context_len + num_causal))
        bits_rows += [[0] * num_words for _ in range(num_causal)]
        seen: list[set[int]] = []
        for t in range(num_tree):
            parent = {"chain": t - 1, "star": -1, "random": int(torch.randint(-1, t, (), generator=g)) if t else -1}[
                shape
            ]
            seen.append({t} | (seen[parent] if parent >= 0 else set()))
            positions.append(context_len + num_causal + len(seen[t]) - 1)
            words = [0] * num_words
            for j in seen[t]:
                words[j // 32] |= 1 << (j % 32)
            bits_rows.append([w - 2**32 if w >= 2**31 else w for w in words])
        starts.append(starts[-1] + num_causal + num_tree)
    positions += [0] * num_padding
    bits_rows += [[-1] * num_words for _ in range(num_padding)]
    num_rows = starts[-1] + num_padding
    query = torch.randn(num_rows, heads, k_dim, generator=g)
    has_trees = any(t for _, _, t in lengths)
    rows = {
        "position_ids": torch.tensor(positions, dtype=torch.int64),
        "row_starts": torch.tensor(starts, dtype=torch.int32),
        "context_lens": torch.tensor([c for c, _, _ in lengths], dtype=torch.int32),
        "num_causal_rows": torch.tensor([n for _, n, _ in lengths], dtype=torch.int32),
        "block_table": block_table,
        "ancestor_bits": torch.tensor(bits_rows, dtype=torch.int32).view(num_rows, num_words) if has_trees else None,
    }
    options = {
        "scaling": k_dim**-0.5,
        "sliding_window": sliding_window,
        "softcap": softcap,
        "sinks": torch.randn(heads, generator=g) if with_sinks else None,
    }
    return Problem((query, k_pages, v_pages), rows, options).to(dtype)


def brute_force(problem: Problem) -> Tensor:
    """Row by row and key by key in float64, straight from the words of the contract."""
    query, k_pages, v_pages = (x.double() for x in problem.args)
    rows, options = problem.rows, problem.options
    page_size, kv_heads = k_pages.shape[1:3]
    group = query.shape[1] // kv_heads
    out = torch.zeros(*query.shape[:2], v_pages.shape[3], dtype=torch.float64)
    for s, context_len in enumerate(rows["context_lens"].tolist()):
        first, last = rows["row_starts"][s : s + 2].tolist()
        num_causal = int(rows["num_causal_rows"][s])
        for row in range(first, last):
            i = row - first
            indices = list(range(context_len))
            if i < num_causal:
                indices += [context_len + j for j in range(i + 1)]
            else:
                indices += [context_len + j for j in range(num_causal)]
                words = rows["ancestor_bits"][row].tolist()
                tree_rows = range(last - first - num_causal)
                indices += [context_len + num_causal + j for j in tree_rows if words[j // 32] >> (j % 32) & 1]
            position = {
                x: x if x < context_len else int(rows["position_ids"][first + x - context_len]) for x in indices
            }
            if options["sliding_window"] is not None:
                here = int(rows["position_ids"][row])
                indices = [x for x in indices if here - position[x] < options["sliding_window"]]
            slots = [(int(rows["block_table"][s, x // page_size]), x % page_size) for x in indices]
            for h in range(query.shape[1]):
                k = torch.stack([k_pages[page, offset, h // group] for page, offset in slots])
                v = torch.stack([v_pages[page, offset, h // group] for page, offset in slots])
                scores = k @ query[row, h] * options["scaling"]
                if options["softcap"] is not None:
                    scores = options["softcap"] * torch.tanh(scores / options["softcap"])
                weights = torch.exp(scores)
                total = weights.sum()
                if options["sinks"] is not None:
                    total = total + torch.exp(options["sinks"][h].double())
                out[row, h] = (weights / total) @ v
    return out

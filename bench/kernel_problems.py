"""Shapes of the attention benchmark, and the tensors of one: shuffled pages, several layers of pools, trees as bits."""

import itertools
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from infercore.kernels import PreparedRows, prepare

HEADS, KV_HEADS, DIM, PAGE_SIZE = 32, 8, 128, 16


@dataclass(frozen=True)
class Shape:
    batch: int
    context_len: int
    num_rows: int
    tree: str = "random"  # chain, star, eagle or random
    ragged: bool = False  # longest context 4 times the mean

    def __str__(self) -> str:
        tail = "" if self.num_rows == 1 or self.tree == "random" else f" {self.tree}"
        return f"{self.batch} x {self.context_len}, {self.num_rows}{tail}{' ragged' if self.ragged else ''}"

    def context_lens(self) -> list[int]:
        if not self.ragged:
            return [self.context_len] * self.batch
        short = max(1, (self.context_len * self.batch - 4 * self.context_len) // max(1, self.batch - 1))
        return [4 * self.context_len, *[short] * (self.batch - 1)]


TARGETS = {  # % of the floor at 3.11 TB/s; the first in microseconds
    (1, 1024, 16): 9.5, (1, 8192, 1): 62, (1, 8192, 16): 53, (1, 8192, 64): 38, (1, 32768, 16): 78, (1, 32768, 64): 54,
    (8, 8192, 1): 89, (8, 8192, 16): 84, (8, 8192, 32): 77, (8, 8192, 64): 56, (32, 2048, 16): 87, (32, 8192, 1): 95,
    (32, 8192, 16): 94, (32, 8192, 64): 54,
}  # fmt: skip
ANCHORS = [
    Shape(1, 1024, 16), Shape(1, 8192, 1), Shape(1, 8192, 16), Shape(1, 8192, 64), Shape(1, 32768, 16),
    Shape(1, 32768, 64), Shape(8, 8192, 1), Shape(8, 8192, 16), Shape(8, 8192, 32), Shape(8, 8192, 64),
    Shape(32, 2048, 16), Shape(32, 8192, 1), Shape(32, 8192, 16), Shape(32, 8192, 64),
]  # fmt: skip
FURTHER = [
    Shape(16, 4096, 1, ragged=True), Shape(16, 4096, 16, ragged=True), Shape(8, 8192, 16, "chain"),
    Shape(8, 8192, 16, "star"), Shape(8, 8192, 60, "eagle"), Shape(8, 8192, 128, "eagle"),
]  # fmt: skip
CHECK = [Shape(2, 40, 1), Shape(3, 33, 5, "eagle"), Shape(5, 24, 7, "star", ragged=True), Shape(1, 0, 4, "chain")]


class Problem:
    """One shape on a device: shuffled pages, several layers of pools, and the plain mask for peers that need one."""

    def __init__(self, shape: Shape, device: torch.device, *, layers: int, dtype: torch.dtype) -> None:
        generator = torch.Generator().manual_seed(0)
        self.shape, self.device = shape, device
        each = sum(c + shape.num_rows for c in shape.context_lens()) * KV_HEADS * DIM * 4
        self.few_layers = min(layers, max(2, -(-400_000_000 // each)))  # for peers that hold several copies
        self.context_lens, n = shape.context_lens(), shape.num_rows
        pages = [-(-(c + n) // PAGE_SIZE) for c in self.context_lens]
        order = torch.randperm(sum(pages), generator=generator) + 1
        table = torch.full((shape.batch, max(pages)), -1, dtype=torch.int32)
        for row, ids in zip(table, order.split(pages), strict=True):
            row[: len(ids)] = ids.int()
        parents = tree_parents(shape.tree, n)
        self.among = torch.zeros(n, n, dtype=torch.bool)  # which tree rows a tree row sees
        for i, parent in enumerate(parents):
            if parent >= 0:
                self.among[i] = self.among[parent]
            self.among[i, i] = True
        depth = self.among.sum(1) - 1
        words = torch.zeros(n, -(-n // 32), dtype=torch.int64)
        for j in range(n):
            words[:, j // 32] |= self.among[:, j].long() << (j % 32)
        bits = torch.where(words >= 2**31, words - 2**32, words).int()
        total = shape.batch * n
        tensors = {
            "position_ids": torch.cat([depth + c for c in self.context_lens]),
            "row_starts": torch.arange(0, total + 1, n, dtype=torch.int32),
            "context_lens": torch.tensor(self.context_lens, dtype=torch.int32),
            "num_causal_rows": torch.full((shape.batch,), int(n == 1), dtype=torch.int32),
            "block_table": table,
            "ancestor_bits": bits.repeat(shape.batch, 1) if n > 1 else None,  # single rows are no tree
        }
        self.rows: dict[str, Any] = {name: t if t is None else t.to(device) for name, t in tensors.items()}
        pool = (sum(pages) + 1, PAGE_SIZE, KV_HEADS, DIM)
        self.pools = [
            (torch.randn(pool, device=device, dtype=dtype), torch.randn(pool, device=device, dtype=dtype))
            for _ in range(layers)
        ]
        self.query = torch.randn(total, HEADS, DIM, device=device, dtype=dtype)
        self.num_bytes = sum(c + n for c in self.context_lens) * KV_HEADS * DIM * 2 * self.query.element_size()

    def prepare(self) -> PreparedRows:
        """What an engine does once a step, in the graph."""
        return prepare(**self.rows, page_size=PAGE_SIZE)

    def dense(self, layer: int) -> tuple[Tensor, Tensor, Tensor]:
        """Keys and values of every sequence, padded to the longest `[batch, kv_heads, keys, dim]`, and the mask."""
        n = self.shape.num_rows
        longest = max(self.context_lens) + n
        keys = [self.pools[layer][i].new_zeros(self.shape.batch, KV_HEADS, longest, DIM) for i in (0, 1)]
        mask = torch.zeros(self.shape.batch, n, longest, dtype=torch.bool, device=self.device)
        for s, context_len in enumerate(self.context_lens):
            index = torch.arange(context_len + n, device=self.device)
            slots = self.rows["block_table"][s, index // PAGE_SIZE].long() * PAGE_SIZE + index % PAGE_SIZE
            for dense, pages in zip(keys, self.pools[layer], strict=True):
                dense[s, :, : context_len + n] = pages.flatten(0, 1)[slots].transpose(0, 1)
            mask[s, :, :context_len] = True
            mask[s, :, context_len : context_len + n] = self.among.to(self.device)
        return keys[0], keys[1], mask


def tree_parents(kind: str, n: int) -> list[int]:
    """Parents of n nodes, -1 at the root. "eagle": a trunk whose nodes branch less and less, as EAGLE's trees do."""
    if kind == "chain":
        return [i - 1 for i in range(n)]
    if kind == "star":
        return [-1] * n
    if kind == "eagle":
        return [-1 if i < 10 else (i - 10) // 3 for i in range(n)]
    generator = torch.Generator().manual_seed(1)
    return [-1 if i == 0 else int(torch.randint(-1, i, (), generator=generator)) for i in range(n)]


class Prefill:
    """Causal chunks of prompts behind their contexts, in shuffled pages, and the same work as contiguous tensors."""

    def __init__(self, chunks: list[tuple[int, int]], device: torch.device) -> None:
        """chunks: context and new rows of each sequence."""
        generator = torch.Generator(device=device).manual_seed(0)

        def random(*shape: int) -> Tensor:
            return torch.randn(*shape, device=device, dtype=torch.bfloat16, generator=generator)

        pages = [-(-(c + n) // PAGE_SIZE) for c, n in chunks]
        order = torch.randperm(sum(pages), device=device, generator=generator) + 1
        table = torch.full((len(chunks), max(pages)), -1, dtype=torch.int32, device=device)
        for row, ids in zip(table, order.split(pages), strict=True):
            row[: len(ids)] = ids.int()
        counts = torch.tensor([n for _, n in chunks], dtype=torch.int32, device=device)
        self.rows: dict[str, Any] = {
            "position_ids": torch.cat([torch.arange(c, c + n, device=device) for c, n in chunks]),
            "row_starts": torch.tensor(
                [0, *itertools.accumulate(n for _, n in chunks)], dtype=torch.int32, device=device
            ),
            "context_lens": torch.tensor([c for c, _ in chunks], dtype=torch.int32, device=device),
            "num_causal_rows": counts,
            "block_table": table,
            "ancestor_bits": None,
        }
        self.pools = [random(sum(pages) + 1, PAGE_SIZE, KV_HEADS, DIM) for _ in range(2)]
        self.query = random(sum(n for _, n in chunks), HEADS, DIM)
        self.flops = sum(4 * HEADS * DIM * (n * c + n * (n + 1) / 2) for c, n in chunks)

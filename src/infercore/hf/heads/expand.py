"""`Expansion`: a whole greedy draft as one function of tensors of fixed shapes, and on a GPU as one CUDA graph.

The shapes are fixed by the number of requests and the length of the cache, each rounded up to a bucket. All candidates
of all depths go to the host in one copy; it keeps the best of them (`_compiled.py`).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from jaxtyping import Integer
from torch import Tensor

from infercore.hf.fused_products import compile_options
from infercore.hf.heads import _compiled
from infercore.hf.heads.captured import CapturedByShape, fitting
from infercore.hf.heads.eagle import EagleHead
from infercore.hf.heads.kv import FIRST_GRAPH_LENGTH, HeadKV, below, buckets, causal, graph_lengths
from infercore.hf.heads.ring import FeatureRing
from infercore.kernels import expand_frontier
from infercore.speculative import TokenTree

_BATCHES = (1, 2, 4, 8, 16, 32, 64)
_NEW = (8, 16, 32)


@dataclass(frozen=True, slots=True)
class Shape:
    """How a tree grows: `branching` children of the root; then `width` nodes of each depth get as many."""

    depth: int
    branching: int
    width: int

    def __post_init__(self) -> None:
        if min(self.depth, self.branching, self.width) < 1:
            raise ValueError(
                f"max_depth, branching and num_expanded are {self.depth}, {self.branching}, {self.width}; all must be "
                "at least 1"
            )

    @property
    def num_entries(self) -> int:
        """Nodes that go through the head."""
        return (self.depth - 1) * self.width


@dataclass(frozen=True, slots=True)
class NewEntries:
    """What one request brings to a draft.

    Args:
        slot: of the cache. length: entries there. first: position of the first of them.
        next_tokens: `[new]`, the token behind each new feature.
        told: numbers of the ring, of the last of these features; those before wait in the cache's own memory.
    """

    slot: int
    length: int
    first: int
    next_tokens: Integer[np.ndarray, " new"]
    told: Sequence[int] = ()


class Expansion:
    """Runs drafts; graphs are captured when a shape is first met, and void when the cache's memory moves.

    Args:
        ring: whose rows `NewEntries.told` counts.
        cuda_graphs: None: on a GPU.
        fuse_layers: compile what is captured.
    """

    def __init__(
        self,
        head: EagleHead,
        kv: HeadKV,
        ring: FeatureRing,
        shape: Shape,
        *,
        cuda_graphs: bool | None,
        fuse_layers: bool = False,
    ) -> None:
        self._head, self._kv, self._ring, self._shape = head, kv, ring.rows, shape
        self._device = next(head.parameters()).device
        on_gpu = self._device.type == "cuda"
        if (cuda_graphs or fuse_layers) and not on_gpu:
            raise ValueError(
                f"{'cuda_graphs' if cuda_graphs else 'fuse_layers'} is True, but the head is on {self._device}; move "
                "it to a GPU, or leave it out"
            )
        self.uses_graphs = on_gpu if cuda_graphs is None else cuda_graphs
        self._replays = CapturedByShape(self._draft, kv, self._device)
        self._read: Callable[[], npt.NDArray[np.int32]] | None = None  # what was started last
        self._parents = self._parents_of_candidates()
        entry = np.arange(shape.num_entries)
        depth = entry // shape.width
        self._first_of_depth = np.where(depth, shape.branching + (depth - 1) * shape.width * shape.branching, 0)
        self._depths = [torch.tensor(depth, device=self._device) for depth in range(shape.depth)]
        self._offsets = torch.arange(shape.width, device=self._device)
        self._first_outputs: Callable[..., Any] = self._of_new_entries
        self._next_outputs: Callable[..., Any] = self._of_frontier
        if fuse_layers:
            self._first_outputs, self._next_outputs = (
                torch.compile(part, fullgraph=True, options=compile_options())
                for part in (self._of_new_entries, self._of_frontier)
            )

    def start(self, entries: Sequence["NewEntries"]) -> None:
        """Begin the draft of each request, whose new features go into the cache; on a GPU without waiting."""
        batch, new = len(entries), max(len(each.next_tokens) for each in entries)
        if self.uses_graphs:
            batch, new = fitting(_BATCHES, batch), fitting(_NEW, new)
        needed = max(each.length for each in entries) + new + self._shape.num_entries
        length = buckets(needed, FIRST_GRAPH_LENGTH) if self.uses_graphs else buckets(needed)
        self._kv.reserve(length)
        numbers = np.zeros((batch, 4 + 2 * new), np.int64)
        numbers[:, 3] = 1
        numbers[:, 4 + new :] = -1
        for row, each in zip(numbers, entries, strict=False):
            count = len(each.next_tokens)
            row[:4] = each.slot, each.length, each.first, count
            row[4 : 4 + count] = each.next_tokens
            if each.told:
                row[4 + new + count - len(each.told) : 4 + new + count] = np.array(each.told) % len(self._ring)
        self._read = self._call(numbers, length)

    def finish(self, wanted: Sequence[tuple[int, int]]) -> list[TokenTree]:
        """Trees of the draft that was started last, waiting for it: of each place in it, with so many nodes at most."""
        assert self._read is not None
        drafted = self._read()
        above, first = self._parents, self._first_of_depth
        trees = []
        for place, max_nodes in wanted:
            token_ids, parents, chances = _compiled.best_of_candidates(drafted[place], above, first, max_nodes)
            trees.append(TokenTree(token_ids, parents, None, chances))
        return trees

    def warmup(self, batch: int, num_tokens: int) -> None:
        """Capture drafts of up to `batch` requests in texts of up to `num_tokens`."""
        if not self.uses_graphs:
            return
        needed = num_tokens + _NEW[-1] + self._shape.num_entries
        self._kv.reserve(buckets(needed, FIRST_GRAPH_LENGTH))
        for size in _BATCHES[: _BATCHES.index(fitting(_BATCHES, min(batch, _BATCHES[-1]))) + 1]:
            for new in _NEW:
                for length in graph_lengths(needed):
                    self._replays.of(size, 4 + 2 * new, length)

    def _call(self, numbers: npt.NDArray[np.int64], length: int) -> Callable[[], npt.NDArray[np.int32]]:
        if not self.uses_graphs:
            out = self._draft(torch.from_numpy(numbers).to(self._device), length)
            return lambda: out.cpu().numpy()
        captured = self._replays.of(len(numbers), numbers.shape[1], length)
        captured.start(numbers)
        return captured.read

    def _draft(self, numbers: Tensor, length: int) -> Tensor:
        """int32 `[batch, 2 * candidates + entries]`: the candidates' tokens, the bits of their float32 chances, and of
        each entry its rank among the candidates of its depth.
        """
        shape = self._shape
        hidden, logits = self._first_outputs(numbers, length)
        expand = partial(expand_frontier, branching=shape.branching, width=shape.width, id_offsets=self._head.d2t)
        children = expand(logits, torch.zeros_like(logits[..., 0], dtype=torch.float32))
        out = [children]
        batch = len(numbers)
        hidden = hidden.repeat(1, shape.width, 1)  # as many rows as at every other depth
        ancestors = numbers.new_zeros(batch, shape.width, max(shape.depth - 1, 1))
        for depth in range(1, shape.depth):
            ids = children.token_ids.expand(-1, shape.width, -1).contiguous()
            scores = children.scores.expand(-1, shape.width, -1).contiguous()
            hidden, logits, above, ancestors = self._next_outputs(
                numbers, hidden, ids, scores, children.frontier, ancestors, self._depths[depth], length
            )
            children = expand(logits, above)
            out.append(children)
        ids, chances = (torch.cat([each[part].flatten(1) for each in out], 1) for part in (0, 1))
        ranks = [each.frontier for each in out[:-1]]
        return torch.cat([ids.int(), chances.exp().view(torch.int32), *(rank.int() for rank in ranks)], 1)

    def _of_new_entries(self, numbers: Tensor, length: int) -> tuple[Tensor, Tensor]:
        """The output of each request's last new entry, `[batch, 1, hidden]`, and its logits."""
        slots, starts, first, counts = (numbers[:, i] for i in range(4))
        tokens, rows = numbers[:, 4:].chunk(2, 1)
        head, new = self._head, tokens.shape[1]
        positions = (first + starts)[:, None] + torch.arange(new, device=tokens.device)
        places = causal(starts, counts, new, length, slots)
        told = self._ring[rows.clamp_min(0)]
        features = torch.where(rows[..., None] < 0, self._kv.waiting[:, :new].index_select(0, slots), told)
        last = (counts - 1)[:, None]
        out = head(tokens, head.project(features), positions, partial(self._kv.attend, places))
        self._kv.waiting[slots, 0] = _rows(features, last)[:, 0]  # stays: its entry comes with the next draft again
        root = _rows(out, last)
        return root, head.logits(root)

    def _of_frontier(
        self,
        numbers: Tensor,
        hidden: Tensor,
        ids: Tensor,
        scores: Tensor,
        frontier: Tensor,
        ancestors: Tensor,
        depth: Tensor,
        length: int,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Outputs of the nodes that go on, `[batch, width, hidden]`, their logits, scores and places of ancestors.

        Args:
            hidden, ancestors: of the nodes above, `[batch, width, hidden]` and `[batch, width, depths]`.
            ids, scores: of their children, `[batch, width, branching]`. frontier: which of these go on.
        """
        slots, starts, first, counts = (numbers[:, i] for i in range(4))
        parents = frontier // ids.shape[2]
        hidden, ancestors = _rows(hidden, parents), _rows(ancestors, parents)
        ends = starts + counts
        own = (ends + (depth - 1) * self._shape.width)[:, None] + self._offsets
        column = torch.arange(ancestors.shape[2], device=ids.device)
        ancestors = torch.where(
            column >= depth - 1, own[..., None], ancestors
        )  # the last one is always the node itself
        at = (first + ends - 1 + depth)[:, None].expand(-1, self._shape.width)
        places = below(ends, ancestors, length, slots)
        tokens = ids.flatten(1).gather(1, frontier)
        hidden = self._head(tokens, hidden, at, partial(self._kv.attend, places))
        return hidden, self._head.logits(hidden), scores.flatten(1).gather(1, frontier), ancestors

    def _parents_of_candidates(self) -> npt.NDArray[np.int64]:
        """Per candidate which entry of the frontier above it is its parent; -1 below the root."""
        shape = self._shape
        root = np.full(shape.branching, -1)
        rest = np.arange(shape.num_entries).repeat(shape.branching)
        return np.concatenate([root, rest])


def compile_loops() -> None:
    """Compile ahead what picks the candidates of a draft."""
    _compiled.best_of_candidates(np.zeros(7, np.int32), np.array([-1, -1, 0]), np.zeros(1, np.int64), 2)


def _rows(tensor: Tensor, index: Tensor) -> Tensor:
    return tensor.gather(1, index[..., None].expand(-1, -1, tensor.shape[-1]))

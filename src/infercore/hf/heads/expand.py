"""`Expansion`: a whole greedy draft as one function of tensors of fixed shapes, and on a GPU as one CUDA graph.

The shapes are fixed by the number of requests, of new entries and the length of the cache, each rounded up to a bucket.
All candidates of all depths go to the host in one copy; it keeps the best of them.
"""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from infercore.hf.heads.eagle import EagleHead
from infercore.hf.heads.kv import HeadKV, below, buckets, causal, pad

_BATCHES = (1, 2, 4, 8, 16, 32, 64)
_NEW = (8, 16)
_FIRST_GRAPH_LENGTH = 512  # shorter ones cost a GPU the same, and a graph each
_log = logging.getLogger(__name__)

Candidates = tuple[list[npt.NDArray[np.int32]], list[npt.NDArray[np.int32]], list[npt.NDArray[np.float32]]]
"""Per request the tokens, parents and scores of every candidate, parents first."""


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


class Expansion:
    """Runs drafts; graphs are captured when a shape is first met, and void when the cache's memory moves.

    Args:
        cuda_graphs: None: on a GPU.
    """

    def __init__(self, head: EagleHead, kv: HeadKV, shape: Shape, *, cuda_graphs: bool | None) -> None:
        self._head, self._kv, self._shape = head, kv, shape
        parameter = next(head.parameters())
        self._device, self._dtype = parameter.device, parameter.dtype
        on_gpu = self._device.type == "cuda"
        if cuda_graphs and not on_gpu:
            raise ValueError(
                f"cuda_graphs is True, but the head is on {self._device}; move it to a GPU, or leave it out"
            )
        self._uses_graphs = on_gpu if cuda_graphs is None else cuda_graphs
        self._replays: dict[tuple[int, int, int], _Captured] = {}
        self._generation = kv.generation
        self._parents = self._parents_of_candidates()

    def run(
        self,
        slots: Sequence[int],
        lengths: Sequence[int],
        first_positions: Sequence[int],
        features: Sequence[Tensor],
        next_tokens: Sequence[npt.NDArray[np.int64]],
    ) -> Candidates:
        """Candidates of each request, whose new entries go into the cache.

        Args:
            lengths: entries in the cache. first_positions: of the first of them.
            features: `[new, columns]` each. next_tokens: `[new]` each, the token behind each feature.
        """
        counts = [len(some) for some in next_tokens]
        needed = max(length + count for length, count in zip(lengths, counts, strict=True)) + self._shape.num_entries
        batch, new = _fitting(_BATCHES, len(slots)), _fitting(_NEW, max(counts))
        if not self._uses_graphs:
            batch, new = len(slots), max(counts)
        length = buckets(needed, _FIRST_GRAPH_LENGTH) if self._uses_graphs else buckets(needed)
        self._kv.reserve(length)
        numbers = np.zeros((batch, 4 + new), np.int64)
        numbers[:, 0] = pad(slots, batch, 0)
        numbers[:, 1] = pad(lengths, batch, 0)
        numbers[:, 2] = pad(first_positions, batch, 0)
        numbers[:, 3] = pad(counts, batch, 1)
        for row, tokens in enumerate(next_tokens):
            numbers[row, 4 : 4 + len(tokens)] = tokens
        out = self._call(batch, new, length, torch.from_numpy(numbers), features).cpu().numpy()
        return self._candidates(out, len(slots))

    def _call(self, batch: int, new: int, length: int, numbers: Tensor, features: Sequence[Tensor]) -> Tensor:
        if not self._uses_graphs:
            given = torch.zeros(batch, new, self._head.feature_size, dtype=self._dtype, device=self._device)
            for row, some in enumerate(features):
                given[row, : len(some)] = some
            return self._draft(numbers.to(self._device), given, length)
        if self._generation != self._kv.generation:
            self._replays.clear()
            self._generation = self._kv.generation
        key = (batch, new, length)
        captured = self._replays.get(key)
        if captured is None:
            draft, columns = partial(self._draft, length=length), self._head.feature_size
            captured = _Captured(draft, (batch, 4 + new), (batch, new, columns), self._dtype, self._device)
            self._replays[key] = captured
        return captured(numbers, features)

    def _draft(self, numbers: Tensor, features: Tensor, length: int) -> Tensor:
        """`[batch, 3, candidates]` in float64: tokens, rank of the parent in the frontier above, cumulative chance."""
        slots, starts, first, counts = numbers[:, 0], numbers[:, 1], numbers[:, 2], numbers[:, 3]
        tokens = numbers[:, 4:]
        head, shape = self._head, self._shape
        batch, new = tokens.shape
        positions = (first + starts)[:, None] + torch.arange(new, device=tokens.device)
        places = causal(starts, counts, new, length, slots)
        out = head(tokens, head.project(features), positions, partial(self._kv.attend, places))
        root = out.gather(1, (counts - 1)[:, None, None].expand(-1, -1, out.shape[-1]))
        ends = starts + counts
        chances, ids = self._children(root)  # [batch, 1, branching]
        scores = chances
        all_ids, all_scores = [ids.flatten(1)], [scores.flatten(1)]
        all_ranks = [torch.zeros_like(all_ids[0])]
        hidden = root.expand(-1, shape.branching, -1)
        ancestors = tokens.new_empty(batch, shape.branching, 0)
        offsets = torch.arange(shape.width, device=tokens.device)
        for depth in range(1, shape.depth):
            best = scores.flatten(1).topk(shape.width)
            rank = best.indices
            parents = rank // ids.shape[2] if depth > 1 else torch.zeros_like(rank)
            if depth > 1:
                hidden, ancestors = _rows(hidden, parents), _rows(ancestors, parents)
            else:
                hidden, ancestors = hidden[:, : shape.width], ancestors[:, : shape.width]
            own = (ends + (depth - 1) * shape.width)[:, None] + offsets
            ancestors = torch.cat([ancestors, own[..., None]], -1)
            frontier = ids.flatten(1).gather(1, rank)
            at = (first + ends - 1 + depth)[:, None].expand(-1, shape.width)
            places = below(ends, ancestors, length, slots)
            hidden = head(frontier, hidden, at, partial(self._kv.attend, places))
            chances, ids = self._children(hidden)
            scores = best.values[..., None] + chances
            all_ids.append(ids.flatten(1))
            all_scores.append(scores.flatten(1))
            all_ranks.append(rank)
        tokens_out = torch.cat(all_ids, 1).double()
        ranks = torch.cat(all_ranks[1:], 1).double() if shape.depth > 1 else tokens_out[:, :0]
        return torch.cat([tokens_out, torch.cat(all_scores, 1).double(), ranks], 1)

    def _children(self, output: Tensor) -> tuple[Tensor, Tensor]:
        """Log chances and target ids of the likeliest children of `[batch, rows]` outputs."""
        chances = self._head.logits(output).log_softmax(-1, dtype=torch.float32)
        best = chances.topk(self._shape.branching)
        return best.values, self._head.target_ids(best.indices)

    def _parents_of_candidates(self) -> npt.NDArray[np.int64]:
        """Per candidate which entry of the frontier above it is its parent; -1 below the root."""
        shape = self._shape
        root = np.full(shape.branching, -1)
        rest = np.arange(shape.num_entries).repeat(shape.branching)
        return np.concatenate([root, rest])

    def _candidates(self, out: npt.NDArray[np.float64], batch: int) -> Candidates:
        shape = self._shape
        number = len(self._parents)
        first_of_depth = shape.branching + (np.arange(shape.num_entries) // shape.width - 1) * (
            shape.width * shape.branching
        )
        first_of_depth[: shape.width] = 0
        token_ids, parents, scores = [], [], []
        for row in out[:batch]:
            entries = row[2 * number :].astype(np.int64) + first_of_depth  # the candidate that each entry was
            above = np.where(self._parents < 0, -1, entries[self._parents] if len(entries) else -1)
            token_ids.append(row[:number].astype(np.int32))
            parents.append(above.astype(np.int32))
            scores.append(np.exp(row[number : 2 * number]).astype(np.float32))
        return token_ids, parents, scores


class _Captured:
    """`draft` as a CUDA graph over inputs that stay where they are."""

    def __init__(
        self,
        draft: Callable[[Tensor, Tensor], Tensor],
        numbers: tuple[int, int],
        features: tuple[int, int, int],
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        self._host = torch.zeros(numbers, dtype=torch.int64, pin_memory=True)
        self._numbers = torch.zeros(numbers, dtype=torch.int64, device=device)
        self._numbers[:, 3] = 1
        self._features = torch.zeros(features, dtype=dtype, device=device)
        with torch.cuda.device(device):
            draft(self._numbers, self._features)  # compiles kernels outside of the capture
            torch.cuda.synchronize()
            self._graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(self._graph):
                self._out = draft(self._numbers, self._features)

    def __call__(self, numbers: Tensor, features: Sequence[Tensor]) -> Tensor:
        """Valid until the next call, which waits for nothing: the caller reads the result before."""
        self._host.copy_(numbers)
        self._numbers.copy_(self._host, non_blocking=True)
        for row, some in enumerate(features):
            self._features[row, : len(some)].copy_(some)
        self._graph.replay()
        return self._out


def _rows(tensor: Tensor, index: Tensor) -> Tensor:
    return tensor.gather(1, index[..., None].expand(-1, -1, tensor.shape[-1]))


def _fitting(sizes: tuple[int, ...], count: int) -> int:
    """The smallest of `sizes` that holds `count`, or `count` itself."""
    return next((size for size in sizes if size >= count), count)

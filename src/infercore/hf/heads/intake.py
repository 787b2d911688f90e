"""`Intake`: entries of a long text, a prompt above all, go through the head and into the cache, in pieces.

A piece is some sixty kernels of a few microseconds; on a GPU they are one CUDA graph, of few sizes.
"""

from functools import partial

import numpy as np
import torch
from jaxtyping import Float, Integer
from torch import Tensor

from infercore.hf.heads.captured import CapturedByShape, fitting
from infercore.hf.heads.eagle import EagleHead
from infercore.hf.heads.kv import FIRST_GRAPH_LENGTH, HeadKV, buckets, causal, graph_lengths

_PIECE = 512
_SIZES = (64, 128, 256, _PIECE)


class Intake:
    """Runs pieces; on a GPU each size and length of cache is captured when first met, or ahead by `warmup`.

    Args: cuda_graphs: whether to.
    """

    def __init__(self, head: EagleHead, kv: HeadKV, *, cuda_graphs: bool) -> None:
        self._head, self._kv, self._uses_graphs = head, kv, cuda_graphs
        self._device = next(head.parameters()).device
        self._replays = CapturedByShape(self._write_kept, kv, self._device)
        shape = (_PIECE if cuda_graphs else 0, head.feature_size)
        self._features = torch.zeros(shape, dtype=kv.waiting.dtype, device=self._device)

    def run(
        self,
        slot: int,
        length: int,
        first: int,
        next_tokens: Integer[np.ndarray, "new"],
        features: Float[Tensor, "new columns"],
    ) -> None:
        """Write entries of these features, each with the token behind it, to a row of the cache; no wait.

        Args: slot, length, first: as in `NewEntries`.
        """
        end = length + len(next_tokens)
        self._kv.reserve(buckets(end, FIRST_GRAPH_LENGTH) if self._uses_graphs else end)
        for at in range(0, len(next_tokens), _PIECE):
            tokens = next_tokens[at : at + _PIECE]
            self._piece(slot, length + at, first, tokens, features[at : at + len(tokens)])

    def warmup(self, num_tokens: int) -> None:
        """Capture what texts of so many tokens need."""
        if not self._uses_graphs:
            return
        self._kv.reserve(buckets(num_tokens, FIRST_GRAPH_LENGTH))
        for size in _SIZES:
            for length in graph_lengths(num_tokens):
                self._replays.of(1, 4 + size, length)

    def _piece(
        self, slot: int, length: int, first: int, tokens: Integer[np.ndarray, "new"], features: Float[Tensor, "new _"]
    ) -> None:
        count = len(tokens)
        size = fitting(_SIZES, count) if self._uses_graphs else count
        numbers = np.zeros((1, 4 + size), np.int64)
        numbers[0, :4] = slot, length, first, count
        numbers[0, 4 : 4 + count] = tokens
        if self._uses_graphs:
            self._features[:count] = features
            self._replays.of(1, 4 + size, buckets(length + count, FIRST_GRAPH_LENGTH)).start(numbers)
        else:
            self._write(torch.from_numpy(numbers).to(self._device), features, length + count)

    def _write_kept(self, numbers: Tensor, length: int) -> Tensor:
        """`_write` of the features that stand in memory of its own."""
        return self._write(numbers, self._features[: numbers.shape[1] - 4], length)

    def _write(self, numbers: Tensor, features: Tensor, length: int) -> Tensor:
        """Entries of one request's `[rows, columns]` features; those behind its count go nowhere."""
        slots, starts, first, counts = (numbers[:, i] for i in range(4))
        tokens = numbers[:, 4:]
        places = causal(starts, counts, tokens.shape[1], length, slots)
        positions = (first + starts)[:, None] + torch.arange(tokens.shape[1], device=tokens.device)
        self._head(tokens, self._head.project(features[None]), positions, partial(self._kv.attend, places))
        return counts

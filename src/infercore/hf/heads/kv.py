"""`HeadKV`: keys and values of a draft head, and the features it has not taken in yet, one row of memory a request.

This is what running requests work on: a request's entries lie one behind the other, drafted ones behind the true ones,
where the next refresh writes over them, and a captured draft reads them as they lie. The drafter says where entries go
(`Places`) and what they see. What others may go on with is copied to the engine's pages: see `pooled.py`.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from infercore.hf.heads.config import HeadConfig

_FIRST_LENGTH = 64
FIRST_GRAPH_LENGTH = 512  # of captured attention: shorter ones cost a GPU the same, and a graph each
_FIRST_SHAPE = {"cpu": (2, _FIRST_LENGTH), "cuda": (8, 2048)}  # on a GPU, growing makes captured drafts void


@dataclass(slots=True)
class Places:
    """Where the entries of one forward go, and what they see.

    Args:
        slots: int64 `[batch]`, a row of the cache each.
        at: int64 `[batch, rows]`, places in it; -1: nowhere.
        mask: bool `[batch, rows, length]`, the places each entry attends to, its own included.
    """

    slots: Tensor
    at: Tensor
    mask: Tensor


class HeadKV:
    """Grows by doubling, in requests and in length; slot 0 belongs to padding.

    Args:
        config: of the head. dtype, device: of the head.
        feature_size, max_new: columns of a feature, and how many a request may have waiting.
    """

    def __init__(
        self, config: HeadConfig, dtype: torch.dtype, device: torch.device, *, feature_size: int, max_new: int
    ) -> None:
        slots, length = _FIRST_SHAPE.get(device.type, _FIRST_SHAPE["cpu"])
        shape = (slots, 1 + length, config.num_kv_heads, config.head_dim)
        self._layers = [
            (torch.zeros(shape, dtype=dtype, device=device), torch.zeros(shape, dtype=dtype, device=device))
            for _ in range(config.num_layers)
        ]
        self.waiting = torch.zeros(slots, max_new, feature_size, dtype=dtype, device=device)
        self._free = list(range(slots - 1, 0, -1))
        self.generation = 0
        """Changes when the memory moves: what was captured on it is void then."""

    @property
    def length(self) -> int:
        """Places of a row; one more, the last, takes what goes nowhere."""
        return int(self._layers[0][0].shape[1]) - 1

    def open(self) -> int:
        """A slot."""
        if not self._free:
            slots = int(self._layers[0][0].shape[0])
            self._resize(2 * slots, self.length)
            self._free = list(range(2 * slots - 1, slots - 1, -1))
        return self._free.pop()

    def close(self, slot: int) -> None:
        self._free.append(slot)

    def reserve_slots(self, count: int) -> None:
        """Room for `count` requests at a time."""
        for slot in [self.open() for _ in range(count - (len(self.waiting) - 1 - len(self._free)))]:
            self.close(slot)

    def reserve(self, length: int) -> None:
        """Room for `length` entries in every row."""
        if length > self.length:
            longer = self.length
            while longer < length:
                longer *= 2
            self._resize(int(self._layers[0][0].shape[0]), longer)

    def copy(self, source: int, target: int) -> None:
        """Row `source` into row `target`."""
        for pair in self._layers:
            for tensor in pair:
                tensor[target] = tensor[source]
        self.waiting[target] = self.waiting[source]

    def rows(self, slot: int, start: int, stop: int) -> list[tuple[Tensor, Tensor]]:
        """K and V of each layer at some places of a row, `[places, heads, dim]`: views."""
        return [(k[slot, start:stop], v[slot, start:stop]) for k, v in self._layers]

    def put(self, slot: int, rows: Sequence[tuple[Tensor, Tensor]]) -> None:
        """What `rows` gave, of any memory, to the first places of a row."""
        count = len(rows[0][0])
        self.reserve(count)
        for pair, taken in zip(self._layers, rows, strict=True):
            for tensor, part in zip(pair, taken, strict=True):
                tensor[slot, :count] = part

    def wait(self, parts: Sequence[tuple[int, int, npt.NDArray[np.int64]]], features: Tensor) -> None:
        """Copy rows of `features` to where they wait: slot, place of the first one there, and which rows, each."""
        max_new, columns = self.waiting.shape[1:]
        places = [slot * max_new + first + np.arange(len(rows)) for slot, first, rows in parts]
        moves = np.stack([np.concatenate(places), np.concatenate([rows for _, _, rows in parts])])
        indices = torch.from_numpy(moves).to(features.device, non_blocking=True)
        self.waiting.view(-1, columns).index_copy_(0, indices[0], features.index_select(0, indices[1]))

    def attend(self, places: Places, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Write K and V of `[batch, rows]` entries, and attend; `functools.partial` of it is an `Attend`."""
        keys, values = self._layers[layer]
        at = torch.where(places.at < 0, self.length, places.at)
        keys[places.slots[:, None], at] = k
        values[places.slots[:, None], at] = v
        length = places.mask.shape[-1]
        k, v = (tensor[:, :length].index_select(0, places.slots).transpose(1, 2) for tensor in (keys, values))
        batch, rows, heads, dim = q.shape
        groups = heads // k.shape[1]
        # The query heads of a KV head become rows of it: nothing is repeated, and fused kernels take any mask.
        q = q.view(batch, rows, -1, groups, dim).permute(0, 2, 3, 1, 4).reshape(batch, -1, groups * rows, dim)
        mask = places.mask[:, None].expand(-1, groups, -1, -1).reshape(batch, 1, groups * rows, length)
        out = nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        return out.view(batch, -1, groups, rows, dim).permute(0, 3, 1, 2, 4).flatten(2, 3)

    def _resize(self, slots: int, length: int) -> None:
        larger = []
        for pair in self._layers:
            new = tuple(t.new_zeros(slots, length + 1, *t.shape[2:]) for t in pair)
            for old, fresh in zip(pair, new, strict=True):
                fresh[: old.shape[0], : old.shape[1] - 1] = old[:, :-1]
            larger.append((new[0], new[1]))
        self._layers = larger
        if slots > len(self.waiting):
            fresh = self.waiting.new_zeros(slots - len(self.waiting), *self.waiting.shape[1:])
            self.waiting = torch.cat([self.waiting, fresh])
        self.generation += 1


def buckets(length: int, smallest: int = _FIRST_LENGTH) -> int:
    """The length that attention runs over for `length` entries: few different ones, because each is a graph."""
    size = smallest
    while size < length:
        size *= 2
    return size


def graph_lengths(longest: int) -> list[int]:
    """All lengths that captured attention runs over in texts of up to `longest` entries."""
    last = buckets(longest, FIRST_GRAPH_LENGTH)
    return [FIRST_GRAPH_LENGTH << n for n in range((last // FIRST_GRAPH_LENGTH).bit_length())]


def causal(starts: Tensor, counts: Tensor, rows: int, length: int, slots: Tensor) -> Places:
    """`counts` new entries a request behind `starts` old ones, padded to `rows`; each sees what is before it."""
    offsets = torch.arange(rows, device=starts.device)
    at = starts[:, None] + offsets
    mask = torch.arange(length, device=starts.device) <= at[..., None]
    return Places(slots, torch.where(offsets < counts[:, None], at, -1), mask)


def below(lengths: Tensor, ancestors: Tensor, length: int, slots: Tensor) -> Places:
    """Drafted entries that see the first `lengths` entries and their `ancestors`, places `[batch, rows, depth]`.

    The last ancestor is the entry itself.
    """
    mask = torch.arange(length, device=lengths.device) < lengths[:, None, None]
    mask = mask.repeat(1, ancestors.shape[1], 1).scatter_(2, ancestors, True)
    return Places(slots, ancestors[..., -1], mask)


def pad(batch: Sequence[int], size: int, value: int) -> list[int]:
    """`batch` with `value` behind it up to `size`."""
    return [*batch, *[value] * (size - len(batch))]

"""`PooledEntries`: what a head made of a text stands with its pages in the engine's pool, and is found with them.

The entry of a token's feature and the token behind it stands at the slot of the latter: it depends on the text up to
there and on nothing behind. A running request works on a copy, which grows as one row of `HeadKV`; what is new in it
goes to the pool when the request leaves its pages to the prefix cache, or before, when another begins with them.
"""

import logging
import weakref
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

from infercore.hf.heads.kv import HeadKV
from infercore.radix import KVPool, Sequence, SideRows

_log = logging.getLogger(__name__)


@dataclass(slots=True)
class Held:
    """The pages of a request."""

    sequence: Sequence
    pool: KVPool


class PooledEntries:
    """One head's rows in the pools of the engines it drafts for.

    Args: kv: where running requests keep theirs.
    """

    def __init__(self, kv: HeadKV) -> None:
        self._kv = kv
        self.held: dict[int, Held] = {}
        self._sides: weakref.WeakKeyDictionary[KVPool, SideRows | None] = weakref.WeakKeyDictionary()

    def first_known(self, sequence: Sequence, pool: KVPool) -> int:
        """The position from which on all features but that of the last token have entries there.

        That of the last token itself where none has.
        """
        last = sequence.num_tokens - 1
        side = self._sides.get(pool)
        if side is None or last < 1:
            return max(last, 0)
        unknown = np.flatnonzero(~side.is_valid[sequence.slots(1, last + 1)])
        return int(unknown[-1]) + 1 if len(unknown) else 0

    def sharers(self, request_id: int, sequence: Sequence, pool: KVPool) -> list[tuple[int, int]]:
        """Other requests that hold pages of `sequence`'s beginning, each with how many tokens these have."""
        pages, found = sequence.page_ids, []
        for other_id, held in self.held.items():
            if other_id == request_id or held.pool is not pool or held.sequence.is_closed:
                continue
            others = held.sequence.page_ids[: len(pages)]
            differs = others != pages[: len(others)]
            common = int(np.argmax(differs)) if differs.any() else len(others)
            if common:
                found.append((other_id, min(common * pool.page_size, held.sequence.num_tokens)))
        return found

    def read(self, slot: int, first: int, sequence: Sequence, pool: KVPool) -> int:
        """Copy the entries from position `first` on into a row of the cache; returns their number."""
        side = self._sides[pool]
        assert side is not None
        slots = sequence.slots(first + 1, sequence.num_tokens)
        self._kv.put(slot, side.read(slots))
        return len(slots)

    def write(
        self, request_id: int, slot: int, first: int, num_tokens: int, known: Callable[[], int], *, any_first: bool
    ) -> None:
        """Copy those entries of a row that the pool lacks to the slots of the first `num_tokens` tokens.

        Args:
            first: position of the row's first entry. known: how many it has; called only if any are lacking.
            any_first: entries that saw a text from its middle on are good, too.
        """
        held = self.held.get(request_id)
        if held is None or held.sequence.is_closed or num_tokens < first + 2 or (first and not any_first):
            return
        side = self._side(held.pool)
        if side is None:
            return
        slots = held.sequence.slots(first + 1, num_tokens)
        lacking = np.flatnonzero(~side.is_valid[slots])
        if not len(lacking):
            return
        start, stop = int(lacking[0]), min(known(), len(slots))
        if start < stop:
            side.write(slots[start:stop], self._kv.rows(slot, start, stop))

    def _side(self, pool: KVPool) -> SideRows | None:
        if pool not in self._sides:
            try:
                side = SideRows(pool, self._kv.rows(0, 0, 0))
            except torch.OutOfMemoryError as error:
                _log.warning("a head's entries are not kept with cached prefixes: %s", str(error).splitlines()[0])
                side = None
            self._sides[pool] = side
        return self._sides[pool]

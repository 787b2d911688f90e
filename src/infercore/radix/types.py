"""Records and protocols of the prefix cache."""

from collections.abc import Hashable
from dataclasses import dataclass
from typing import NamedTuple, Protocol, TypeAlias, runtime_checkable

import numpy as np
import numpy.typing as npt
from jaxtyping import Int32, Int64

Namespace: TypeAlias = Hashable
"""A LoRA id, tenant or salt: part of the key, so that equal tokens of two namespaces never meet. None: the default."""


@runtime_checkable
class PageStore(Protocol):
    """Where the K/V of pages stands. The cache decides which page holds what; a store only moves rows.

    Laws: `move_slots` behaves as if every source were read before any destination is written; after `zero_pages` every
    row of those pages is finite. Slot = page_id * page_size + offset. Duplicate destinations do not occur.
    """

    def move_slots(self, src: Int64[np.ndarray, "n"], dst: Int64[np.ndarray, "n"]) -> None: ...
    def zero_pages(self, page_ids: Int32[np.ndarray, "n"]) -> None: ...
    def poison_pages(self, page_ids: Int32[np.ndarray, "n"]) -> None: ...


class Match(NamedTuple):
    """A cached prefix: what a lookup found, and no claim on it (`PrefixCache.lock` makes one).

    num_tokens: length of the match, a multiple of the page size. page_ids: its pages in order, int32.
    token_ids: the tokens that were looked up (a view of the caller's array where it was int32), namespace: where.
    num_removed: pages that had ever left the tree by then; as long as none has since, the match still stands.
    """

    num_tokens: int
    page_ids: npt.NDArray[np.int32]
    token_ids: npt.NDArray[np.int32]
    namespace: Namespace
    num_removed: int

    @property
    def node(self) -> int:
        """Id of the node it ends at, which is its last page; -1 if nothing matched."""
        return int(self.page_ids[-1]) if self.num_tokens else -1


@dataclass(frozen=True, slots=True)
class PageCounts:
    """Where the pages are: `free + cached + in_use == total`, after every operation.

    total: pages of the pool without the reserved page 0. cached: in the tree (held by sequences as well or not).
    in_use: held by sequences or callers, and not in the tree.
    """

    total: int
    free: int
    cached: int
    in_use: int


@dataclass(frozen=True, slots=True)
class CacheStats:
    """Counted since the cache was made.

    num_lookups: calls of `match` and `open`. num_hits: those that found at least one page. num_tokens_looked_up,
    num_tokens_matched: their lengths. num_tokens_inserted: newly cached. num_tokens_compared: token comparisons of all
    lookups. num_pages_evicted, num_pages_removed (evicted, cleared or invalidated).
    """

    num_lookups: int
    num_hits: int
    num_tokens_looked_up: int
    num_tokens_matched: int
    num_tokens_inserted: int
    num_tokens_compared: int
    num_pages_evicted: int
    num_pages_removed: int

    @property
    def hit_rate(self) -> float:
        """Matched tokens per token looked up; 0 before the first lookup."""
        return self.num_tokens_matched / self.num_tokens_looked_up if self.num_tokens_looked_up else 0.0

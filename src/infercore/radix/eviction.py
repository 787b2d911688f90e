"""Eviction policies: which unlocked leaf goes first. Each is a small frozen record; the compiled tree does the work.

Whatever the policy, only leaves that nobody holds are evicted, page by page from their tails, so a branch is given up
from its end and a shared prefix outlives everything that hangs below it.
"""

from dataclasses import dataclass
from typing import TypeAlias

from infercore.radix import _compiled as c


@dataclass(frozen=True, slots=True)
class LRU:
    """Least recently used first. A use is a match, an insert or an `open` that ended at the page or below it."""

    code = c.LRU
    has_aux = False


@dataclass(frozen=True, slots=True)
class FIFO:
    """First cached, first out; uses do not count."""

    code = c.FIFO
    has_aux = False


@dataclass(frozen=True, slots=True)
class LFU:
    """Fewest uses first, the least recent of those. A page that becomes a leaf counts the uses of all below it."""

    code = c.LFU
    has_aux = True


@dataclass(frozen=True, slots=True)
class Priority:
    """Lowest priority first, the least recent of those. A page has the highest priority it was ever inserted with."""

    code = c.PRIORITY
    has_aux = True


Policy: TypeAlias = LRU | FIFO | LFU | Priority

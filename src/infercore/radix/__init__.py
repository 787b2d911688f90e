"""Which prefix is already computed, and in which pages: a radix cache in the manner of RadixAttention.

When to use it: you run attention over paged KV memory and requests share prefixes (system prompts, few-shot examples,
the turns of a chat, samples of one prompt). The cache is bookkeeping only; tensors are behind `PageStore`.

    from infercore.radix import KVPool, PrefixCache

    cache = PrefixCache(num_pages=1024, page_size=16, store=KVPool(1024, 16))
    sequence = cache.open(prompt_ids[:-1])          # holds the pages of the longest cached prefix
    slots = sequence.append(len(prompt_ids) - sequence.num_tokens)   # write K/V of the rest there
    sequence.commit(prompt_ids[sequence.num_tokens :])
    sequence.close()                                # published for the next request

Reading order: `types.py` (records, the `PageStore` protocol), `sequence.py` (what a request does), `cache.py` (lookup,
insertion, eviction), `eviction.py`, `layout.py` and `_compiled.py` (the arrays and the loops over them),
`allocator.py`, `pool.py`, `side.py`, `keys.py`; `events.py`, `pins.py`, `explain.py`, `saving.py` and `render.py` stand
alone. `host/` keeps evicted pages in host memory.
"""

from infercore.radix.allocator import PageAllocator
from infercore.radix.cache import PrefixCache
from infercore.radix.events import CacheEvent
from infercore.radix.eviction import FIFO, LFU, LRU, SLRU, GhostHistory, Policy, Priority
from infercore.radix.explain import Explanation
from infercore.radix.pins import Pin
from infercore.radix.pool import KVPool
from infercore.radix.sequence import Sequence, block_table, slot_mapping
from infercore.radix.side import SideRows
from infercore.radix.types import CacheStats, Match, Namespace, PageCounts, PageStore

__all__ = [
    "FIFO",
    "LFU",
    "LRU",
    "SLRU",
    "CacheEvent",
    "CacheStats",
    "Explanation",
    "GhostHistory",
    "KVPool",
    "Match",
    "Namespace",
    "PageAllocator",
    "PageCounts",
    "PageStore",
    "Pin",
    "Policy",
    "PrefixCache",
    "Priority",
    "Sequence",
    "SideRows",
    "block_table",
    "slot_mapping",
]

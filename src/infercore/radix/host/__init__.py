"""A second tier for a prefix cache: pages that were evicted, in the memory of the host.

When to use it: K/V lives on a GPU, prefixes come back after they were evicted there, and computing them again takes
longer than copying them. Without it the cache forgets what it evicts.

    from infercore.kernels import page_packer
    from infercore.radix.host import HostTier, host_memory

    memory = host_memory(pool, 8 << 30, page_bytes=bytes_per_token * pool.page_size, make_packer=page_packer)
    tier = HostTier(cache, memory)                  # from now on evicted pages go there
    sequence = cache.open(prompt_ids[:-1])
    arrival = tier.fetch(sequence, prompt_ids[:-1]) # None: nothing more is there
    ...                                             # whatever else there is to do, while the copies run
    if arrival is not None and arrival.is_ready:
        arrival.finish()                            # part of the sequence and of the tree again

Reading order: `types.py` (protocols, records), `tier.py` (what is kept, what comes back), `arrival.py`, then where the
bytes are: `memory.py` (ordinary memory), `pinned.py` (pinned memory, streams and events).
"""

from infercore.radix.host.arrival import Arrival
from infercore.radix.host.memory import HostMemory, host_memory
from infercore.radix.host.pinned import PinnedMemory
from infercore.radix.host.tier import HostTier
from infercore.radix.host.types import HostStats, HostStore, PagePacker, Ticket

__all__ = [
    "Arrival",
    "HostMemory",
    "HostStats",
    "HostStore",
    "HostTier",
    "PagePacker",
    "PinnedMemory",
    "Ticket",
    "host_memory",
]

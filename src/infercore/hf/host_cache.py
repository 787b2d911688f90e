"""The second tier of an engine's prefix cache, in host memory, and what is worth bringing back from there."""

import torch

from infercore.kernels import page_packer
from infercore.radix import KVPool, PrefixCache
from infercore.radix.host import HostTier, host_memory

MIN_TOKENS_GPU = 128  # computing fewer takes no longer than the wait for the end of a step (bench/host_cache.py)
BULK_BYTES = 1 << 26  # evicted at once for want of room on a GPU, at most an eighth of the pool


def host_cache(
    cache: PrefixCache,
    pool: KVPool,
    num_bytes: int,
    bytes_per_token: int,
    device: torch.device,
    *,
    poison: bool = False,
) -> None:
    """Give `cache` a host tier of up to `num_bytes`; a warning, and none, where the memory cannot be had.

    Raises: ValueError if `num_bytes` is negative.
    """
    if num_bytes < 0:
        raise ValueError(f"host_cache_bytes is {num_bytes}, expected 0 or more, or None")
    page_bytes = bytes_per_token * cache.page_size
    memory = host_memory(pool, num_bytes, page_bytes=page_bytes, make_packer=page_packer, device=device)
    if memory is None:
        return
    on_gpu = device.type == "cuda"
    bulk = max(1, min(BULK_BYTES // page_bytes, cache.allocator.num_total // 8)) if on_gpu else 1
    HostTier(cache, memory, min_tokens=MIN_TOKENS_GPU if on_gpu else 0, bulk_pages=bulk, poison=poison)

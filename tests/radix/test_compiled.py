"""The loops themselves: the same without numba, a clock that is set back, contiguous runs, counted comparisons."""

import os
import subprocess
import sys

import numpy as np
import pytest

from infercore.radix import FIFO, LFU, LRU, GhostHistory, PrefixCache
from infercore.radix import _compiled as c
from infercore.radix.eviction import Policy
from infercore.testing.prefix_driver import ArrayStore, make_driver


def put(cache: PrefixCache, token_ids: np.ndarray) -> np.ndarray:
    pages = cache.allocate(len(token_ids) // cache.page_size)
    cache.insert(token_ids, pages)
    cache.release(pages)
    return pages


def test_the_same_source_runs_without_numba() -> None:
    program = (
        "import warnings; warnings.simplefilter('error')\n"
        "from infercore._jit import status\n"
        "from infercore.testing.soak import soak\n"
        "assert status().startswith('plain Python'), status()\n"
        "for policy in ('lru', 'ghost'):\n"
        "    soak(400, seed=2, policy=policy, report=lambda _: None)\n"
    )
    environment = {**os.environ, "NUMBA_DISABLE_JIT": "1"}
    run = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr[-2000:]


@pytest.mark.parametrize("page_size", [1, 2, 16, 24, 64, 256])
def test_long_runs_match_to_the_page(page_size: int) -> None:
    rng = np.random.default_rng(page_size)
    length = 40 * page_size + 7 * 128
    ids = rng.integers(0, 50, length).astype(np.int32)
    cache = PrefixCache(2 * length // page_size + 40, page_size)
    put(cache, ids[: length // 2])
    put(cache, ids)  # the second half stands elsewhere
    whole = length // page_size * page_size
    assert cache.match(ids).num_tokens == whole
    for at in rng.integers(0, whole, 200).tolist():
        other = ids.copy()
        other[at] += 1
        assert cache.match(other).num_tokens == at // page_size * page_size


def test_a_lookup_compares_each_token_about_once() -> None:
    """At most L plus one page per node on the path, a node being a run of pages between branches."""
    rng = np.random.default_rng(0)
    cache = PrefixCache(6000, 16)
    ids = rng.integers(0, 100_000, 16_000).astype(np.int32)
    put(cache, ids)
    nodes = 40
    for at in rng.choice(1000, nodes, replace=False).tolist():  # each makes a branch, so one node more on the path
        other = ids[: 16 * (at + 1)].copy()
        other[16 * at :] = -1 - at + 200_000
        put(cache, other)
    before = cache.stats.num_tokens_compared
    assert cache.match(ids).num_tokens == len(ids)
    assert cache.stats.num_tokens_compared - before <= len(ids) + 16 * (nodes + 1)


@pytest.mark.parametrize("policy", [LRU(), FIFO(), LFU(), GhostHistory(horizon_tokens=400)])
def test_the_order_of_eviction_survives_setting_the_clock_back(policy: Policy) -> None:
    rng = np.random.default_rng(3)
    caches = [PrefixCache(40, 1, policy=policy) for _ in range(2)]
    for cache in caches:
        cache.allocator.layout.header[c.CLOCK] = 2**29 + 100
    for step in range(200):
        ids = rng.integers(0, 3, 5).astype(np.int32)
        for cache in caches:
            cache.match(ids)
            put(cache, ids)
        if step == 100:
            caches[0]._set_clock_back()
    assert caches[0].allocator.layout.header[c.CLOCK] < caches[1].allocator.layout.header[c.CLOCK]
    assert caches[0].evict(20) == caches[1].evict(20)
    assert caches[0].render() == caches[1].render()


def test_a_clock_at_its_end_is_set_back_by_the_next_insert() -> None:
    cache = PrefixCache(10, 1)
    put(cache, np.asarray([1], np.int32))
    cache.allocator.layout.header[c.CLOCK] = c.CLOCK_LIMIT + 5
    cache.match([1])
    put(cache, np.asarray([2], np.int32))
    assert cache.allocator.layout.header[c.CLOCK] < 2**30
    cache.match([1])
    cache.evict(1)
    assert cache.match([1]).num_tokens == 1


def test_metadata_stays_within_seven_bytes_a_token() -> None:
    cache = PrefixCache(65_536, 16)
    assert cache.metadata_bytes / (65_536 * 16) < 7


def test_a_cache_that_reads_freed_pages_is_found_out() -> None:
    """Freed pages are poisoned, so that content checks fail wherever one is still used."""
    store = ArrayStore(12, 2)
    cache = PrefixCache(12, 2, store=store, poison=True)
    driver = make_driver(cache, store)
    driver.open([], None)
    driver.step(0, 4, [1, 0, 1, 0], 0, False)
    driver.publish(0)
    page = driver.tracks[0].sequence.page_ids[:1].copy()
    driver.close(0, insert=True)
    driver.evict(5)
    assert (store.rows[page] == -1).all()

"""Many threads on one cache: pages add up, contents are right, and nobody waits for ever."""

import contextlib
import threading

import numpy as np

from infercore.errors import OutOfPages
from infercore.radix import PrefixCache
from infercore.testing.prefix_driver import ArrayStore

NUM_THREADS, NUM_ROUNDS, PAGE_SIZE = 6, 150, 4


def prefix_hashes(tokens: list[int]) -> list[int]:
    hashes, value = [], 0
    for token in tokens:
        value = (value * 31 + token + 1) % 1_000_003
        hashes.append(value)
    return hashes


def work(cache: PrefixCache, store: ArrayStore, seed: int, failures: list[BaseException]) -> None:
    rng = np.random.default_rng(seed)
    rows = store.rows.reshape(-1)
    try:
        for _ in range(NUM_ROUNDS):
            tokens = rng.integers(0, 2, rng.integers(1, 30)).tolist()
            sequence = cache.open(tokens[:-1])
            fork = sequence.fork() if rng.random() < 0.3 else None
            try:
                for copy in (sequence, fork) if fork else (sequence,):
                    start = copy.num_tokens
                    slots = copy.append(len(tokens) - start + int(rng.integers(0, 5)))
                    rows[slots[: len(tokens) - start]] = prefix_hashes(tokens)[start:]
                    copy.commit(tokens[start:])
                    assert rows[copy.slots(0, len(tokens))].tolist() == prefix_hashes(tokens)
            except OutOfPages:
                pass
            if fork:
                fork.close()
            match = cache.match(tokens)
            if rng.random() < 0.2:
                stored = None
                with contextlib.suppress(ValueError), cache.lock(match):  # ValueError: evicted in between
                    stored = rows.reshape(-1, PAGE_SIZE)[match.page_ids].ravel().tolist()
                assert stored is None or stored == prefix_hashes(tokens)[: match.num_tokens]
            sequence.close(insert=bool(rng.random() < 0.8))
            if rng.random() < 0.05:
                cache.evict(3)
    except BaseException as error:
        failures.append(error)


def test_threads_under_contention_neither_lose_nor_mix_pages() -> None:
    store = ArrayStore(48, PAGE_SIZE)
    cache = PrefixCache(48, PAGE_SIZE, store=store)
    failures: list[BaseException] = []
    threads = [threading.Thread(target=work, args=(cache, store, seed, failures)) for seed in range(NUM_THREADS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60)
    assert not failures, failures[0]
    assert not any(thread.is_alive() for thread in threads)
    counts = cache.counts()
    assert counts.free + counts.cached == counts.total
    cache.evict(48)
    assert cache.counts().free == counts.total

"""Pins, quotas and invalidation: what stays, how long, and who has to go first."""

import numpy as np

from infercore.radix import PageCounts, PrefixCache


class Clock:
    now: float = 0.0

    def __call__(self) -> float:
        return self.now


def tokens(*values: int) -> np.ndarray:
    return np.repeat(np.asarray(values, np.int32), 4)


def put(cache: PrefixCache, *values: int, namespace: object = None) -> None:
    pages = cache.allocate(len(values))
    cache.insert(tokens(*values), pages, namespace=namespace)
    cache.release(pages)


def test_a_pin_outlives_eviction_until_its_time_is_over() -> None:
    clock = Clock()
    cache = PrefixCache(9, 4, clock=clock)
    put(cache, 1, 2, 3)
    pin = cache.pin(tokens(1, 2), ttl_s=10)
    assert pin.num_tokens == 8
    clock.now = 9.9
    assert cache.evict(9) == 1
    clock.now = 10.0
    assert cache.evict(9) == 2
    cache.unpin(pin)
    assert cache.counts() == PageCounts(total=8, free=8, cached=0, in_use=0)


def test_an_expired_pin_makes_room_for_an_allocation() -> None:
    clock = Clock()
    cache = PrefixCache(5, 4, clock=clock)
    put(cache, 1, 2, 3)
    cache.pin(tokens(1, 2, 3), ttl_s=1)
    forever = cache.pin(tokens(1))
    clock.now = 2.0
    assert len(cache.allocate(3)) == 3
    cache.unpin(forever)
    cache.unpin(forever)
    assert cache.match(tokens(1, 2)).num_tokens == 4


def test_clearing_drops_pins() -> None:
    cache = PrefixCache(9, 4)
    put(cache, 1, 2)
    put(cache, 1, namespace="a")
    pins = [cache.pin(tokens(1, 2)), cache.pin(tokens(1), namespace="a"), cache.pin(tokens(9))]
    cache.clear(namespace=None)
    assert cache.counts() == PageCounts(total=8, free=7, cached=1, in_use=0)
    for pin in pins:
        cache.unpin(pin)
    assert cache.evict(9) == 1


def test_a_quota_evicts_within_its_namespace() -> None:
    cache = PrefixCache(17, 4)
    put(cache, 1, 2, namespace="other")
    cache.set_quota("a", 3)
    put(cache, 1, 2, namespace="a")
    put(cache, 3, 4, namespace="a")
    assert cache.match(tokens(1, 2), namespace="a").num_tokens == 4
    assert cache.match(tokens(3, 4), namespace="a").num_tokens == 8
    assert cache.match(tokens(1, 2), namespace="other").num_tokens == 8
    cache.set_quota("a", 0)
    assert cache.counts().cached == 2
    cache.set_quota("a", None)
    put(cache, 1, 2, 3, 4, namespace="a")
    assert cache.match(tokens(1, 2, 3, 4), namespace="a").num_tokens == 16


def test_a_quota_waits_for_pages_that_are_held() -> None:
    cache = PrefixCache(17, 4)
    cache.set_quota(None, 1)
    sequence = cache.open()
    sequence.append(12)
    sequence.commit(tokens(1, 2, 3))
    sequence.insert()
    assert cache.counts().cached == 3
    sequence.close()
    assert cache.counts().cached == 1


def test_invalidation_takes_one_sequence_and_leaves_what_others_share() -> None:
    cache = PrefixCache(17, 4)
    put(cache, 1, 2, 3, 4)
    put(cache, 1, 2, 5)
    assert cache.invalidate(tokens(1, 2, 3)) == 2  # 3, and 4 that hangs below it
    assert cache.match(tokens(1, 2, 5)).num_tokens == 12
    assert cache.match(tokens(1, 2, 3)).num_tokens == 8
    assert cache.invalidate(tokens(1, 2, 9)) == 0  # what matches belongs to others
    assert cache.invalidate(tokens(8)) == 0
    assert cache.invalidate(tokens(1, 2, 5)) == 3
    assert cache.counts().free == 16


def test_an_open_sequence_keeps_invalidated_pages_and_publishes_no_more() -> None:
    cache = PrefixCache(17, 4)
    put(cache, 1, 2)
    sequence = cache.open(tokens(1, 2))
    sequence.append(4)
    sequence.commit(tokens(3))
    assert cache.invalidate(tokens(1, 2)) == 2
    assert cache.counts() == PageCounts(total=16, free=13, cached=0, in_use=3)
    assert sequence.insert() == 0
    sequence.close()
    assert cache.counts().free == 16


def test_pages_over_a_quota_go_when_they_are_unpinned() -> None:
    cache = PrefixCache(8, 1)
    pages = cache.allocate(3)
    cache.insert([1, 2, 3], pages)
    cache.release(pages)
    pin = cache.pin([1, 2, 3])
    cache.set_quota(None, 1)
    assert cache.counts().cached == 3
    cache.unpin(pin)
    assert cache.counts().cached == 1

"""An explanation names the reason that a lookup stopped where it did."""

import numpy as np

from infercore.radix import PrefixCache


def put(cache: PrefixCache, token_ids: list[int], namespace: object = None) -> None:
    pages = cache.allocate(len(token_ids) // 4)
    cache.insert(token_ids, pages, namespace=namespace)
    cache.release(pages)


def test_reasons_for_a_miss() -> None:
    cache = PrefixCache(17, 4)
    put(cache, [1, 2, 3, 4, 5, 6, 7, 8])
    put(cache, [1, 2, 3, 4, 5, 9, 9, 9])
    put(cache, [1, 2, 3, 4], namespace="a")
    assert "8 of 8 tokens are cached." in str(cache.explain([1, 2, 3, 4, 5, 6, 7, 8]))
    assert "all whole pages" in str(cache.explain([1, 2, 3, 4, 5]))
    inside = cache.explain([1, 2, 3, 4, 5, 6, 0, 0])
    assert (inside.num_matched, inside.num_continuations, inside.num_agreeing) == (4, 2, 2)
    assert "nearest differs at token 6, inside a page of 4" in str(inside)
    assert "nothing was ever cached behind" in str(cache.explain([1, 2, 3, 4, 5, 6, 7, 8, 1, 1, 1, 1]))
    elsewhere = cache.explain([1, 2, 3, 4], namespace="b")
    assert elsewhere.num_matched_elsewhere == {None: 4, "a": 4}
    assert "Namespace 'a' has 4" in str(elsewhere)


def test_evicted_pages_are_remembered_until_they_are_used_again() -> None:
    cache = PrefixCache(5, 4)
    put(cache, [1, 2, 3, 4])
    cache.evict(1)
    assert cache.explain([1, 2, 3, 4]).was_evicted
    pages = cache.allocate(4)
    assert not cache.explain([1, 2, 3, 4]).was_evicted
    cache.release(pages)


def test_explaining_changes_nothing() -> None:
    cache = PrefixCache(5, 4)
    put(cache, [1] * 4)
    put(cache, [2] * 4)
    before = (cache.counts(), cache.stats.num_lookups)
    cache.explain(np.ones(4, np.int32))
    assert (cache.counts(), cache.stats.num_lookups) == before
    cache.evict(1)  # 1 is still the least recent
    assert cache.match([1] * 4).num_tokens == 0

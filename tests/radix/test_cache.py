"""Laws of `PrefixCache`: what is matched, what survives, and that pages always add up."""

import numpy as np
import pytest

from infercore.errors import OutOfPages
from infercore.radix import FIFO, LFU, PageCounts, PrefixCache, Priority


def tokens(*values: int, times: int = 4) -> np.ndarray:
    """One page of 4 equal tokens per value."""
    return np.repeat(np.asarray(values, np.int32), times)


def put(cache: PrefixCache, token_ids: np.ndarray, **keywords: object) -> np.ndarray:
    """Cache `token_ids`, and hold nothing."""
    pages = cache.allocate(len(token_ids) // cache.page_size)
    cache.insert(token_ids, pages, **keywords)  # type: ignore[arg-type]
    cache.release(pages)
    return pages


def adds_up(cache: PrefixCache) -> bool:
    counts = cache.counts()
    return counts.free + counts.cached + counts.in_use == counts.total


def test_match_after_insert_finds_the_whole_pages() -> None:
    cache = PrefixCache(16, 4)
    pages = cache.allocate(3)
    assert cache.insert(np.arange(14), pages) == 12
    match = cache.match(np.arange(14))
    assert match.num_tokens == 12
    assert match.page_ids.tolist() == pages.tolist()
    assert cache.match([0, 1, 2]).num_tokens == 0
    assert cache.match(np.arange(11)).num_tokens == 8
    assert cache.match([]).num_tokens == 0


def test_branches_are_told_apart_at_any_width() -> None:
    cache = PrefixCache(256, 4)
    held = {}
    for first in range(40):
        for second in range(3):
            ids = tokens(1, first, second)
            held[first, second] = put(cache, ids).tolist()
    for (first, second), pages in held.items():
        match = cache.match(tokens(1, first, second))
        assert match.num_tokens == 12
        assert match.page_ids[-1] == pages[-1]
    assert cache.match(tokens(1, 40)).num_tokens == 4
    assert cache.counts().cached == 1 + 40 + 120


def test_pages_that_are_there_already_are_not_taken_over() -> None:
    cache = PrefixCache(16, 4)
    first = put(cache, tokens(1, 2))
    pages = cache.allocate(3)
    assert cache.insert(tokens(1, 2, 3), pages) == 4
    assert cache.match(tokens(1, 2, 3)).page_ids.tolist() == [*first, pages[2]]
    assert cache.counts() == PageCounts(total=15, free=10, cached=3, in_use=2)
    cache.release(pages)
    assert cache.counts() == PageCounts(total=15, free=12, cached=3, in_use=0)


def test_page_zero_is_never_handed_out() -> None:
    cache = PrefixCache(9, 4)
    assert sorted(cache.allocate(8)) == list(range(1, 9))
    with pytest.raises(OutOfPages):
        cache.allocate(1)


def test_locked_prefix_survives_eviction() -> None:
    cache = PrefixCache(9, 4)
    put(cache, tokens(1, 2, 3))
    put(cache, tokens(4, 5, 6))
    with cache.lock(cache.match(tokens(1, 2))):
        assert cache.evict(100) == 4
        assert cache.match(tokens(1, 2, 3)).num_tokens == 8
    assert cache.evict(100) == 2
    assert cache.counts() == PageCounts(total=8, free=8, cached=0, in_use=0)


def test_locking_a_match_that_was_evicted_is_refused() -> None:
    cache = PrefixCache(9, 4)
    put(cache, tokens(1, 2, 3))
    match = cache.match(tokens(1, 2, 3))
    cache.evict(1)
    with pytest.raises(ValueError, match="1 pages of this match have been evicted"), cache.lock(match):
        pass
    assert cache.counts().cached == 2


def test_least_recently_used_branch_goes_first_and_from_its_tail() -> None:
    cache = PrefixCache(32, 4)
    put(cache, tokens(1, 2, 3))
    put(cache, tokens(1, 4, 5))
    put(cache, tokens(6, 7))
    cache.match(tokens(1, 2, 3))
    assert cache.evict(1) == 1
    assert cache.match(tokens(1, 4, 5)).num_tokens == 8  # its tail went, and this match makes the rest recent
    assert cache.evict(2) == 2
    assert cache.match(tokens(6, 7)).num_tokens == 0
    assert cache.match(tokens(1, 2, 3)).num_tokens == 12


def test_a_match_refreshes_only_what_it_matched() -> None:
    cache = PrefixCache(32, 4)
    put(cache, tokens(1, 2, 3))  # recent by its prefix only
    put(cache, tokens(4, 5))
    cache.match(tokens(1, 9))
    cache.evict(2)
    assert cache.match(tokens(1, 2, 3)).num_tokens == 4
    assert cache.match(tokens(4, 5)).num_tokens == 8


def test_fifo_ignores_uses() -> None:
    cache = PrefixCache(32, 4, policy=FIFO())
    put(cache, tokens(1))
    put(cache, tokens(2))
    cache.match(tokens(1))
    cache.evict(1)
    assert cache.match(tokens(1)).num_tokens == 0
    assert cache.match(tokens(2)).num_tokens == 4


def test_lfu_keeps_what_is_used_often() -> None:
    cache = PrefixCache(32, 4, policy=LFU())
    put(cache, tokens(1))
    cache.match(tokens(1))
    cache.match(tokens(1))
    put(cache, tokens(2))
    cache.match(tokens(2))
    cache.evict(1)
    assert cache.match(tokens(1)).num_tokens == 4


def test_higher_priority_outlives_recency() -> None:
    cache = PrefixCache(32, 4, policy=Priority())
    put(cache, tokens(1), priority=2)
    put(cache, tokens(2), priority=1)
    cache.evict(1)
    assert cache.match(tokens(1)).num_tokens == 4
    assert cache.match(tokens(2)).num_tokens == 0


def test_failed_allocation_evicts_nothing() -> None:
    cache = PrefixCache(9, 4)
    put(cache, tokens(1, 2, 3))
    held = cache.allocate(4)
    with pytest.raises(OutOfPages) as error:
        cache.allocate(5)
    assert (error.value.requested, error.value.available) == (5, 4)
    assert cache.match(tokens(1, 2, 3)).num_tokens == 12
    cache.release(held)


def test_allocation_that_looks_possible_and_is_not_puts_everything_back() -> None:
    cache = PrefixCache(9, 4)
    put(cache, tokens(7))
    put(cache, tokens(1, 2))
    pages = cache.allocate(3)
    cache.insert(tokens(1, 2, 3), pages)  # held by the caller below pages that nobody holds
    before = cache.counts()
    with pytest.raises(OutOfPages):
        cache.allocate(before.free + 2)
    assert cache.counts() == before
    assert cache.match(tokens(7)).num_tokens == 4
    assert cache.match(tokens(1, 2, 3)).num_tokens == 12
    cache.release(pages)
    assert cache.evict(100) == 4
    assert cache.counts().free == 8


def test_namespaces_do_not_meet() -> None:
    cache = PrefixCache(64, 4)
    for name in ["a", "b", ("tenant", 3), *range(20)]:
        put(cache, tokens(1, 2), namespace=name)
    assert cache.counts().cached == 46
    assert cache.match(tokens(1, 2)).num_tokens == 0
    assert cache.match(tokens(1, 2), namespace="nobody").num_tokens == 0
    assert cache.match(tokens(1, 2), namespace="b").num_tokens == 8
    assert cache.clear(namespace="b") == 2
    assert cache.match(tokens(1, 2), namespace="b").num_tokens == 0
    assert cache.match(tokens(1, 2), namespace=19).num_tokens == 8
    assert cache.clear() == 44
    assert cache.counts().free == 63


def test_bad_pages_are_refused_and_nothing_changes() -> None:
    cache = PrefixCache(16, 4)
    cached = put(cache, tokens(1, 2))
    mine = cache.allocate(2)
    before = cache.counts()
    for pages in ([mine[0], mine[0]], [mine[0], 15], [0, mine[0]], [mine[0], cached[1]], [mine[0]], [mine[0], -1]):
        with pytest.raises(ValueError, match=r"pages|page_ids"):
            cache.insert(tokens(8, 9), pages)
        assert cache.counts() == before
        assert cache.match(tokens(8, 9)).num_tokens == 0
    with pytest.raises(ValueError, match="no reference"):
        cache.release([mine[0], mine[1], mine[0]])
    with pytest.raises(ValueError, match="no reference"):
        cache.release(cached)
    assert cache.counts() == before
    assert cache.insert(tokens(8, 9), mine) == 8


def test_statistics_count_tokens() -> None:
    cache = PrefixCache(16, 4)
    put(cache, tokens(1, 2, 3))
    cache.match(tokens(1, 2, 9))
    cache.match(tokens(5))
    stats = cache.stats
    assert (stats.num_lookups, stats.num_hits) == (2, 1)
    assert (stats.num_tokens_looked_up, stats.num_tokens_matched, stats.num_tokens_inserted) == (16, 8, 12)
    assert stats.hit_rate == 0.5


def test_render_shows_branches_and_holders() -> None:
    cache = PrefixCache(16, 4)
    put(cache, tokens(1, 2, 3))
    put(cache, tokens(1, 2, 4))
    with cache.lock(cache.match(tokens(1, 2, 4))):
        text = cache.render()
        dot = cache.render(graphviz=True)
    assert text.count("tokens, pages") == 3
    assert text.splitlines()[1].endswith("*")
    assert "└─ 3 3 3 3" in text
    assert dot.startswith("digraph")
    assert dot.count("->") == 3

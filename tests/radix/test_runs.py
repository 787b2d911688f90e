"""Pages in a row keep one word each; what that word implies is what would have been written."""

import numpy as np
import pytest

from infercore.errors import OutOfPages
from infercore.radix import CacheEvent, PrefixCache
from infercore.radix import _compiled as c
from infercore.radix.render import Run, runs_below


def put(cache: PrefixCache, token_ids: np.ndarray, namespace: str | None = None) -> np.ndarray:
    match = cache.match(token_ids, namespace=namespace)
    with cache.lock(match):
        pages = cache.allocate((len(token_ids) - match.num_tokens) // cache.page_size)
        cache.insert(token_ids, np.concatenate([match.page_ids, pages]), namespace=namespace)
    cache.release(pages)
    return cache.match(token_ids, namespace=namespace).page_ids


def count(*pages: int) -> np.ndarray:
    return np.repeat(np.asarray(pages, np.int32), 4)


def nodes_on_path(cache: PrefixCache, token_ids: np.ndarray) -> int:
    """Nodes of a radix tree (runs without a branch) that a lookup enters, or tries as the first child."""
    ids, runs, nodes = token_ids.tolist(), runs_below(cache.allocator.layout, 0), 1
    while True:
        inside = [run for run in runs if run.token_ids[: cache.page_size] == ids[: cache.page_size]]
        if not inside or len(ids) < cache.page_size:
            return nodes
        run: Run = inside[0]
        nodes += 1
        if run.token_ids != ids[: len(run.token_ids)]:
            return nodes
        ids, runs = ids[len(run.token_ids) :], run.children


def test_no_lookup_compares_more_than_its_tokens_and_a_page_per_node() -> None:
    rng = np.random.default_rng(7)
    cache = PrefixCache(4000, 16)
    stem = rng.integers(0, 1000, 1600).astype(np.int32)
    for at in rng.integers(0, 1600, 60).tolist():
        prompt = stem.copy()
        prompt[at:] = rng.integers(0, 1000, 1600 - at)
        put(cache, prompt)
    for at in rng.integers(0, 1600, 300).tolist():
        prompt = stem[: at + int(rng.integers(0, 200))].copy()
        prompt[at:] = -1 - prompt[at:]
        prompt = abs(prompt)
        before = cache.stats.num_tokens_compared
        cache.match(prompt)
        assert cache.stats.num_tokens_compared - before <= len(prompt) + 16 * nodes_on_path(cache, prompt)


@pytest.mark.parametrize("page_size", [1, 4])
def test_settling_writes_what_the_runs_imply_and_changes_nothing(page_size: int) -> None:
    rng = np.random.default_rng(page_size)
    cache = PrefixCache(60, page_size)
    for _ in range(300):
        namespace = "a" if rng.random() < 0.4 else None
        put(cache, rng.integers(0, 2, rng.integers(1, 12 * page_size)).astype(np.int32), namespace)
        cache.evict(int(rng.integers(0, 4)))
        layout = cache.allocator.layout
        found = {}
        for name, root in ((None, 0), ("a", cache._roots.get("a", 0))):
            waiting = [np.empty(0, np.int32)]
            while waiting:  # every cached prefix, by asking for it
                prefix = waiting.pop()
                node = int(cache.match(prefix, namespace=name).page_ids[-1]) if len(prefix) else root
                for page in range(2**page_size):
                    longer = np.append(prefix, [page >> i & 1 for i in range(page_size)]).astype(np.int32)
                    match = cache.match(longer, namespace=name)
                    if match.num_tokens == len(longer):
                        found[match.node] = (node, root)
                        waiting.append(longer)
        layout.settle()
        parents, roots = layout.fields[c.PARENT], layout.fields[c.ROOT]
        cached = np.flatnonzero(parents[: layout.header[c.NUM_PAGES]] >= 0).tolist()
        assert {page: (parents[page], roots[page]) for page in cached} == found
        for page in cached:
            assert layout.fields[c.CHILDREN, page] == sum(node == page for node, _ in found.values())
    assert cache.evict(60) == len(found)


def test_a_run_that_no_longer_branches_is_a_run_again() -> None:
    cache = PrefixCache(16, 4)
    pages = put(cache, count(1, 2, 3, 4))
    put(cache, count(1, 2, 9))
    states = cache.allocator.layout.fields[c.STATE]
    assert [bool(states[page] & c.INNER) for page in pages] == [True, False, True, False]
    cache.match(count(1, 2, 3, 4))
    cache.evict(1)
    assert [bool(states[page] & c.INNER) for page in pages] == [True, True, True, False]
    assert cache.evict(9) == 4


def test_pages_that_lived_in_another_namespace_leave_under_the_present_one() -> None:
    cache = PrefixCache(9, 4)
    put(cache, count(1, 2, 3, 4, 5, 6, 7, 8), "a")
    cache.evict(8)
    put(cache, count(1, 2, 3, 4, 5, 6, 7, 8), "b")
    events: list[CacheEvent] = []
    cache.subscribe(events.append)
    cache.evict(8)
    assert [(event.namespace, len(event.page_ids)) for event in events] == [("b", 8)]
    assert cache.allocator.layout.fields[c.STATE, cache._roots["a"]] == 0
    assert cache.allocator.layout.fields[c.STATE, cache._roots["b"]] == 0


def test_an_allocation_that_fails_half_way_puts_whole_runs_back() -> None:
    cache = PrefixCache(10, 4)
    put(cache, count(1, 2, 3, 4, 5, 6), "a")
    held = put(cache, count(7, 8, 9))[-1:]
    cache.allocator.retain(held)  # the leaf alone: what is before it cannot be evicted, though nobody holds it
    counts = cache.counts()
    with pytest.raises(OutOfPages):
        cache.allocate(8)
    assert cache.counts() == counts
    assert cache.match(count(1, 2, 3, 4, 5, 6), namespace="a").num_tokens == 24
    cache.release(held)
    assert cache.evict(9) == 9
    assert [cache.allocator.layout.fields[c.STATE, root] for root in cache._roots.values()] == [0, 0]


def test_a_use_that_ended_inside_a_run_keeps_the_pages_up_to_there() -> None:
    cache = PrefixCache(10, 4)
    put(cache, count(1, 2, 3, 4))
    put(cache, count(7, 8))
    cache.match(count(1, 2))
    cache.evict(4)  # the end of the run, then the other prompt
    assert cache.match(count(1, 2, 3, 4)).num_tokens == 8
    assert cache.match(count(7, 8)).num_tokens == 0


def test_locking_right_after_a_match_compares_nothing_again() -> None:
    cache = PrefixCache(10, 4)
    put(cache, count(1, 2, 3))
    put(cache, count(5))
    match = cache.match(count(1, 2, 3))
    before = cache.stats.num_tokens_compared
    with cache.lock(match):
        assert cache.stats.num_tokens_compared == before
        cache.evict(1)  # something else leaves: the next lock has to look
    with cache.lock(match):
        assert cache.stats.num_tokens_compared > before

"""Events tell exactly what entered and left, after the fact and without the lock."""

import threading

import numpy as np
import pytest

from infercore.radix import CacheEvent, PrefixCache


def tokens(*values: int) -> np.ndarray:
    return np.repeat(np.asarray(values, np.int32), 4)


def put(cache: PrefixCache, token_ids: np.ndarray, namespace: object = None) -> np.ndarray:
    pages = cache.allocate(len(token_ids) // 4)
    cache.insert(token_ids, pages, namespace=namespace)
    cache.release(pages)
    return pages


def test_a_listener_can_follow_the_tree() -> None:
    cache = PrefixCache(9, 4)
    mirror: dict[int, list[int]] = {}

    def follow(event: CacheEvent) -> None:
        if event.kind == "insert":
            mirror.update(zip(event.page_ids.tolist(), event.token_ids.tolist(), strict=True))
        else:
            for page in event.page_ids.tolist():
                del mirror[page]

    stop = cache.subscribe(follow)
    rng = np.random.default_rng(0)
    for _ in range(60):
        put(cache, tokens(*rng.integers(0, 3, rng.integers(1, 5))), namespace=["a", "b"][rng.integers(2)])
    sequence = cache.open(tokens(1, 2))
    sequence.append(8)
    sequence.commit(tokens(2, 2))
    sequence.close()
    cache.invalidate(tokens(1, 2, 2, 2))
    cache.clear(namespace="b")
    assert len(mirror) == cache.counts().cached
    cache.clear()
    assert not mirror
    stop()
    put(cache, tokens(1))
    assert not mirror


def test_events_carry_place_and_namespace() -> None:
    cache = PrefixCache(9, 4)
    seen: list[CacheEvent] = []
    cache.subscribe(seen.append)
    first = put(cache, tokens(1, 2), namespace="a")
    second = put(cache, tokens(1, 2, 3), namespace="a")
    cache.evict(1)
    assert [event.kind for event in seen] == ["insert", "insert", "evict"]
    assert [event.parent_page_id for event in seen] == [None, first[1], None]
    assert {event.namespace for event in seen} == {"a"}
    assert seen[1].page_ids.tolist() == seen[2].page_ids.tolist() == [second[2]]
    assert seen[0].token_ids.tolist() == tokens(1, 2).reshape(2, 4).tolist()


def test_listeners_run_without_the_lock_and_may_use_the_cache() -> None:
    cache = PrefixCache(9, 4)
    matched: list[int] = []

    def from_another_thread(event: CacheEvent) -> None:
        thread = threading.Thread(target=lambda: matched.append(cache.match(tokens(1, 2)).num_tokens))
        thread.start()
        thread.join(timeout=5)
        assert not thread.is_alive()

    cache.subscribe(from_another_thread)
    put(cache, tokens(1, 2))
    assert matched == [8]


def test_an_operation_is_complete_when_a_listener_raises() -> None:
    cache = PrefixCache(9, 4)

    def fail(event: CacheEvent) -> None:
        raise RuntimeError("listener")

    pages = cache.allocate(1)
    cache.subscribe(fail)
    with pytest.raises(RuntimeError, match="listener"):
        cache.insert(tokens(1), pages)
    assert cache.match(tokens(1)).num_tokens == 4
    cache.release(pages)
    assert cache.counts().cached == 1

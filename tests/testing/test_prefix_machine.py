"""The state machine on our cache, more than 20,000 operations; and that it notices caches that are wrong."""

from typing import Any

import numpy as np
import pytest
from hypothesis import settings
from hypothesis.stateful import run_state_machine_as_test

from infercore.radix import FIFO, LFU, PrefixCache, Priority
from infercore.radix import _compiled as c
from infercore.testing.prefix_driver import ArrayStore
from infercore.testing.prefix_machine import prefix_cache_machine
from infercore.testing.soak import main, soak

LRU_STEPS = settings(max_examples=420, stateful_step_count=50)
OTHER_STEPS = settings(max_examples=40, stateful_step_count=50)


def make_cache(num_pages: int, page_size: int, store: ArrayStore, **keywords: Any) -> PrefixCache:
    return PrefixCache(num_pages, page_size, store=store, poison=True, **keywords)


def test_cache_agrees_with_the_model() -> None:
    run_state_machine_as_test(prefix_cache_machine(make_cache), settings=LRU_STEPS)


@pytest.mark.parametrize(("policy", "order"), [(FIFO(), "fifo"), (LFU(), "lfu"), (Priority(), "priority")])
def test_other_policies_evict_in_the_order_of_the_model(policy: Any, order: str) -> None:
    machine = prefix_cache_machine(
        lambda num_pages, page_size, store: make_cache(num_pages, page_size, store, policy=policy), order=order
    )
    run_state_machine_as_test(machine, settings=OTHER_STEPS)


def test_cache_agrees_with_the_model_when_all_hashes_collide() -> None:
    def collide(num_pages: int, page_size: int, store: ArrayStore) -> PrefixCache:
        cache = make_cache(num_pages, page_size, store)
        cache.allocator.layout.header[c.NUM_BUCKETS] = 1
        return cache

    run_state_machine_as_test(prefix_cache_machine(collide), settings=OTHER_STEPS)


def test_soak_agrees_with_the_model() -> None:
    lines: list[str] = []
    soak(6_000, seed=3, report=lines.append)
    assert "no difference" in lines[-1]
    assert main(["--ops", "200", "--policy", "fifo"]) == 0


@pytest.mark.parametrize("policy", ["slru", "ghost"])
def test_policies_with_a_memory_evict_in_the_order_of_the_model(policy: str) -> None:
    soak(40_000, seed=5, policy=policy, report=lambda _: None)


class ForgetsToCopy(ArrayStore):
    def move_slots(self, src: np.ndarray, dst: np.ndarray) -> None:
        pass


class MovesOneByOne(ArrayStore):
    def move_slots(self, src: np.ndarray, dst: np.ndarray) -> None:
        for source, destination in zip(src[::-1], dst[::-1], strict=True):
            self.rows.reshape(-1)[destination] = self.rows.reshape(-1)[source]


def broken_caches() -> dict[str, Any]:
    class MatchesTooMuch(PrefixCache):
        def match(self, token_ids: Any, *, namespace: Any = None) -> Any:
            found = super().match(token_ids, namespace=namespace)
            return found._replace(num_tokens=found.num_tokens + (found.num_tokens > 4))

    class LeaksOnRelease(PrefixCache):
        def release(self, page_ids: Any) -> None:
            super().release(np.asarray(page_ids)[:2])

    class MixesNamespaces(PrefixCache):
        def open(self, token_ids: Any = (), *, namespace: Any = None) -> Any:
            return super().open(token_ids, namespace=None)

    class EvictsOneTooMany(PrefixCache):
        def evict(self, num_pages: int) -> int:
            return min(num_pages, super().evict(num_pages + 1))

    return {kind.__name__: kind for kind in (MatchesTooMuch, LeaksOnRelease, MixesNamespaces, EvictsOneTooMany)}


@pytest.mark.parametrize("kind", broken_caches().values(), ids=broken_caches().keys())
def test_soak_notices_a_broken_cache(kind: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("infercore.testing.soak.PrefixCache", kind)
    with pytest.raises(AssertionError, match=r"operation \d+ of seed 0"):
        soak(20_000, seed=0)


@pytest.mark.parametrize("store", [ForgetsToCopy, MovesOneByOne])
def test_soak_notices_a_broken_store(store: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("infercore.testing.soak.ArrayStore", store)
    with pytest.raises(AssertionError, match="contents"):
        soak(20_000, seed=0)

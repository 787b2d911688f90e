"""A Hypothesis state machine for prefix caches: Hypothesis looks for the shortest history that breaks one.

    from infercore.testing.prefix_machine import prefix_cache_machine

    TestMyCache = prefix_cache_machine(lambda pages, size, store: MyCache(pages, size, store=store)).TestCase

Any cache with the methods of `PrefixCache` and its sequences can be put here; the model (`prefix_model.py`) shares no
code with ours. Needs the `testing` extra.
"""

from collections.abc import Callable
from typing import Any

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from infercore.testing.prefix_driver import ENDLESS, ArrayStore, PrefixDriver, make_driver
from infercore.testing.prefix_model import Order

_WHICH = st.integers(0, 7)
_TOKENS = st.lists(st.integers(0, 1), max_size=14)
_NAMESPACE = st.sampled_from([None, "a"])


def prefix_cache_machine(
    make_cache: Callable[[int, int, ArrayStore], Any], *, order: Order = "lru", with_host: bool = False
) -> type[RuleBasedStateMachine]:
    """A state machine class for caches that `make_cache(num_pages, page_size, store)` makes.

    order: how the cache evicts; see `PrefixModel`. with_host: give it a `HostTier`, of few slots or endless.
    """

    class PrefixCacheMachine(RuleBasedStateMachine):
        driver: PrefixDriver

        @initialize(
            num_pages=st.integers(2, 14), page_size=st.integers(1, 4), slots=st.sampled_from([1, 3, 9, ENDLESS])
        )
        def start(self, num_pages: int, page_size: int, slots: int) -> None:
            store = ArrayStore(num_pages, page_size)
            cache = make_cache(num_pages, page_size, store)
            self.driver = make_driver(cache, store, order=order, num_host_slots=slots if with_host else 0)

        @rule(token_ids=_TOKENS, namespace=_NAMESPACE)
        def open(self, token_ids: list[int], namespace: str | None) -> None:
            self.driver.open(token_ids, namespace)

        @rule(which=_WHICH, rows=st.integers(0, 9), tokens=_TOKENS, keep=st.integers(0, 1023), in_two=st.booleans())
        def step(self, which: int, rows: int, tokens: list[int], keep: int, in_two: bool) -> None:
            self.driver.step(which, rows, tokens[:rows], keep, in_two)

        @rule(which=_WHICH, num_tokens=st.integers(0, 9))
        def rollback(self, which: int, num_tokens: int) -> None:
            self.driver.rollback(which, num_tokens)

        @rule(which=_WHICH)
        def fork(self, which: int) -> None:
            self.driver.fork(which)

        @rule(which=_WHICH)
        def publish(self, which: int) -> None:
            self.driver.publish(which)

        @rule(which=_WHICH, insert=st.booleans())
        def close(self, which: int, insert: bool) -> None:
            self.driver.close(which, insert)

        @rule(token_ids=_TOKENS, namespace=_NAMESPACE, lock=st.booleans())
        def match(self, token_ids: list[int], namespace: str | None, lock: bool) -> None:
            self.driver.match(token_ids, namespace, lock)

        @rule(which=_WHICH)
        def unlock(self, which: int) -> None:
            self.driver.unlock(which)

        @rule(num_pages=st.integers(0, 14))
        def allocate(self, num_pages: int) -> None:
            self.driver.allocate(num_pages)

        @rule(token_ids=_TOKENS, namespace=_NAMESPACE, priority=st.integers(0, 2))
        def insert(self, token_ids: list[int], namespace: str | None, priority: int) -> None:
            self.driver.insert(token_ids, namespace, priority)

        @rule(token_ids=_TOKENS, namespace=_NAMESPACE)
        def insert_wrong(self, token_ids: list[int], namespace: str | None) -> None:
            self.driver.insert_wrong(token_ids, namespace)

        @rule(which=_WHICH)
        def release(self, which: int) -> None:
            self.driver.release(which)

        @rule(token_ids=_TOKENS, namespace=_NAMESPACE)
        def fetch(self, token_ids: list[int], namespace: str | None) -> None:
            self.driver.fetch(token_ids, namespace)

        @rule(which=_WHICH)
        def land(self, which: int) -> None:
            self.driver.land(which)

        @rule(which=_WHICH)
        def call_off(self, which: int) -> None:
            self.driver.call_off(which)

        @rule(num_pages=st.integers(0, 14))
        def evict(self, num_pages: int) -> None:
            self.driver.evict(num_pages)

        @rule(namespace=_NAMESPACE)
        def clear(self, namespace: str | None) -> None:
            self.driver.clear(namespace)

        @rule(token_ids=_TOKENS, namespace=_NAMESPACE)
        def invalidate(self, token_ids: list[int], namespace: str | None) -> None:
            self.driver.invalidate(token_ids, namespace)

        @rule(token_ids=_TOKENS, namespace=_NAMESPACE)
        def pin(self, token_ids: list[int], namespace: str | None) -> None:
            self.driver.pin(token_ids, namespace)

        @rule(which=_WHICH)
        def unpin(self, which: int) -> None:
            self.driver.unpin(which)

        @invariant()
        def agrees_with_the_model(self) -> None:
            if hasattr(self, "driver"):
                self.driver.check()

        def teardown(self) -> None:
            if hasattr(self, "driver"):
                self.driver.check_contents()
                self.driver.finish()

    return PrefixCacheMachine

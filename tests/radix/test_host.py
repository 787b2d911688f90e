"""The host tier: what is evicted comes back, page for page, in what order, under what limit, and when it does not."""

import contextlib
import random
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from hypothesis import settings
from hypothesis.stateful import run_state_machine_as_test

from infercore.kernels import page_packer
from infercore.radix import KVPool, PrefixCache
from infercore.radix import _compiled as c
from infercore.radix.host import Arrival, HostMemory, HostTier, PinnedMemory, host_memory
from infercore.radix.host.memory import Slabs, _available_bytes
from infercore.testing.page_stores import ArrayHostStore, ArrayStore
from infercore.testing.prefix_driver import make_driver
from infercore.testing.prefix_machine import prefix_cache_machine
from infercore.testing.soak import main, soak

STEPS = settings(max_examples=100, stateful_step_count=50)
CPU = torch.device("cpu")


def make_cache(num_pages: int, page_size: int, store: ArrayStore) -> PrefixCache:
    return PrefixCache(num_pages, page_size, store=store, poison=True)


def test_cache_and_tier_agree_with_the_model() -> None:
    run_state_machine_as_test(prefix_cache_machine(make_cache, with_host=True), settings=STEPS)


@pytest.mark.parametrize("policy", ["lru", "ghost", "lfu"])
def test_soak_with_a_tier_agrees_with_the_model(policy: str) -> None:
    lines: list[str] = []
    soak(4_000, seed=11, policy=policy, with_host=True, report=lines.append)
    assert "no difference" in lines[-1]


def test_soak_with_a_tier_from_the_command_line() -> None:
    assert main(["--ops", "100", "--host"]) == 0


def soak_many_tiers() -> None:
    """Pools and tiers of many sizes, a short while each."""
    for seed in range(20):
        soak(1_500, seed=seed, with_host=True, report=lambda _: None)


class ForgetsSlots(ArrayHostStore):
    def copy_out(self, page_ids: Any, slots: Any) -> None:
        super().copy_out(page_ids[:1], slots[:1])


class MixesUp(ArrayHostStore):
    def copy_in(self, slots: Any, page_ids: Any) -> Any:
        return super().copy_in(slots[::-1], page_ids)


def broken_tiers() -> dict[str, Any]:
    class ForgetsToForget(HostTier):
        def clear(self, *, namespace: Any) -> None:
            pass

    class KeepsWhatIsInvalid(HostTier):
        def invalidate(self, token_ids: Any, *, namespace: Any) -> None:
            pass

    class MixesNamespaces(HostTier):
        def _nodes(self, tokens: Any, namespace: Any) -> Any:
            return super()._nodes(tokens, None)

    class HoldsNothing(HostTier):
        def fetch(self, sequence: Any, token_ids: Any) -> Any:
            arrival = super().fetch(sequence, token_ids)
            if arrival is not None:
                self._index.release(arrival._nodes)
            return arrival

        def _let_go(self, nodes: Any) -> None:
            self._index.allocator.retain(nodes)
            super()._let_go(nodes)

    kinds = (ForgetsToForget, KeepsWhatIsInvalid, MixesNamespaces, HoldsNothing)
    return {kind.__name__: kind for kind in kinds}


@pytest.mark.parametrize("kind", broken_tiers().values(), ids=broken_tiers().keys())
def test_soak_notices_a_broken_tier(kind: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("infercore.testing.prefix_driver.HostTier", kind)
    with pytest.raises(AssertionError, match=r"operation \d+ of seed"):
        soak_many_tiers()


@pytest.mark.parametrize("kind", [ForgetsSlots, MixesUp])
def test_soak_notices_a_broken_host_store(kind: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("infercore.testing.prefix_driver.ArrayHostStore", kind)
    with pytest.raises(AssertionError, match="contents"):
        soak_many_tiers()


def test_soak_notices_an_arrival_that_does_not_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("infercore.testing.page_stores._Copy.wait", lambda self: None)
    with pytest.raises(AssertionError, match="contents"):
        soak_many_tiers()


# --- with tensors ----------------------------------------------------------------------------------------------------


def make(num_pages: int = 9, page_size: int = 2, num_slots: int = 100, **options: Any) -> tuple[PrefixCache, HostTier]:
    pool = KVPool(num_pages, page_size)
    for layer, (heads, dim) in enumerate([(2, 8), (1, 3)]):
        pool.layer(layer, torch.zeros(1, heads, dim), torch.zeros(1, heads, dim + 1, dtype=torch.bfloat16))
    packer = page_packer([t for pair in pool.layers.values() for t in pair])
    cache = PrefixCache(num_pages, page_size, store=pool, poison=True)
    store = HostMemory(
        pool, num_slots * packer.page_bytes, page_bytes=packer.page_bytes, make_packer=page_packer, device=CPU
    )
    assert store.num_slots == num_slots
    return cache, HostTier(cache, store, poison=True, **options)


def compute(cache: PrefixCache, tokens: list[int], namespace: Any = None) -> None:
    """Write rows that say what they are, and publish them."""
    sequence = cache.open(tokens, namespace=namespace)
    start = sequence.num_tokens
    slots = torch.from_numpy(sequence.append(len(tokens) - start))
    for i, tensor in enumerate(t for pair in cache.store.layers.values() for t in pair):  # type: ignore[union-attr]
        for row, slot in enumerate(slots.tolist(), start):
            tensor.view(-1, *tensor.shape[2:])[slot] = content(tokens, row, i)
    sequence.commit(tokens[start:])
    sequence.close()


def content(tokens: list[int], row: int, layer: int) -> float:
    return float(sum(t * (i + 1) for i, t in enumerate(tokens[: row + 1])) + layer)


def fetched(cache: PrefixCache, tokens: list[int], namespace: Any = None) -> int:
    """Tokens that came back; every row of the sequence holds what was computed for it."""
    assert cache.host is not None
    sequence = cache.open(tokens, namespace=namespace)
    arrival = cache.host.fetch(sequence, tokens)
    count = 0 if arrival is None else arrival.finish()
    slots = sequence.slots(0, sequence.num_tokens).tolist()
    for i, tensor in enumerate(t for pair in cache.store.layers.values() for t in pair):  # type: ignore[union-attr]
        for row, slot in enumerate(slots):
            rows = tensor.view(-1, *tensor.shape[2:])[slot]
            assert (rows == content(tokens, row, i)).all(), (tokens, row, i)
    sequence.close()
    return count


A, B = [1, 2, 3, 4, 5, 6], [1, 2, 7, 8, 9, 10]


def test_what_was_evicted_comes_back_bit_for_bit() -> None:
    cache, tier = make()
    compute(cache, A)
    assert cache.evict(2) == 2
    assert fetched(cache, A) == 4
    assert cache.evict(9) == 3
    assert fetched(cache, A) == 6
    assert cache.match(A).num_tokens == 6  # it is in the tree again
    stats = tier.stats
    assert (stats.bytes_out, stats.bytes_back) == (3 * stats.slot_bytes, 5 * stats.slot_bytes)
    assert (stats.num_fetches, stats.num_tokens_back, stats.num_known) == (2, 10, 2)


def test_a_page_whose_parent_is_on_the_device_comes_back_behind_it() -> None:
    cache, _ = make()
    compute(cache, A)
    compute(cache, B)
    cache.match(A)
    assert cache.evict(2) == 2  # of B: its beginning is A's, which stays
    assert cache.match(B).num_tokens == 2
    assert fetched(cache, B) == 4


def test_the_limit_holds_and_the_least_recent_leave_first() -> None:
    cache, tier = make(num_slots=3)
    for start in (10, 20, 30):
        compute(cache, [start, start + 1, start + 2, start + 3])
        cache.evict(9)
    assert (tier.stats.num_used, tier.stats.num_evicted) == (3, 3)
    assert fetched(cache, [10, 11, 12, 13]) == 0
    assert fetched(cache, [20, 21, 22, 23]) == 2  # its beginning: tails leave first
    assert fetched(cache, [30, 31, 32, 33]) == 4
    assert tier.stats.num_slots == 3


def test_more_pages_than_slots_at_once_keep_what_was_used_last() -> None:
    cache, tier = make(num_slots=2)
    compute(cache, [10, 11, 12, 13])
    compute(cache, [20, 21, 22, 23])
    assert cache.evict(9) == 4
    assert (tier.stats.num_lost, tier.stats.num_used) == (2, 2)
    assert fetched(cache, [20, 21, 22, 23]) == 4


def test_short_prefixes_are_not_fetched() -> None:
    cache, _ = make(min_tokens=5)
    compute(cache, A)
    cache.evict(2)
    assert fetched(cache, A) == 0
    cache.evict(1)
    assert fetched(cache, A) == 6


def test_what_does_not_fit_on_the_device_stays_where_it_is() -> None:
    cache, _ = make(num_pages=6)
    compute(cache, A)
    cache.evict(9)
    held = cache.allocate(3)
    assert fetched(cache, A) == 0
    cache.release(held)
    assert fetched(cache, A) == 6


def test_evicting_for_room_takes_many_pages_at_once_where_that_was_asked_for() -> None:
    cache, tier = make(num_pages=9, bulk_pages=5)
    for start in range(10, 90, 10):
        compute(cache, [start, start + 1])
    assert cache.counts().free == 0
    pages = cache.allocate(1)
    assert tier.stats.bytes_out == 5 * tier.stats.slot_bytes
    assert cache.counts().free == 4
    assert cache.counts().cached == 3
    cache.release(pages)
    assert all(fetched(cache, [start, start + 1]) == 2 for start in range(10, 60, 10))
    with pytest.raises(ValueError, match="bulk_pages 0"):
        make(bulk_pages=0)


def test_a_quota_evicts_to_the_host_as_well() -> None:
    cache, _ = make()
    cache.set_quota("tenant", 1)
    compute(cache, A, "tenant")
    assert cache.match(A, namespace="tenant").num_tokens == 2
    assert fetched(cache, A, "tenant") == 4
    assert fetched(cache, A) == 0


def test_quotas_pins_forks_and_what_is_forgotten_at_random() -> None:
    """Every fetch checks its rows; after each operation pages add up and no quota is exceeded by pages nobody holds."""
    draw = random.Random(7)
    cache, tier = make(num_pages=14, num_slots=20)
    quotas: dict[Any, int | None] = {None: None, "a": None}
    pins: list[Any] = []
    forks: list[Any] = []
    for _ in range(500):
        namespace = draw.choice([None, "a"])
        tokens = [draw.randrange(1, 4) for _ in range(draw.randrange(2, 9))]
        kind = draw.choice(
            ["compute"] * 4 + ["fetch"] * 4 + ["evict", "quota", "pin", "unpin", "fork", "drop", "forget"]
        )
        if kind == "compute" and cache.num_available_pages >= 5:
            compute(cache, tokens, namespace)
        elif kind == "fetch":
            fetched(cache, tokens, namespace)
        elif kind == "evict":
            cache.evict(draw.randrange(4))
        elif kind == "quota":
            quotas[namespace] = draw.choice([0, 2, 5, None])
            cache.set_quota(namespace, quotas[namespace])
        elif kind == "pin" and len(pins) < 2:
            pins.append(cache.pin(tokens, namespace=namespace))
        elif kind == "unpin" and pins:
            cache.unpin(pins.pop())
        elif kind == "fork" and len(forks) < 2:
            sequence = cache.open(tokens, namespace=namespace)
            forks.append(sequence.fork())
            sequence.close()
        elif kind == "drop" and forks:
            forks.pop().close()
        elif kind == "forget" and draw.random() < 0.3:
            if draw.random() < 0.5:
                cache.clear(namespace=namespace)
            else:
                cache.invalidate(tokens, namespace=namespace)
        counts = cache.counts()
        assert counts.free + counts.cached + counts.in_use == counts.total
        assert 0 <= tier.stats.num_used <= 20
        if not pins and not forks:
            for name, most in quotas.items():
                root = cache._roots.get(name)
                assert most is None or root is None or cache._fields[c.STATE, root] <= most
    assert tier.stats.num_tokens_back > 50, tier.stats


def test_what_was_saved_and_loaded_pushes_others_to_the_host(tmp_path: Any) -> None:
    cache, _ = make(num_pages=6)
    compute(cache, A)
    cache.save(tmp_path / "cache")
    other, tier = make(num_pages=6)
    compute(other, [20, 21, 22, 23, 24, 25])
    assert other.load(tmp_path / "cache") == 6
    assert other.match(A).num_tokens == 6
    assert tier.stats.num_used == 1
    assert fetched(other, [20, 21, 22, 23, 24, 25]) == 2


def test_a_fetch_that_was_overtaken_by_a_clear_brings_nothing() -> None:
    cache, tier = make()
    compute(cache, A)
    cache.evict(9)
    sequence = cache.open(A)
    arrival = tier.fetch(sequence, A)
    assert isinstance(arrival, Arrival)
    cache.clear()
    assert tier.stats.num_used == 0
    assert arrival.finish() == 0
    assert (sequence.num_tokens, sequence.num_pages, tier.stats.num_used) == (0, 0, 0)
    arrival.cancel()  # has no effect any more
    sequence.close()
    assert cache.counts().free == cache.counts().total
    old = cache.open(A)
    compute(cache, A)
    cache.evict(9)
    cache.clear()
    compute(cache, A)
    cache.evict(9)
    assert tier.fetch(old, A) is None  # what it stands for belongs to the past


def test_a_failed_copy_leaves_no_trace() -> None:
    cache, tier = make()
    compute(cache, A)

    def fail(*_: Any) -> None:
        raise RuntimeError("no copy today")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tier.store, "copy_out", fail)
        with pytest.raises(RuntimeError, match="today"):
            cache.evict(1)
    assert tier.stats.num_used == 0
    assert fetched(cache, A) == 0
    cache.evict(9)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tier.store, "copy_in", fail)
        sequence = cache.open(A[:4])
        with pytest.raises(RuntimeError, match="today"):
            tier.fetch(sequence, A[:4])
        assert (sequence.num_reserved, sequence.num_pages) == (0, 0)
    assert fetched(cache, A[:4]) == 4


def test_layers_that_do_not_fit_the_slots_keep_nothing() -> None:
    cache, tier = make()
    cache.store.layer(7, torch.zeros(1, 1, 4), torch.zeros(1, 1, 4))  # type: ignore[union-attr]
    compute_nothing = cache.open([])
    compute_nothing.append(2)
    compute_nothing.commit([1, 2])
    compute_nothing.close()
    cache.evict(9)
    assert (tier.stats.num_lost, tier.stats.num_used) == (1, 0)


def test_memory_that_cannot_be_had_is_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    pool = KVPool(4, 2)
    assert host_memory(pool, 10, page_bytes=64, make_packer=page_packer, device=CPU) is None
    assert "hold none of 64" in caplog.text
    assert host_memory(pool, 1 << 60, page_bytes=1 << 58, make_packer=page_packer, device=CPU) is None
    assert "cannot be had" in caplog.text


def test_pinned_memory_is_not_asked_for_where_it_is_not_free(tmp_path: Any, caplog: pytest.LogCaptureFixture) -> None:
    pool = KVPool(4, 2)
    gpu = torch.device("cuda")
    assert host_memory(pool, 1 << 60, page_bytes=1 << 20, make_packer=page_packer, device=gpu) is None
    assert "bytes are free" in caplog.text
    assert _available_bytes(tmp_path / "none", tmp_path) is None
    (tmp_path / "meminfo").write_text("MemTotal:  900 kB\nMemAvailable:   500 kB\n")
    assert _available_bytes(tmp_path / "meminfo", tmp_path) == 512_000
    (tmp_path / "memory.max").write_text("max\n")
    (tmp_path / "memory.current").write_text("100\n")
    assert _available_bytes(tmp_path / "meminfo", tmp_path) == 512_000
    (tmp_path / "memory.max").write_text("4196\n")
    assert _available_bytes(tmp_path / "meminfo", tmp_path) == 4096


def test_moves_that_were_put_off_are_made_before_pages_are_copied() -> None:
    cache, tier = make()
    compute(cache, A)
    pool: Any = cache.store
    page = int(cache.match(A).page_ids[-1])
    (k, _), *_ = pool.layers.values()
    pool.gather_moves()
    pool.move_slots(np.array([2 * page]), np.array([2 * page + 1]))
    cache.evict(1)
    pool.move_gathered()
    sequence = cache.open(A)
    arrival = tier.fetch(sequence, A)
    assert arrival is not None
    arrival.finish()
    first, second = k.view(-1, *k.shape[2:])[sequence.slots(4, 6)]
    assert torch.equal(first, second)
    sequence.close()


def test_one_tier_per_cache() -> None:
    cache, tier = make()
    with pytest.raises(ValueError, match="already"):
        HostTier(cache, tier.store)


def test_slots_of_several_slabs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("infercore.radix.host.memory.SLAB_BYTES", 400)
    cache, tier = make(num_pages=40, num_slots=30)
    assert len(tier.store.slabs._slabs) > 3  # type: ignore[attr-defined]
    rng = np.random.default_rng(0)
    for _ in range(30):
        tokens = rng.integers(1, 4, 8).tolist()
        fetched(cache, tokens)
        compute(cache, tokens)
        cache.evict(int(rng.integers(0, 6)))
    assert tier.stats.num_tokens_back > 10


def test_the_tier_of_a_driver_is_endless_where_it_was_asked_to_be() -> None:
    store = ArrayStore(6, 1)
    driver = make_driver(make_cache(6, 1, store), store, num_host_slots=5_000)
    assert driver.host_is_endless
    assert not make_driver(make_cache(6, 1, store), store, num_host_slots=50).host_is_endless


class FakeStream:
    """In the place of a CUDA stream: says in which order it was told what."""

    log: ClassVar[list[tuple[str, ...]]] = []

    def __init__(self, name: str) -> None:
        self.name = name

    def record_event(self) -> "FakeEvent":
        return FakeEvent(self)

    def wait_event(self, event: "FakeEvent") -> None:
        FakeStream.log.append((self.name, "waits for", event.stream.name))


class FakeEvent:
    def __init__(self, stream: FakeStream) -> None:
        self.stream = stream
        self.has_ended = False

    def query(self) -> bool:
        return self.has_ended


def test_pinned_memory_orders_its_copies(monkeypatch: pytest.MonkeyPatch) -> None:
    """Who waits for whom, on a machine without a GPU; the copies themselves are made at once, and right."""
    main, made = FakeStream("main"), []

    def stream(_: Any) -> FakeStream:
        made.append(FakeStream(("out", "back")[len(made)]))
        return made[-1]

    monkeypatch.setattr(torch.cuda, "Stream", stream)
    monkeypatch.setattr(torch.cuda, "Event", FakeEvent)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda _: main)
    monkeypatch.setattr(torch.cuda, "stream", lambda _: contextlib.nullcontext())
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda self: self)
    monkeypatch.setattr("infercore.radix.host.pinned.Slabs", lambda *a, pinned: Slabs(*a, pinned=False))
    monkeypatch.setattr("infercore.radix.host.pinned.BLOCK_BYTES", 500)
    cache, _ = make()
    store = cache.host.store  # type: ignore[union-attr]
    pool, size = cache.store, store.slot_bytes
    memory = PinnedMemory(pool, 20 * size, page_bytes=size, make_packer=page_packer, device=CPU)  # type: ignore[arg-type]
    assert memory.fits()
    before = [t.clone() for pair in pool.layers.values() for t in pair]  # type: ignore[union-attr]
    for tensor, old in zip((t for pair in pool.layers.values() for t in pair), before, strict=True):  # type: ignore[union-attr]
        old.copy_(torch.arange(old.numel()).view(old.shape))
        tensor.copy_(old)
    memory.warmup()
    for tensor, old in zip((t for pair in pool.layers.values() for t in pair), before, strict=True):  # type: ignore[union-attr]
        assert torch.equal(tensor, old)
    FakeStream.log.clear()
    pages, slots = np.arange(1, 6, dtype=np.int32), np.array([3, 4, 9, 10, 0], np.int32)
    memory.copy_out(pages, slots)  # two pages a block: the third block waits until the first one is free
    packed, free = ("out", "waits for", "main"), ("main", "waits for", "out")
    assert FakeStream.log == [packed, packed, free, packed]
    cache.store.poison_pages(pages)  # type: ignore[union-attr]
    FakeStream.log.clear()
    ticket = memory.copy_in(slots[::-1].copy(), pages[::-1].copy())
    assert FakeStream.log == [("back", "waits for", "out"), ("back", "waits for", "main")]
    assert not ticket.is_ready()
    ticket.wait()
    assert FakeStream.log[-1] == ("main", "waits for", "back")
    for tensor, old in zip((t for pair in pool.layers.values() for t in pair), before, strict=True):  # type: ignore[union-attr]
        assert torch.equal(tensor[1:6], old[1:6])
    for event in memory._under_way.values():
        event.has_ended = True  # type: ignore[attr-defined]
    FakeStream.log.clear()
    memory.copy_in(slots, pages)
    assert FakeStream.log == [("back", "waits for", "main")]
    assert not memory._under_way

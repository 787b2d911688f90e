"""All that the prefix cache can do, under a running engine: outputs stay those of Hugging Face."""

import pytest
from tests.hf.test_equals_hf import assert_nothing_lost
from tests.hf.tiny import hf_greedy, prompts, tiny_model

from infercore.hf import Engine
from infercore.radix import FIFO, LFU, LRU, SLRU, CacheEvent, GhostHistory, Policy, Priority

NEW = 8


@pytest.fixture(scope="module")
def model():
    return tiny_model("llama")


@pytest.fixture(scope="module")
def truth(model):
    return [(prompt, hf_greedy(model, prompt, NEW)[0]) for prompt in prompts(6)]


def run(engine: Engine, truth) -> None:
    for done, (_, expected) in zip(engine.generate([p for p, _ in truth], max_new_tokens=NEW), truth, strict=True):
        assert done.token_ids == expected


@pytest.mark.parametrize("policy", [LRU(), FIFO(), LFU(), SLRU(), Priority(), GhostHistory(horizon_tokens=200)])
def test_outputs_are_the_same_whatever_is_evicted_first(model, truth, policy: Policy):
    engine = Engine(model, num_pages=18, page_size=4, policy=policy, poison=True)
    for _ in range(3):
        run(engine, truth)
    assert engine.cache.stats.num_pages_evicted > 20
    assert_nothing_lost(engine)


def test_outputs_are_the_same_with_pins_quotas_namespaces_and_invalidation(model, truth):
    engine = Engine(model, num_pages=20, page_size=4, poison=True)
    events: list[CacheEvent] = []
    engine.cache.subscribe(events.append)
    run(engine, truth)
    pin = engine.cache.pin(truth[-1][0], ttl_s=1000)
    assert pin.num_tokens >= 4
    engine.cache.set_quota("tenant", 3)
    for _ in range(2):
        run(engine, truth)
        for prompt, expected in truth[:2]:
            (done,) = engine.generate(prompt, max_new_tokens=NEW, namespace="tenant")
            assert done.token_ids == expected
    assert {event.kind for event in events} == {"insert", "evict"}
    assert engine.cache.match(truth[-1][0]).num_tokens >= pin.num_tokens
    assert sum(len(e.page_ids) * (1 if e.kind == "insert" else -1) for e in events if e.namespace == "tenant") <= 3
    engine.cache.unpin(pin)
    engine.cache.invalidate(truth[-1][0])
    assert "are cached" in str(engine.cache.explain(truth[-1][0]))
    run(engine, truth)
    assert_nothing_lost(engine)


def test_a_saved_cache_serves_another_engine(model, truth, tmp_path):
    engine = Engine(model, num_pages=64, page_size=4, poison=True)
    run(engine, truth)
    engine.cache.save(tmp_path / "cache.safetensors")
    other = Engine(model, num_pages=64, page_size=4, poison=True)
    run(other, truth[:1])
    assert other.cache.load(tmp_path / "cache.safetensors") > 0
    completions = other.generate([p for p, _ in truth], max_new_tokens=NEW)
    for done, (prompt, expected) in zip(completions, truth, strict=True):
        assert done.token_ids == expected
        assert done.stats.num_reused_tokens == (len(prompt) - 1) // 4 * 4
    assert_nothing_lost(other)

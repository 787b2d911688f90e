"""The engine with a second cache tier in host memory: same output, fewer rows, whatever happens meanwhile."""

import random

import pytest
import torch
from tests.hf.drafters import OracleDrafter
from tests.hf.tiny import VOCAB, hf_greedy, tiny_model

from infercore.hf import Engine
from infercore.radix.host import HostMemory
from infercore.testing.page_stores import _Copy

NEW = 6
NUM_PAGES = 40  # of 4 tokens: two or three of the prompts below


@pytest.fixture(scope="module")
def model():
    return tiny_model("llama")


@pytest.fixture(scope="module")
def prompts():
    """Five families of prompts of 30 to 50 tokens; what a family shares is 20 tokens long."""
    draw = random.Random(4)
    made = []
    for _ in range(5):
        stem = [draw.randrange(3, VOCAB) for _ in range(20)]
        made += [stem + [draw.randrange(3, VOCAB) for _ in range(draw.randrange(10, 30))] for _ in range(2)]
    return made


@pytest.fixture(scope="module")
def truth(model, prompts):
    return {tuple(p): hf_greedy(model, p, NEW)[0] for p in prompts}


def make_engine(model, **options):
    options = {"num_pages": NUM_PAGES, "page_size": 4, "host_cache_bytes": 1 << 22, "poison": True} | options
    return Engine(model, **options)


def check(engine, prompts, truth, **options):
    """Every prompt's output is Hugging Face's; returns the completions."""
    done = engine.generate(prompts, max_new_tokens=NEW, **options)
    assert [c.token_ids for c in done] == [truth[tuple(p)] for p in prompts]
    counts = engine.cache.counts()
    assert counts.in_use == 0
    return done


class LateTicket(_Copy):
    """Ready at the third question, or when somebody waits for it; the bytes come no earlier."""

    num_questions = 0
    patience = 2

    def is_ready(self):
        self.num_questions += 1
        if self.num_questions > self.patience:
            self.wait()
        return super().is_ready()


@pytest.fixture
def late(monkeypatch):
    copy_in = HostMemory.copy_in

    def later(self, slots, page_ids):
        return LateTicket(lambda: copy_in(self, slots, page_ids), at_once=False)

    monkeypatch.setattr(HostMemory, "copy_in", later)


@pytest.mark.parametrize("overlap", [False, True])
def test_prompts_that_come_again_are_copied_not_computed(model, prompts, truth, overlap):
    rows = {}
    for num_bytes in (None, 1 << 22):
        engine = make_engine(model, host_cache_bytes=num_bytes, overlap=overlap)
        for _ in range(3):
            for prompt in prompts:
                check(engine, [prompt], truth)
        rows[num_bytes] = engine.stats.num_rows
        assert (engine.cache.host is not None) == (num_bytes is not None)
    assert engine.stats.num_host_tokens > 2 * sum(len(p) - 4 for p in prompts[::2])
    assert engine.stats.num_host_tokens <= engine.cache.host.stats.num_tokens_back
    assert rows[1 << 22] < 0.6 * rows[None]


@pytest.mark.parametrize("overlap", [False, True])
@pytest.mark.parametrize("name", ["llama", "gemma3"])
def test_batches_are_exact_while_prefixes_come_back_late(prompts, name, overlap, late):
    model = tiny_model(name)
    truth = {tuple(p): hf_greedy(model, p, NEW)[0] for p in prompts}
    engine = make_engine(model, overlap=overlap, max_running=3)
    drafter = OracleDrafter(truth, "half", VOCAB)
    draw = random.Random(1)
    for round_ in range(8):
        some = draw.sample(prompts, 5)
        check(engine, some, truth, drafter=drafter if round_ % 3 == 2 else None)
    assert engine.stats.num_host_tokens > 100


def test_others_run_while_a_prefix_comes_back(model, prompts, truth, late):
    engine = make_engine(model)
    for prompt in prompts[::2]:
        check(engine, [prompt], truth)
    first, second = prompts[8], prompts[0]  # the second was evicted long ago
    (running,) = engine.submit(engine.request(first, max_new_tokens=NEW))
    engine.step()
    (coming,) = engine.submit(engine.request(second, max_new_tokens=NEW))
    before = len(running.token_ids)
    engine.step()
    assert len(engine._scheduler.landing) == 1
    assert coming._state.sequence is None
    engine.step()
    assert len(running.token_ids) > before
    while engine.num_unfinished:
        engine.step()
    assert (running.token_ids, coming.token_ids) == (truth[tuple(first)], truth[tuple(second)])
    assert coming.completion.stats.num_host_tokens > 20
    assert coming.completion.stats.num_reused_tokens >= coming.completion.stats.num_host_tokens


def test_who_shares_a_prefix_that_comes_back_waits_for_it(model, prompts, truth, late):
    engine = make_engine(model)
    for prompt in prompts[::2]:
        check(engine, [prompt], truth)
    other = engine.request(prompts[8], max_new_tokens=NEW)
    engine.submit(other)
    engine.step()
    before = engine.cache.host.stats.num_fetches
    done = check(engine, [prompts[0], prompts[0], prompts[1]], truth)
    assert engine.cache.host.stats.num_fetches == before + 1
    assert done[1].stats.num_reused_tokens >= done[0].stats.num_host_tokens > 20
    assert done[2].stats.num_reused_tokens >= 20


def test_a_request_can_be_cancelled_while_its_prefix_comes_back(model, prompts, truth, late):
    engine = make_engine(model)
    for prompt in prompts[::2]:
        check(engine, [prompt], truth)
    engine.submit(engine.request(prompts[8], max_new_tokens=NEW))
    engine.step()
    handles = engine.submit(engine.request(prompts[0], max_new_tokens=NEW), copies=2)
    engine.step()
    assert len(engine._scheduler.landing) == 1
    handles[0].cancel()
    assert not engine._scheduler.landing
    while engine.num_unfinished:
        engine.step()
    assert handles[0].completion.finish_reason == "cancelled"
    assert handles[1].token_ids == truth[tuple(prompts[0])]  # its copy goes on alone
    assert engine.cache.counts().in_use == 0


def test_a_small_pool_is_shared_by_preemption_and_called_off_fetches(model, prompts, truth, late):
    engine = make_engine(model, num_pages=22, max_running=4)
    for seed in range(4):
        some = random.Random(seed).sample(prompts, 6)
        check(engine, some, truth)
    assert engine.stats.num_host_tokens > 0


def test_pages_that_running_requests_need_are_taken_from_who_has_not_begun(model, prompts, truth, late, monkeypatch):
    monkeypatch.setattr(LateTicket, "patience", 40)
    long = hf_greedy(model, prompts[8], 60)[0]
    called_off = 0
    for num_pages in (32, 36):
        engine = make_engine(model, num_pages=num_pages)
        for prompt in prompts[::2]:
            check(engine, [prompt], truth)
        (running,) = engine.submit(engine.request(prompts[8], max_new_tokens=60))
        for _ in range(20):
            engine.step()
        call_off = engine._scheduler.call_off
        calls = []
        engine._scheduler.call_off = lambda of=call_off, calls=calls: calls.append(of()) or calls[-1]
        (coming,) = engine.submit(engine.request(prompts[0], max_new_tokens=NEW))
        while engine.num_unfinished:
            engine.step()
        called_off += sum(calls)
        assert running.token_ids == long
        assert coming.token_ids == truth[tuple(prompts[0])]
    assert called_off > 0


def test_copies_in_the_host_do_not_outlive_the_weights(prompts, truth, late):
    import copy

    model = copy.deepcopy(tiny_model("llama"))
    engine = make_engine(model)
    check(engine, prompts[:1], truth)
    engine.cache.evict(5)  # the end of it; the beginning is on the device
    engine.submit(engine.request(prompts[8], max_new_tokens=NEW))
    engine.step()
    (coming,) = engine.submit(engine.request(prompts[0], max_new_tokens=NEW))
    engine.step()
    assert engine._scheduler.landing[0].arrival.sequence.num_tokens > 8
    with torch.no_grad():
        model.model.layers[0].self_attn.v_proj.weight.mul_(1.5)
    changed = hf_greedy(model, prompts[0], NEW)[0]
    assert changed != truth[tuple(prompts[0])]
    (done,) = engine.generate(prompts[0], max_new_tokens=NEW)
    assert done.token_ids == changed
    assert done.stats.num_host_tokens == 0
    while engine.num_unfinished:
        engine.step()
    assert coming.token_ids == changed


def test_namespaces_do_not_share_what_is_in_the_host(model, prompts, truth):
    engine = make_engine(model)
    for prompt in prompts[::2]:
        check(engine, [prompt], truth, namespace="a")
    (other,) = check(engine, [prompts[0]], truth, namespace="b")
    assert other.stats.num_reused_tokens == 0
    (same,) = check(engine, [prompts[0]], truth, namespace="a")
    assert same.stats.num_host_tokens > 0


def test_logprobs_of_a_prompt_that_came_back_are_those_of_the_model(model, prompts):
    engine = make_engine(model)
    cold = engine.generate(prompts[0], max_new_tokens=NEW, return_logits=True)[0]
    engine.generate(prompts[2::2], max_new_tokens=NEW)
    warm = engine.generate(prompts[0], max_new_tokens=NEW, return_logits=True)[0]
    assert warm.stats.num_host_tokens > 0
    assert (warm.logits - cold.logits).abs().max() <= 1e-4 * cold.logits.abs().max()


def test_the_report_says_what_was_copied(model, prompts, truth):
    engine = make_engine(model)
    assert "host cache 0 of" in engine.report()
    for prompt in (*prompts, prompts[0]):
        check(engine, [prompt], truth)
    stats = engine.cache.host.stats
    assert f"host cache {stats.num_used} of {stats.num_slots} pages used (4 MiB)" in engine.report()
    assert f"back {stats.bytes_back / 2**20:.0f} MiB: {stats.num_tokens_back} tokens" in engine.report()
    assert stats.num_slots * stats.slot_bytes <= 1 << 22
    assert engine.stats.as_dict()["num_host_tokens"] == stats.num_tokens_back > 0
    assert "host cache" not in make_engine(model, host_cache_bytes=0).report()


def test_without_memory_the_engine_runs_and_says_so(model, prompts, truth, caplog):
    engine = make_engine(model, host_cache_bytes=10)
    assert "no pages in host memory" in caplog.text
    assert engine.cache.host is None
    check(engine, prompts[:2], truth)
    with pytest.raises(ValueError, match="host_cache_bytes is -1"):
        make_engine(model, host_cache_bytes=-1)

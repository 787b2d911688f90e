"""`PagedCache` in plain `generate`: the same output as transformers' own cache, and prefixes shared with the engine."""

import pytest
import torch
from tests.hf.tiny import VOCAB, prompts, tiny_model

from infercore.errors import OutOfPages
from infercore.hf import Engine, PagedCache, cache_argument


@pytest.fixture(params=["llama", "gemma3", "gpt2"])
def model(request):
    return tiny_model(request.param)


@pytest.fixture
def engine(model):
    model.set_attn_implementation(model.config._attn_implementation_for_tests)
    return Engine(model, num_pages=200, page_size=4)


def generate(model, prompt, **options):
    ids = torch.tensor([prompt])
    return model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=16, **options)


def test_output_equals_that_of_the_ordinary_cache_cold_and_warm(model, engine):
    prompt = prompts()[0]
    expected = generate(model, prompt, do_sample=False)
    with PagedCache(engine.cache, engine.pool, model.config, prompt) as past:
        assert past.length == 0
        assert torch.equal(generate(model, prompt, do_sample=False, **cache_argument(model, past)), expected)
        assert past.keep(expected[0].numpy()) == 32  # whole pages of 35 tokens; the last has no K/V yet
    with PagedCache(engine.cache, engine.pool, model.config, expected[0].numpy()) as past:
        assert past.length == 32
    assert engine.cache.counts().in_use == 0
    assert engine.cache.num_available_pages == engine.cache.counts().total


def test_the_engine_reuses_what_plain_generate_computed_and_the_other_way_round(model, engine):
    prompt = prompts()[0]
    expected = generate(model, prompt, do_sample=False)
    with PagedCache(engine.cache, engine.pool, model.config, prompt) as past:
        generate(model, prompt, do_sample=False, **cache_argument(model, past))
        past.keep(expected[0].numpy())
    (done,) = engine.generate(prompt, max_new_tokens=16)
    assert done.stats.num_reused_tokens == 16
    assert done.token_ids == expected[0, len(prompt) :].tolist()
    with PagedCache(engine.cache, engine.pool, model.config, prompt) as past:
        assert past.length == 16
        assert torch.equal(generate(model, prompt, do_sample=False, **cache_argument(model, past)), expected)


@pytest.mark.parametrize("options", [{"num_beams": 3}, {"num_beams": 4, "num_return_sequences": 2}])
def test_beams_reorder_pages_as_the_ordinary_cache_does(model, engine, options):
    prompt = prompts()[0]
    expected = generate(model, prompt, do_sample=False, **options)
    with PagedCache(engine.cache, engine.pool, model.config, prompt, batch_size=options["num_beams"]) as past:
        assert torch.equal(generate(model, prompt, do_sample=False, **cache_argument(model, past), **options), expected)
    assert engine.cache.num_available_pages == engine.cache.counts().total


def test_crop_forgets_and_computes_again(model, engine):
    ids = torch.tensor([prompts()[0]])
    with PagedCache(engine.cache, engine.pool, model.config, prompts()[0]) as past, torch.no_grad():
        whole = model(ids, **cache_argument(model, past)).logits
        past.crop(-5)
        assert past.get_seq_length() == 15
        again = model(ids[:, 15:], **cache_argument(model, past)).logits
    torch.testing.assert_close(again, whole[:, 15:], atol=1e-4, rtol=1e-4)


def test_a_foreign_continuation_is_refused_and_too_small_a_pool_says_so(model, engine):
    with (
        PagedCache(engine.cache, engine.pool, model.config, prompts()[0]) as past,
        pytest.raises(ValueError, match="begin"),
    ):
        past.keep([VOCAB - 1] * 30)
    with pytest.raises(OutOfPages), PagedCache(engine.cache, engine.pool, model.config, prompts()[0]) as past:
        past.grow(1, 4 * 300)
    assert engine.cache.num_available_pages == engine.cache.counts().total

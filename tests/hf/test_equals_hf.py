"""Greedy output equals Hugging Face `generate` token for token, and every step's logits agree: every architecture."""

import dataclasses
from functools import cache

import numpy as np
import pytest
import torch
from tests.hf.drafters import OracleDrafter
from tests.hf.tiny import ARCHITECTURES, VOCAB, hf_greedy, prompts, tiny_model

from infercore.constrained import Vocabulary, regex
from infercore.hf import Engine, GrammarProcessor
from infercore.hf import step as step_module

NEW = 24
RELATIVE = 1e-4  # of the largest logit, in float32


def byte_vocabulary() -> Vocabulary:
    """Every token one byte, so that forced text has one spelling and Hugging Face's output is the same."""
    return Vocabulary([None, None, None, *(bytes([i + 29]) for i in range(VOCAB - 3))], eos_token_ids=[2])


@pytest.fixture(params=ARCHITECTURES)
def model(request):
    return tiny_model(request.param)


@pytest.fixture
def truth(model):
    """Prompts with Hugging Face's outputs and logits."""
    return greedy_truth(model)


@cache
def greedy_truth(model):
    return {tuple(p): hf_greedy(model, p, NEW) for p in prompts()}


def new_engine(model, **options) -> Engine:
    return Engine(
        model, num_pages=options.pop("num_pages", 64), page_size=4, vocabulary=byte_vocabulary(), poison=True, **options
    )


def assert_equal(completions, truth, *, logits=True):
    for completion, (tokens, expected) in zip(completions, truth.values(), strict=True):
        assert completion.token_ids == tokens
        if logits:
            assert (completion.logits - expected).abs().max() <= RELATIVE * expected.abs().max()


def assert_nothing_lost(engine):
    counts = engine.cache.counts()
    assert counts.free + counts.cached + counts.in_use == counts.total
    assert counts.in_use == 0
    assert engine.cache.num_available_pages == counts.total  # nobody holds a cached page either


def test_outputs_are_varied_enough_to_show_errors(model, truth):
    assert all(len(set(tokens)) >= 8 for tokens, _ in truth.values())
    assert model.get_input_embeddings().weight.data_ptr() != model.get_output_embeddings().weight.data_ptr()


def test_batch_of_one_ragged_batch_and_warm_prefix(model, truth):
    engine = new_engine(model)
    first = next(iter(truth))
    alone = engine.generate(list(first), max_new_tokens=NEW, return_logits=True)
    assert_equal(alone, {first: truth[first]})
    batch = engine.generate([list(p) for p in truth], max_new_tokens=NEW, return_logits=True)
    assert_equal(batch, truth)
    assert batch[0].stats.num_reused_tokens >= 16  # its whole prompt but for the last page
    assert batch[2].stats.num_reused_tokens == 12  # the part it shares with the first
    assert_nothing_lost(engine)


def test_chunked_prefill_changes_nothing(model, truth):
    engine = new_engine(model, max_rows=5)
    assert_equal(engine.generate([list(p) for p in truth], max_new_tokens=NEW, return_logits=True), truth)


@pytest.mark.parametrize("kind", ["right", "wrong", "half"])
def test_draft_trees_change_nothing(model, truth, kind):
    engine = new_engine(model)
    drafter = OracleDrafter({p: tokens for p, (tokens, _) in truth.items()}, kind, VOCAB)
    done = engine.generate([list(p) for p in truth], max_new_tokens=NEW, drafter=drafter, return_logits=True)
    assert_equal(done, truth)
    accepted = sum(c.stats.num_accepted_tokens for c in done)
    assert accepted == 0 if kind == "wrong" else accepted >= NEW
    if kind == "right":
        assert max(c.stats.num_forwards for c in done) <= NEW // 4 + 2
    assert sorted(drafter.closed) == [c.request_id for c in done]
    assert all(drafter.committed[c.request_id] == c.token_ids for c in done)
    assert_nothing_lost(engine)


GRAMMAR = r"(\{\"name\": \"[a-z]{2,9}\", \"size\": [0-9]{1,4}\} ?){3}"


@cache
def grammar_truth(model):
    """Hugging Face with the same grammar as a logits processor."""
    grammar = regex(GRAMMAR).bind(byte_vocabulary())
    outputs = {}
    model.set_attn_implementation(model.config._attn_implementation_for_tests)
    for prompt in prompts():
        ids = torch.tensor([prompt])
        out = model.generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=NEW * 2, do_sample=False, eos_token_id=2,
            logits_processor=[GrammarProcessor(grammar)], return_dict_in_generate=True, output_logits=True,
        )  # fmt: skip
        outputs[tuple(prompt)] = out.sequences[0, len(prompt) :].tolist(), torch.cat(out.logits)
    return outputs


def test_grammar_with_forced_tokens_equals_hf_with_the_same_grammar(model):
    grammar = regex(GRAMMAR).bind(byte_vocabulary())
    expected = grammar_truth(model)
    engine = new_engine(model)
    done = engine.generate(
        [list(p) for p in expected], max_new_tokens=NEW * 2, grammar=grammar, return_logits=True, eos_token_ids=(2,)
    )
    assert_equal(done, expected)
    assert all(c.stats.num_forced_tokens >= 15 for c in done)
    assert max(c.stats.num_forwards for c in done) < NEW * 2 - 10
    assert_nothing_lost(engine)


def test_prefix_trees_grammar_and_preemption_all_together(model):
    grammar = regex(GRAMMAR).bind(byte_vocabulary())
    expected = grammar_truth(model)
    engine = new_engine(model, num_pages=27, max_rows=16)  # too few pages for three sequences of up to 68 tokens
    drafter = OracleDrafter({p: tokens for p, (tokens, _) in expected.items()}, "half", VOCAB)
    for _ in range(2):  # the second time with a warm prefix
        done = engine.generate(
            [list(p) for p in expected], max_new_tokens=NEW * 2, grammar=grammar, drafter=drafter, return_logits=True,
            eos_token_ids=(2,),
        )  # fmt: skip
        assert_equal(done, expected)
    assert engine.stats.num_preemptions > 0
    assert engine.stats.num_forced_tokens > 0
    assert engine.stats.num_accepted_tokens > 0
    assert engine.stats.num_reused_tokens > 0
    assert_nothing_lost(engine)


def spoil_position(plan):
    """One too far once there is a context: rotary positions are relative, so a shift of everything would not show."""
    counts = plan.row_starts.diff().long()
    late = torch.repeat_interleave((plan.context_lens > 0).long(), counts)
    return dataclasses.replace(plan, position_ids=plan.position_ids + late)


def spoil_page(plan):
    table = plan.block_table.clone()
    table[:, 1] = table[:, 0]
    return dataclasses.replace(plan, block_table=table)


def spoil_ancestor_bit(plan):
    if plan.ancestor_bits is None:
        return plan
    bits = plan.ancestor_bits ^ (1 << 0)  # every tree row sees the first node, or the first no longer itself
    return dataclasses.replace(plan, ancestor_bits=bits)


@pytest.mark.parametrize("spoil", [spoil_position, spoil_page, spoil_ancestor_bit])
def test_planted_faults_are_noticed(model, truth, spoil, monkeypatch):
    engine = new_engine(model)
    build = step_module.build_plan
    monkeypatch.setattr(step_module, "build_plan", lambda *args: rebuilt(spoil(build(*args))))
    drafter = OracleDrafter({p: tokens for p, (tokens, _) in truth.items()}, "right", VOCAB)
    done = engine.generate([list(p) for p in truth], max_new_tokens=NEW, drafter=drafter, return_logits=True)
    with pytest.raises(AssertionError):
        assert_equal(done, truth)


def rebuilt(plan):
    """The plan with `prepared` made anew from its (spoilt) tensors."""
    from infercore.kernels import prepare

    prepared = prepare(
        position_ids=plan.position_ids, row_starts=plan.row_starts, context_lens=plan.context_lens,
        num_causal_rows=plan.num_causal_rows, block_table=plan.block_table, ancestor_bits=plan.ancestor_bits,
        page_size=plan.pool.page_size,
    )  # fmt: skip
    return dataclasses.replace(plan, prepared=prepared)


def test_the_model_still_works_without_the_engine(model, truth):
    new_engine(model)
    assert model.config._attn_implementation == "infercore"
    prompt, (tokens, _) = next(iter(truth.items()))
    ids = torch.tensor([list(prompt)])
    out = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=NEW, do_sample=False)
    assert out[0, len(prompt) :].tolist() == tokens
    assert np.isfinite(out.numpy()).all()

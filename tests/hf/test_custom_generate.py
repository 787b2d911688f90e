"""`model.generate(..., custom_generate=engine)` behaves as `generate` does."""

import pytest
import torch
from tests.hf.drafters import OracleDrafter
from tests.hf.test_equals_hf import assert_nothing_lost, byte_vocabulary
from tests.hf.test_requests import ByteTokenizer
from tests.hf.tiny import VOCAB, prompts, tiny_model
from transformers import LogitsProcessorList, MaxTimeCriteria, StoppingCriteriaList

from infercore.constrained import regex
from infercore.errors import RequestError
from infercore.hf import Engine, GrammarProcessor


@pytest.fixture
def model():
    model = tiny_model("qwen3")
    model.set_attn_implementation("sdpa")
    return model


@pytest.fixture
def engine(model):
    return Engine(model, ByteTokenizer(), num_pages=128, page_size=4, vocabulary=byte_vocabulary())


def padded(rows):
    longest = max(map(len, rows))
    ids = torch.tensor([[0] * (longest - len(r)) + r for r in rows])
    mask = torch.tensor([[0] * (longest - len(r)) + [1] * len(r) for r in rows])
    return {"input_ids": ids, "attention_mask": mask}


def test_greedy_batch_equals_generate_padding_included(model, engine):
    inputs = padded(prompts())
    options = {"max_new_tokens": 16, "do_sample": False, "pad_token_id": 0}
    expected = model.generate(**inputs, **options)
    assert torch.equal(model.generate(**inputs, **options, custom_generate=engine), expected)
    eos = int(expected[1, -9])
    expected = model.generate(**inputs, **options, eos_token_id=eos)
    assert torch.equal(model.generate(**inputs, **options, eos_token_id=eos, custom_generate=engine), expected)


@pytest.mark.parametrize("speculate", [False, True])
def test_scores_and_logits_equal_those_of_generate(model, engine, speculate):
    inputs = {"input_ids": torch.tensor(prompts()[:1]), "attention_mask": torch.ones(1, len(prompts()[0]))}
    options = {"max_new_tokens": 12, "do_sample": False, "return_dict_in_generate": True, "output_scores": True,
               "output_logits": True, "repetition_penalty": 1.3}  # fmt: skip
    expected = model.generate(**inputs, **options)
    output = expected.sequences[0, len(prompts()[0]) :].tolist()
    drafter = OracleDrafter({tuple(prompts()[0]): output}, "half", VOCAB) if speculate else None
    got = model.generate(**inputs, **options, custom_generate=engine, drafter=drafter)
    assert torch.equal(got.sequences, expected.sequences)
    assert len(got.scores) == len(expected.scores) == 12
    for mine, theirs in zip((*got.scores, *got.logits), (*expected.scores, *expected.logits), strict=True):
        torch.testing.assert_close(mine, theirs, atol=1e-3, rtol=1e-3)
    transition = model.compute_transition_scores(got.sequences, got.scores, normalize_logits=True)
    reference = model.compute_transition_scores(expected.sequences, expected.scores, normalize_logits=True)
    torch.testing.assert_close(transition, reference, atol=1e-3, rtol=1e-3)


def test_scores_of_forced_tokens_are_there_and_masked_by_the_grammar(model, engine):
    grammar = regex(r"ab[cd]ef!").bind(byte_vocabulary())
    inputs = {"input_ids": torch.tensor(prompts()[:1]), "attention_mask": torch.ones(1, len(prompts()[0]))}
    options = {"max_new_tokens": 12, "do_sample": False, "return_dict_in_generate": True, "output_scores": True,
               "output_logits": True, "eos_token_id": 2, "pad_token_id": 0}  # fmt: skip
    expected = model.generate(**inputs, **options, logits_processor=LogitsProcessorList([GrammarProcessor(grammar)]))
    got = model.generate(**inputs, **options, custom_generate=engine, grammar=grammar)
    assert torch.equal(got.sequences, expected.sequences)
    for mine, theirs in zip((*got.scores, *got.logits), (*expected.scores, *expected.logits), strict=True):
        torch.testing.assert_close(mine, theirs, atol=1e-3, rtol=1e-3)


def test_sampling_arguments_reach_the_engine_and_seeds_repeat(model, engine):
    inputs = padded(prompts())
    options = {"max_new_tokens": 10, "do_sample": True, "temperature": 0.8, "top_p": 0.9, "custom_generate": engine}
    first = model.generate(**inputs, **options, seed=1)
    assert torch.equal(model.generate(**inputs, **options, seed=1), first)
    assert not torch.equal(model.generate(**inputs, **options, seed=2), first)
    torch.manual_seed(5)
    free = model.generate(**inputs, **options)
    torch.manual_seed(5)
    assert torch.equal(model.generate(**inputs, **options), free)


def test_top_k_of_one_is_greedy(model, engine):
    inputs = padded(prompts())
    greedy = model.generate(**inputs, max_new_tokens=8, do_sample=False, custom_generate=engine)
    one = model.generate(**inputs, max_new_tokens=8, do_sample=True, top_k=1, custom_generate=engine)
    assert torch.equal(one, greedy)


def test_num_return_sequences_forks_one_prefill(model, engine):
    inputs = {"input_ids": torch.tensor(prompts()[:1]), "attention_mask": torch.ones(1, len(prompts()[0]))}
    out = model.generate(
        **inputs, max_new_tokens=8, do_sample=True, num_return_sequences=4, custom_generate=engine, seed=0
    )
    assert out.shape[0] == 4
    assert len({tuple(r) for r in out.tolist()}) > 1
    assert engine.stats.num_rows <= len(prompts()[0]) + 4 * 8
    assert_nothing_lost(engine)


def test_other_processors_and_criteria_of_transformers_are_asked(model, engine):
    inputs = padded(prompts())
    options = {"max_new_tokens": 16, "do_sample": False, "no_repeat_ngram_size": 2, "min_new_tokens": 4,
               "eos_token_id": 9, "pad_token_id": 0, "repetition_penalty": 1.4}  # fmt: skip
    expected = model.generate(**inputs, **options)
    assert torch.equal(model.generate(**inputs, **options, custom_generate=engine), expected)
    stopped = model.generate(
        **inputs, max_new_tokens=16, do_sample=False, custom_generate=engine,
        stopping_criteria=StoppingCriteriaList([MaxTimeCriteria(max_time=0.0)]),
    )  # fmt: skip
    assert stopped.shape[1] == inputs["input_ids"].shape[1] + 1


def test_stop_strings_are_passed_as_stop_and_use_the_engines_tokenizer(model, engine):
    inputs = {"input_ids": torch.tensor(prompts()[:1]), "attention_mask": torch.ones(1, len(prompts()[0]))}
    plain = model.generate(**inputs, max_new_tokens=20, do_sample=False, custom_generate=engine)
    output = plain[0, len(prompts()[0]) :].tolist()
    stop = ByteTokenizer().decode(output)[3:5]
    out = model.generate(**inputs, max_new_tokens=20, do_sample=False, stop=stop, custom_generate=engine)
    assert ByteTokenizer().decode(out[0, len(prompts()[0]) :].tolist()).endswith(stop)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_beams": 2}, "GrammarProcessor works there"),
        ({"output_attentions": True, "return_dict_in_generate": True}, "output_attentions"),
    ],
)
def test_what_the_engine_does_not_do_is_refused_with_the_way_out(model, engine, arguments, message):
    with pytest.raises((RequestError, ValueError), match=message):
        model.generate(torch.tensor(prompts()[:1]), max_new_tokens=4, custom_generate=engine, **arguments)


def test_an_engine_of_another_model_is_refused(engine):
    other = tiny_model("llama")
    with pytest.raises(RequestError, match="another model"):
        other.generate(torch.tensor(prompts()[:1]), max_new_tokens=4, custom_generate=engine)


@pytest.mark.parametrize("num_beams", [1, 3])
def test_grammar_processor_in_plain_generate_at_any_batch_size_and_with_beams(model, num_beams):
    grammar = regex(r"(cat|dog|cow)[0-9]{2}").bind(byte_vocabulary())
    inputs = padded(prompts())
    out = model.generate(
        **inputs, max_new_tokens=12, do_sample=False, num_beams=num_beams, eos_token_id=2, pad_token_id=0,
        logits_processor=LogitsProcessorList([GrammarProcessor(grammar)]),
    )  # fmt: skip
    import re

    for row in out[:, inputs["input_ids"].shape[1] :].tolist():
        assert re.fullmatch(r"(cat|dog|cow)[0-9]{2}", ByteTokenizer().decode(row))

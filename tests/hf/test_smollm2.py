"""The laws of `test_equals_hf` on the real model, in float32."""

import json

import pytest
import torch
from tests.hf.drafters import OracleDrafter

from infercore.constrained import json_schema
from infercore.demo.fetch import smollm2_path
from infercore.hf import Engine

pytestmark = pytest.mark.smollm2
NEW = 32
TEXTS = (
    "The capital of France is Paris. The capital of Italy is",
    "Write a short story about a robot that learns to paint. It begins like this: Once upon a time,",
    "The capital of France is Paris. The capital of Japan is",
)


@pytest.fixture(scope="module")
def loaded():
    path = smollm2_path()
    if path is None:
        pytest.skip("SmolLM2 is not in the user's cache; `infercore demo` fetches it")
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval()
    return model, AutoTokenizer.from_pretrained(path)


@pytest.fixture(scope="module")
def truth(loaded):
    model, tokenizer = loaded
    outputs = {}
    for text in TEXTS:
        ids = tokenizer(text, return_tensors="pt")
        out = model.generate(
            **ids,
            max_new_tokens=NEW,
            do_sample=False,
            return_dict_in_generate=True,
            output_logits=True,
            eos_token_id=None,
        )
        outputs[tuple(ids.input_ids[0].tolist())] = (
            out.sequences[0, ids.input_ids.shape[1] :].tolist(),
            torch.cat(out.logits),
        )
    return outputs


@pytest.mark.parametrize("kind", [None, "right", "half", "wrong"])
def test_ragged_batch_warm_prefix_and_drafts_equal_hf(loaded, truth, kind):
    model, tokenizer = loaded
    engine = Engine(model, tokenizer, num_pages=64, page_size=4)
    drafter = None
    if kind is not None:
        drafter = OracleDrafter({p: tokens for p, (tokens, _) in truth.items()}, kind, tokenizer.vocab_size)
    for _ in range(2):
        done = engine.generate(
            [list(p) for p in truth], max_new_tokens=NEW, drafter=drafter, return_logits=True, eos_token_ids=()
        )
        for completion, (tokens, logits) in zip(done, truth.values(), strict=True):
            assert completion.token_ids == tokens
            assert (completion.logits - logits).abs().max() <= 1e-4 * logits.abs().max()
    assert done[0].stats.num_reused_tokens >= 8


def test_forced_tokens_give_the_logits_of_a_plain_forward(loaded):
    """Jump-forward fixes the spelling of forced text; every position's logits must be those of that very text."""
    model, tokenizer = loaded
    schema = {
        "type": "object",
        "properties": {
            "name": {"type": "string", "maxLength": 12},
            "year": {"type": "integer", "minimum": 0, "maximum": 99},
        },
        "required": ["name", "year"],
        "additionalProperties": False,
    }
    engine = Engine(model, tokenizer, num_pages=64)
    prompt = tokenizer.encode("Describe the Eiffel tower as JSON with name and year: ")
    (done,) = engine.generate(prompt, max_new_tokens=48, grammar=json_schema(schema), return_logits=True)
    assert done.stats.num_forced_tokens > 3
    assert done.finish_reason == "eos"
    ids = torch.tensor([prompt + done.token_ids])
    with torch.no_grad():
        plain = model(ids).logits[0, len(prompt) - 1 : -1]
    assert (done.logits - plain).abs().max() <= 1e-4 * plain.abs().max()
    assert set(json.loads(done.text)) == {"name", "year"}

"""Sampled output is distributed as the target's own, whatever is drafted."""

import numpy as np
import pytest
import torch
import transformers as tf
from tests.hf.drafters import OracleDrafter
from tests.hf.tiny import VOCAB, prompts, tiny_model

from infercore.hf import Engine
from infercore.sampling import SamplingParams, probabilities
from infercore.speculative import TokenTree


@pytest.mark.parametrize("kind", ["right", "half", "wrong"])
@pytest.mark.parametrize(
    "options",
    [
        {"temperature": 1.0},
        {"temperature": 0.7, "top_p": 0.8},
        {"temperature": 1.5, "top_k": 7, "min_p": 0.05},
        {"temperature": 1.0, "repetition_penalty": 1.3, "frequency_penalty": 0.5, "presence_penalty": 0.2},
    ],
)
def test_chosen_drafts_leave_every_sampled_output_as_it_is_without_them(kind, options):
    """A node that was chosen, not drawn, is followed iff the target's own draw names it: equal seeds, equal output."""
    engine = Engine(tiny_model("mistral"), num_pages=128, page_size=4)
    plain = engine.generate(prompts(), max_new_tokens=16, seed=11, **options)
    outputs = {tuple(p): c.token_ids for p, c in zip(prompts(), plain, strict=True)}
    drafted = engine.generate(
        prompts(), max_new_tokens=16, seed=11, drafter=OracleDrafter(outputs, kind, VOCAB), **options
    )
    assert [c.token_ids for c in drafted] == list(outputs.values())
    accepted = sum(c.stats.num_accepted_tokens for c in drafted)
    assert accepted == 0 if kind == "wrong" else accepted > 10


class DrawingDrafter:
    """Draws two siblings without replacement from a fixed distribution, and a child below the first."""

    def __init__(self, probs: torch.Tensor, generator: torch.Generator) -> None:
        self.probs = probs
        self.generator = generator

    def propose(self, requests):
        trees = []
        for _ in requests:
            siblings = torch.multinomial(self.probs, 2, generator=self.generator)
            child = torch.multinomial(self.probs, 1, generator=self.generator)
            ids = torch.cat([siblings, child]).numpy().astype(np.int32)
            trees.append(TokenTree.of(ids, [-1, -1, 0], draft_probs=self.probs.repeat(3, 1)))
        return trees

    def commit(self, request_id, accepted_token_ids, features=None):
        pass

    def close(self, request_id):
        pass


def tiny_vocabulary_model():
    torch.manual_seed(4)
    config = tf.LlamaConfig(
        vocab_size=5, hidden_size=16, intermediate_size=24, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=1, tie_word_embeddings=False, bos_token_id=0, eos_token_id=None, pad_token_id=None,
    )  # fmt: skip
    model = tf.LlamaForCausalLM(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.normal_(0, 0.7)
    return model


OPTIONS = [{"temperature": 1.0}, {"temperature": 0.8, "top_p": 0.85, "top_k": 4}]
PROMPT = [1, 2, 3]


def law_of_three_tokens(model, options):
    """Probability of every output of three tokens, from Hugging Face's forward."""
    params = SamplingParams(**options)
    expected = {}
    with torch.no_grad():
        for a in range(5):
            for b in range(5):
                logits = model(torch.tensor([[*PROMPT, a, b]])).logits[0, 2:]
                first, second, third = probabilities(logits, [params] * 3)
                for c in range(5):
                    expected[a, b, c] = float(first[a] * second[b] * third[c])
    assert sum(expected.values()) == pytest.approx(1, abs=1e-5)
    return expected


def assert_distributed(done, expected):
    counts = dict.fromkeys(expected, 0)
    for completion in done:
        counts[tuple(completion.token_ids)] += 1
    assert all(counts[k] == 0 for k, p in expected.items() if p == 0)
    likely = {k: p * len(done) for k, p in expected.items() if p * len(done) >= 5}
    statistic = sum((counts[k] - e) ** 2 / e for k, e in likely.items())
    degrees = len(likely) - 1
    assert statistic < degrees + 3.1 * (2 * degrees) ** 0.5 + 6  # beyond the 0.1% quantile for these sizes


@pytest.mark.parametrize("options", OPTIONS)
def test_drawn_draft_trees_leave_the_distribution_of_three_tokens_exact(options):
    """Chi-square of 4000 outputs of three tokens against the product of the target's own conditional distributions."""
    model = tiny_vocabulary_model()
    expected = law_of_three_tokens(model, options)
    engine = Engine(model, num_pages=600, page_size=4, max_running=256)
    drafter = DrawingDrafter(torch.tensor([0.1, 0.2, 0.3, 0.25, 0.15]), torch.Generator().manual_seed(9))
    num = 4000
    done = engine.generate([PROMPT], n=num, max_new_tokens=3, seed=100, drafter=drafter, **options)
    assert sum(c.stats.num_accepted_tokens for c in done) > num // 2
    assert_distributed(done, expected)


@pytest.mark.parametrize("options", OPTIONS)
def test_draws_of_steps_that_overlap_have_the_distribution_of_three_tokens(options):
    """Two thousand requests of one prompt, 32 at a time, whose numbers come from generators of neighbouring seeds."""
    model = tiny_vocabulary_model()
    engine = Engine(model, num_pages=600, page_size=4, max_running=32, overlap=True)
    requests = [engine.request(PROMPT, max_new_tokens=3, seed=seed, **options) for seed in range(2000)]
    handles = [engine.submit(request)[0] for request in requests]
    ahead = 0
    while engine.num_unfinished:
        engine.step()
        flight = engine._stepper._flight
        ahead += flight is not None and any(rows.source >= 0 for _, rows in flight.work)
    assert ahead > engine.stats.num_forwards // 3
    assert_distributed([handle.completion for handle in handles], law_of_three_tokens(model, options))

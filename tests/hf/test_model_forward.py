"""A causal LM as a drafter's model: its logits are those of plain forwards, and drafting with it loses nothing."""

import itertools

import numpy as np
import pytest
import torch
import transformers as tf
from tests.hf.tiny import VOCAB, hf_greedy, prompts, tiny_model

from infercore.errors import RequestError
from infercore.hf import Engine, ModelForward
from infercore.speculative import DraftModelDrafter, ForwardFn, TokenTree
from infercore.testing.lossless import chi_square_p_value

TREE = TokenTree.of([7, 9, 11, 7, 3], [-1, -1, 0, 1, 2])
PATHS = [[], [7], [9], [7, 11], [9, 7], [7, 11, 3]]


def plain_logits(model, text):
    with torch.no_grad():
        return model(torch.tensor([list(map(int, text))]), use_cache=False).logits[0, -1]


def assert_right(model, text, tree, paths, logits):
    assert logits.shape == (1 + tree.num_nodes, VOCAB)
    for path, row in zip(paths, logits, strict=True):
        torch.testing.assert_close(row, plain_logits(model, [*text, *path]), atol=2e-4, rtol=1e-4)


@pytest.mark.parametrize("name", ["llama", "gemma3"])
@pytest.mark.parametrize("max_rows", [5, 512])
def test_logits_are_those_of_plain_forwards_while_texts_grow_and_turn_out_different(name, max_rows):
    model = tiny_model(name)
    forward = ModelForward(model, num_pages=64, page_size=4, max_rows=max_rows)
    assert isinstance(forward, ForwardFn)
    texts = {i: np.array(p, np.int32) for i, p in enumerate(prompts())}
    empty = TokenTree.empty()
    for step in range(4):
        trees = [TREE if (step + i) % 2 else empty for i in texts]
        found = forward.forward(list(texts), list(texts.values()), trees)
        for text, tree, logits in zip(texts.values(), trees, found, strict=True):
            assert_right(model, text, tree, PATHS if tree is TREE else [[]], logits)
        texts = {i: np.append(t, np.int32([5 + step, 8])) for i, t in texts.items()}
        if step == 1:  # what was computed is not what the text became
            texts[0] = np.append(texts[0][:-4], np.int32([21, 22]))
            texts[1] = texts[1][:6]
    for i in texts:
        forward.close(i)
        forward.close(i)
    assert forward.cache.counts().in_use == 0


def test_a_draft_s_rows_are_given_back_before_the_call_returns():
    forward = ModelForward(tiny_model("llama"), num_pages=64, page_size=4)
    text = np.arange(3, 16, dtype=np.int32)
    forward.forward([1], [text], [TREE])
    counts = forward.cache.counts()
    assert counts.in_use + counts.cached == -(-len(text) // 4)


def test_where_pages_are_short_other_requests_lose_theirs_and_come_back():
    model = tiny_model("llama")
    forward = ModelForward(model, num_pages=9, page_size=4)  # 32 slots
    texts = [np.arange(3 + i, 23 + i, dtype=np.int32) for i in range(2)]
    for _ in range(2):
        for i, text in enumerate(texts):
            (logits,) = forward.forward([i], [text], [TREE])
            assert_right(model, text, TREE, PATHS, logits)
    with pytest.raises(RequestError, match="num_pages"):
        forward.forward([0, 1], texts, [TREE, TREE])
    (logits,) = forward.forward([1], texts[1:], [TREE])
    assert_right(model, texts[1], TREE, PATHS, logits)


def test_new_weights_are_noticed():
    model = tf.LlamaForCausalLM(tiny_model("llama").config).eval()
    forward = ModelForward(model, num_pages=64, page_size=4)
    text = np.arange(3, 16, dtype=np.int32)
    forward.forward([1], [text], [TREE])
    with torch.no_grad():
        model.model.layers[0].self_attn.v_proj.weight.mul_(-3)
    (logits,) = forward.forward([1], [text], [TREE])
    assert_right(model, text, TREE, PATHS, logits)


@pytest.mark.parametrize("draft", ["itself", "another"])
def test_greedy_output_in_a_batch_is_that_of_the_target_alone(draft):
    target = tiny_model("llama")
    truth = [hf_greedy(target, p, 24)[0] for p in prompts()]
    forward = ModelForward(tiny_model("llama" if draft == "itself" else "mistral"), num_pages=64, page_size=4)
    engine = Engine(target, num_pages=128, page_size=4)
    drafter = DraftModelDrafter(forward, max_depth=3)
    done = engine.generate(prompts(), max_new_tokens=24, drafter=drafter, max_draft_nodes=64)
    assert [c.token_ids for c in done] == truth
    assert forward.cache.counts().in_use == 0
    assert engine.cache.counts().in_use == 0
    if draft == "itself":
        assert all(c.stats.num_sampling_forwards == 6 for c in done)  # 24 tokens, 4 of them a forward


def small_model(seed, vocab_size=5):
    torch.manual_seed(seed)
    config = tf.LlamaConfig(
        vocab_size=vocab_size, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=1, eos_token_id=None, bos_token_id=None, pad_token_id=0, tie_word_embeddings=False,
    )  # fmt: skip
    model = tf.LlamaForCausalLM(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.copy_(torch.randn(parameter.shape) * 0.6)
    return model


@pytest.mark.parametrize("draft", ["itself", "another"])
def test_sampled_output_is_distributed_as_the_target_s(draft):
    """Three tokens over a vocabulary of 5, in batches of 50: the counts against the law, summed exactly."""
    target = small_model(1)
    prompt, temperature = [1, 3, 2], 0.8
    law = []
    for output in itertools.product(range(5), repeat=3):
        rows = [plain_logits(target, prompt + list(output[:i])) for i in range(3)]
        law.append(
            float(torch.stack([(r / temperature).softmax(-1)[t] for r, t in zip(rows, output, strict=True)]).prod())
        )
    law = np.array(law) / sum(law)
    drafter = DraftModelDrafter(
        ModelForward(target if draft == "itself" else small_model(2), page_size=4, num_pages=512),
        max_depth=2, branching=2, num_expanded=1,
    )  # fmt: skip
    engine = Engine(target, num_pages=512, page_size=4)
    counts = np.zeros(125)
    accepted = 0
    for seed in range(0, 2000, 50):
        for done in engine.generate(
            prompt,
            n=50,
            max_new_tokens=3,
            temperature=temperature,
            seed=10_000 * seed,
            drafter=drafter,
            max_draft_nodes=4,
        ):
            counts[np.ravel_multi_index(done.token_ids, (5, 5, 5))] += 1
            accepted += done.stats.num_accepted_tokens
    assert chi_square_p_value(counts, law) > 1e-6
    assert accepted > 500

"""Medusa heads: what they propose is what a plain product says; outputs stay the target's."""

import json

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from tests.hf.test_equals_hf import new_engine
from tests.hf.tiny import VOCAB, hf_greedy, prompts, tiny_model

from infercore.errors import CheckpointError
from infercore.hf import EagleDrafter, MedusaDrafter
from infercore.speculative import DraftRequest

HEADS, LAYERS, HIDDEN = 3, 2, 64


def weights() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    tensors = {}
    for head in range(HEADS):
        for layer in range(LAYERS):
            tensors[f"{head}.{layer}.linear.weight"] = torch.randn(HIDDEN, HIDDEN, generator=generator) / 8
            tensors[f"{head}.{layer}.linear.bias"] = torch.randn(HIDDEN, generator=generator)
        tensors[f"{head}.{LAYERS}.weight"] = torch.randn(VOCAB, HIDDEN, generator=generator) / 4
    return tensors


def write(folder, tensors=None, prefix=""):
    folder.mkdir(exist_ok=True)
    content = {"medusa_num_heads": HEADS, "medusa_num_layers": LAYERS, "base_model_name_or_path": "tiny"}
    (folder / "config.json").write_text(json.dumps(content))
    save_file({prefix + name: t for name, t in (tensors or weights()).items()}, folder / "medusa_lm_head.safetensors")
    return folder


def plain_probs(hidden, temperature=1.0):
    """`[heads, vocab]`, written from the format alone."""
    w, rows = weights(), []
    for head in range(HEADS):
        x = hidden
        for layer in range(LAYERS):
            y = w[f"{head}.{layer}.linear.weight"] @ x + w[f"{head}.{layer}.linear.bias"]
            x = x + y * torch.sigmoid(y)
        rows.append(torch.softmax(w[f"{head}.{LAYERS}.weight"] @ x / temperature, 0))
    return torch.stack(rows)


@pytest.mark.parametrize("prefix", ["", "medusa_head."])
def test_trees_are_what_a_plain_product_of_the_heads_says(prefix, tmp_path):
    drafter = MedusaDrafter.from_pretrained(write(tmp_path, prefix=prefix), tiny_model("llama"), branching=4)
    hidden = torch.randn(5, HIDDEN)
    text = np.array([4, 5, 6, 7])
    drafter.see([1], [0], [np.array([1, 3, 4])], hidden, [text])
    (tree,) = drafter.propose([DraftRequest(1, text, 500)])
    probs = plain_probs(hidden[4])
    assert tree.depths.max() == HEADS
    for node, (token, parent) in enumerate(zip(tree.token_ids.tolist(), tree.parents.tolist(), strict=True)):
        above = float(tree.scores[parent]) if parent >= 0 else 1.0
        assert abs(float(tree.scores[node]) - above * float(probs[tree.depths[node] - 1, token])) < 1e-5
    request = DraftRequest(1, text, 12, temperature=0.6, generator=torch.Generator().manual_seed(1))
    (tree,) = drafter.propose([request])
    for node in range(tree.num_nodes):
        expected = plain_probs(hidden[4], 0.6)[tree.depths[node] - 1]
        torch.testing.assert_close(tree.draft_probs[node], expected, atol=1e-5, rtol=0)
    assert drafter.propose([DraftRequest(1, np.append(text, 3), 9), DraftRequest(2, text, 9)])[0].num_nodes == 0


@pytest.mark.parametrize("options", [{}, {"n": 2}])
def test_greedy_outputs_are_those_of_plain_decoding(options, tmp_path):
    model = tiny_model("llama")
    drafter = MedusaDrafter.from_pretrained(write(tmp_path), model)
    engine = new_engine(model, num_pages=128)
    done = engine.generate(prompts(), max_new_tokens=16, drafter=drafter, **options)
    truth = [hf_greedy(model, p, 16)[0] for p in prompts() for _ in range(options.get("n", 1))]
    assert [c.token_ids for c in done] == truth
    assert all(c.stats.num_drafted_tokens > 30 for c in done)
    done = engine.generate(prompts(), max_new_tokens=16, drafter=drafter, temperature=0.9, seed=2, **options)
    assert all(len(c.token_ids) == 16 and c.stats.num_drafted_tokens > 30 for c in done)
    assert not drafter._seen


def test_foreign_files_are_refused(tmp_path):
    model = tiny_model("llama")
    tensors = weights()
    del tensors["2.1.linear.bias"]
    with pytest.raises(CheckpointError, match=r"3 Medusa heads for this LlamaForCausalLM lacks 2.1.linear.bias"):
        MedusaDrafter.from_pretrained(write(tmp_path, tensors), model)
    write(tmp_path)
    with pytest.raises(CheckpointError, match="holds Medusa heads; expected an EAGLE head"):
        EagleDrafter.from_pretrained(tmp_path, model)
    with pytest.raises(ValueError, match="max_depth is 4, but there are 3 heads"):
        MedusaDrafter.from_pretrained(tmp_path, model, max_depth=4)
    (tmp_path / "config.json").write_text(
        json.dumps({"hidden_size": 64, "vocab_size": VOCAB, "intermediate_size": 80, "num_attention_heads": 4})
    )
    with pytest.raises(CheckpointError, match="holds an EAGLE head; expected medusa_num_heads"):
        MedusaDrafter.from_pretrained(tmp_path, model)

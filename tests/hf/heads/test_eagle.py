"""Heads of every flavour propose what a plain, slow forward of the head says; foreign files are refused."""

import json

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from tests.hf.heads import plain
from tests.hf.heads.checkpoints import CONFIGS, DRAFT, FLAVOURS, HIDDEN, LAYERS, draft_ids, weights, write
from tests.hf.tiny import VOCAB, tiny_model

from infercore.errors import CheckpointError
from infercore.hf import EagleDrafter
from infercore.hf.heads.checkpoint import int8_rows
from infercore.speculative import DraftRequest

EVERYTHING = 10_000
TOLERANCE = 1e-5


def chances(flavour, model, features, text, path, w=None):
    """Of each token of `path` behind `text`, by the plain forward; 0 where a token is not in the draft vocabulary."""
    w = w or weights(flavour)
    tokens = [*text[1:], *path[:-1]]
    outputs = plain.path_outputs(flavour, w, model.get_input_embeddings().weight.detach(), features, tokens)
    rows = plain.logits(flavour, w, outputs[len(text) - 2 :], model.get_output_embeddings().weight.detach())
    probs = torch.softmax(rows, -1)
    if "d2t" not in w:
        return [float(row[token]) for row, token in zip(probs, path, strict=True)]
    place = {int(token): i for i, token in enumerate(draft_ids())}
    return [float(row[place[token]]) for row, token in zip(probs, path, strict=True)]


def paths(tree):
    out = []
    for token, parent in zip(tree.token_ids.tolist(), tree.parents.tolist(), strict=True):
        out.append([*(out[parent] if parent >= 0 else []), token])
    return out


def see(drafter, request_id, first, features, text):
    """As the engine tells it, among rows of others."""
    around = torch.cat([torch.full_like(features[:1], float("nan")), features])
    drafter.see([request_id], [first], [np.arange(1, len(around))], around, [np.array(text)])


def features_of(drafter, length, seed=0):
    return torch.randn(length, drafter.head.feature_size, generator=torch.Generator().manual_seed(seed))


def assert_tree_is_right(flavour, model, tree, features, text, num_checked=12):
    assert tree.num_nodes > 20
    everything = paths(tree)
    chosen = sorted(range(tree.num_nodes), key=lambda node: (-len(everything[node]), node))[:num_checked]
    for node in [*chosen, 0, 1]:
        expected = np.prod(chances(flavour, model, features, text, everything[node]))
        assert abs(float(tree.scores[node]) - expected) < TOLERANCE


@pytest.mark.parametrize("flavour", FLAVOURS)
def test_a_draft_is_what_the_plain_forward_says(flavour, tmp_path):
    model = tiny_model("llama")
    drafter = EagleDrafter.from_pretrained(write(flavour, tmp_path), model, max_depth=4, branching=5, num_expanded=3)
    text = list(range(10, 22))
    features = features_of(drafter, 14)
    w = weights(flavour)
    if flavour == "eagle3, int8":
        w |= dict(drafter.head.state_dict())
    see(drafter, 7, 0, features[:11], text)
    (tree,) = drafter.propose([DraftRequest(7, np.array(text), EVERYTHING)])
    assert tree.num_nodes == 5 + 3 * 3 * 5
    for node in range(tree.num_nodes):
        path = paths(tree)[node]
        if len(path) in (1, 4) and node % 3 == 0:
            expected = np.prod(chances(flavour, model, features[:11], text, path, w))
            assert abs(float(tree.scores[node]) - expected) < TOLERANCE
    # root's children are the five likeliest, and of each depth the three likeliest nodes have children
    rows = plain.path_outputs(flavour, w, model.get_input_embeddings().weight.detach(), features[:11], text[1:])
    top = plain.logits(flavour, w, rows[-1:], model.get_output_embeddings().weight.detach())[0].topk(5).indices
    assert tree.token_ids[:5].tolist() == (draft_ids()[top] if "d2t" in w else top).tolist()
    for depth in (1, 2, 3):
        level = np.flatnonzero(tree.depths == depth)
        grown = {int(p) for p in tree.parents[tree.depths == depth + 1]}
        assert grown == set(level[np.argsort(-tree.scores[level], kind="stable")][:3].tolist())
    # two tokens are accepted: their true features take the place of what the head thought
    text += [*paths(tree)[-1][:2], 5]
    see(drafter, 7, 11, features[11:14], text[:-3])
    (tree,) = drafter.propose([DraftRequest(7, np.array(text), EVERYTHING)])
    for node in (0, 3, 20, 49):
        expected = np.prod(chances(flavour, model, features, text, paths(tree)[node], w))
        assert abs(float(tree.scores[node]) - expected) < TOLERANCE


def test_int8_weights_are_within_half_a_step_of_what_was_stored(tmp_path):
    model = tiny_model("llama")
    head = EagleDrafter.from_pretrained(write("eagle3, int8", tmp_path), model).head
    for name, stored in weights("eagle3").items():
        if stored.ndim == 2:
            step = stored.abs().amax(1, keepdim=True) / 127
            assert ((head.state_dict()[name] - stored).abs() <= step / 2 + 1e-7).all()
    assert int8_rows(weights("eagle3"))["norm.weight"].dtype is torch.float32


@pytest.mark.parametrize("flavour", ["eagle3", "speculators, qwen3, two layers"])
def test_what_a_request_is_offered_does_not_depend_on_the_batch_or_on_how_its_features_came(flavour, tmp_path):
    model = tiny_model("llama")
    folder = write(flavour, tmp_path)
    texts = [list(range(5, 5 + n)) for n in (3, 150, 40, 17)]
    alone = []
    for number, text in enumerate(texts):
        drafter = EagleDrafter.from_pretrained(folder, model)
        see(drafter, 1, 0, features_of(drafter, len(text) - 1, number), text)
        alone += drafter.propose([DraftRequest(1, np.array(text), 40)])
    drafter = EagleDrafter.from_pretrained(folder, model)
    for number, text in enumerate(texts):
        features = features_of(drafter, len(text) - 1, number)
        for start in range(0, len(features), 29):
            see(drafter, number, start, features[start : start + 29], text[: start + 40])
            drafter.propose([DraftRequest(number, np.array(text), 4)])  # comes too early, most times
    for _ in range(2):
        together = drafter.propose([DraftRequest(i, np.array(text), 40) for i, text in enumerate(texts)])
        for mine, expected in zip(together, alone, strict=True):
            assert mine.token_ids.tolist() == expected.token_ids.tolist()
            assert mine.parents.tolist() == expected.parents.tolist()
            np.testing.assert_allclose(mine.scores, expected.scores, atol=TOLERANCE)


def test_rejected_features_are_forgotten_and_unknown_ones_begin_anew(tmp_path):
    model = tiny_model("llama")
    drafter = EagleDrafter.from_pretrained(write("eagle3", tmp_path), model)
    text = list(range(3, 33))
    features = features_of(drafter, 29)
    see(drafter, 1, 0, features_of(drafter, 20, 9), text)  # a run that is preempted
    drafter.propose([DraftRequest(1, np.array(text[:21]), 8)])
    see(drafter, 1, 0, features, text)
    (tree,) = drafter.propose([DraftRequest(1, np.array(text), 30)])
    assert_tree_is_right("eagle3", model, tree, features, text)
    see(drafter, 2, 12, features[12:], text)  # the first twelve tokens came from the prefix cache
    (tree,) = drafter.propose([DraftRequest(2, np.array(text), 30)])
    assert_tree_is_right("eagle3", model, tree, features[12:], text[12:])
    drafter.fork(2, 3)
    drafter.close(2)
    (tree,) = drafter.propose([DraftRequest(3, np.array(text), 30)])
    assert_tree_is_right("eagle3", model, tree, features[12:], text[12:])
    assert (
        drafter.propose([DraftRequest(3, np.array([*text, 4]), 30), DraftRequest(9, np.array(text), 30)])[0].num_nodes
        == 0
    )


@pytest.mark.parametrize("flavour", ["eagle1", "eagle3", "speculators, 3.1"])
def test_drawn_trees_carry_what_they_were_drawn_from(flavour, tmp_path):
    model = tiny_model("llama")
    drafter = EagleDrafter.from_pretrained(write(flavour, tmp_path), model, max_depth=3, branching=4, num_expanded=2)
    text = list(range(10, 22))
    features = features_of(drafter, 11)
    see(drafter, 1, 0, features, text)
    w = weights(flavour)
    generator = torch.Generator().manual_seed(1)
    for _ in range(2):
        request = DraftRequest(1, np.array(text), 30, temperature=0.7, generator=generator)
        (tree,) = drafter.propose([request])
        assert tree.depths.max() == 3
        for node, path in enumerate(paths(tree)):
            tokens = [*text[1:], *path[:-1]]
            outputs = plain.path_outputs(flavour, w, model.get_input_embeddings().weight.detach(), features, tokens)
            row = plain.logits(flavour, w, outputs[-1:], model.get_output_embeddings().weight.detach())[0]
            expected = torch.zeros(VOCAB)
            expected[draft_ids() if "d2t" in w else torch.arange(VOCAB)] = torch.softmax(row / 0.7, -1)
            torch.testing.assert_close(tree.draft_probs[node], expected, atol=TOLERANCE, rtol=0)
        siblings = [tuple(sorted(tree.token_ids[tree.parents == p].tolist())) for p in set(tree.parents.tolist())]
        assert all(len(set(some)) == len(some) for some in siblings)


def broken(tmp_path, flavour="eagle3", *, config=None, drop=(), change=None):
    folder = write(flavour, tmp_path)
    if config is not None:
        (folder / "config.json").write_text(json.dumps({**CONFIGS[flavour], **config}))
    if drop or change:
        tensors = {n: t for n, t in weights(flavour).items() if n not in drop} | (change or {})
        save_file(tensors, folder / "model.safetensors")
    return folder


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        ({"drop": ("fc.weight",)}, "no EAGLE head.*expected fc.weight"),
        ({"drop": ("norm.weight",)}, "lacks norm.weight"),
        ({"drop": ("d2t",)}, "no d2t, but the draft vocabulary is 61 of 199"),
        ({"change": {"d2t": torch.full((DRAFT,), 190)}}, "d2t leads to ids from 190 to 250"),
        ({"change": {"t2d": torch.ones(VOCAB, dtype=torch.bool)}}, "t2d and d2t name different tokens"),
        ({"change": {"adapter.weight": torch.ones(2)}}, "has adapter.weight, which an EAGLE-3 head has no place for"),
        ({"change": {"norm.weight": torch.ones(5)}}, r"norm.weight of shape \(5,\), expected \(64,\)"),
        ({"change": {"lm_head.weight": torch.ones(DRAFT, HIDDEN).to(torch.int8)}}, "int8 without lm_head.weight_scale"),
        ({"config": {"hidden_size": 32}}, "of width 32 and 199 tokens, but this LlamaForCausalLM has width 64"),
        ({"config": {"hidden_size": None}}, "config.json lacks hidden_size; expected the config of an EAGLE head"),
        ({"config": {"speculators_model_type": "dflash"}}, "of type 'dflash'; expected one of eagle, eagle3"),
        ({"config": {"medusa_num_heads": 3}}, "holds Medusa heads; expected an EAGLE head"),
        ({"config": {"rope_scaling": {"type": "dynamic", "factor": 2.0}}}, "type 'dynamic' .* are not read"),
        ({"config": {"eagle_config": {"eagle_aux_hidden_state_layer_ids": [1, 2]}}}, "fc takes 192 columns, but 2"),
    ],
)  # fmt: skip
def test_foreign_files_are_refused_with_what_was_expected(damage, message, tmp_path):
    with pytest.raises(CheckpointError, match=message):
        EagleDrafter.from_pretrained(broken(tmp_path, **damage), tiny_model("llama"))


def test_missing_and_torn_files_are_refused(tmp_path):
    model = tiny_model("llama")
    with pytest.raises(CheckpointError, match=r"has no config.json; expected a folder with config.json"):
        EagleDrafter.from_pretrained(tmp_path, model)
    folder = write("eagle3", tmp_path / "a")
    whole = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(whole[:-100])
    with pytest.raises(CheckpointError, match="no whole safetensors file"):
        EagleDrafter.from_pretrained(folder, model)
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match=r"only pytorch_model.bin, which are pickles"):
        EagleDrafter.from_pretrained(folder, model)
    (folder / "config.json").write_text("[1]")
    with pytest.raises(CheckpointError, match="holds a list, expected an object"):
        EagleDrafter.from_pretrained(folder, model)


def test_features_come_from_the_layers_that_the_config_names(tmp_path):
    model = tiny_model("llama")
    layers = {
        name: EagleDrafter.from_pretrained(write(name, tmp_path / name), model).feature_layers for name in FLAVOURS
    }
    assert layers["eagle3"] == (2, 1, 0)  # of three layers
    assert layers["eagle3, SpecForge"] == layers["speculators"] == LAYERS
    assert layers["eagle1"] == layers["eagle1, speculators"] == (-1,)

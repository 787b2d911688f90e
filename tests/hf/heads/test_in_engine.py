"""The head in the engine: features of the right rows, outputs as without it, in batches, by graphs, sampled."""

import copy

import numpy as np
import pytest
import torch
from tests.hf.heads import plain
from tests.hf.heads.checkpoints import CONFIGS, weights, write
from tests.hf.heads.test_eagle import chances, paths, see
from tests.hf.test_equals_hf import GRAMMAR, byte_vocabulary, new_engine
from tests.hf.test_step_graphs import Recorder, engine_with
from tests.hf.tiny import hf_greedy, prompts, tiny_model

from infercore.constrained import regex
from infercore.errors import UnsupportedModel
from infercore.hf import EagleDrafter, Engine, graphs
from infercore.hf import features as features_module
from infercore.hf.features import Features
from infercore.hf.heads.config import parse_config
from infercore.hf.heads.eagle import head_for
from infercore.speculative import DraftRequest, FixedBudget, SuffixDrafter, Union, verify
from infercore.testing.lossless import assert_lossless

COLUMNS = {"eagle1": (3,), "eagle3": (2, 1, 0), "speculators": (0, 2, 3)}


def hf_features(model, flavour, text):
    """By Hugging Face's own forward: the inputs of layers, and the last hidden state."""
    with torch.no_grad():
        out = model(torch.tensor([text]), output_hidden_states=True)
    before_norm = []
    hook = model.model.norm.register_forward_pre_hook(lambda module, args: before_norm.append(args[0]))
    with torch.no_grad():
        model(torch.tensor([text]))
    hook.remove()
    states = [*out.hidden_states[:3], before_norm[0] if flavour == "speculators" else out.hidden_states[3]]
    return torch.cat([states[i][0] for i in COLUMNS[flavour]], -1)


class Kept:
    """Passes everything on, and keeps the drafts."""

    def __init__(self, drafter):
        self.drafters, self.kept = (drafter,), []

    def propose(self, requests):
        trees = self.drafters[0].propose(requests)
        self.kept += [(r.token_ids.tolist(), tree) for r, tree in zip(requests, trees, strict=True) if tree.num_nodes]
        return trees

    def commit(self, *args):
        self.drafters[0].commit(*args)

    def close(self, request_id):
        self.drafters[0].close(request_id)


def claims_of(drafter):
    """How many drafts of each call of the drafter had been started before it."""
    claimed, choose = [], drafter._choose

    def counted(requests):
        claimed.append(sum(request.request_id in drafter._started for request in requests))
        return choose(requests)

    drafter._choose = counted
    return claimed


def test_nothing_is_started_for_a_request_that_stopped_drafting(tmp_path):
    model = tiny_model("llama")
    drafter = EagleDrafter.from_pretrained(write("eagle3", tmp_path), model, max_depth=3)
    drafter._starts_early = True
    started, start = [], drafter._start
    drafter._start = lambda entries: (started.append(len(started)), start(entries))
    engine = new_engine(model)
    engine.controller = OnFor(6)
    (done,) = engine.generate(prompts()[:1], max_new_tokens=24, drafter=drafter)
    assert done.token_ids == hf_greedy(model, prompts()[0], 24)[0]
    assert 6 <= len(started) <= 7


class OnFor(FixedBudget):
    """Some steps with drafts, then none."""

    def __init__(self, steps):
        super().__init__(4)
        self.left = steps

    def budget(self, request_ids, **more):
        self.left -= 1
        return super().budget(request_ids, **more) if self.left >= 0 else [0] * len(request_ids)


@pytest.mark.parametrize(
    ("flavour", "by_graphs", "early"),
    [("eagle1", False, True), ("eagle3", True, True), ("eagle3", False, False), ("speculators", False, False)],
)
def test_drafts_follow_the_true_features_of_the_text(flavour, by_graphs, early, tmp_path):
    model = tiny_model("llama")
    eagle = EagleDrafter.from_pretrained(write(flavour, tmp_path), model, max_depth=3)
    eagle._starts_early = early  # as on a GPU
    claimed = claims_of(eagle)
    drafter = Kept(eagle)
    engine = engine_with(model, Recorder(), max_rows=7) if by_graphs else new_engine(model, max_rows=7)
    texts = [*prompts(), [*prompts()[0], 9]]  # the last one waits for the beginning that the first one computes
    done = engine.generate(texts, max_new_tokens=12, drafter=drafter)
    assert [c.token_ids for c in done] == [hf_greedy(model, text, 12)[0] for text in texts]
    assert by_graphs == bool(engine._stepper.graphs and engine._stepper.graphs.num_replays)
    assert (sum(claimed) > 10) == early
    assert done[-1].stats.num_reused_tokens >= 15
    assert len(drafter.kept) > 20
    for text, tree in drafter.kept:
        assert_scores_are_true(flavour, model, text, tree)


class Now(FixedBudget):
    """Drafts in every fifth step only."""

    def __init__(self):
        super().__init__(4)
        self.step = 0

    def budget(self, request_ids, **more):
        self.step += 1
        return super().budget(request_ids, **more) if self.step % 5 == 0 else [0] * len(request_ids)


@pytest.mark.parametrize("num_rows", [16, 40, 2048])
def test_features_of_steps_without_a_draft_are_kept_however_long_ago(num_rows, tmp_path, monkeypatch):
    monkeypatch.setattr("infercore.hf.heads.drafter.NUM_ROWS", num_rows)  # 16 rows come round before the next draft
    monkeypatch.setattr("infercore.hf.heads.drafter.MOST_ROWS", 16)
    model = tiny_model("llama")
    eagle = EagleDrafter.from_pretrained(write("eagle3", tmp_path), model, max_depth=3)
    eagle._starts_early = True
    drafter = Kept(eagle)
    engine = new_engine(model, max_rows=7, controller=Now())
    done = engine.generate(prompts(), max_new_tokens=30, drafter=drafter)
    assert [c.token_ids for c in done] == [hf_greedy(model, text, 30)[0] for text in prompts()]
    assert len(drafter.kept) > 12
    for text, tree in drafter.kept:
        assert_scores_are_true("eagle3", model, text, tree)


def test_engines_that_share_a_head_take_turns(tmp_path):
    model = tiny_model("llama")
    eagle = EagleDrafter.from_pretrained(write("eagle3", tmp_path), model, max_depth=3)
    eagle._starts_early = True
    drafter = Kept(eagle)
    engines = [new_engine(model, overlap=True) for _ in range(2)]
    handles = [
        engine.submit(engine.request(prompt, max_new_tokens=20, drafter=drafter))[0]
        for engine, prompt in zip(engines, prompts(), strict=False)
    ]
    while any(engine.num_unfinished for engine in engines):
        for engine in engines:
            engine.step()
    for handle, prompt in zip(handles, prompts(), strict=False):
        assert handle.completion.token_ids == hf_greedy(model, prompt, 20)[0]
    assert len(drafter.kept) > 8
    for text, tree in drafter.kept:
        assert_scores_are_true("eagle3", model, text, tree)


def assert_scores_are_true(flavour, model, text, tree, first=0):
    """Those of a head that saw all features of the text, or those from `first` on."""
    features = hf_features(model, flavour if flavour in COLUMNS else "eagle3", text)[first:-1]
    for node in (0, tree.num_nodes - 1):
        expected = np.prod(chances(flavour, model, features, text[first:], paths(tree)[node]))
        assert abs(float(tree.scores[node]) - expected) < 1e-4


@pytest.mark.parametrize(
    ("flavour", "options"),
    [("eagle1", {}), ("eagle3", {"repetition_penalty": 1.2, "frequency_penalty": 0.3}), ("speculators", {"n": 3})],
)
def test_greedy_outputs_are_those_of_plain_decoding(flavour, options, tmp_path):
    model = tiny_model("llama")
    drafter = EagleDrafter.from_pretrained(write(flavour, tmp_path), model)
    engine = new_engine(model, num_pages=128)
    expected = [c.token_ids for c in engine.generate(prompts(), max_new_tokens=24, **options)]
    for use in (drafter, Union(SuffixDrafter(), drafter)):
        done = engine.generate(prompts(), max_new_tokens=24, drafter=use, **options)
        assert [c.token_ids for c in done] == expected
        assert all(c.stats.num_drafted_tokens > 50 for c in done)
    assert not drafter._seen


def test_under_a_grammar_and_when_pages_run_out(tmp_path):
    model = tiny_model("llama")
    drafter = EagleDrafter.from_pretrained(write("eagle3", tmp_path), model)
    options = {"max_new_tokens": 30, "grammar": regex(GRAMMAR).bind(byte_vocabulary()), "eos_token_ids": (2,)}
    for more in ({}, {"temperature": 1.2, "seed": 5}):
        plain_engine = new_engine(model)
        done = plain_engine.generate(prompts(), drafter=drafter, **options, **more)
        assert sum(c.stats.num_drafted_tokens for c in done) > 0
        if not more:
            assert [c.token_ids for c in done] == [c.token_ids for c in plain_engine.generate(prompts(), **options)]
    few = Engine(model, num_pages=14, page_size=4, poison=True)  # requests are preempted
    truth = [hf_greedy(model, p, 24)[0] for p in prompts()]
    done = few.generate(prompts(), max_new_tokens=24, drafter=drafter)
    assert [c.token_ids for c in done] == truth


def perfect(model, folder):
    """An EAGLE-1 head that is the target's own next step: for a target whose next token depends on the last one only.

    `fc` takes the embedding and the layer adds nothing, so its output is the embedding; with the target's head on it.
    """
    w = weights("eagle1")
    hidden = CONFIGS["eagle1"]["hidden_size"]
    w["fc.weight"] = torch.cat([torch.eye(hidden), torch.zeros(hidden, hidden)], 1)
    w["fc.bias"] = torch.zeros(hidden)
    for name in ("layers.0.self_attn.o_proj.weight", "layers.0.mlp.down_proj.weight"):
        w[name] = torch.zeros_like(w[name])
    write("eagle1", folder, w)
    return folder


def test_a_head_that_knows_the_target_is_accepted_to_the_end(tmp_path):
    model = copy.deepcopy(tiny_model("llama"))
    with torch.no_grad():
        for layer in model.model.layers:  # the target's next token then depends on the last one alone
            layer.self_attn.o_proj.weight.zero_()
            layer.mlp.down_proj.weight.zero_()
        rms = model.model.embed_tokens.weight.pow(2).mean(-1, keepdim=True).sqrt()
        model.model.embed_tokens.weight.div_(rms)
        model.model.norm.weight.fill_(1)
    drafter = EagleDrafter.from_pretrained(perfect(model, tmp_path), model, max_depth=5, branching=1)
    for controller in (None, FixedBudget(8)):
        engine = Engine(model, num_pages=256, page_size=4, controller=controller)
        done = engine.generate(prompts(4), max_new_tokens=31, drafter=drafter)
        assert [c.token_ids for c in done] == [c.token_ids for c in engine.generate(prompts(4), max_new_tokens=31)]
        assert all(c.stats.num_sampling_forwards == 6 for c in done)  # one token, then six a forward


def test_the_drawn_trees_leave_the_law_as_it_is(tmp_path):
    """Chi-square against the exact law of a table model: the head draws, verification corrects."""
    folder, vocab, drafted = tmp_path, 4, [0, 2, 3]
    w = {name: t for name, t in weights("eagle3").items() if name not in ("d2t", "t2d")}
    w["lm_head.weight"] = w["lm_head.weight"][:3]
    w["d2t"] = torch.tensor(drafted) - torch.arange(3)
    w["embed_tokens.weight"] = torch.randn(vocab, 64)
    write("eagle3", folder, w)
    config = CONFIGS["eagle3"] | {"vocab_size": vocab, "draft_vocab_size": 3}
    head = head_for(parse_config(config), w, embedding=None, target_head=None)
    drafter = EagleDrafter(head, feature_layers=(0, 1, 2), vocab_size=vocab, max_depth=2, branching=2, num_expanded=1)
    table = torch.randn(vocab, head.feature_size, generator=torch.Generator().manual_seed(2))
    accepted = 0

    def sample(model, num_tokens, generator):
        nonlocal accepted
        text, output = [1, 1], []
        see(drafter, 0, 0, table[torch.tensor(text[:-1])], text)
        while len(output) < num_tokens:
            request = DraftRequest(0, np.array(text), 3, temperature=1.0, generator=generator)
            (tree,) = drafter.propose([request])
            rows = torch.stack([model.probs([*output, *path]) for path in [[], *paths(tree)]])
            (verdict,) = verify([tree], [rows], generators=generator)
            new = verdict.token_ids(tree).tolist()
            accepted += len(new) - 1
            see(drafter, 0, len(text) - 1, table[torch.tensor([text[-1], *new[:-1]])], text)
            text, output = text + new, output + new
        drafter.close(0)
        return output[:num_tokens]

    assert_lossless(sample, vocab_size=vocab, num_samples=600, num_models=1)
    assert accepted > 180


def test_features_are_those_of_the_last_forward_and_hooks_go_with_them():
    model = tiny_model("llama")
    features = Features(model, (0, -1, 3))
    for length in (5, 300):
        with torch.no_grad():
            out = model(torch.arange(length)[None] % 190, output_hidden_states=True)
        rows = features.rows(length)
        assert torch.equal(rows[:, :64], out.hidden_states[0][0])
        assert torch.equal(rows[:, 64:128], out.hidden_states[3][0])
        normed = plain.rms(rows[:, 128:], model.model.norm.weight)
        torch.testing.assert_close(normed, rows[:, 64:128], atol=1e-3, rtol=1e-3)
    assert graphs.ROWS[-1] <= features_module._FEW_ROWS
    hooks = [len(layer._forward_pre_hooks) + len(layer._forward_hooks) for layer in model.model.layers]
    del features
    after = [len(layer._forward_pre_hooks) + len(layer._forward_hooks) for layer in model.model.layers]
    assert sum(hooks) - sum(after) == 2
    with pytest.raises(UnsupportedModel, match=r"has 3 decoder layers, but .* the inputs of layers \(4,\)"):
        Features(model, (4,))

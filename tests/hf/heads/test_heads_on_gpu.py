"""Drafts of a head on a real GPU, by graphs, compiled or not: those of a CPU, and outputs are those of plain decoding.

TRITON_INTERPRET=0 pytest -m gpu tests/hf/heads        # on a machine with a GPU; skips elsewhere
"""

import copy

import numpy as np
import pytest
import torch
from tests.hf.heads.checkpoints import write
from tests.hf.heads.test_eagle import features_of
from tests.hf.tiny import tiny_model

from infercore.hf import EagleDrafter, Engine
from infercore.speculative import DraftRequest, LazyUnion, SuffixDrafter, Union

pytestmark = pytest.mark.gpu


@pytest.mark.parametrize(("flavour", "fuse"), [("eagle1", False), ("eagle3", False), ("eagle3", True)])
def test_drafts_are_those_of_a_cpu(flavour, fuse, tmp_path):
    folder = write(flavour, tmp_path)
    models = {"cpu": tiny_model("llama"), "cuda": copy.deepcopy(tiny_model("llama")).cuda()}
    drafters = {
        device: EagleDrafter.from_pretrained(folder, model, max_depth=4, fuse_layers=fuse and device == "cuda")
        for device, model in models.items()
    }
    texts = [list(range(5, 5 + n)) for n in (3, 150, 40)]
    for grown in range(4):  # each draft comes after more text, in batches of one and three
        drafts = {}
        for device, drafter in drafters.items():
            for number, text in enumerate(texts):
                features = features_of(drafter, len(text) - 1 + 3 * grown, number)
                first = 0 if not grown else len(text) - 1 + 3 * (grown - 1)
                told = features[first:].to(device)
                drafter.see([number], [first], [np.arange(len(told))], told, [np.array(text)])
            longer = [np.array(text + list(range(60, 60 + 3 * grown))) for text in texts]
            requests = [DraftRequest(i, text, 12) for i, text in enumerate(longer)]
            drafts[device] = drafter.propose(requests[:1]) + drafter.propose(requests)
        for mine, theirs in zip(drafts["cuda"], drafts["cpu"], strict=True):
            assert mine.num_nodes == 12
            np.testing.assert_allclose(np.sort(mine.scores), np.sort(theirs.scores), atol=1e-4)
            assert mine.token_ids[:3].tolist() == theirs.token_ids[:3].tolist()
    assert len(drafters["cuda"]._expansion._replays) >= 2


@pytest.mark.parametrize("fuse", [False, True])
def test_outputs_are_those_of_plain_decoding(fuse, tmp_path):
    model = copy.deepcopy(tiny_model("llama")).cuda()
    drafter = EagleDrafter.from_pretrained(write("eagle3", tmp_path), model, fuse_layers=fuse)
    prompts = [[5, 6, 7, 8, 9], list(range(3, 90)), [12, 13] * 70]
    engine = Engine(model, num_pages=200)
    expected = [c.token_ids for c in engine.generate(prompts, max_new_tokens=24)]
    for nodes in (7, 30):
        done = engine.generate(prompts, max_new_tokens=24, drafter=drafter, max_draft_nodes=nodes)
        assert [c.token_ids for c in done] == expected
        assert all(c.stats.num_drafted_tokens > 20 for c in done)
    torch.cuda.synchronize()


@pytest.mark.parametrize("union", [Union, LazyUnion])
def test_nothing_is_captured_after_a_warm_up_with_the_drafter(union, tmp_path):
    model = copy.deepcopy(tiny_model("llama")).cuda()
    eagle = EagleDrafter.from_pretrained(write("eagle3", tmp_path), model)
    drafter = union(SuffixDrafter(), eagle)
    engine = Engine(model, num_pages=400, max_running=4)
    engine.warmup(batch=4, rows=256, drafter=drafter, tokens=600, progress=False)

    def captured():
        replays = eagle._expansion._replays, eagle._intake._replays
        return [len(some) for some in replays], engine.report().split("graphs")[1].split(",")[0]

    before = captured()
    assert min(before[0]) >= 6
    prompts = [[5, 6, 7, 8, 9], list(range(3, 90)), [12, 13] * 70, list(range(4, 94)) * 5]
    expected = [c.token_ids for c in engine.generate(prompts, max_new_tokens=60)]
    done = engine.generate(prompts, max_new_tokens=60, drafter=drafter, max_draft_nodes=24)
    assert [c.token_ids for c in done] == expected
    assert captured() == before
    assert "captured" in before[1]

"""Shared prefixes read once on a real GPU: equal to Hugging Face, by graphs and without, while requests come and go.

TRITON_INTERPRET=0 pytest -m gpu tests/hf        # on a machine with a GPU; skips elsewhere
"""

import copy

import pytest
import torch
from tests.hf.drafters import OracleDrafter
from tests.hf.test_prefix_groups import come_and_go, families, grouping
from tests.hf.tiny import VOCAB, hf_greedy, tiny_model

from infercore.hf import Engine
from infercore.hf.prefix_groups import PrefixGrouping

pytestmark = pytest.mark.gpu
NEW = 24


@pytest.fixture(scope="module")
def model():
    return copy.deepcopy(tiny_model("llama")).cuda()


@pytest.fixture(scope="module")
def truth(model):
    return {tuple(p): hf_greedy(model, p, NEW)[0] for p in families()}


def engine_of(model, **options):
    engine = Engine(model, **({"num_pages": 160, "poison": True} | options))
    assert isinstance(engine._stepper.grouping, PrefixGrouping)  # which would not think these small prefixes worth it
    engine._stepper.grouping = grouping()
    return engine


@pytest.mark.parametrize("cuda_graphs", [True, False])
@pytest.mark.parametrize("overlap", [True, False])
@pytest.mark.parametrize("drafts", [False, True])
def test_float32_equals_hugging_face(model, truth, cuda_graphs, overlap, drafts):
    engine = engine_of(model, cuda_graphs=cuda_graphs, overlap=overlap)
    drafter = OracleDrafter(truth, "half", VOCAB) if drafts else None
    prompts = families()
    for _ in range(2):
        done = engine.generate(prompts, max_new_tokens=NEW, drafter=drafter, max_draft_nodes=3)
        assert [c.token_ids for c in done] == [truth[tuple(p)] for p in prompts]
    assert engine._stepper.grouping.num_grouped_steps > 4
    if cuda_graphs:
        graphs = engine._stepper.graphs
        assert graphs.reason is None
        assert any(bucket.has_groups for bucket in graphs._replays)


def test_requests_that_come_and_go_and_pages_that_are_short(model, truth):
    engine = engine_of(model, num_pages=45, host_cache_bytes=1 << 26)
    handles = come_and_go(engine, families() * 4, num=28, most_new=NEW)
    for prompt, handle in handles:
        assert handle.token_ids == truth[tuple(prompt)][: len(handle.token_ids)]
    assert engine._stepper.grouping.num_grouped_steps > 4


def test_after_warmup_no_bucket_with_groups_is_captured(model, truth):
    engine = engine_of(model, max_running=8)
    engine.warmup(batch=8, rows=256, progress=False)
    before = set(engine._stepper.graphs._replays)
    assert any(bucket.has_groups for bucket in before)
    for _ in range(2):
        engine.generate(families(), max_new_tokens=NEW)
    assert set(engine._stepper.graphs._replays) == before


def test_logits_in_half_precision_differ_by_rounding_only(model):
    half = copy.deepcopy(tiny_model("llama")).to(torch.bfloat16).cuda()
    logits = []
    for groups in (True, False):
        engine = engine_of(half)
        if not groups:
            engine._stepper.grouping = None
        engine.generate(families(), max_new_tokens=1)
        done = engine.generate(families(), max_new_tokens=2, return_logits=True)
        logits.append(torch.stack([c.logits[0].float() for c in done]))
    assert (logits[0] - logits[1]).abs().max() <= 0.05 * logits[1].abs().max()

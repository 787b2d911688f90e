"""The engine on a real GPU: equal to Hugging Face's greedy decoding, through CUDA graphs and without.

TRITON_INTERPRET=0 pytest -m gpu tests/hf        # on a machine with a GPU; skips elsewhere
"""

import copy

import pytest
import torch
from tests.hf.drafters import OracleDrafter
from tests.hf.tiny import VOCAB, hf_greedy, tiny_model

from infercore.hf import Engine, ModelForward
from infercore.speculative import DraftModelDrafter, NGramDrafter

pytestmark = pytest.mark.gpu
PROMPTS = [[5, 6, 7, 8, 9], [5, 6, 7, 8, 9, 1, 3], list(range(3, 90)), [11] * 40, [12, 13] * 70]
NEW = 32


@pytest.fixture(scope="module")
def model():
    return copy.deepcopy(tiny_model("llama")).cuda()


@pytest.fixture(scope="module")
def expected(model):
    """Every prompt alone, by Hugging Face's own attention."""
    return [hf_greedy(model, prompt, NEW)[0] for prompt in PROMPTS]


def drafters(expected):
    truth = {tuple(p): tokens for p, tokens in zip(PROMPTS, expected, strict=True)}
    return {"none": None, "n-gram": NGramDrafter(), "oracle": OracleDrafter(truth, "half", VOCAB)}


@pytest.mark.parametrize("cuda_graphs", [True, False])
@pytest.mark.parametrize("name", ["none", "n-gram", "oracle"])
def test_float32_equals_hugging_face(model, expected, name, cuda_graphs):
    engine = Engine(model, num_pages=200, cuda_graphs=cuda_graphs, poison=True)
    done = engine.generate(PROMPTS, max_new_tokens=NEW, drafter=drafters(expected)[name])
    assert [c.token_ids for c in done] == expected
    graphs = engine._stepper.graphs
    if cuda_graphs:
        assert graphs.reason is None
        assert graphs.num_replays > engine.stats.num_forwards // 2
    else:
        assert graphs is None


@pytest.mark.parametrize("cuda_graphs", [True, False])
@pytest.mark.parametrize("options", [{"temperature": 1.0}, {"temperature": 0.8, "top_p": 0.9, "top_k": 30}])
def test_draws_in_flight_are_those_that_the_host_waits_for(model, options, cuda_graphs, monkeypatch):
    outputs = []
    for in_flight in (True, False):
        engine = Engine(model, num_pages=200, cuda_graphs=cuda_graphs, poison=True)
        if not in_flight:
            monkeypatch.setattr(engine._stepper._chosen, "serves", lambda turns, num_rows: False)
        done = engine.generate(PROMPTS, max_new_tokens=NEW, seed=3, **options)
        outputs.append([c.token_ids for c in done])
    assert outputs[0] == outputs[1]
    assert len({tuple(tokens) for tokens in outputs[0]}) == len(PROMPTS)


def test_a_draft_model_runs_by_graphs_too(model, expected):
    forward = ModelForward(model, num_pages=200)
    engine = Engine(model, num_pages=200)
    drafter = DraftModelDrafter(forward)
    assert [c.token_ids for c in engine.generate(PROMPTS, max_new_tokens=NEW, drafter=drafter)] == expected
    assert forward._graphs.reason is None
    assert forward._graphs.num_replays > 0
    assert engine.stats.num_forwards < NEW


def test_graphs_are_captured_anew_after_all_of_them_were_dropped(model, expected):
    engine = Engine(model, num_pages=200)
    engine.cost_curve(refresh=True)  # by graphs of its own, which end with it
    for _ in range(2):
        assert [c.token_ids for c in engine.generate(PROMPTS, max_new_tokens=NEW)] == expected
        assert engine._stepper.graphs.reason is None
        assert engine._stepper.graphs.num_replays > 0
        engine.invalidate()


def num_compiled():
    """Compiled variants of the kernels in the step."""
    from infercore.kernels.tree_attention import triton, triton_merge, triton_plan

    kernels = (triton._attend_kernel, triton_merge._merge_kernel, triton_plan._plan_kernel)
    return [sum(len(caches[0]) for caches in kernel.device_caches.values()) for kernel in kernels]


def test_after_warmup_nothing_is_captured_or_compiled(model, expected):
    engine = Engine(model, num_pages=400, max_running=8)
    engine.warmup(batch=8, rows=256, progress=False)
    before = set(engine._stepper.graphs._replays), num_compiled()
    for _ in range(2):
        for prompt in PROMPTS:
            engine.generate(prompt, max_new_tokens=NEW, drafter=NGramDrafter(), max_draft_nodes=7)
        engine.generate(PROMPTS, max_new_tokens=NEW, drafter=NGramDrafter(), max_draft_nodes=7)
    assert (set(engine._stepper.graphs._replays), num_compiled()) == before


def test_a_step_in_half_precision_differs_by_its_rounding_only(model):
    """Graph and eager run the same kernels on padded shapes: their logits may differ by rounding, not more."""
    half = copy.deepcopy(tiny_model("llama")).to(torch.bfloat16).cuda()
    logits = {}
    for cuda_graphs in (True, False):
        engine = Engine(half, num_pages=200, cuda_graphs=cuda_graphs)
        logits[cuda_graphs] = engine.generate(PROMPTS[2], max_new_tokens=1, return_logits=True)[0].logits.float()
        logits[cuda_graphs, 2] = engine.generate(PROMPTS[2], max_new_tokens=1, return_logits=True)[0].logits.float()
    scale = logits[False].abs().max()
    assert (logits[True] - logits[False]).abs().max() <= 0.05 * scale
    assert (logits[True, 2] - logits[False, 2]).abs().max() <= 0.05 * scale


def test_fused_layers_differ_by_rounding_only(model, expected):
    engine = Engine(model, num_pages=200, fuse_layers=True)
    done = engine.generate(PROMPTS, max_new_tokens=NEW, return_logits=True)
    plain = Engine(model, num_pages=200, cuda_graphs=False).generate(PROMPTS, max_new_tokens=NEW, return_logits=True)
    assert engine._stepper.graphs.reason is None
    assert engine._stepper.graphs.num_replays > NEW // 2
    assert "forward" not in model.model.layers[0].__dict__
    for mine, theirs in zip(done, plain, strict=True):  # float32: a fused sum may round differently
        assert (mine.logits - theirs.logits).abs().max() <= 1e-4 * theirs.logits.abs().max()


def test_dynamic_rotary_embeddings_run_eagerly_and_say_why():
    import transformers

    config = transformers.LlamaConfig(
        vocab_size=VOCAB, hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=64, rope_scaling={"rope_type": "dynamic", "factor": 2.0},
    )  # fmt: skip
    torch.manual_seed(0)
    dynamic = transformers.LlamaForCausalLM(config).eval().cuda()
    engine = Engine(dynamic, num_pages=100)
    engine.generate(PROMPTS[0], max_new_tokens=8)
    assert "none: " in engine.report()
    assert torch.randn(3, device="cuda").isfinite().all()  # the failed capture left the device usable, its draws too
    assert engine.generate(PROMPTS[0], max_new_tokens=8)[0].token_ids

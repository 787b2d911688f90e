"""Steps by captured forwards: padding to buckets changes nothing, and what cannot be captured runs eagerly.

On a CPU a "capture" calls the forward again, on the same persistent buffers, so that all but CUDA's part is tested.
"""

import copy

import pytest
import torch
from tests.hf.drafters import OracleDrafter
from tests.hf.tiny import hf_greedy, tiny_model

from infercore.hf import Engine
from infercore.hf.fused_layers import FusedLayers, repeated_layers
from infercore.hf.graphs import ROWS, StepGraphs
from infercore.hf.prefill_rows import default_max_rows, prefill_by_graphs
from infercore.hf.step_buffers import Bucket

PROMPTS = [[5, 6, 7, 8, 9], [5, 6, 7, 8, 9, 1, 2], list(range(3, 60)), [11] * 17]


class Recorder:
    """Stands for a capture: a replay runs the forward again."""

    def __init__(self, spoil=None, error=None):
        self.captures, self.spoil, self.error = 0, spoil, error

    def __call__(self, forward):
        self.captures += 1
        if self.error is not None:
            raise self.error
        return (lambda: self.spoil(forward())) if self.spoil else forward


def engine_with(model, capture, *, max_tokens=256, **options):
    engine = Engine(model, poison=True, **options)
    stepper = engine._stepper
    stepper.use_graphs(StepGraphs(stepper.model, stepper.pool, max_seqs=8, max_tokens=max_tokens, capture=capture))
    return engine


@pytest.fixture(scope="module")
def model():
    return tiny_model("llama")


@pytest.fixture(scope="module")
def expected(model):
    return [c.token_ids for c in Engine(model).generate(PROMPTS, max_new_tokens=24)]


def test_tokens_are_those_of_the_eager_steps(model, expected):
    capture = Recorder()
    engine = engine_with(model, capture)
    assert [c.token_ids for c in engine.generate(PROMPTS, max_new_tokens=24)] == expected
    assert capture.captures > 0
    assert engine._stepper.graphs.num_replays > 20
    assert "captured" in engine.report()


@pytest.mark.parametrize(("limit", "num_by_graphs"), [(500, 6), (499, 4), (0, 4)])
def test_short_prefill_is_run_in_pieces_that_graphs_serve(limit, num_by_graphs, model):
    prompts = [list(range(3, 83)) * 4, list(range(7, 67)) * 3]  # 320 and 180 tokens
    engine = engine_with(model, Recorder(), max_tokens=512, num_pages=64)
    engine._stepper.prefill_by_graphs = limit
    done = engine.generate(prompts, max_new_tokens=5)
    assert [c.token_ids for c in done] == [hf_greedy(model, prompt, 5)[0] for prompt in prompts]
    assert engine._stepper.graphs.num_replays == num_by_graphs
    assert engine.stats.num_forwards == (6 if limit == 500 else 5)


def test_a_prompt_is_read_beside_many_who_decode(model, monkeypatch):
    monkeypatch.setattr("infercore.hf.step.ROWS", (8,))  # as many as decode: steps of so many leave nothing to others
    engine = engine_with(model, Recorder(), max_running=16)
    engine._stepper.prefill_by_graphs = 1000
    for number in range(8):
        engine.submit(engine.request([5, 6, 7 + number], max_new_tokens=60))
    for _ in range(12):
        engine.step()
    (late,) = engine.submit(engine.request(list(range(3, 40)), max_new_tokens=4))
    for _ in range(10):
        engine.step()
    assert late.completion is not None
    assert late.completion.token_ids == hf_greedy(model, list(range(3, 40)), 4)[0]


def test_rows_of_prefill_by_size_of_the_model():
    """`bench/results/prefill.md`: graphs are faster with 135M at 1500 rows, not at 3000; with 8B at 300, not at 700."""
    small, medium, large, huge = (134_515_008, 30), (1_235_814_400, 16), (8_030_261_248, 32), (70_000_000_000, 80)
    assert 1536 <= prefill_by_graphs(*small) <= 2048
    assert prefill_by_graphs(*medium) == 1024
    assert prefill_by_graphs(*large) == 512
    assert prefill_by_graphs(*huge) == 0
    assert default_max_rows(*small) == 16_384
    assert default_max_rows(*medium) == 7680
    assert default_max_rows(*large) == 2304
    assert default_max_rows(*huge) == 2048


def test_draft_trees_and_requests_that_come_and_go(model, expected):
    truth = {tuple(p): list(tokens) for p, tokens in zip(PROMPTS, expected, strict=True)}
    engine = engine_with(model, Recorder())
    drafter = OracleDrafter(truth, "right", model.config.vocab_size)
    handles = [engine.submit(engine.request(PROMPTS[0], max_new_tokens=24, drafter=drafter))[0]]
    for prompt in PROMPTS[1:]:
        engine.step()
        handles += engine.submit(engine.request(prompt, max_new_tokens=24, drafter=drafter))
    while engine.num_unfinished:
        engine.step()
    assert [h.completion.token_ids for h in handles] == expected
    assert any(bucket.has_tree for bucket in engine._stepper.graphs._replays)


def test_warmup_captures_every_bucket_and_steps_capture_none(model, expected):
    capture = Recorder()
    engine = engine_with(model, capture)
    engine.warmup(batch=4, rows=8, progress=False)
    assert sorted(engine._stepper.graphs._replays) == sorted(
        Bucket(rows, seqs, tree)
        for seqs in (1, 2, 4)
        for rows in (1, 2, 4, 8)
        for tree in (False, True)
        if rows >= seqs and (not tree or rows > seqs or seqs > 2)
    )
    before = capture.captures
    handles = [engine.submit(engine.request(p, max_new_tokens=24))[0] for p in PROMPTS]
    engine.step()  # their prompts are more rows than were captured
    captured = capture.captures
    while engine.num_unfinished:
        engine.step()
    assert capture.captures == captured <= before + 1
    assert [h.completion.token_ids for h in handles] == expected


@pytest.mark.parametrize(
    ("capture", "reason"),
    [
        (Recorder(spoil=lambda logits: logits + 1), "gave other logits"),
        (
            Recorder(error=RuntimeError("operation not permitted when stream is capturing\nmore")),
            "RuntimeError: operation",
        ),
    ],
)
def test_what_cannot_be_captured_runs_eagerly_and_says_why(model, expected, capture, reason):
    engine = engine_with(model, capture)
    assert [c.token_ids for c in engine.generate(PROMPTS, max_new_tokens=24)] == expected
    assert capture.captures == 1
    assert reason in engine.report()
    assert "\nmore" not in engine.report()


def test_out_of_memory_keeps_the_graphs_that_are_there(model, expected):
    captured = []

    def capture(forward):
        if captured:
            raise torch.cuda.OutOfMemoryError("no memory")
        captured.append(forward)
        return forward

    engine = engine_with(model, capture)
    assert [c.token_ids for c in engine.generate(PROMPTS, max_new_tokens=24)] == expected
    assert "1 captured" in engine.report()
    assert "for want of memory" in engine.report()


def test_graphs_go_with_the_weights_they_were_captured_with():
    model = copy.deepcopy(tiny_model("llama"))
    engine = engine_with(model, Recorder())
    engine.generate(PROMPTS[:1], max_new_tokens=4)
    assert engine._stepper.graphs._replays
    with torch.no_grad():
        model.lm_head.weight.add_(0.01)
    engine.submit(engine.request(PROMPTS[1], max_new_tokens=1))
    assert not engine._stepper.graphs._replays


def test_graphs_are_refused_without_a_gpu_and_the_model_is_left_as_it_was():
    model = copy.deepcopy(tiny_model("llama"))
    model.set_attn_implementation("sdpa")
    with pytest.raises(ValueError, match="move it to a GPU"):
        Engine(model, cuda_graphs=True)
    assert model.config._attn_implementation == "sdpa"
    assert Engine(model).warmup() == 0.0
    assert ROWS[-1] == 256


def test_fused_layers_are_compiled_in_the_capture_only():
    model = copy.deepcopy(tiny_model("llama")).double()  # float32 goes through our own loops on a CPU, not to be traced
    expected = Engine(model).generate(PROMPTS[0], max_new_tokens=6)[0].token_ids
    fused = FusedLayers(model, backend="eager")  # dynamo cuts the code, nothing is generated
    assert fused.num_layers == model.config.num_hidden_layers
    engine = Engine(model, poison=True)
    stepper = engine._stepper
    called = []

    def capture(forward):
        def replay():
            out = forward()
            called.append("forward" in model.model.layers[0].__dict__)
            return out

        return replay

    stepper.use_graphs(
        StepGraphs(stepper.model, stepper.pool, max_seqs=8, max_tokens=256, fused=fused, capture=capture)
    )
    assert engine.generate(PROMPTS[0], max_new_tokens=6)[0].token_ids == expected
    assert stepper.graphs.reason is None
    assert called
    assert not any(called)
    assert "forward" not in model.model.layers[0].__dict__


def test_layers_with_a_forward_of_their_own_are_left_alone():
    model = copy.deepcopy(tiny_model("llama"))
    model.model.layers[1].forward = model.model.layers[1].forward  # as accelerate's hooks do
    assert repeated_layers(model) == []

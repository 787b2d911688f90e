"""Requests through the engine: ends, streams, cancels, errors; and that nothing is ever lost."""

import asyncio

import numpy as np
import pytest
import torch
from tests.hf.drafters import OracleDrafter
from tests.hf.test_equals_hf import assert_nothing_lost, byte_vocabulary
from tests.hf.tiny import VOCAB, hf_greedy, prompts, tiny_model

from infercore.constrained import json_schema, regex
from infercore.errors import GrammarError, OutOfPages, RequestError
from infercore.hf import AsyncEngine, Engine, FinishEvent, TokenEvent


class ByteTokenizer:
    """Every token from 3 on is one byte; enough of a tokenizer for stop strings and streams."""

    def decode(self, token_ids, skip_special_tokens=True):
        return bytes(i + 26 for i in token_ids if i >= 3).decode("utf-8", errors="replace")

    def encode(self, text, add_special_tokens=True):
        return [b - 26 for b in text.encode()]


@pytest.fixture
def model():
    return tiny_model("llama")


@pytest.fixture
def engine(model):
    return Engine(model, ByteTokenizer(), num_pages=40, page_size=4, vocabulary=byte_vocabulary(), poison=True)


@pytest.fixture
def truth(model):
    return hf_greedy(model, prompts()[0], 30)[0]


def test_output_ends_with_the_eos_token_and_says_so(engine, truth):
    eos = truth[5]
    (done,) = engine.generate(prompts()[0], max_new_tokens=30, eos_token_ids=(eos,))
    assert done.token_ids == truth[: truth.index(eos) + 1]
    assert done.finish_reason == "eos"


def test_eos_inside_an_accepted_path_ends_there(engine, truth):
    eos = truth[6]
    drafter = OracleDrafter({tuple(prompts()[0]): truth}, "right", VOCAB)
    (done,) = engine.generate(prompts()[0], max_new_tokens=30, eos_token_ids=(eos,), drafter=drafter)
    assert done.token_ids == truth[: truth.index(eos) + 1]
    assert_nothing_lost(engine)


@pytest.mark.parametrize("limit", [1, 2, 5, 6])
def test_length_limit_inside_an_accepted_path_is_kept(engine, truth, limit):
    drafter = OracleDrafter({tuple(prompts()[0]): truth}, "right", VOCAB)
    (done,) = engine.generate(prompts()[0], max_new_tokens=limit, drafter=drafter)
    assert done.token_ids == truth[:limit]
    assert done.finish_reason == "length"


def test_stop_string_over_several_tokens_ends_the_output_and_is_cut_from_the_text(engine, truth):
    text = ByteTokenizer().decode(truth)
    stop = text[4:7]
    drafter = OracleDrafter({tuple(prompts()[0]): truth}, "right", VOCAB)
    for d in (None, drafter):
        (done,) = engine.generate(prompts()[0], max_new_tokens=30, stop=["never", stop], drafter=d)
        assert done.text == text[: text.index(stop)]
        assert done.finish_reason == "stop"
        assert done.stop_string == stop
        assert ByteTokenizer().decode(done.token_ids).endswith(stop)


def test_stream_pieces_join_to_the_text_and_to_the_tokens(engine, truth):
    (whole,) = engine.generate(prompts()[0], max_new_tokens=30)
    chunks = list(engine.stream(prompts()[0], max_new_tokens=30))
    assert "".join(c.text for c in chunks) == whole.text
    assert [t for c in chunks for t in c.token_ids] == truth
    assert [c.completion is not None for c in chunks] == [False] * (len(chunks) - 1) + [True]


def test_stream_never_shows_a_part_of_a_stop_string(engine, truth):
    text = ByteTokenizer().decode(truth)
    stop = text[8:12]
    chunks = list(engine.stream(prompts()[0], max_new_tokens=30, stop=stop))
    assert "".join(c.text for c in chunks) == text[: text.index(stop)]


def test_abandoned_stream_gives_everything_back(engine):
    stream = engine.stream(prompts()[0], max_new_tokens=30)
    for _ in range(7):
        next(stream)
    assert engine.cache.counts().in_use > 0
    stream.close()
    assert_nothing_lost(engine)
    assert engine.num_unfinished == 0


def test_cancel_while_waiting_and_while_running(engine):
    handles = [engine.submit(engine.request(p, max_new_tokens=30))[0] for p in prompts(4)]
    handles[3].cancel()
    events = engine.step()
    handles[0].cancel()
    handles[0].cancel()
    while engine.num_unfinished:
        events += engine.step()
    reasons = {e.request_id: e.completion.finish_reason for e in events if isinstance(e, FinishEvent)}
    assert [reasons[h.request_id] for h in handles] == ["cancelled", "length", "length", "cancelled"]
    tokens = [
        t for e in events if isinstance(e, TokenEvent) and e.request_id == handles[1].request_id for t in e.token_ids
    ]
    assert handles[1].token_ids[-len(tokens) :] == tokens
    assert_nothing_lost(engine)


@pytest.mark.parametrize("where", ["forward", "drafter", "processor", "criterion", "commit"])
@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_an_exception_anywhere_loses_nothing_and_the_engine_goes_on(engine, truth, where, error, monkeypatch):
    calls = 0

    def explode(*args, **kwargs):
        nonlocal calls
        calls += 1
        if calls == 3:
            raise error("planted")
        return original(*args, **kwargs) if original else None

    options, original = {}, None
    drafter = OracleDrafter({tuple(p): truth for p in prompts()}, "right", VOCAB)
    if where == "forward":
        original = engine._model.forward
        monkeypatch.setattr(engine._model, "forward", explode)
    elif where == "drafter":
        original = drafter.propose
        drafter.propose = explode
        options["drafter"] = drafter
    elif where == "commit":
        original = drafter.commit
        drafter.commit = explode
        options["drafter"] = drafter
    elif where == "processor":
        original = lambda ids, scores: scores  # noqa: E731
        options["logits_processors"] = (explode,)
    else:
        original = lambda ids, scores: False  # noqa: E731
        options["stopping_criteria"] = (explode,)
    with pytest.raises(error, match="planted"):
        engine.generate(prompts()[:1], max_new_tokens=30, **options)
    engine._stepper.recover()
    assert_nothing_lost(engine)
    (done,) = engine.generate(prompts()[0], max_new_tokens=30)
    assert done.token_ids == truth


def test_a_tokenizer_that_fails_ends_the_request_with_its_error(engine):
    engine.tokenizer = None
    engine.tokenizer = type("Broken", (ByteTokenizer,), {"decode": lambda *args, **kwargs: 1 / 0})()
    with pytest.raises(ZeroDivisionError):
        engine.generate(prompts()[0], max_new_tokens=3)
    assert_nothing_lost(engine)


def test_callers_may_cancel_from_within_a_step_but_not_step(engine, truth):
    handles = []

    def cancel_other(ids, scores):
        handles[1].cancel()
        handles[1].cancel()
        return False

    def step_again(ids, scores):
        engine.step()

    handles += engine.submit(engine.request(prompts()[0], max_new_tokens=30, stopping_criteria=(cancel_other,)))
    handles += engine.submit(engine.request(prompts()[1], max_new_tokens=30))
    handles += engine.submit(engine.request(prompts()[2], max_new_tokens=30, stopping_criteria=(step_again,)))
    while engine.num_unfinished:
        engine.step()
    assert handles[0].completion.token_ids == truth
    assert handles[1].completion.finish_reason == "cancelled"
    assert "within a step" in str(handles[2].completion.error)
    assert_nothing_lost(engine)


def run_to_the_end(engine):
    while engine.num_unfinished:
        engine.step()


def test_ctrl_c_between_finishing_two_requests_leaves_the_second_for_the_next_step(engine, monkeypatch):
    handles = [engine.submit(engine.request(p, max_new_tokens=4))[0] for p in prompts()]
    finish, calls = engine._finish, []

    def interrupted(state):
        calls.append(state)
        if len(calls) == 2:
            raise KeyboardInterrupt
        finish(state)

    monkeypatch.setattr(engine, "_finish", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run_to_the_end(engine)
    while engine.num_unfinished:
        engine.step()
    assert all(len(h.completion.token_ids) == 4 for h in handles)
    assert_nothing_lost(engine)


def test_a_schema_that_cannot_be_read_is_refused_before_anything_runs(engine):
    with pytest.raises(GrammarError):
        engine.generate([prompts()[0], prompts()[1]], grammar=json_schema({"type": "string", "pattern": r"(a)\1"}))
    with pytest.raises(TypeError, match="expected what infercore"):
        engine.generate(prompts()[0], max_new_tokens=9, grammar={"type": "string"})
    assert engine.num_unfinished == 0
    assert_nothing_lost(engine)


def test_one_request_with_a_failing_processor_does_not_stop_the_others(engine, truth):
    def fail(ids, scores):
        raise RuntimeError("planted")

    good = engine.submit(engine.request(prompts()[0], max_new_tokens=30))[0]
    bad = engine.submit(engine.request(prompts()[1], max_new_tokens=30, logits_processors=(fail,)))[0]
    while engine.num_unfinished:
        engine.step()
    assert good.completion.token_ids == truth
    assert bad.completion.finish_reason == "error"
    assert isinstance(bad.completion.error, RuntimeError)
    assert_nothing_lost(engine)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"prompt": []}, "at least one token"),
        ({"prompt": [5, VOCAB]}, "another model's tokenizer"),
        ({"prompt": [5], "max_new_tokens": 0}, "engine.score"),
        ({"prompt": [5] * 200}, "more num_pages"),
        ({"prompt": [5], "stop": [""]}, "empty string"),
        ({"prompt": [5], "temperature": -1.0}, "temperature"),
        ({"prompt": [5], "logprobs": -1}, "logprobs"),
    ],
)
def test_bad_requests_are_refused_with_what_to_do_and_queue_nothing(engine, arguments, message):
    with pytest.raises(ValueError, match=message):
        engine.generate([arguments.pop("prompt")], **arguments)
    assert engine.num_unfinished == 0


def test_unknown_arguments_are_named_with_the_known_ones(engine):
    with pytest.raises(TypeError, match=r"max_tokens.*max_new_tokens"):
        engine.generate([[5, 6]], max_tokens=3)


def test_a_refused_request_in_a_batch_leaves_no_other_running(engine):
    with pytest.raises(RequestError):
        engine.generate([[5, 6, 7], []], max_new_tokens=4)
    assert engine.num_unfinished == 0
    assert_nothing_lost(engine)


def test_pages_held_by_the_caller_make_a_clear_error_not_a_hang(engine):
    held = engine.cache.allocate(engine.cache.counts().total - 1)
    with pytest.raises(OutOfPages):
        engine.generate(prompts()[0], max_new_tokens=30)
    engine.cache.release(held)
    assert_nothing_lost(engine)
    assert engine.generate(prompts()[0], max_new_tokens=3)[0].finish_reason == "length"


def test_many_requests_share_a_small_pool_by_waiting_and_preemption(model):
    engine = Engine(model, num_pages=24, page_size=4, max_rows=16, poison=True)
    many = prompts(9)
    expected = [hf_greedy(model, p, 30)[0] for p in many]
    done = engine.generate(many, max_new_tokens=30)
    assert [c.token_ids for c in done] == expected
    assert engine.stats.num_preemptions > 0
    assert_nothing_lost(engine)


def test_copies_of_a_prompt_are_computed_once_and_forked(engine):
    torch.manual_seed(1)
    done = engine.generate([prompts()[0]], n=5, max_new_tokens=12, temperature=1.0, seed=3)
    assert len({tuple(c.token_ids) for c in done}) > 1
    assert engine.stats.num_rows <= len(prompts()[0]) + 5 * 12
    again = engine.generate([prompts()[0]], n=5, max_new_tokens=12, temperature=1.0, seed=3)
    assert [c.token_ids for c in again] == [c.token_ids for c in done]
    alone = engine.generate([prompts()[0]], max_new_tokens=12, temperature=1.0, seed=5)
    assert alone[0].token_ids == done[2].token_ids
    assert_nothing_lost(engine)


def test_cancelling_the_first_of_several_copies_leaves_the_others(engine, truth):
    handles = engine.submit(engine.request(prompts()[0], max_new_tokens=30), copies=3)
    handles[0].cancel()
    while engine.num_unfinished:
        engine.step()
    assert [h.completion.finish_reason for h in handles] == ["cancelled", "length", "length"]
    assert handles[2].completion.token_ids == truth


def test_copies_go_on_alone_when_the_first_of_them_fails(engine, truth):
    calls = []

    def fail_once(ids, scores):
        calls.append(1)
        if len(calls) == 1:
            raise RuntimeError("planted")
        return scores

    handles = engine.submit(engine.request(prompts()[0], max_new_tokens=30, logits_processors=(fail_once,)), copies=3)
    run_to_the_end(engine)
    assert isinstance(handles[0].completion.error, RuntimeError)
    assert [h.completion.token_ids for h in handles[1:]] == [truth, truth]
    assert_nothing_lost(engine)


def test_ctrl_c_between_two_forks_leaves_the_rest_to_the_next_step(engine, truth, monkeypatch):
    from infercore.radix import Sequence

    handles = engine.submit(engine.request(prompts()[0], max_new_tokens=30), copies=4)
    fork, calls = Sequence.fork, []

    def interrupted(self):
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return fork(self)

    monkeypatch.setattr(Sequence, "fork", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run_to_the_end(engine)
    run_to_the_end(engine)
    assert [h.completion.token_ids for h in handles] == [truth] * 4
    assert_nothing_lost(engine)


def test_logprobs_are_those_of_the_model_at_every_position(engine, model, truth):
    _, logits = hf_greedy(model, prompts()[0], 30)
    expected = logits.log_softmax(-1)
    drafter = OracleDrafter({tuple(prompts()[0]): truth}, "half", VOCAB)
    (done,) = engine.generate(prompts()[0], max_new_tokens=30, logprobs=3, drafter=drafter)
    for i, entry in enumerate(done.logprobs):
        assert entry.logprob == pytest.approx(float(expected[i, truth[i]]), abs=1e-3)
        values, ids = expected[i].topk(3)
        assert [t for t, _ in entry.top] == ids.tolist()
        assert [p for _, p in entry.top] == pytest.approx(values.tolist(), abs=1e-3)


def test_score_equals_the_plain_forward_also_with_a_warm_cache(engine, model):
    prompt, completion = prompts()[0], prompts()[1]
    model.set_attn_implementation("sdpa")
    with torch.no_grad():
        logprobs = model(torch.tensor([prompt + completion])).logits[0].log_softmax(-1)
    model.set_attn_implementation("infercore")
    expected = [float(logprobs[len(prompt) - 1 + i, t]) for i, t in enumerate(completion)]
    for _ in range(2):
        scores = engine.score([prompt, prompt], [completion, completion[:5]])
        assert scores[0].logprobs == pytest.approx(expected, abs=1e-3)
        assert scores[1].logprobs == pytest.approx(expected[:5], abs=1e-3)
        assert scores[0].total == pytest.approx(sum(expected), abs=1e-2)
    assert_nothing_lost(engine)


def test_changed_weights_drop_the_cache(model):
    torch.manual_seed(0)
    import copy

    changed = copy.deepcopy(model)
    engine = Engine(changed, num_pages=64, page_size=4)
    prompt = prompts()[0]
    before = engine.generate(prompt, max_new_tokens=20)[0].token_ids
    with torch.no_grad():
        for parameter in changed.parameters():
            parameter.mul_(0.7)
    after = engine.generate(prompt, max_new_tokens=20)[0]
    assert after.stats.num_reused_tokens == 0
    assert after.token_ids == hf_greedy(changed, prompt, 20)[0]
    assert after.token_ids != before
    changed.set_attn_implementation("infercore")
    for parameter in changed.parameters():
        parameter.data = parameter.data * 1.2  # replaced, not written
    assert engine.generate(prompt, max_new_tokens=20)[0].token_ids == hf_greedy(changed, prompt, 20)[0]


def test_namespaces_do_not_share_prefixes(engine):
    engine.generate(prompts()[0], max_new_tokens=2, namespace="a")
    same, other = (engine.generate(prompts()[0], max_new_tokens=2, namespace=n)[0] for n in ("a", "b"))
    assert same.stats.num_reused_tokens > 0
    assert other.stats.num_reused_tokens == 0


def test_a_processor_that_may_keep_state_turns_speculation_off_and_says_so(engine, truth):
    class Counting:
        calls = 0

        def __call__(self, ids, scores):
            self.calls += 1
            return scores

    drafter = OracleDrafter({tuple(prompts()[0]): truth}, "right", VOCAB)
    processor = Counting()
    (done,) = engine.generate(prompts()[0], max_new_tokens=9, drafter=drafter, logits_processors=(processor,))
    assert done.token_ids == truth[:9]
    assert done.stats.num_drafted_tokens == 0
    assert processor.calls == 9
    assert "Counting" in done.notes[0]
    Counting.keeps_state = False
    (fast,) = engine.generate(prompts()[0], max_new_tokens=9, drafter=drafter, logits_processors=(processor,))
    assert fast.token_ids == truth[:9]
    assert fast.stats.num_accepted_tokens > 0


def test_penalties_hold_at_every_draft_node_along_its_own_path(engine, model):
    options = {"max_new_tokens": 20, "repetition_penalty": 1.8, "frequency_penalty": 0.4, "presence_penalty": 0.3}
    plain = engine.generate(prompts(), **options)
    outputs = {tuple(p): c.token_ids for p, c in zip(prompts(), plain, strict=True)}
    drafted = engine.generate(prompts(), drafter=OracleDrafter(outputs, "right", VOCAB), **options)
    assert [c.token_ids for c in drafted] == list(outputs.values())
    assert sum(c.stats.num_accepted_tokens for c in drafted) > 20
    assert plain[0].token_ids != hf_greedy(model, prompts()[0], 20)[0]


def test_grammar_that_ends_finishes_without_another_forward(engine):
    (done,) = engine.generate(prompts()[0], max_new_tokens=30, grammar=regex("yes|no"), eos_token_ids=(2,))
    assert ByteTokenizer().decode(done.token_ids) in ("yes", "no")
    assert done.finish_reason == "eos"
    assert done.stats.num_forwards == 1


def test_asyncio_requests_share_batches_and_cancelled_tasks_free_their_pages(engine, truth):
    async def main():
        shared = AsyncEngine(engine)
        slow = asyncio.create_task(shared.generate(prompts()[1], max_new_tokens=100))
        results = await asyncio.gather(*(shared.generate(prompts()[0], max_new_tokens=30) for _ in range(3)))
        slow.cancel()
        pieces = [chunk async for chunk in shared.stream(prompts()[0], max_new_tokens=30)]
        return results, pieces

    results, pieces = asyncio.run(main())
    assert [r.token_ids for r in results] == [truth] * 3
    assert [t for p in pieces for t in p.token_ids] == truth
    assert engine.stats.num_forwards < 30 * 5
    assert engine.num_unfinished == 0
    assert_nothing_lost(engine)


def test_report_and_stats_count_what_happened(engine):
    engine.generate(prompts(), max_new_tokens=10)
    stats = engine.stats.as_dict()
    assert stats["num_requests"] == 3
    assert stats["num_output_tokens"] == 30
    assert stats["num_forwards"] >= 10
    assert stats["step_time_s"] > stats["forward_time_s"] > 0
    assert "LlamaForCausalLM" in engine.report()
    assert np.isclose(stats["accept_length"], 1.0)

"""Steps that start before the tokens of the last one were read give what steps one after the other give.

On a CPU nothing runs at the same time, but everything happens in the same order, so all but CUDA's part is tested.
"""

import time

import numpy as np
import pytest
import torch
import transformers
from tests.hf.drafters import OracleDrafter
from tests.hf.test_equals_hf import assert_nothing_lost, byte_vocabulary
from tests.hf.test_requests import ByteTokenizer
from tests.hf.tiny import VOCAB, hf_greedy, tiny_model

from infercore.constrained import json_schema, regex
from infercore.hf import Engine
from infercore.hf import settle as settle_module
from infercore.hf import step as step_module
from infercore.hf.graphs import StepGraphs
from infercore.hf.request import TokenEvent
from infercore.speculative import FixedBudget, RecyclingDrafter, SuffixDrafter, Union

PROMPTS = [[5, 6, 7, 8, 9], [5, 6, 7, 8, 9, 1, 2], list(range(3, 60)), [11] * 17]
NEW = 20
SCHEMA = {
    "type": "object",
    "properties": {"colour": {"enum": ["red", "green"]}, "count": {"type": "integer", "maximum": 99}},
    "required": ["colour", "count"],
    "additionalProperties": False,
}


@pytest.fixture(scope="module")
def model():
    return tiny_model("llama")


@pytest.fixture(scope="module")
def expected(model):
    return [hf_greedy(model, prompt, NEW)[0] for prompt in PROMPTS]


def engine_of(model, *, overlap=True, graphs=False, **options):
    options = {"num_pages": 120, "page_size": 4, "vocabulary": byte_vocabulary(), "poison": True, **options}
    engine = Engine(model, ByteTokenizer(), overlap=overlap, **options)
    if graphs:
        stepper = engine._stepper
        stepper.use_graphs(StepGraphs(stepper.model, stepper.pool, max_seqs=8, max_tokens=256, capture=lambda f: f))
    return engine


def flights(engine, told=None):
    """Steps, and how often the next one was under way when one returned; tokens of events go to `told`, if given."""
    started = 0
    while engine.num_unfinished:
        for event in engine.step():
            if told is not None and isinstance(event, TokenEvent):
                told[event.request_id] += event.token_ids
        started += engine._stepper._flight is not None
    return started, engine.stats.num_forwards


@pytest.mark.parametrize("graphs", [False, True])
def test_requests_that_come_and_go_equal_hugging_face(model, expected, graphs):
    engine = engine_of(model, graphs=graphs)
    handles = []
    for i, prompt in enumerate(PROMPTS):
        handles += engine.submit(engine.request(prompt, max_new_tokens=NEW - i))
        engine.step()
        engine.step()
    ahead, steps = flights(engine)
    assert [h.completion.token_ids for h in handles] == [e[: NEW - i] for i, e in enumerate(expected)]
    assert ahead > NEW / 2
    assert steps <= NEW + 2 * len(PROMPTS)
    assert_nothing_lost(engine)


def test_chunks_of_a_prompt_run_beside_tokens_that_were_not_read(model, expected):
    engine = engine_of(model, max_rows=8)
    handles = engine.submit(engine.request(PROMPTS[0], max_new_tokens=NEW))
    engine.step()
    handles += engine.submit(engine.request(PROMPTS[2], max_new_tokens=NEW))
    mixed = 0
    while engine.num_unfinished:
        engine.step()
        flight = engine._stepper._flight
        mixed += flight is not None and {1} < {share.num_causal for share, _ in flight.work}
    assert mixed > 3
    assert [h.completion.token_ids for h in handles] == [expected[0], expected[2]]


def test_whoever_ends_unforeseen_runs_one_row_in_vain(model, expected):
    engine = engine_of(model)
    eos = expected[0][6]
    ends = [e.index(eos) + 1 if eos in e else NEW for e in expected]
    done = engine.generate(PROMPTS, max_new_tokens=NEW, eos_token_ids=(eos,))
    assert [c.token_ids for c in done] == [e[:n] for e, n in zip(expected, ends, strict=True)]
    assert engine._stepper._flight is None
    text = ByteTokenizer().decode(expected[0])
    (stopped,) = engine.generate(PROMPTS[0], max_new_tokens=NEW, stop=text[4:7])
    assert stopped.text == text[: text.index(text[4:7])]
    assert_nothing_lost(engine)


@pytest.mark.parametrize("jump_forward", [True, False])
@pytest.mark.parametrize("graphs", [False, True])
def test_grammars_with_forced_tokens(model, jump_forward, graphs):
    results = {}
    for overlap in (False, True):
        engine = engine_of(model, overlap=overlap, graphs=graphs, num_pages=300)
        grammars = [json_schema(SCHEMA), None, regex("[a-f]{3}(xyz|xyw)[0-9]+"), json_schema(SCHEMA)]
        handles = []
        for prompt, grammar in zip(PROMPTS, grammars, strict=True):
            request = engine.request(prompt, max_new_tokens=40, grammar=grammar, jump_forward=jump_forward)
            handles += engine.submit(request)
            engine.step()
        ahead, _ = flights(engine)
        results[overlap] = [h.completion.token_ids for h in handles], [h.completion.finish_reason for h in handles]
        assert ahead > 5 if overlap else ahead == 0
        assert_nothing_lost(engine)
    assert results[True] == results[False]


def oracle(expected, kind="half"):
    return OracleDrafter({tuple(p): list(tokens) for p, tokens in zip(PROMPTS, expected, strict=True)}, kind, VOCAB)


@pytest.mark.parametrize("grammar", [False, True])
@pytest.mark.parametrize("graphs", [False, True])
def test_steps_with_drafts_start_as_soon_as_the_tokens_are_known(model, expected, graphs, grammar):
    """The same steps as one after the other; every token is told of once, whoever was told when."""
    results, steps = {}, {}
    for overlap in (False, True):
        engine = engine_of(model, overlap=overlap, graphs=graphs, num_pages=300)
        drafter = SuffixDrafter() if grammar else oracle(expected)
        options = {"grammar": json_schema(SCHEMA), "max_new_tokens": 40} if grammar else {"max_new_tokens": NEW}
        handles = []
        for prompt in PROMPTS:
            handles += engine.submit(engine.request(prompt, drafter=drafter, **options))
        told = {h.request_id: [] for h in handles}
        ahead, _ = flights(engine, told)
        steps[overlap] = engine.stats.num_forwards
        results[overlap] = [h.completion.token_ids for h in handles]
        assert list(told.values()) == results[overlap]
        assert engine.stats.num_accepted_tokens > 3
        assert ahead >= engine.stats.num_forwards - 2 * len(PROMPTS) if overlap else ahead == 0
        assert_nothing_lost(engine)
    assert results[True] == results[False]
    if not grammar:
        assert results[True] == expected
    assert steps[True] <= steps[False] + 2


def test_copies_and_those_that_leave_while_a_step_with_drafts_is_under_way(model, expected):
    engine = engine_of(model, num_pages=300)
    drafter = oracle(expected)
    copies = engine.submit(engine.request(PROMPTS[0], max_new_tokens=NEW, drafter=drafter), copies=3)
    others = [engine.submit(engine.request(p, max_new_tokens=NEW, drafter=drafter))[0] for p in PROMPTS[1:]]
    engine.step()
    assert engine._stepper._flight is not None
    copies[0].cancel()
    others[0].cancel()
    engine.step()
    copies[1].cancel()
    late = engine.submit(engine.request(PROMPTS[1], max_new_tokens=NEW, drafter=drafter))[0]
    flights(engine)
    assert copies[2].completion.token_ids == expected[0]
    assert [h.completion.token_ids for h in (*others[1:], late)] == [*expected[2:], expected[1]]
    assert_nothing_lost(engine)


def plant(monkeypatch, target, name, call):
    """An interrupt at the `call`-th call of `target.name`."""
    original, calls = getattr(target, name), 0

    def explode(*args, **kwargs):
        nonlocal calls
        calls += 1
        if calls == call:
            raise KeyboardInterrupt("planted")
        return original(*args, **kwargs)

    monkeypatch.setattr(target, name, explode)


DRAWS = {
    "temperature": {"temperature": 1.0},
    "top-k": {"temperature": 1.4, "top_k": 7},
    "top-p": {"temperature": 0.7, "top_p": 0.8},
    "all": {"temperature": 1.2, "top_k": 40, "top_p": 0.95, "min_p": 0.02},
}


@pytest.mark.parametrize("graphs", [False, True])
@pytest.mark.parametrize("draws", DRAWS)
def test_draws_are_those_of_steps_one_after_the_other(model, expected, draws, graphs):
    """Also alone, in a batch, beside greedy requests and beside grammars: a seed gives one output."""
    results = {}
    for overlap in (False, True):
        engine = engine_of(model, overlap=overlap, graphs=graphs, num_pages=300)
        requests = [
            engine.request(PROMPTS[0], max_new_tokens=NEW, seed=5, **DRAWS[draws]),
            engine.request(PROMPTS[1], max_new_tokens=NEW),
            engine.request(PROMPTS[2], max_new_tokens=40, seed=6, grammar=json_schema(SCHEMA), **DRAWS[draws]),
            engine.request(PROMPTS[3], max_new_tokens=NEW, seed=7, **DRAWS["temperature"]),
        ]
        handles = []
        for request in requests:
            handles += engine.submit(request)
            engine.step()
        ahead, _ = flights(engine)
        assert ahead > NEW - 6 if overlap else ahead == 0
        results[overlap] = [h.completion.token_ids for h in handles]
        alone = [engine.generate(r.prompt_ids, max_new_tokens=NEW, seed=5, **DRAWS[draws]) for r in requests[:1]]
        assert alone[0][0].token_ids == results[overlap][0]
        assert_nothing_lost(engine)
    assert results[True] == results[False]
    assert results[True][0] != expected[0]
    assert results[True][1] == expected[1]


@pytest.mark.parametrize("call", range(2, 7))
@pytest.mark.parametrize("where", ["forward", "read", "append", "commit"])
def test_a_draw_that_an_interrupt_cut_off_is_made_again(model, where, call, monkeypatch):
    wanted = engine_of(model, overlap=False).generate(PROMPTS[:3], max_new_tokens=NEW, seed=3, temperature=1.0)
    engine = engine_of(model)
    target, name = {
        "forward": (engine._model, "forward"),
        "read": (engine._stepper._chosen, "read"),
        "append": (settle_module, "append"),
        "commit": (step_module, "reserve_spare"),
    }[where]
    plant(monkeypatch, target, name, call)
    handles = [engine.submit(engine.request(p, max_new_tokens=NEW, seed=3, temperature=1.0))[0] for p in PROMPTS[:3]]
    with pytest.raises(KeyboardInterrupt, match="planted"):
        flights(engine)
    engine.invalidate()  # so is one whose step was dropped
    flights(engine)
    assert [h.completion.token_ids for h in handles] == [c.token_ids for c in wanted]
    assert_nothing_lost(engine)


def test_distributions_that_are_too_flat_for_the_device_are_drawn_from_on_the_host(monkeypatch):
    """A nucleus of more than 256 tokens: such a request steps one after the other, the others beside it unharmed."""
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=600, hidden_size=16, intermediate_size=24, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=1, eos_token_id=None, bos_token_id=None, pad_token_id=0,
    )  # fmt: skip
    large = transformers.LlamaForCausalLM(config).eval()
    large.lm_head.weight.data *= 200
    options = [{"temperature": 8.0, "top_p": 0.98}, {"temperature": 0.4, "top_p": 0.3}, {}]
    results = {}
    for overlap in (False, True):
        engine = Engine(large, overlap=overlap, num_pages=120, page_size=4)
        handles = [
            engine.submit(engine.request(p, max_new_tokens=NEW, seed=i, **o))[0]
            for i, (p, o) in enumerate(zip(PROMPTS, options, strict=False))
        ]
        flights(engine)
        results[overlap] = [h.completion.token_ids for h in handles]
        assert [h._state.draws_on_host for h in handles] == [overlap, False, False]
        assert_nothing_lost(engine)
    assert results[True] == results[False]


def test_pages_that_are_short_while_steps_with_drafts_are_under_way(model, expected):
    engine = engine_of(model, num_pages=30)
    done = engine.generate(PROMPTS, max_new_tokens=NEW, drafter=oracle(expected))
    assert [c.token_ids for c in done] == expected
    assert engine.stats.num_preemptions > 0
    assert_nothing_lost(engine)


def test_pages_that_are_short_stop_the_flight_ahead_and_then_preempt(model, expected):
    engine = engine_of(model, num_pages=28)
    done = engine.generate(PROMPTS, max_new_tokens=NEW)
    assert [c.token_ids for c in done] == expected
    assert engine.stats.num_preemptions > 0
    assert_nothing_lost(engine)


def test_a_request_that_is_cancelled_in_flight_leaves_the_others_alone(model, expected):
    engine = engine_of(model)
    handles = [engine.submit(engine.request(p, max_new_tokens=NEW))[0] for p in PROMPTS]
    for _ in range(4):
        engine.step()
    assert engine._stepper._flight is not None
    handles[1].cancel()
    flights(engine)
    assert [h.completion.token_ids for h in (handles[0], *handles[2:])] == [expected[0], *expected[2:]]
    assert handles[1].completion.finish_reason == "cancelled"
    assert handles[1].completion.token_ids == expected[1][: len(handles[1].completion.token_ids)]
    assert_nothing_lost(engine)


def test_weights_that_change_in_flight_void_it(model, expected):
    engine = engine_of(model)
    handles = [engine.submit(engine.request(p, max_new_tokens=NEW))[0] for p in PROMPTS]
    for _ in range(3):
        engine.step()
    engine.invalidate()
    flights(engine)
    assert [h.completion.token_ids for h in handles] == expected
    assert_nothing_lost(engine)


@pytest.mark.parametrize("call", range(2, 9))
@pytest.mark.parametrize("where", ["forward", "read", "append", "commit", "drafts", "told"])
def test_an_interrupt_anywhere_loses_nothing(model, expected, where, call, monkeypatch):
    engine = engine_of(model)
    drafter = oracle(expected) if where in ("drafts", "told") else None
    target, name = {
        "forward": (engine._model, "forward"),
        "read": (engine._stepper._chosen, "read"),
        "append": (settle_module, "append"),
        "commit": (step_module, "reserve_spare"),
        "drafts": (step_module, "reserve"),
        "told": (step_module, "tell"),
    }[where]
    plant(monkeypatch, target, name, call)
    handles = [engine.submit(engine.request(p, max_new_tokens=NEW, drafter=drafter))[0] for p in PROMPTS[:3]]
    told = {h.request_id: [] for h in handles}
    with pytest.raises(KeyboardInterrupt, match="planted"):
        flights(engine, told)
    flights(engine, told)
    assert [h.completion.token_ids for h in handles] == list(told.values()) == expected[:3]
    assert_nothing_lost(engine)


def test_whoever_draws_drafts_or_copies_ends_the_flight_ahead_for_all(model, expected):
    results = {}
    for overlap in (False, True):
        engine = engine_of(model, overlap=overlap)
        handles = engine.submit(engine.request(PROMPTS[0], max_new_tokens=NEW))
        for _ in range(3):
            engine.step()
        drafter = oracle(expected)
        handles += engine.submit(engine.request(PROMPTS[1], max_new_tokens=5, drafter=drafter))
        handles += engine.submit(engine.request(PROMPTS[2], max_new_tokens=6, temperature=1.0, seed=3), copies=3)
        flights(engine)
        results[overlap] = [h.completion.token_ids for h in handles]
        assert_nothing_lost(engine)
    assert results[True] == results[False]
    assert results[True][:2] == [expected[0], expected[1][:5]]
    assert len({tuple(tokens) for tokens in results[True][2:]}) > 1


def test_logits_that_hold_nothing_end_their_request_only(model, expected, monkeypatch):
    engine = engine_of(model)
    handles = [engine.submit(engine.request(p, max_new_tokens=NEW))[0] for p in PROMPTS[:2]]
    for _ in range(3):
        engine.step()
    forward = engine._model.forward

    def spoil(plan):
        logits = forward(plan)
        logits[0] = torch.nan
        monkeypatch.setattr(engine._model, "forward", forward)
        return logits

    monkeypatch.setattr(engine._model, "forward", spoil)
    flights(engine)
    assert "NaN" in str(handles[0].completion.error)
    assert handles[1].completion.token_ids == expected[1]
    assert_nothing_lost(engine)


def test_a_choice_on_the_device_masks_every_row_of_its_own(model):
    """Against numpy: rows with a grammar, without one, and one that only computes."""
    from infercore.hf.choices import Choices, choices_size
    from infercore.hf.choose import Turn
    from infercore.hf.chosen import ChosenTokens
    from infercore.speculative import TokenTree

    class Grammar:
        def __init__(self, allowed):
            self.allowed = allowed

        def fill(self, tree, bitmask):
            bits = np.zeros(bitmask.shape[1] * 32, np.uint8)
            bits[self.allowed] = 1
            bitmask[0] = torch.from_numpy(np.packbits(bits, bitorder="little").view(np.int32))

    engine = engine_of(model)
    states = [engine.submit(engine.request(p, max_new_tokens=2))[0]._state for p in PROMPTS]
    states[1].grammar, states[3].grammar = Grammar([7, 9]), Grammar([4])
    turns = [Turn(s, i, 0, True, TokenTree.empty()) for i, s in enumerate(states)]
    turns[2] = Turn(states[2], 2, 1, False, TokenTree.empty())
    logits = torch.randn(4, VOCAB, generator=torch.Generator().manual_seed(0))
    wanted = [int(logits[0].argmax()), 7 if logits[1, 7] > logits[1, 9] else 9, None, 4]
    chosen = ChosenTokens(Choices(torch.zeros(choices_size(8), dtype=torch.uint8), 8))
    assert chosen.serves(turns, 4)
    assert not chosen.serves(turns, 9)
    masked = logits.clone()
    chosen.launch(turns, masked, num_top=3)
    assert chosen.top_tokens(np.array([3, 0]), 2)[1].tolist() == logits[0].topk(2).indices.tolist()
    assert chosen.top_tokens(np.array([3, 0]), 3)[0, 0] == 4
    assert [v and v.next_token_id for v in chosen.read(turns)] == wanted
    assert chosen.choices.tokens[[0, 1, 3]].tolist() == [w for w in wanted if w is not None]


def test_drafters_learn_the_likeliest_tokens_of_choices_on_the_device(model, expected):
    """The same table, and so the same drafts, as from logits that the host looks at."""
    tables, accepts = {}, {}
    for overlap in (False, True):
        drafter = Union(SuffixDrafter(), RecyclingDrafter(VOCAB))
        engine = engine_of(model, overlap=overlap)
        done = engine.generate(PROMPTS, max_new_tokens=NEW, drafter=drafter)
        assert [c.token_ids for c in done] == expected
        tables[overlap] = drafter.drafters[1]._followers.copy()
        accepts[overlap] = engine.stats.accept_length
    assert np.array_equal(tables[True], tables[False])
    assert (tables[True] >= 0).sum() > 100
    assert accepts[True] == accepts[False] > 1


class Watch(FixedBudget):
    """Notes what steps took, and how many nodes they verified."""

    def __init__(self):
        super().__init__(4)
        self.steps = []

    def update(self, request_ids, trees, verdicts, *, step_time_s, num_other_rows=0):
        self.steps.append((sum(tree.num_nodes for tree in trees), step_time_s))


class Slow(SuffixDrafter):
    def propose(self, requests):
        time.sleep(0.05)
        return super().propose(requests)


def test_what_drafting_takes_belongs_to_the_step_that_verifies_the_draft(model):
    watch = Watch()
    engine = engine_of(model, controller=watch)
    engine.generate([[5, 6, 7] * 6], max_new_tokens=NEW, drafter=Slow())
    drafted = [seconds for nodes, seconds in watch.steps if nodes]
    assert len(drafted) > 2
    assert min(drafted[1:]) > 0.05  # the first one begins with the request, after what its caller did
    started = time.perf_counter()
    time.sleep(0.2)  # the caller's time does not
    engine.generate([[5, 6, 7] * 6], max_new_tokens=1)
    assert watch.steps[-1][1] < time.perf_counter() - started - 0.15


class Pauses(FixedBudget):
    """Three steps with drafts, then nine without, and so on."""

    def __init__(self):
        super().__init__(4)
        self.steps = 0

    def budget(self, request_ids, *, num_other_rows=0):
        return [4 if self.steps % 12 < 3 else 0] * len(request_ids)

    def update(self, *args, **more):
        self.steps += 1


@pytest.mark.parametrize("graphs", [False, True])
def test_while_the_controller_wants_no_drafts_steps_overlap_as_plain_ones_do(model, expected, graphs):
    engine = engine_of(model, graphs=graphs, controller=Pauses())
    drafter = Union(SuffixDrafter(), RecyclingDrafter(VOCAB))
    handles = [
        engine.submit(engine.request(p, max_new_tokens=NEW, drafter=drafter, max_draft_nodes=4))[0] for p in PROMPTS
    ]
    behind, known = 0, engine._stepper._depart_behind

    def counted(flight):
        nonlocal behind
        following = known(flight)
        behind += following is not None
        return following

    engine._stepper._depart_behind = counted
    while engine.num_unfinished:
        engine.step()
    assert [h.token_ids for h in handles] == expected
    assert behind >= 7
    assert any(h._state.stats.num_drafted_tokens for h in handles)
    assert_nothing_lost(engine)

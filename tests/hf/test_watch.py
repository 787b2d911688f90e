"""While the controller rests, steps overlap, and drafts are made beside them only to be judged.

On a CPU nothing runs at the same time, but everything happens in the order of a GPU. Times are modelled.
"""

import numpy as np
import pytest
from tests.hf.drafters import OracleDrafter
from tests.hf.test_equals_hf import assert_nothing_lost
from tests.hf.test_overlap import PROMPTS, SCHEMA, engine_of, plant
from tests.hf.tiny import VOCAB, hf_greedy, tiny_model

from infercore.constrained import json_schema
from infercore.hf import step as step_module
from infercore.speculative import FixedBudget, SpeedController, SuffixDrafter

LENGTH = 80


class Modelled(SpeedController):
    """Steps take what they would on a GPU, a draft 50 us; notes per step what was asked for, verified and gained."""

    def __init__(self):
        self.now = 0.0
        super().__init__(max_nodes=8, clock=self.tick)
        self.nodes, self.gained, self.behind, self.asked = [], [], [], []
        self.is_behind = self.is_asked = False

    def tick(self):
        self.now += 0.00005
        return self.now

    def watch(self, request_ids, **more):
        self.is_behind = True
        self.offered = super().watch(request_ids, **more)
        return self.offered

    def select(self, request_ids, trees, **more):
        self.is_asked |= not self.is_behind
        return super().select(request_ids, trees, **more)

    def update(self, request_ids, trees, verdicts, *, step_time_s, num_other_rows=0):
        num_nodes = sum(tree.num_nodes for tree in trees)
        if trees:
            self.nodes.append(num_nodes / len(trees))
            self.gained.append(sum(verdict.accept_length for verdict in verdicts) / len(trees))
            self.behind.append(self.is_behind)
            self.asked.append(self.is_asked)
        rows = len(trees) + num_other_rows + num_nodes
        seconds = 0.00106 if self.is_behind else 0.0013 + 3e-6 * rows if self.is_asked else 0.0012
        self.is_behind = self.is_asked = False
        super().update(request_ids, trees, verdicts, step_time_s=seconds, num_other_rows=num_other_rows)


class Moody(OracleDrafter):
    """Right, then wrong, then right again: `length` tokens each. Notes how many tokens each call was behind."""

    def __init__(self, outputs, length=LENGTH):
        super().__init__(outputs, "right", VOCAB)
        self.length = length
        self.calls = []

    def _tree(self, request):
        prompt = next(p for p in self.outputs if tuple(request.token_ids[: len(p)].tolist()) == p)
        num_output = len(request.token_ids) - len(prompt)
        self.calls.append((request.request_id, num_output))
        self.kind = "wrong" if num_output // self.length == 1 else "right"
        return super()._tree(request)


@pytest.fixture(scope="module")
def model():
    return tiny_model("llama")


@pytest.fixture(scope="module")
def outputs(model):
    return {tuple(p): hf_greedy(model, p, 3 * LENGTH)[0] for p in PROMPTS[2:]}


@pytest.mark.parametrize("graphs", [False, True])
@pytest.mark.parametrize("num_prompts", [1, 2])
def test_speculation_is_on_again_once_drafts_are_right_again(model, outputs, num_prompts, graphs):
    prompts = PROMPTS[2 : 2 + num_prompts]
    controller, drafter = Modelled(), Moody(outputs)
    engine = engine_of(model, controller=controller, num_pages=300, graphs=graphs)
    done = engine.generate(prompts, max_new_tokens=3 * LENGTH, drafter=drafter)
    assert [c.token_ids for c in done] == [outputs[tuple(p)] for p in prompts]
    begins = np.cumsum([0, *controller.gained])[:-1]
    bad = np.flatnonzero((begins >= LENGTH) & (begins < 2 * LENGTH))
    again = np.flatnonzero(begins >= 2 * LENGTH)
    nodes, asked, behind = (np.array(x) for x in (controller.nodes, controller.asked, controller.behind))
    assert nodes[bad[20:]].max() == 0
    assert not asked[bad[20:]].any()
    assert behind[bad[22:]].all(), "steps overlap to the end of the bad stretch"
    assert nodes[again].max() > 0
    assert (nodes[again] > 0).argmax() < 15
    assert len(drafter.calls) == len(set(drafter.calls)), "never twice for the same text"
    assert_nothing_lost(engine)


class Watches(FixedBudget):
    """Never drafts, but watches; notes whose trees it saw and what came of it."""

    def __init__(self):
        super().__init__(0)
        self.seen, self.told = [], []
        self.other_rows = []

    def watch(self, request_ids, *, num_other_rows=0):
        self.other_rows.append(num_other_rows)
        return [6] * len(request_ids)

    def select(self, request_ids, trees, *, num_other_rows=0):
        self.seen.append(dict(zip(request_ids, trees, strict=True)))
        return list(trees)

    def update(self, request_ids, trees, verdicts, *, step_time_s, num_other_rows=0):
        assert all(tree.num_nodes == 0 for tree in trees)
        if self.seen:
            judged = {i: v.next_token_id for i, v in zip(request_ids, verdicts, strict=True)}
            self.told.append((self.seen.pop(), judged))
            assert not self.seen


def test_drafts_that_are_watched_are_those_of_the_step_that_judges_them(model, outputs):
    """Of a drafter that is always right every tree begins with the token that comes."""
    controller = Watches()
    engine = engine_of(model, controller=controller, num_pages=300)
    right = OracleDrafter(outputs, "right", VOCAB)
    handles = [engine.submit(engine.request(p, max_new_tokens=20, drafter=right))[0] for p in outputs]
    handles += engine.submit(engine.request(PROMPTS[0], max_new_tokens=20))
    while engine.num_unfinished:
        engine.step()
    assert [h.token_ids for h in handles[:2]] == [tokens[:20] for tokens in outputs.values()]
    assert handles[2].token_ids == hf_greedy(model, PROMPTS[0], 20)[0]
    assert len(controller.told) > 15
    for trees, judged in controller.told:
        assert set(trees) <= set(judged)
        for request_id, tree in trees.items():
            assert judged[request_id] in tree.token_ids[tree.parents < 0]
    assert set(controller.other_rows) == {1, 3}, "the request without a drafter; at last nobody has room for a draft"
    assert sum(h._state.stats.num_drafted_tokens for h in handles) == 0
    assert_nothing_lost(engine)


def test_requests_that_draw_are_not_watched(model, outputs):
    drafter, greedy = Moody(outputs), Moody(outputs)
    controller = Watches()
    engine = engine_of(model, controller=controller, num_pages=300)
    drawn, plain = PROMPTS[2:]
    options = {"max_new_tokens": 20, "temperature": 1.0, "seed": 3}
    handle = engine.submit(engine.request(drawn, drafter=drafter, **options))[0]
    other = engine.submit(engine.request(plain, drafter=greedy, max_new_tokens=20))[0]
    before = handle._state.draft_generator.get_state()
    while engine.num_unfinished:
        engine.step()
    assert not drafter.calls
    assert len(greedy.calls) > 15
    assert (handle._state.draft_generator.get_state() == before).all()
    assert handle.token_ids == engine_of(model, overlap=False).generate(drawn, **options)[0].token_ids
    assert other.token_ids == outputs[tuple(plain)][:20]


class Breaks(Moody):
    def _tree(self, request):
        if len(request.token_ids) > len(PROMPTS[2]) + 8:
            raise ArithmeticError("no more")
        return super()._tree(request)


def test_a_drafter_that_breaks_while_it_is_watched_ends_its_own_request_only(model, outputs):
    engine = engine_of(model, controller=Watches(), num_pages=300)
    bad = engine.submit(engine.request(PROMPTS[2], drafter=Breaks(outputs), max_new_tokens=20))[0]
    good = engine.submit(engine.request(PROMPTS[3], drafter=Moody(outputs), max_new_tokens=20))[0]
    while engine.num_unfinished:
        engine.step()
    assert isinstance(bad.completion.error, ArithmeticError)
    assert bad.completion.token_ids == outputs[tuple(PROMPTS[2])][: len(bad.completion.token_ids)]
    assert len(bad.completion.token_ids) == 9
    assert good.token_ids == outputs[tuple(PROMPTS[3])][:20]
    assert_nothing_lost(engine)


def test_watched_drafts_keep_to_their_grammar(model):
    """And what is written is what is written without a drafter."""
    results = []
    for drafts in (False, True):
        controller = Watches()
        engine = engine_of(model, controller=controller, num_pages=300)
        drafter = SuffixDrafter() if drafts else None
        handles = [
            engine.submit(engine.request(p, max_new_tokens=40, grammar=json_schema(SCHEMA), drafter=drafter))[0]
            for p in PROMPTS
        ]
        while engine.num_unfinished:
            engine.step()
        results.append([h.completion.token_ids for h in handles])
        trees = [tree for seen, _ in controller.told for tree in seen.values() if tree.num_nodes]
        assert bool(trees) == drafts
        for tree in trees:
            assert tree.grammar_states is not None
            assert (tree.grammar_states >= 0).all()
        assert_nothing_lost(engine)
    assert results[0] == results[1]


@pytest.mark.parametrize("call", [1, 2, 5])
@pytest.mark.parametrize("where", ["watch", "told"])
def test_an_interrupt_beside_watched_drafts_loses_nothing(model, outputs, where, call, monkeypatch):
    engine = engine_of(model, controller=Watches(), num_pages=300)
    plant(monkeypatch, step_module, {"watch": "watch", "told": "tell"}[where], call)
    handles = [engine.submit(engine.request(p, max_new_tokens=20, drafter=Moody(outputs)))[0] for p in outputs]
    told = {h.request_id: [] for h in handles}
    interrupted = 0
    while engine.num_unfinished:
        try:
            events = engine.step()
        except KeyboardInterrupt:
            interrupted += 1
            continue
        for event in events:
            told[event.request_id] += getattr(event, "token_ids", ())
    assert interrupted == 1
    assert list(told.values()) == [tokens[:20] for tokens in outputs.values()]
    assert_nothing_lost(engine)

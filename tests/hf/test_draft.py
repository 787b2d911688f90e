"""What drafters and the controller are told about a step."""

from tests.hf.drafters import OracleDrafter
from tests.hf.tiny import VOCAB, hf_greedy, prompts, tiny_model

from infercore.hf import Engine
from infercore.speculative import FixedBudget


class ObservingDrafter(OracleDrafter):
    """Remembers what it was shown."""

    num_top_tokens = 3

    def __init__(self, *args):
        super().__init__(*args)
        self.seen: list[tuple[int, list[int]]] = []

    def observe(self, token_ids, top_token_ids):
        self.seen += zip(token_ids.tolist(), top_token_ids.tolist(), strict=True)


def test_observers_see_the_target_s_best_tokens_after_every_token_of_the_output():
    model = tiny_model("llama")
    prompt = prompts()[0]
    tokens, logits = hf_greedy(model, prompt, 20)
    drafter = ObservingDrafter({tuple(prompt): tokens}, "half", VOCAB)
    engine = Engine(model, num_pages=64, page_size=4)
    engine.generate(prompt, max_new_tokens=20, drafter=drafter)
    expected = [(t, logits[i].topk(3).indices.tolist()) for i, t in enumerate([prompt[-1], *tokens[:-1]])]
    assert drafter.seen == expected


class CountingController(FixedBudget):
    """Remembers what it was told."""

    def __init__(self, max_nodes):
        super().__init__(max_nodes)
        self.updates = []
        self.closed = []

    def update(self, request_ids, trees, verdicts, *, step_time_s, num_other_rows=0):
        self.updates.append((list(request_ids), [t.num_nodes for t in trees], num_other_rows))
        assert step_time_s > 0

    def close(self, request_id):
        self.closed.append(request_id)


def test_the_controller_limits_trees_and_learns_of_every_step():
    model = tiny_model("llama")
    outputs = {tuple(p): hf_greedy(model, p, 16)[0] for p in prompts()}
    controller = CountingController(4)
    engine = Engine(model, num_pages=64, page_size=4, controller=controller)
    done = engine.generate(prompts(), max_new_tokens=16, drafter=OracleDrafter(outputs, "right", VOCAB))
    assert [c.token_ids for c in done] == list(outputs.values())
    assert all(n <= 4 for _, sizes, _ in controller.updates for n in sizes)
    assert sum(sum(sizes) for _, sizes, _ in controller.updates) == sum(c.stats.num_drafted_tokens for c in done)
    assert controller.updates[0][2] > 0  # the prompts' other rows
    assert sorted(controller.closed) == [c.request_id for c in done]


def test_a_drafter_that_breaks_its_law_ends_its_own_request_only():
    model = tiny_model("llama")
    outputs = {tuple(p): hf_greedy(model, p, 16)[0] for p in prompts()}
    greedy_drafter = OracleDrafter(outputs, "right", VOCAB)
    greedy_drafter.propose = lambda requests: [OracleDrafter(outputs, "right", VOCAB)._tree(r) for r in requests] * 2
    engine = Engine(model, num_pages=64, page_size=4)
    bad = engine.submit(engine.request(prompts()[0], max_new_tokens=16, drafter=greedy_drafter))[0]
    good = engine.submit(engine.request(prompts()[1], max_new_tokens=16))[0]
    while engine.num_unfinished:
        engine.step()
    assert "2 trees for 1 requests" in str(bad.completion.error)
    assert good.completion.token_ids == outputs[tuple(prompts()[1])]
    assert engine.cache.counts().in_use == 0

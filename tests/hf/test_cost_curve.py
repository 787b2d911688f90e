"""The engine measures what rows cost, once, and remembers it."""

from tests.hf.tiny import hf_greedy, prompts, tiny_model

from infercore.hf import Engine
from infercore.hf import cost_curve as module
from infercore.speculative import CostCurve, NGramDrafter, SpeedController


def test_a_curve_is_measured_once_and_then_comes_from_the_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    measured = []
    original = CostCurve.measure.__func__

    def counted(cls, run, **options):
        measured.append(options["rows"])
        return original(cls, run, rows=(1, 4), repeats=1)

    monkeypatch.setattr(CostCurve, "measure", classmethod(counted))
    model = tiny_model("llama")
    engine = Engine(model, num_pages=64, page_size=4)
    curve = engine.cost_curve()
    assert curve.knows(1)
    assert curve.knows(4)
    assert Engine(model, num_pages=64).cost_curve().table() == curve.table()
    assert measured == [module._ROWS]
    engine.cost_curve(refresh=True)
    assert len(measured) == 2
    assert engine.cache.counts().in_use == 0


def test_a_controller_may_be_given_the_curve_later(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    model = tiny_model("llama")
    engine = Engine(model, num_pages=64, page_size=4)
    engine.controller = SpeedController(engine.cost_curve())
    prompt = prompts()[0]
    (done,) = engine.generate(prompt, max_new_tokens=16, drafter=NGramDrafter())
    assert done.token_ids == hf_greedy(model, prompt, 16)[0]
    decisions = engine.controller.decisions
    assert decisions.num_plain_steps + decisions.num_speculative_steps == done.stats.num_sampling_forwards

"""What the engine saves for programs: tokens of shared texts to the last one, and forwards where drafts come true."""

import pytest
from tiny_chat import tiny_model, tiny_tokenizer

from infercore.hf import Engine
from infercore.lang import function, gen, select
from infercore.lang.backends import EngineBackend
from infercore.speculative import FixedBudget, SuffixDrafter

SHARED = "the quick brown fox jumps over the lazy dog. Q: yes no A: maybe! "  # its end is within a page of 16


@function
def mood(s, question):
    s += SHARED
    s += question
    s += select("mood", ["0", "1"])
    return s["mood"]


@function
def long_text(s):
    s += SHARED
    s += gen("text", max_tokens=60)
    return s["text"]


QUESTIONS = ("fox 2:", "dog 3:", "lazy 4:", "over 5:")


def run_moods(page_size: int, questions=QUESTIONS):
    """The engine's counters, and the moods."""
    engine = Engine(tiny_model(), tiny_tokenizer(), num_pages=2048 // page_size, page_size=page_size, poison=True)
    backend = EngineBackend(engine)
    runs = mood.run_batch(backend, [{"question": q} for q in questions])
    assert engine.cache.counts().in_use == 0
    return engine.stats, [run.value for run in runs]


def test_with_pages_of_one_token_nothing_shared_is_computed_twice():
    encode = tiny_tokenizer().encode
    prompts = [encode(SHARED + q) for q in QUESTIONS]
    different = {tuple(p[:i]) for p in prompts for i in range(1, len(p) + 1)}  # a row for each beginning
    stats, values = run_moods(1)
    assert stats.num_rows == len(different)
    in_pages, same_values = run_moods(16)
    assert same_values == values
    assert in_pages.num_rows > stats.num_rows


def test_small_pages_do_not_make_programs_wait_for_a_few_shared_tokens():
    # whichever comes first computes the shared text; then three begin with the other animal, less than a step is worth
    questions = [f"{animal} {i}:" for animal in ("dog", "fox") for i in range(3)]
    stats, values = run_moods(1, questions)
    in_pages, same_values = run_moods(16, questions)
    assert stats.num_forwards == in_pages.num_forwards == 2
    assert same_values == values


@pytest.mark.parametrize(
    ("controller", "drafter", "drafts"),
    [
        (None, "auto", False),
        (FixedBudget(8), "auto", True),
        (FixedBudget(8), None, False),
        (None, SuffixDrafter(), True),
    ],
)
def test_drafts_come_with_a_controller_or_on_request_and_change_no_text(controller, drafter, drafts):
    engine = Engine(tiny_model(), tiny_tokenizer(), num_pages=64, controller=controller)
    plain = long_text.run(EngineBackend(engine, drafter=None)).value
    forwards = engine.stats.num_forwards
    assert not engine.stats.acceptance
    backend = EngineBackend(engine, drafter=drafter)
    assert long_text.run(backend).value == plain
    before = engine.stats.num_forwards
    assert long_text.run(backend).value == plain  # said before, so every draft is right
    assert bool(engine.stats.acceptance) == drafts
    assert (engine.stats.num_forwards - before < forwards / 2) == drafts

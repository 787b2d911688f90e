"""What a head made of a text is found with the text's pages, and never taken for that of another text."""

import pytest
from tests.hf.heads.checkpoints import write
from tests.hf.heads.test_in_engine import Kept, assert_scores_are_true
from tests.hf.tiny import hf_greedy, tiny_model

from infercore.hf import EagleDrafter, Engine

PROMPT = [(7 * i + 5) % 190 + 3 for i in range(22)]
NEXT = [11, 50, 9, 120, 14]
OTHERS = [[(3 * i + 17 * n) % 190 + 3 for i in range(40)] for n in range(1, 4)]
PAGE = 4


def new_drafter(folder, model, flavour="eagle3"):
    return EagleDrafter.from_pretrained(write(flavour, folder), model, max_depth=3)


def engine_for(model, *, num_pages=64, **options):
    return Engine(model, num_pages=num_pages, page_size=PAGE, **{"poison": True} | options)


def turn(engine, text, drafter, num_new=10, **options):
    """Completion of `text`, as without drafts, and the drafts of it."""
    kept = Kept(drafter)
    (done,) = engine.generate([text], max_new_tokens=num_new, drafter=kept, **options)
    if not options:
        assert done.token_ids == hf_greedy(engine.model, text, num_new)[0]
        assert min(len(drafted) for drafted, _ in kept.kept) == len(text) + 1  # from the first token on
    return done, kept.kept


def assert_knows_all(engine, text, drafter, flavour="eagle3", num_reused=None):
    done, kept = turn(engine, text, drafter)
    assert done.stats.num_reused_tokens % PAGE == PAGE - 1  # the last one's row was computed for its features
    assert num_reused is None or done.stats.num_reused_tokens == num_reused
    for drafted, tree in kept:
        assert_scores_are_true(flavour, engine.model, drafted, tree)
    return done


def assert_begins_behind(engine, text, drafter):
    done, kept = turn(engine, text, drafter)
    first = done.stats.num_reused_tokens
    assert first >= len(PROMPT) // PAGE * PAGE
    assert first % PAGE == 0
    for drafted, tree in kept:
        assert_scores_are_true("eagle3", engine.model, drafted, tree, first)
    return done


@pytest.mark.parametrize("early", [False, True])
@pytest.mark.parametrize("flavour", ["eagle1", "eagle3", "speculators, qwen3, two layers"])
def test_a_later_turn_drafts_as_if_the_head_had_seen_all_of_it(flavour, early, tmp_path):
    model = tiny_model("llama")
    drafter = new_drafter(tmp_path, model, flavour)
    drafter._starts_early = early
    engine, text = engine_for(model), PROMPT
    for num_reused in (None, 31 // PAGE * PAGE - 1, 46 // PAGE * PAGE - 1):
        if num_reused is None:
            done, _ = turn(engine, text, drafter)
        else:
            done = assert_knows_all(engine, text, drafter, flavour, num_reused)
        text = [*text, *done.token_ids, *NEXT]
    assert not drafter._seen
    assert not drafter._pooled.held


def test_a_beginning_that_was_computed_without_the_head_is_unknown(tmp_path):
    model = tiny_model("llama")
    drafter, engine = new_drafter(tmp_path, model), engine_for(model)
    (done,) = engine.generate([PROMPT], max_new_tokens=10)
    text = [*PROMPT, *done.token_ids, *NEXT]
    done = assert_begins_behind(engine, text, drafter)
    turn(engine, OTHERS[0], drafter)  # there are entries now, of others
    text = [*text, *done.token_ids, *NEXT]
    done, kept = turn(engine, text, drafter)  # entries from the first turn of this head on
    for drafted, tree in kept:
        assert_scores_are_true("eagle3", model, drafted, tree, 28)


@pytest.mark.parametrize("poison", [False, True])
def test_entries_of_a_page_end_with_it(poison, tmp_path):
    model = tiny_model("llama")
    drafter, engine = new_drafter(tmp_path, model), engine_for(model, num_pages=24, poison=poison)
    turn(engine, PROMPT, drafter)
    assert_knows_all(engine, PROMPT, drafter)
    for other in OTHERS:
        engine.generate([other], max_new_tokens=4)
    assert engine.cache.match(PROMPT).num_tokens == 0
    (done,) = engine.generate([PROMPT], max_new_tokens=10)  # in pages that once had entries
    assert_begins_behind(engine, [*PROMPT, *done.token_ids], drafter)


def test_copies_of_a_prompt_take_its_entries_with_them(tmp_path):
    model = tiny_model("llama")
    drafter, engine = new_drafter(tmp_path, model), engine_for(model, num_pages=128)
    copies = engine.generate([PROMPT], n=3, max_new_tokens=9, drafter=drafter, temperature=1.5, seed=1)
    assert len({tuple(copy.token_ids) for copy in copies}) == 3
    for copy in copies:
        assert_knows_all(engine, [*PROMPT, *copy.token_ids, 5], drafter, num_reused=27)


def test_requests_that_run_share_what_they_began_with(tmp_path):
    model = tiny_model("llama")
    drafter, engine = new_drafter(tmp_path, model), engine_for(model, num_pages=128)
    kept = Kept(drafter)
    texts = [[*PROMPT, *NEXT[:n], 8] for n in range(4)]
    done = engine.generate(texts, max_new_tokens=12, drafter=kept)
    assert [c.token_ids for c in done] == [hf_greedy(model, text, 12)[0] for text in texts]
    assert [c.stats.num_reused_tokens for c in done] == [0, 19, 19, 19]
    assert len(kept.kept) > 20
    for text, tree in kept.kept:
        assert_scores_are_true("eagle3", model, text, tree)


def test_after_a_preemption(tmp_path):
    model = tiny_model("llama")
    drafter, engine = new_drafter(tmp_path, model), engine_for(model, num_pages=17)
    kept = Kept(drafter)
    texts = [PROMPT, [*OTHERS[0][:6], *PROMPT]]
    done = engine.generate(texts, max_new_tokens=24, drafter=kept)
    assert [c.token_ids for c in done] == [hf_greedy(model, text, 24)[0] for text in texts]
    assert sum(c.stats.num_preemptions for c in done) > 0
    for text, tree in kept.kept:
        assert_scores_are_true("eagle3", model, text, tree)


def test_a_prompt_that_fills_the_pool_still_runs(tmp_path):
    model = tiny_model("llama")
    drafter, engine = new_drafter(tmp_path, model), engine_for(model, num_pages=9)  # eight pages for 32 tokens
    turn(engine, PROMPT, drafter)
    done, _ = turn(engine, PROMPT, drafter)
    assert done.stats.num_reused_tokens in (19, 20)
    long = [*PROMPT, *done.token_ids[:8]]
    (done,) = engine.generate([long], max_new_tokens=2, drafter=drafter)
    assert done.token_ids == hf_greedy(model, long, 2)[0]


def test_two_engines_and_a_cleared_cache(tmp_path):
    model = tiny_model("llama")
    drafter, engines = new_drafter(tmp_path, model), [engine_for(model), engine_for(model, num_pages=40)]
    for engine in engines:
        turn(engine, PROMPT, drafter)
    for engine in engines:
        assert_knows_all(engine, PROMPT, drafter, num_reused=19)
    engines[0].invalidate()
    done, kept = turn(engines[0], PROMPT, drafter)
    assert done.stats.num_reused_tokens == 0
    for text, tree in kept:
        assert_scores_are_true("eagle3", model, text, tree)
    assert_knows_all(engines[1], PROMPT, drafter, num_reused=19)


def test_pages_that_come_back_from_the_host_or_a_file_have_none(tmp_path):
    model = tiny_model("llama")
    drafter = new_drafter(tmp_path, model)
    engine = engine_for(model, num_pages=24, host_cache_bytes=1 << 22)
    first, _ = turn(engine, PROMPT, drafter)
    engine.cache.save(tmp_path / "cache.safetensors")
    for other in OTHERS:
        engine.generate([other], max_new_tokens=4)
    done = assert_begins_behind(engine, [*PROMPT, *first.token_ids], drafter)
    assert done.stats.num_host_tokens > 0
    loaded = engine_for(model)
    turn(loaded, OTHERS[0], drafter)
    assert loaded.cache.load(tmp_path / "cache.safetensors") > 0
    assert_begins_behind(loaded, [*PROMPT, *first.token_ids], drafter)


def test_the_rows_computed_again_are_few_and_only_where_they_help(tmp_path):
    model = tiny_model("llama")
    drafter, engine = new_drafter(tmp_path, model), engine_for(model)
    (done,) = engine.generate([PROMPT], max_new_tokens=10)
    before = engine.stats.num_rows
    (again,) = engine.generate([PROMPT], max_new_tokens=1, drafter=drafter)
    assert engine.stats.num_rows - before == len(PROMPT) - 20
    assert again.token_ids == done.token_ids[:1]

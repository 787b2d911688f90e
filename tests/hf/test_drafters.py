"""Every drafter in the engine: the output is the target's, under grammars, penalties and nuclei, in ragged batches."""

import numpy as np
import pytest
import torch
from tests.hf.drafters import OracleDrafter
from tests.hf.test_equals_hf import GRAMMAR, NEW, byte_vocabulary, grammar_truth, new_engine
from tests.hf.tiny import VOCAB, hf_greedy, prompts, tiny_model

from infercore.constrained import Vocabulary, regex
from infercore.hf import Engine, ModelForward
from infercore.hf.grammar_state import IntGrammarState
from infercore.speculative import (
    DraftModelDrafter,
    ForcedTokenDrafter,
    NGramDrafter,
    RecyclingDrafter,
    SuffixDrafter,
    TokenTree,
    Union,
)


def chosen_union():
    return Union(ForcedTokenDrafter(), SuffixDrafter(), RecyclingDrafter(VOCAB), NGramDrafter())


def test_forced_tokens_of_the_grammar_come_as_a_draft_where_they_are_not_appended():
    model = tiny_model("llama")
    grammar = regex(GRAMMAR).bind(byte_vocabulary())
    expected = grammar_truth(model)
    done = new_engine(model).generate(
        [list(p) for p in expected], max_new_tokens=NEW * 2, grammar=grammar, drafter=ForcedTokenDrafter(),
        jump_forward=False, eos_token_ids=(2,),
    )  # fmt: skip
    assert [c.token_ids for c in done] == [tokens for tokens, _ in expected.values()]
    for completion in done:
        assert completion.stats.num_forced_tokens == 0
        assert completion.stats.num_accepted_tokens >= 15
        assert completion.stats.num_accepted_tokens == completion.stats.num_drafted_tokens  # certain, unless cut off


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"repetition_penalty": 1.2, "frequency_penalty": 0.3, "presence_penalty": 0.2},
        {"temperature": 0.9, "top_p": 0.9, "min_p": 0.02, "repetition_penalty": 1.2, "seed": 3},
        {"temperature": 1.4, "top_k": 5, "frequency_penalty": 0.4, "seed": 4},
    ],
)
@pytest.mark.parametrize("with_grammar", [False, True])
def test_a_union_of_chosen_drafts_leaves_every_output_as_it_is_without_it(options, with_grammar):
    """Penalties, top-k, top-p, min-p and the grammar hold at every node along its own path: else outputs would part."""
    model = tiny_model("llama")
    if with_grammar:
        grammar = regex(r"([ab]{2,5}-[0-9]{1,3} ?){6}").bind(byte_vocabulary())
        options = {**options, "grammar": grammar, "eos_token_ids": (2,)}
    engine = new_engine(model, num_pages=128)
    plain = engine.generate(prompts(), max_new_tokens=40, **options)
    drafter = chosen_union()
    for _ in range(2):  # the second time its tables know the answers
        done = engine.generate(prompts(), max_new_tokens=40, drafter=drafter, **options)
        assert [c.token_ids for c in done] == [c.token_ids for c in plain]
    assert sum(c.stats.num_accepted_tokens for c in done) > 20


def test_a_draft_model_takes_part_in_a_union():
    model = tiny_model("llama")
    truth = [hf_greedy(model, p, 24)[0] for p in prompts()]
    forward = ModelForward(tiny_model("mistral"), num_pages=64, page_size=4)
    drafter = Union(SuffixDrafter(), DraftModelDrafter(forward, max_depth=2))
    done = new_engine(model).generate(prompts(), max_new_tokens=24, drafter=drafter)
    assert [c.token_ids for c in done] == truth
    done = new_engine(model).generate(prompts(), max_new_tokens=24, drafter=drafter, temperature=1.0, seed=1)
    assert all(c.stats.num_drafted_tokens > 0 and len(c.token_ids) == 24 for c in done)


def test_a_draft_is_walked_through_the_grammar_once(monkeypatch):
    walks = []
    walk = IntGrammarState.walk

    def counted(self, tree):
        walks.append(tree.num_nodes)
        return walk(self, tree)

    monkeypatch.setattr(IntGrammarState, "walk", counted)
    model = tiny_model("llama")
    expected = grammar_truth(model)
    drafter = OracleDrafter({p: tokens for p, (tokens, _) in expected.items()}, "half", VOCAB)
    done = new_engine(model).generate(
        [list(p) for p in expected], max_new_tokens=NEW * 2, grammar=regex(GRAMMAR).bind(byte_vocabulary()),
        drafter=drafter, jump_forward=False, eos_token_ids=(2,),
    )  # fmt: skip
    assert [c.token_ids for c in done] == [tokens for tokens, _ in expected.values()]
    assert 0 < len(walks) <= sum(c.stats.num_sampling_forwards for c in done)


@pytest.mark.parametrize("kind", ["right", "half", "wrong"])
def test_the_prefix_cache_holds_and_reuses_as_much_as_without_drafts(kind):
    model = tiny_model("llama")
    outputs = {tuple(p): hf_greedy(model, p, 24)[0] for p in prompts()}
    drafter = OracleDrafter(outputs, kind, VOCAB)
    plain, drafted = new_engine(model, num_pages=128), new_engine(model, num_pages=128)
    for _ in range(2):
        for engine, options in ((plain, {}), (drafted, {"drafter": drafter})):
            done = engine.generate(prompts(), max_new_tokens=24, **options)
            assert [c.token_ids for c in done] == list(outputs.values())
        assert drafted.cache.counts() == plain.cache.counts()
        assert drafted.stats.num_reused_tokens == plain.stats.num_reused_tokens
        for prompt, output in outputs.items():  # nothing but committed tokens is in the tree
            text = [*prompt, *output[:-1]]
            assert drafted.cache.match(text).num_tokens == plain.cache.match(text).num_tokens == len(text) // 4 * 4


def test_statistics_tell_what_was_accepted_per_drafter_and_depth():
    model = tiny_model("llama")
    outputs = {tuple(p): hf_greedy(model, p, 24)[0] for p in prompts()}
    engine = new_engine(model, num_pages=128)
    done = engine.generate(prompts(), max_new_tokens=24, drafter=OracleDrafter(outputs, "half", VOCAB))
    drafted, accepted = zip(*engine.stats.acceptance["OracleDrafter"], strict=True)
    assert sum(drafted) == sum(c.stats.num_drafted_tokens for c in done)
    assert sum(accepted) == sum(c.stats.num_accepted_tokens for c in done)
    assert accepted[0] >= accepted[1] > 0  # two tokens of each draft are right, then none
    assert accepted[2:] == (0, 0)
    assert "OracleDrafter, by depth: " in engine.report()
    engine.generate(prompts(), max_new_tokens=24, drafter=chosen_union())
    assert {"OracleDrafter", "SuffixDrafter", "RecyclingDrafter"} <= engine.stats.acceptance.keys()
    engine.stats.reset()
    assert engine.stats.acceptance == {}
    assert "_acceptance" not in engine.stats.as_dict()


WORDS = [None, None, None, *(bytes([i + 29]) for i in range(VOCAB - 9)), b"ab", b"bc", b"abc", b"ca", b"cab", b"bca"]


def _longest_first(text):
    """The one spelling that plain decoding gives to forced text: the longest tokens that fit, from the left."""
    words = {word.decode("latin1"): i for i, word in enumerate(WORDS) if word is not None}
    ids = []
    while text:
        length = next(n for n in (3, 2, 1) if text[:n] in words)
        ids.append(words[text[:length]])
        text = text[length:]
    return ids


SPELLINGS = Vocabulary(WORDS, eos_token_ids=[2], encode=_longest_first)


class EveryAllowedToken:
    """Drafts whatever the grammar allows, two deep: one way or another the target's choice is always accepted."""

    def __init__(self, drawn):
        self.drawn = drawn

    def propose(self, requests):
        return [self._tree(request) for request in requests]

    def commit(self, request_id, accepted_token_ids, features=None):
        pass

    def close(self, request_id):
        pass

    def _tree(self, request):
        tokens, parents, frontier = [], [], [(-1, request.grammar_state)]
        for _ in range(3):
            following = []
            for parent, state in frontier:
                allowed = [t for t in range(VOCAB) if request.grammar.advance(state, t) >= 0]
                for token in allowed[:5]:
                    following.append((len(tokens), request.grammar.advance(state, token)))
                    tokens.append(token)
                    parents.append(parent)
            frontier = following
        probs = None
        if self.drawn:  # a point mass each: lossless, and never cut for what it holds
            probs = torch.nn.functional.one_hot(torch.tensor(tokens), VOCAB).float()
        return TokenTree.of(np.array(tokens, np.int32), parents, draft_probs=probs)


@pytest.mark.parametrize("drawn", [False, True])
@pytest.mark.parametrize("options", [{}, {"temperature": 1.5, "seed": 7}])
def test_forced_text_has_one_spelling_whatever_is_drafted(drawn, options):
    grammar = regex(r"((x|yy)abcabcab(p|qr)bca){3}").bind(SPELLINGS)
    engine = Engine(tiny_model("llama"), num_pages=512, page_size=4, vocabulary=SPELLINGS)
    options = {**options, "grammar": grammar, "max_new_tokens": 60, "eos_token_ids": (2,)}
    plain = engine.generate(prompts(), **options)
    done = engine.generate(prompts(), drafter=EveryAllowedToken(drawn), max_draft_nodes=200, **options)
    for with_drafts, without in zip(done, plain, strict=True):
        text = b"".join(WORDS[t] or b"" for t in with_drafts.token_ids)
        forced = _longest_first("abcabcab")
        assert text.count(b"abcabcab") == 3
        spelled = sum(with_drafts.token_ids[i : i + len(forced)] == forced for i in range(60))
        assert spelled == 3
        if not (drawn and options.get("temperature")):  # drawn drafts use up other numbers of the seed
            assert with_drafts.token_ids == without.token_ids

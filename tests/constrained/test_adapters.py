"""Matchers of other engines keep the laws of a `Matcher`; outlines-core agrees with our regexes."""

import re

import numpy as np
import pytest
from tests.constrained.vocab import EOS, VOCABULARY, allowed

from infercore.constrained import allocate_bitmask, regex
from infercore.constrained.adapters import LLGuidanceMatcher, XGrammarMatcher
from infercore.constrained.outlines import OutlinesRegex

PATTERN = r"(ab|[0-9]{2,3})c?"
TOKENS = [t if t is not None else b"<|%d|>" % i for i, t in enumerate(VOCABULARY.token_bytes)]


def llguidance_matcher():
    module = pytest.importorskip("llguidance")
    pytest.importorskip("llguidance.numpy")

    class Tokenizer:
        eos_token_id = EOS
        bos_token_id = None
        tokens = TOKENS
        special_token_ids = (0, EOS)

        def __call__(self, text):
            return [byte + 2 for byte in (text if isinstance(text, bytes) else text.encode())]

    tokenizer = module.LLTokenizer(module.TokenizerWrapper(Tokenizer()))
    matcher = module.LLMatcher(tokenizer, module.LLMatcher.grammar_from_regex(PATTERN), log_level=0)
    return LLGuidanceMatcher(matcher, vocab_size=330, tokenizer_size=len(TOKENS))


def xgrammar_matcher():
    module = pytest.importorskip("xgrammar")
    info = module.TokenizerInfo(TOKENS, vocab_size=len(TOKENS), stop_token_ids=[EOS])
    grammar = module.GrammarCompiler(info, max_threads=1).compile_regex(PATTERN)
    return XGrammarMatcher(module.GrammarMatcher(grammar), vocab_size=330, tokenizer_size=len(TOKENS))


def mask_of(matcher):
    bitmask = allocate_bitmask(1, 330)
    matcher.fill_bitmask(bitmask[0])
    return set(np.flatnonzero(np.unpackbits(bitmask.numpy().view(np.uint8), bitorder="little")).tolist())


@pytest.mark.parametrize("make", [llguidance_matcher, xgrammar_matcher])
def test_laws_of_a_matcher(make):
    matcher = make()
    grammar = regex(PATTERN).bind(VOCABULARY)
    state = grammar.start
    masks = [mask_of(matcher)]
    for byte in b"12":
        assert masks[-1] == allowed(grammar, state)
        assert not matcher.accept(ord("z") + 2)
        assert mask_of(matcher) == masks[-1]
        fork = matcher.fork()
        assert matcher.accept(byte + 2)
        assert mask_of(fork) == masks[-1]
        state = grammar.advance(state, byte + 2)
        masks.append(mask_of(matcher))
    assert masks[-1] == allowed(grammar, state)
    assert not matcher.is_finished
    matcher.rollback(1)
    assert mask_of(matcher) == masks[1]
    matcher.rollback(1)
    assert mask_of(matcher) == masks[0]
    assert matcher.forced_tokens().size == 0


def test_an_engine_runs_a_matcher():
    pytest.importorskip("llguidance")
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from infercore.hf import Engine

    torch.manual_seed(0)
    shape = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=330, eos_token_id=EOS, **shape)).eval()
    engine = Engine(model, vocabulary=VOCABULARY)
    (done,) = engine.generate([[5, 6, 7]], max_new_tokens=20, grammar=llguidance_matcher())
    text = b"".join(VOCABULARY.token_bytes[t] for t in done.token_ids if t != EOS)
    assert re.fullmatch(PATTERN, text.decode())


@pytest.mark.parametrize("pattern", [PATTERN, r"[a-z]+@[a-z]+\.(com|de)", r"(é|日本)*x", r"a{2,4}"])
def test_outlines_core_gives_the_same_masks(pattern):
    pytest.importorskip("outlines_core")
    ours, theirs = regex(pattern).bind(VOCABULARY), OutlinesRegex(pattern, VOCABULARY)
    rng = np.random.default_rng(0)
    for _ in range(5):
        state, other = ours.start, theirs.start
        for _ in range(8):
            mask = allowed(ours, state)
            assert allowed(theirs, other) == mask
            assert ours.is_accepting(state) == theirs.is_accepting(other)
            assert ours.is_finished(state) == theirs.is_finished(other)
            token = int(rng.choice(sorted(mask)))
            state, other = ours.advance(state, token), theirs.advance(other, token)
            if token == EOS:
                break

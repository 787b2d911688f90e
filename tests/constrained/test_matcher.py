"""A matcher is a grammar state with verbs; forced tokens are the tokens a model would have to produce anyway."""

import json

import numpy as np
import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.constrained.schemas import schemas
from tests.constrained.vocab import EOS, VOCABULARY, accepts, allowed, small_vocabulary

from infercore.constrained import GrammarMatcher, Vocabulary, choices, json_schema, regex
from infercore.errors import EmptyGrammar, UnsupportedSchema


@settings(max_examples=25)
@given(schemas, st.data())
def test_rollback_undoes_accepts_and_forks_are_independent(schema, data):
    try:
        matcher = GrammarMatcher(json_schema(schema).bind(VOCABULARY))
    except (EmptyGrammar, UnsupportedSchema):
        return
    states = [matcher.state]
    for _ in range(6):
        ids = sorted(allowed(matcher.grammar, matcher.state))
        token = ids[data.draw(st.integers(0, len(ids) - 1))]
        refused = next(t for t in range(400) if t not in set(ids))
        assert not matcher.accept(refused)
        assert matcher.state == states[-1]
        fork = matcher.fork()
        assert fork.accept(token)
        assert matcher.state == states[-1]
        assert matcher.accept(token)
        states.append(matcher.state)
    num = data.draw(st.integers(0, 6))
    matcher.rollback(num)
    assert matcher.state == states[6 - num]
    with pytest.raises(ValueError, match="cannot roll back"):
        matcher.rollback(7)


def greedy_encode(text: str) -> list[int]:
    """A tokenizer: always the longest token."""
    data, ids = text.encode(), []
    by_bytes = {t: i for i, t in reversed(list(enumerate(VOCABULARY.token_bytes))) if t}
    while data:
        size = next(n for n in range(len(data), 0, -1) if data[:n] in by_bytes)
        ids.append(by_bytes[data[:size]])
        data = data[size:]
    return ids


def text_of(tokens) -> bytes:
    return b"".join(VOCABULARY.token_bytes[t] for t in tokens)


def test_keys_are_forced_up_to_the_value():
    schema = {
        "type": "object",
        "properties": {"abc": {"type": "integer"}},
        "required": ["abc"],
        "additionalProperties": False,
    }
    grammar = json_schema(schema).bind(small_vocabulary(encode=greedy_encode))
    forced = grammar.forced_tokens(grammar.start)
    assert text_of(forced) == b'{"abc": '
    assert forced.tolist() == greedy_encode('{"abc": ')
    state = grammar.start
    for token in forced.tolist():
        state = grammar.advance(state, token)
    state = grammar.advance(state, ord("7") + 2)
    assert grammar.forced_tokens(state).size == 0
    state = grammar.advance(state, ord("}") + 2)
    assert grammar.forced_tokens(state).tolist() == [EOS]


def test_a_token_that_may_reach_further_is_not_cut_short():
    vocabulary = Vocabulary(
        [None, *(bytes([i]) for i in range(256)), b"order", b"orderId"],
        eos_token_ids=[0],
        encode=lambda text: [257] if text == "order" else [258],
    )
    grammar = choices(["order1", "orderId"]).bind(vocabulary)
    assert grammar.forced_tokens(grammar.start).size == 0
    assert choices(["order1", "order2"]).bind(vocabulary).forced_tokens(grammar.start).tolist() == [257]


@st.composite
def byte_pairs(draw):
    """A byte-pair tokenizer over three letters: which of them merge, first to last."""
    texts = ["a", "b", "c"]
    merges = []
    for _ in range(draw(st.integers(1, 8))):
        left, right = draw(st.sampled_from(texts)), draw(st.sampled_from(texts))
        if left + right not in texts:
            texts.append(left + right)
            merges.append((left, right))
    model = tokenizers.models.BPE({text: i for i, text in enumerate(["<end>", *texts])}, merges)
    return tokenizers.Tokenizer(model), ["", *texts]


@settings(max_examples=150)
@given(byte_pairs(), st.lists(st.text("abc", min_size=1, max_size=6), min_size=1, max_size=4, unique=True))
def test_forced_tokens_are_those_that_every_output_begins_with(tokenizer_and_texts, options):
    tokenizer, texts = tokenizer_and_texts
    encode = lambda text: tokenizer.encode(text).ids  # noqa: E731
    vocabulary = Vocabulary([None, *(text.encode() for text in texts[1:])], eos_token_ids=[0], encode=encode)
    grammar = choices(options).bind(vocabulary)
    forced = grammar.forced_tokens(grammar.start).tolist()
    if len(options) == 1:
        assert forced == encode(options[0])
    for option in options:
        assert [texts[i] for i in encode(option)][: len(forced)] == [texts[i] for i in forced]


def test_an_escape_that_only_respells_does_not_keep_text_from_being_forced():
    vocabulary = Vocabulary(
        [None, *(bytes([i]) for i in range(256)), b"-\\", b'"\\', b"-1"],
        eos_token_ids=[0],
        encode=lambda text: [byte + 1 for byte in text.encode()],
    )
    for pattern, prefix, forced in (
        ("^[a-z]-[0-4a]$", '"b', b""),  # "-1" may come
        ("^[a-z]-[a-z]$", '"b', b"-"),  # an escape stands for a letter, which may come as it is
        ('^[a-z]-[a-z"]$', '"b', b""),  # a quote must be escaped
        ("^[a-z]-[^b]$", '"b', b""),
        ("^[a-z]+$", "", b'"'),
    ):
        grammar = json_schema({"type": "string", "pattern": pattern}).bind(vocabulary)
        state = grammar.advance_bytes(grammar.start, np.frombuffer(prefix.encode(), np.uint8))
        assert bytes(token - 1 for token in grammar.forced_tokens(state)) == forced, pattern


def test_without_an_encoder_only_the_one_allowed_token_is_forced():
    grammar = regex("zz(q|r)").bind(VOCABULARY)
    state = grammar.start
    for _ in range(2):
        forced = grammar.forced_tokens(state).tolist()
        assert text_of(forced) == b"z"
        state = grammar.advance(state, forced[0])
    assert grammar.forced_tokens(state).size == 0


GREEDY_VOCABULARY = small_vocabulary(encode=greedy_encode)


@settings(max_examples=20)
@given(schemas, st.data())
def test_forced_tokens_are_allowed_and_lead_somewhere(schema, data):
    try:
        spec = json_schema(schema)  # what cannot be enforced is refused here, not later
    except UnsupportedSchema:
        return
    try:
        grammar = spec.bind(GREEDY_VOCABULARY)
    except EmptyGrammar:
        return
    state = grammar.start
    for _ in range(4):
        for token in grammar.forced_tokens(state).tolist():
            assert grammar.mask(state)[token >> 5] >> (token & 31) & 1
            state = grammar.advance(state, token)
            assert state >= 0
        ids = sorted(allowed(grammar, state) - {EOS})
        if not ids:
            return
        state = grammar.advance(state, ids[data.draw(st.integers(0, len(ids) - 1))])


@pytest.mark.parametrize(
    "schema",
    [
        {"not": {"type": "array", "uniqueItems": True}},
        {"properties": {"a": {"oneOf": [{"uniqueItems": True}, {"minItems": 2}]}}},
        {"items": {"if": {"uniqueItems": True}, "then": {"maxItems": 3}}},
    ],
)
def test_a_negated_unique_items_is_refused_at_once(schema):
    with pytest.raises(UnsupportedSchema, match="repeat"):
        json_schema(schema)
    json_schema(schema, ignore=["uniqueItems"])


def test_unique_items_that_nothing_negates_is_taken():
    options = [{"type": "array", "uniqueItems": True}, {"type": "string"}]
    grammar = json_schema({"oneOf": options, "not": {"const": "x"}}).bind(VOCABULARY)
    assert accepts(grammar, "[1, 2]")
    assert not accepts(grammar, "[1, 1]")


def test_fills_many_rows_at_once():
    grammar = json_schema({}).bind(VOCABULARY)
    states = [grammar.start, grammar.advance(grammar.start, ord("[") + 2)]
    rows = np.zeros((3, VOCABULARY.num_words), np.int32)
    grammar.fill_bitmask(states, rows)
    assert not rows[2].any()
    for row, state in zip(rows, states, strict=False):
        bits = np.unpackbits(row.view(np.uint8), bitorder="little")
        assert set(np.flatnonzero(bits).tolist()) == allowed(grammar, state)
    assert json.loads("[]") == []

"""The mask of every state is what trying each token gives; a token is accepted exactly where the mask allows it."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.constrained.schemas import schemas
from tests.constrained.test_regex import patterns
from tests.constrained.vocab import EOS, VOCABULARY, allowed, allowed_one_by_one, walk

from infercore.constrained import Vocabulary, choices, json_schema, regex
from infercore.errors import EmptyGrammar, UnsupportedSchema


def check(spec, draw):
    try:
        grammar = spec.bind(VOCABULARY)
    except EmptyGrammar:
        return
    for state in walk(grammar, lambda ids: ids[draw(st.integers(0, len(ids) - 1))], 6):
        mask = allowed(grammar, state)
        assert mask == allowed_one_by_one(grammar, state)
        assert (EOS in mask) == grammar.is_accepting(state)
        assert grammar.is_finished(state) == (mask == {EOS})


@settings(max_examples=12)
@given(patterns, st.data())
def test_regex_masks(pattern, data):
    check(regex(pattern), data.draw)


@settings(max_examples=12)
@given(schemas, st.data(), st.sampled_from(["spaced", "compact", "flexible"]))
def test_schema_masks(schema, data, whitespace):
    try:
        spec = json_schema(schema, whitespace=whitespace)
    except UnsupportedSchema:
        return
    check(spec, data.draw)


def test_tokens_of_two_items_or_keys_are_decided_by_what_was_written():
    pieces = [b'"', b"a", b'","', b'","a', b'a","', b'":"","', b'a":"","a":', b'":1,"a":', b"1,1,", b"1,1]", b"1]"]
    pieces += [b'["a","a"', b'["a","b"', b'{"a":1,"a":', b'{"b":1,"a":', b'b",']
    vocabulary = Vocabulary([None, *(bytes([b]) for b in range(256)), *pieces], eos_token_ids=[0])
    for schema, prefixes in (
        ({"type": "array", "uniqueItems": True}, ["", '["', '["a', '["a","', "[1", "[", "[2,1"]),
        ({"type": "array", "uniqueItems": True, "items": {"enum": ["a", "b"]}}, ["", '["', '["a","', '["b"']),
        ({"type": "array", "uniqueItems": True, "items": {"pattern": "^[ab]$"}}, ["", '["', '["a","', '["b"']),
        ({"type": "object"}, ["", '{"', '{"a', '{"b":1,"', '{"a":"","']),
        ({"type": "object", "propertyNames": {"not": {"const": "a"}}}, ['{"', '{"b']),
        ({"type": "object", "not": {"propertyNames": {"maxLength": 1}}}, ['{"a', '{"aa', '{"aa":1,"']),
    ):
        grammar = json_schema(schema, whitespace="compact").bind(vocabulary)
        for prefix in prefixes:
            state = grammar.advance_bytes(grammar.start, np.frombuffer(prefix.encode(), np.uint8))
            assert state >= 0
            assert allowed(grammar, state) == {t for t in range(len(pieces) + 257) if grammar.advance(state, t) >= 0}


def test_items_are_told_apart_where_one_token_opens_the_array_and_an_item():
    pieces = [b'{"', b'": ["', b'", "', b'"]}', b'": [{"a": ["', b'"]}, {"a": ["', b'"]}]}', b'"}, "']
    vocabulary = Vocabulary([None, *(bytes([b]) for b in range(256)), *pieces], eos_token_ids=[0])
    ids = {token: i for i, token in enumerate(vocabulary.token_bytes)}
    schema = {"type": "object", "additionalProperties": {"type": "array", "uniqueItems": True}}
    for last, good in ((b"y", True), (b"x", False)):
        for text in (
            [b'{"', b"k", b'": ["', b"x", b'", "', last, b'"]}'],
            [b'{"', b"k", b'": [{"a": ["', b"x", b'"]}, {"a": ["', last, b'"]}]}'],
        ):
            for with_masks in (True, False):
                grammar = json_schema(schema).bind(vocabulary)
                state = grammar.start
                for piece in text:
                    may_come = good or piece != text[-1]
                    assert not with_masks or may_come == (ids[piece] in allowed(grammar, state))
                    state = grammar.advance(state, ids[piece])
                    assert (state >= 0) == may_come
                assert not good or grammar.is_accepting(state)


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "string", "minLength": 2, "maxLength": 5},
        {"type": "string", "maxLength": 3, "pattern": "^[a-z日é]*$"},
        {"type": "string", "maxLength": 5, "pattern": r"^(?:\S+\s+){0,2}\S+$"},
        {"type": "string", "minLength": 2, "maxLength": 4, "pattern": r"^\S*[^a]$"},
        {"type": "string", "pattern": "ab|é1"},
        {"type": "string", "maxLength": 5, "pattern": "^b|a[0-9]{2}"},
        {"type": "object", "patternProperties": {"a.": {"type": "string"}}, "additionalProperties": False},
        {"type": "object"},
        {"properties": {"a": True, "ab": {"type": "string"}}, "required": ["ab"], "type": "object"},
        {"type": "object", "additionalProperties": {"type": "boolean"}, "propertyNames": {"maxLength": 3}},
        {"enum": ["abc", "ab\n", 'é"', "日本", 1, 12, None, [], {"a": 1}]},
    ],
)
@settings(max_examples=8)
@given(data=st.data())
def test_masks_where_slices_are_used(schema, data):
    check(json_schema(schema), data.draw)


def test_special_and_missing_tokens_are_never_text():
    grammar = regex(r"(?s).*").bind(VOCABULARY)
    mask = allowed(grammar, grammar.start)
    assert 0 not in mask
    assert EOS in mask
    assert max(mask) < len(VOCABULARY.token_bytes)


def test_end_token_leads_to_a_state_where_only_it_is_allowed():
    grammar = choices(["ab", "abc"]).bind(VOCABULARY)
    state = grammar.start
    for byte in b"ab":
        assert grammar.advance(state, EOS) == -1
        state = grammar.advance(state, byte + 2)
    final = grammar.advance(state, EOS)
    assert allowed(grammar, final) == {EOS}
    assert grammar.is_finished(final)
    assert grammar.is_accepting(final)
    assert grammar.advance(final, ord("a") + 2) == -1

"""With order="declared" properties come as `properties` lists them; what comes out is still what the schema allows."""

import jsonschema
import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.constrained.schemas import instances, schemas
from tests.constrained.vocab import VOCABULARY, accepts, accepts_value, allowed, small_vocabulary

from infercore.constrained import json_schema
from infercore.errors import EmptyGrammar, GrammarLimitError, UnsupportedSchema

PERSON = {
    "type": "object",
    "properties": {"name": {"type": "string"}, "age": {"type": "integer"}, "note": {"type": "string"}, "x": True},
    "required": ["name", "note"],
    "additionalProperties": {"type": "null"},
}


def test_properties_come_in_their_order():
    grammar = json_schema(PERSON, order="declared").bind(VOCABULARY)
    for text in (
        '{"name": "a", "age": 1, "note": "b", "x": [], "z": null}',
        '{"name": "a", "note": "b"}',
        '{"name": "a", "note": "b", "z": null, "y": null}',
    ):
        assert accepts(grammar, text)
    for text in (
        '{"age": 1, "name": "a", "note": "b"}',
        '{"name": "a", "note": "b", "age": 1}',
        '{"name": "a", "z": null, "note": "b"}',
        '{"name": "a", "note": "b", "z": null, "x": 1}',
        '{"name": "a", "note": "b", "z": null, "z": null}',
        '{"name": "a", "age": 1}',
        '{"z": null, "name": "a", "note": "b"}',
    ):
        assert not accepts(grammar, text), text


def test_more_text_is_forced():
    vocabulary = small_vocabulary(encode=lambda text: [byte + 2 for byte in text.encode()])
    schema = {**PERSON, "additionalProperties": False}
    any_order, declared = (json_schema(schema, order=order).bind(vocabulary) for order in ("any", "declared"))
    assert bytes(t - 2 for t in declared.forced_tokens(declared.start)).startswith(b'{"name": ')
    assert len(any_order.forced_tokens(any_order.start)) < len(declared.forced_tokens(declared.start))


@settings(max_examples=60)
@given(schemas, st.lists(instances, min_size=1, max_size=6))
def test_it_only_narrows(schema, values):
    try:
        grammar = json_schema(schema, order="declared").bind(VOCABULARY)
        taken = [value for value in values if accepts_value(grammar, value)]
    except (UnsupportedSchema, GrammarLimitError, EmptyGrammar):
        return
    for value in taken:
        assert jsonschema.Draft202012Validator(schema).is_valid(value), (schema, value)


@settings(max_examples=15)
@given(st.integers(0, 1000), st.sampled_from([None, 4, 5]), st.booleans())
def test_some_token_may_always_follow(seed, most, is_open):
    schema = {**PERSON, "additionalProperties": is_open}
    if most is not None:
        schema["maxProperties"] = most
    grammar = json_schema(schema, order="declared").bind(VOCABULARY)
    rng = np.random.default_rng(seed)
    state = grammar.start
    for _ in range(30):
        ids = sorted(allowed(grammar, state))
        assert ids
        state = grammar.advance(state, int(rng.choice(ids)))
        if grammar.is_finished(state):
            break
    assert grammar.min_tokens(state) < 1 << 30

"""Whatever the mask allows can be finished: no state that is reached by allowed tokens has an empty mask."""

import numpy as np
import pytest

from infercore.constrained import Vocabulary, allocate_bitmask, json_schema

SCHEMAS = [
    {
        "type": "object",
        "properties": {
            "name": {"type": "string", "maxLength": 6},
            "year": {"type": "integer", "minimum": 0, "maximum": 99},
        },
        "required": ["name", "year"],
        "additionalProperties": False,
    },
    {
        "type": "object",
        "properties": {"a": {"type": "boolean"}, "b": {"enum": ["x", "y"]}},
        "additionalProperties": False,
    },
    {"type": "array", "items": {"enum": [1, 2]}, "maxItems": 2, "uniqueItems": True},
    {
        "type": "object",
        "properties": {"k": {"type": "null"}},
        "maxProperties": 1,
        "additionalProperties": {"type": "integer"},
    },
    {"anyOf": [{"type": "object", "minProperties": 1, "maxProperties": 0}, {"type": "null"}]},
    {"type": "string", "maxLength": 3, "pattern": "k$"},
    {"type": "string", "maxLength": 3, "pattern": "^(ax)*$"},
    {"type": "object", "propertyNames": {"enum": ["a", "b"]}, "dependentRequired": {"a": ["c"]}, "maxProperties": 2},
    {"type": "object", "propertyNames": {"enum": ["a", "ab"]}},
    {"type": "object", "propertyNames": {"pattern": "^[ab]$"}, "dependentRequired": {"a": ["cc", "b"]}},
    {"type": "object", "additionalProperties": {"type": ["string", "null"], "minLength": 1, "pattern": "^$"}},
    {"type": "object", "additionalProperties": {"type": "string", "minLength": 1, "pattern": "^$"}},
]


def byte_vocabulary():
    """End token first, then every byte, then a few longer tokens that cross the borders of keys and values."""
    longer = [b', "', b'": ', b'",', b'"}', b'":', b'{"', b"}}", b"null", b"true", b"false", b", ", b"]]", b"2]", b"1,"]
    return Vocabulary([None, *(bytes([i]) for i in range(256)), *longer], eos_token_ids=[0])


@pytest.mark.parametrize("schema", SCHEMAS, ids=range(len(SCHEMAS)))
def test_random_walks_through_the_masks_never_get_stuck(schema):
    vocabulary = byte_vocabulary()
    grammar = json_schema(schema).bind(vocabulary)
    bitmask = allocate_bitmask(1, vocabulary.vocab_size)
    rng = np.random.default_rng(0)
    finished = 0
    for _ in range(60):
        state, text = grammar.start, b""
        for _ in range(60):
            grammar.fill_bitmask([state], bitmask)
            bits = np.unpackbits(bitmask.numpy().view(np.uint8), bitorder="little")[: vocabulary.vocab_size]
            allowed = np.flatnonzero(bits)
            assert len(allowed), f"nothing may follow {text!r}, and it is not accepted"
            likely = [t for t in allowed if t == 0 or t > 256 or chr(t - 1) in '{}[],:" 12xyaknme\\u06']
            token = int(rng.choice(likely or allowed))
            state = grammar.advance(state, token)
            assert state >= 0, f"the mask allowed token {token} after {text!r}, but advance refused it"
            if token == 0:
                finished += 1
                break
            text += vocabulary.token_bytes[token]
    assert finished

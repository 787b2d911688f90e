"""Whole masks beside those of maskforge, an engine that shares no code with ours; `jsonschema` decides.

What is wrong in maskforge 0.1.1, all seen here. It refuses escapes in names of properties and in strings of an enum,
and 1.0 and -0 where an integer is asked for. It allows a first byte of characters that a pattern has not, after which
nothing may follow. White space is not compared: it allows any amount, before and behind a document too.
"""

import json

import jsonschema
import numpy as np
import pytest
from tests.constrained.vocab import EOS, VOCABULARY, allowed

from infercore.constrained import json_schema

maskforge = pytest.importorskip("maskforge")

CASES = [
    (
        {
            "type": "object",
            "properties": {"a": {"type": "integer"}, "b": {"enum": ["x", "ab"]}},
            "required": ["a"],
            "additionalProperties": False,
        },
        [{"a": 12}, {"a": -1, "b": "ab"}, {"b": "x", "a": 0}],
    ),
    ({"type": "array", "items": {"type": "boolean"}, "minItems": 1, "maxItems": 3}, [[True], [False, True, True]]),
    ({"type": "string", "minLength": 2, "maxLength": 4}, ["ab", "日本é"]),
    ({"type": "string", "pattern": "^a[b-d]{1,3}$"}, ["ab", "abcd"]),
    ({"enum": [None, True, "ab", 12]}, [None, "ab", 12]),
    (
        {"anyOf": [{"type": "null"}, {"type": "object", "properties": {"ab": True}, "required": ["ab"]}]},
        [None, {"ab": 1}],
    ),
    ({"type": "array", "prefixItems": [{"const": 1}, {"type": "string"}], "items": False}, [[1, "a"], [1]]),
]


def mask_of(session):
    out = bytearray(4 * session.mask_word_count)
    session.write_mask(out)
    return set(np.flatnonzero(np.unpackbits(np.frombuffer(bytes(out), np.uint8), bitorder="little")).tolist())


def finished(session, rng):
    """Bytes of some end of a maskforge output; None where none was found in 40 tokens."""
    text = b""
    for _ in range(40):
        ids = mask_of(session)
        if EOS in ids:
            return text
        closing = [t for t in ids if VOCABULARY.token_bytes[t] in (b'"', b"}", b"]", b":", b"1", b"a", b"b")]
        if not ids:
            return None
        token = int(rng.choice(sorted(closing or ids)))
        session.advance(token)
        text += VOCABULARY.token_bytes[token]
    return None


@pytest.mark.parametrize(("schema", "documents"), CASES, ids=range(len(CASES)))
def test_where_masks_differ_ours_is_right(schema, documents):
    grammar = json_schema(schema, whitespace="flexible").bind(VOCABULARY)
    compiled = maskforge.Compiler.without_cache().compile(schema)
    bound = compiled.bind(maskforge.Vocabulary.from_id_ordered_tokens(list(VOCABULARY.token_bytes), EOS, 330))
    validator = jsonschema.Draft202012Validator(schema)
    rng = np.random.default_rng(0)
    num_agreed = 0
    for document in documents:
        text = json.dumps(document, ensure_ascii=False).encode()
        state, session = grammar.start, bound.start_session()
        for at in range(len(text) + 1):
            ours, theirs = allowed(grammar, state), mask_of(session)
            num_agreed += len(ours & theirs)
            for token in ours - theirs - {EOS}:  # ours alone allows it: some document goes on so
                after = grammar.advance(state, token)
                plan = grammar._budgets.plan(after)
                assert plan is not None
                whole = text[:at] + b"".join(VOCABULARY.token_bytes[t] for t in (token, *plan))
                assert validator.is_valid(json.loads(whole)), whole
            for token in sorted(theirs - ours - {EOS}):  # theirs alone allows it: no document goes on so
                if VOCABULARY.token_bytes[token].strip() != VOCABULARY.token_bytes[token] or at == 0:
                    continue
                other = bound.start_session()
                for byte in text[:at]:
                    other.advance(byte + 2)
                other.advance(token)
                end = finished(other, rng)
                if end is not None:
                    whole = text[:at] + VOCABULARY.token_bytes[token] + end
                    assert not validator.is_valid(json.loads(whole)), whole
            assert (EOS in ours) == (EOS in theirs)
            if at < len(text):
                state = grammar.advance(state, text[at] + 2)
                session.advance(text[at] + 2)
                assert state >= 0
    assert num_agreed > 20

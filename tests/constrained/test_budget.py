"""With a budget, whatever the mask allows can be finished in time; completions are valid documents."""

import json

import jsonschema
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.constrained.schemas import schemas
from tests.constrained.vocab import EOS, VOCABULARY, walk

from infercore.constrained import allocate_bitmask, choices, json_schema, regex
from infercore.errors import EmptyGrammar, GrammarLimitError, UnsupportedSchema

PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "minLength": 2},
        "age": {"type": "integer", "minimum": 18, "maximum": 99},
        "tags": {"type": "array", "items": {"enum": ["x", "y", "z"]}, "uniqueItems": True, "minItems": 2},
        "mail": {"type": "string", "pattern": "^[a-z]+@[a-z]+$"},
        "more": {"type": "object", "required": ["a", "b", "c"]},
    },
    "required": ["name", "age", "tags"],
}


def written(grammar, budget, choose):
    """Tokens of an output within `budget`; `choose(ids)` picks each."""
    state, tokens = grammar.start, []
    bitmask = allocate_bitmask(1, grammar.vocabulary.vocab_size)
    while len(tokens) < budget:
        grammar.fill_bitmask([state], bitmask, budgets=[budget - len(tokens)])
        ids = np.flatnonzero(np.unpackbits(bitmask.numpy().view(np.uint8), bitorder="little")).tolist()
        assert ids, "no token can be finished in time"
        token = choose(ids)
        state = grammar.advance(state, token)
        assert state >= 0
        if token == EOS:
            break
        tokens.append(token)
    assert grammar.is_accepting(state)
    return b"".join(VOCABULARY.token_bytes[t] for t in tokens)


@pytest.mark.parametrize(
    ("spec", "is_valid"),
    [
        (json_schema(PERSON), lambda text: jsonschema.Draft202012Validator(PERSON).is_valid(json.loads(text))),
        (json_schema({**PERSON, "additionalProperties": False}), lambda text: "name" in json.loads(text)),
        (regex(r"(?!.*aa)(?=.*b)[abc]{4,9}(?<!b)"), lambda text: b"aa" not in text and b"b" in text[:-1]),
        (json_schema({}), lambda text: json.loads(text) is not ...),
        (regex("(ab|c[0-9]{3,9})+é"), lambda text: text.endswith("é".encode())),
        (choices(["a", "bc" * 30]), lambda text: text in (b"a", b"bc" * 30)),
    ],
)
@settings(max_examples=8)
@given(data=st.data())
def test_output_is_whole_when_the_budget_ends(spec, is_valid, data):
    grammar = spec.bind(VOCABULARY)
    budget = grammar.min_tokens(grammar.start) + data.draw(st.integers(0, 12))
    rng = np.random.default_rng(data.draw(st.integers(0, 1000)))
    text = written(grammar, budget, lambda ids: int(rng.choice(ids)))
    assert is_valid(text), text


@settings(max_examples=40)
@given(schemas, st.integers(0, 1000))
def test_completions_are_documents_and_outputs_end_in_time(schema, seed):
    try:
        grammar = json_schema(schema).bind(VOCABULARY)
        least = grammar.min_tokens(grammar.start)
        if least < 200:
            rng = np.random.default_rng(seed)
            text = written(grammar, least + 3, lambda ids: int(rng.choice(ids)))
            assert jsonschema.Draft202012Validator(schema).is_valid(json.loads(text)), text
    except (EmptyGrammar, UnsupportedSchema, GrammarLimitError):
        return


def test_a_large_budget_changes_nothing():
    grammar = json_schema(PERSON).bind(VOCABULARY)
    rows = allocate_bitmask(2, VOCABULARY.vocab_size)
    state = grammar.start
    for byte in b'{"name": "ab", "m':
        grammar.fill_bitmask([state], rows[:1])
        grammar.fill_bitmask([state], rows[1:], budgets=[10_000])
        assert (rows[0] == rows[1]).all()
        state = grammar.advance(state, byte + 2)


def test_least_tokens_of_known_documents():
    grammar = choices(["ababc", "zzzzzzzz"]).bind(VOCABULARY)
    assert grammar.min_tokens(grammar.start) == 2
    state = grammar.start
    for token in (b"ab", b"abc"):
        state = grammar.advance(state, VOCABULARY.token_bytes.index(token))
    assert grammar.min_tokens(state) == 0
    assert grammar.min_tokens(grammar.advance(state, EOS)) == 0


@settings(max_examples=20)
@given(schemas, st.integers(0, 1000))
def test_what_fits_is_what_the_least_tokens_say(schema, seed):
    try:
        grammar = json_schema(schema).bind(VOCABULARY)
        rng = np.random.default_rng(seed)
        for state in walk(grammar, lambda ids: int(rng.choice(ids)), 5):
            least = grammar.min_tokens(state)
            for budget in (0, least - 1, least, least + 1, 40, 10_000):
                assert grammar.fits(state, budget) == (least <= budget)
    except (EmptyGrammar, UnsupportedSchema, GrammarLimitError):
        return

"""Masks of a batch are those of its rows, however many threads fill them."""

from concurrent.futures import ThreadPoolExecutor

import pytest
from tests.constrained.vocab import VOCABULARY

from infercore.constrained import Vocabulary, allocate_bitmask, fill_batch, json_schema, regex

SPECS = [
    json_schema({"type": "object", "properties": {f"k{i}": {"type": "string", "maxLength": i}}, "required": [f"k{i}"]})
    for i in range(1, 9)
] + [regex(f"(ab|c){{{i}}}x*") for i in range(1, 5)]


def test_threads_give_the_masks_of_one_by_one():
    vocabulary = Vocabulary(VOCABULARY.token_bytes, eos_token_ids=VOCABULARY.eos_token_ids, vocab_size=330)
    grammars = [spec.bind(vocabulary) for spec in SPECS]  # no table of the vocabulary is there yet
    alone = [spec.bind(vocabulary) for spec in SPECS]
    states, own_states = [g.start for g in grammars], [g.start for g in alone]
    budgets = [None, 40] * 6
    rows, own = (allocate_bitmask(len(SPECS), vocabulary.vocab_size) for _ in range(2))
    with ThreadPoolExecutor(4) as pool:
        for _ in range(12):
            fill_batch(grammars, states, rows, budgets=budgets, pool=pool)
            fill_batch(alone, own_states, own, budgets=budgets)
            assert (rows == own).all()
            tokens = [
                next(t for t in range(330) if g.advance(s, t) >= 0) for g, s in zip(alone, own_states, strict=True)
            ]
            states = [g.advance(s, t) for g, s, t in zip(grammars, states, tokens, strict=True)]
            own_states = [g.advance(s, t) for g, s, t in zip(alone, own_states, tokens, strict=True)]


def test_lengths_must_agree():
    grammar = SPECS[0].bind(VOCABULARY)
    with pytest.raises(ValueError, match="1 grammars, 2 states and no budgets"):
        fill_batch([grammar], [grammar.start] * 2, allocate_bitmask(2, VOCABULARY.vocab_size))


def test_an_error_of_one_row_is_raised():
    grammars = [SPECS[0].bind(VOCABULARY), SPECS[1].bind(VOCABULARY)]
    rows = allocate_bitmask(2, VOCABULARY.vocab_size - 40)
    with ThreadPoolExecutor(2) as pool, pytest.raises(ValueError, match="allocate_bitmask"):
        fill_batch(grammars, [g.start for g in grammars], rows, pool=pool)

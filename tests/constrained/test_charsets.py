"""Bits of characters say what they stand for, and tokens are grouped by them."""

import random
import re
import unicodedata

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.constrained.vocab import allowed, allowed_one_by_one

from infercore.constrained import Vocabulary, json_schema, regex
from infercore.constrained import _compiled as c
from infercore.constrained.charsets import categories, cells, char_set, ranges_where
from infercore.constrained.groups import TokenGroups
from infercore.constrained.regex_syntax import ALL, _case_families, merge, parse

POINTS = [*range(0x80), *range(0xA0, 0x250), 0x3B1, 0x410, 0x1680, 0x2003, 0x2028, 0x3000, 0x65E5, 0xFEFF, 0x1F600]


def test_categories_and_classes_are_those_of_this_python():
    table, names = categories()
    of_point = [names[i] for i in table.tolist()]
    assert all(unicodedata.category(chr(point)) == name for point, name in enumerate(of_point))
    for pattern, holds in ((r"\w", lambda t: t.isalnum() or t == "_"), (r"\s", str.isspace), (r"\d", str.isdecimal)):
        assert parse(pattern).ranges == ranges_where(np.array([holds(chr(point)) for point in range(0x110000)]))


def test_what_has_another_case_is_found():
    for point in range(0x110000):
        character = chr(point)
        if len(character.lower()) == 1 == len(character.upper()) and character.lower() != character.upper():
            assert {ord(character.lower()), ord(character.upper())} <= {*_case_families()[point]}, hex(point)


@given(st.lists(st.tuples(st.sampled_from(POINTS), st.sampled_from(POINTS)).map(sorted).map(tuple), max_size=4))
def test_covered_and_touched_bits(spans):
    ranges = merge(spans)
    inside = np.zeros(0x110000, np.bool_)
    for low, high in ranges:
        inside[low : high + 1] = True
    found = char_set(ranges_where(inside))
    inside[0xD800:0xE000] = False
    for bit in range(c.PARTIAL):
        members = cells() == bit
        members[0xD800:0xE000] = False
        if members.any():
            assert bool(found.covered >> bit & 1) == bool(inside[members].all())
            assert bool(found.touched >> bit & 1) == bool(inside[members].any())


def test_every_beginning_of_a_character_can_become_one_that_is_no_white_space():
    blank = cells() == c.BLANK
    starts = {}
    for point in range(0x80, 0x110000):
        if not 0xD800 <= point < 0xE000 and not blank[point]:
            data = chr(point).encode()
            for size in range(1, len(data)):
                starts.setdefault(data[:size], point)
    for point in np.flatnonzero(blank).tolist():
        data = chr(point).encode()
        assert all(data[:size] in starts for size in range(1, len(data)))
    assert char_set(ALL).covered == char_set(ALL).touched


def _vocabulary(num_tokens=600):
    rng = random.Random(0)
    letters = ["a", "b", "Z", "0", "7", " ", ".", "\n", "_", "é", "Ж", "日", "\u3000", "😀", "١"]
    words = {"".join(rng.choices(letters, k=rng.randint(1, 6))).encode() for _ in range(num_tokens)}
    words |= {word[:-1] for word in words if word[-1] >= 0x80} | {b" " * 20, b"a" * 30, b"\x97\xa5ab"}
    words -= {b""}
    return Vocabulary([None, *(bytes([b]) for b in range(256)), *sorted(words)], eos_token_ids=[0])


VOCABULARY = _vocabulary()


def test_groups_hold_the_tokens_of_their_characters():
    tokens = VOCABULARY.token_bytes
    groups = TokenGroups(VOCABULARY.data, VOCABULARY.ends, VOCABULARY.num_words)
    sets, chars = c.token_sets(VOCABULARY.data, VOCABULARY.ends, cells())
    for pattern in (r"\w", r"[a-z0-9]", r"\S", r"[^\n]", r"(?s:.)", r"[A-Za-z0-9]", r"[b-z]", r"[\w ]"):
        covered = char_set(parse(pattern).ranges).covered
        mask = groups.within(covered)
        members = {t for t in range(len(tokens)) if mask[t >> 5] >> np.uint32(t & 31) & 1}
        assert members == {t for t in range(len(tokens)) if tokens[t] and int(sets[t]) & ~covered == 0}
        for t in members:
            text = tokens[t].decode(errors="ignore")  # what a token only begins can be completed
            assert re.fullmatch(f"(?:{pattern})*", text)
        assert groups.longest(covered) == max(int(chars[t]) for t in members)
        up_to = groups.up_to(3)
        assert all(bool(up_to[t >> 5] >> np.uint32(t & 31) & 1) == (chars[t] <= 3) for t in members)
        between = groups.between(covered, char_set(ALL).covered, len(tokens))
        assert {*between.tolist()} == {t for t in range(len(tokens)) if tokens[t] and sets[t] >= 0} - members


@pytest.mark.parametrize(
    "pattern",
    [
        r".*", r"(?s).*", r".{2,40}", r".{0,2}", r"[a-z]{3}", r"\w+( \w+)*", r"(?:\S+\s+){0,3}\S+", r"[^.]+\.",
        r".*a.{3}",
        r"(a.{2}|.{4}Z)*", r"[ab0]{1,2}[\w.]+", r"(\w{2}\.){2,}", r"x?[^\n]{1,5}\n", r"\p{Lu}+é*", r"(?:a|b|[0-9])*Z",
        r"(a{2,3}){2}b", r"(?:[ab]{0,2}0)*", r"日{2,9}", r"[^a]{25,}", r"(\d|\w\w)+",
    ],
)  # fmt: skip
def test_masks_of_repeated_classes(pattern):
    grammar = regex(pattern).bind(VOCABULARY)
    rng = random.Random(1)
    for _ in range(4):
        state = grammar.start
        for _ in range(7):
            tokens = sorted(allowed(grammar, state))
            assert set(tokens) == allowed_one_by_one(grammar, state)
            tokens = [t for t in tokens if t != 0]
            if not tokens:
                break
            state = grammar.advance(state, rng.choice(tokens))


@pytest.mark.parametrize(
    ("pattern", "max_length"),
    [
        (r"^(?:\S+\s+){0,3}\S+$", 14), (r"^[^.]{2,9}\.a{3}$", 12), (r"^(\w{3} ){2,}7$", 25), (r"a.{5}Z", 9),
        (r"^(?:[a-z ]*\.){2}b{4}$", 13), (r"^\S*(é日){2}$", None), (r"^([^ ]{1,4} ){1,6}$", 22), (r"^(a|.b{3})*Z$", 8),

    ],
)  # fmt: skip
def test_masks_of_repeated_classes_in_strings(pattern, max_length):
    schema = {"type": "string", "pattern": pattern, **({"maxLength": max_length} if max_length else {})}
    grammar = json_schema(schema).bind(VOCABULARY)
    rng = random.Random(2)
    for prefix in ('"', '"a', '"aa', '"'):
        state = grammar.advance_bytes(grammar.start, np.frombuffer(prefix.encode(), np.uint8))
        for _ in range(8 if state >= 0 else 0):
            tokens = sorted(allowed(grammar, state))
            assert set(tokens) == allowed_one_by_one(grammar, state)
            tokens = [t for t in tokens if t != 0]
            if not tokens:
                break
            state = grammar.advance(state, rng.choice(tokens))


def test_what_a_repeat_still_needs_must_fit():
    vocabulary = Vocabulary([None, *(bytes([b]) for b in range(256)), b"qq", b"qqq", b"qqqq"], eos_token_ids=[0])
    schema = {"type": "string", "pattern": "^[a-z]([a-z]|[a-z]*Q{8})$", "maxLength": 11}
    grammar = json_schema(schema).bind(vocabulary)
    for prefix in ('"', '"a', '"aa', '"aaa'):
        state = grammar.advance_bytes(grammar.start, np.frombuffer(prefix.encode(), np.uint8))
        assert allowed(grammar, state) == allowed_one_by_one(grammar, state)

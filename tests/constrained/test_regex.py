"""A regex grammar says what Python's `re` says, and refuses clearly what no automaton holds."""

import itertools
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.constrained.vocab import VOCABULARY, accepts, allowed, allowed_one_by_one, walk

from infercore.constrained import json_schema, regex
from infercore.errors import EmptyGrammar, GrammarError, RegexSyntaxError, UnsupportedSchema

atoms = st.sampled_from(
    ["a", "b", "c", ".", "[ab]", "[^a]", r"\d", r"\w", "é", "[à-ü]", r"\.", "[a-c0-9]", "\n", "^", "$", r"\s", "日"]
)
repeats = st.sampled_from(["*", "+", "?", "{2}", "{0,2}", "{1,}", "*?", "{,2}"])
patterns = st.recursive(
    atoms,
    lambda inner: st.one_of(
        st.tuples(inner, inner).map("".join),
        st.tuples(inner, inner).map("|".join).map("({})".format),
        st.tuples(inner, repeats).map(lambda p: f"(?:{p[0]}){p[1]}"),
        inner.map("(?i:{})".format),
        inner.map("(?s:{})".format),
    ),
    max_leaves=8,
)
texts = st.text(st.sampled_from("abcABC09.é日\n "), max_size=6)


@settings(max_examples=100)
@given(patterns, st.lists(texts, min_size=1, max_size=8))
def test_full_match_is_that_of_re(pattern, candidates):
    compiled = re.compile(pattern)
    try:
        grammar = regex(pattern).bind(VOCABULARY)
    except EmptyGrammar:
        assert not any(compiled.fullmatch(text) for text in candidates)
        return
    for text in candidates:
        if "$" in pattern and text.endswith("\n"):
            continue  # `$` of re holds before a final newline too; ours, as JSON Schema's, at the end alone
        assert accepts(grammar, text) == bool(compiled.fullmatch(text)), (pattern, text)


@pytest.mark.parametrize(
    ("pattern", "yes", "no"),
    [
        (r"(?i)straße", ["STRAße", "straße"], ["strass"]),
        (r"\p{Lu}\p{Ll}+", ["Éa", "Ab"], ["aB", "A"]),
        (r"[^\W\d_]+", ["aé日"], ["a1", "_"]),
        (r"a{0,1000}", ["", "a" * 1000], ["a" * 1001]),
        (r".*a.{30}", ["a" + "b" * 30, "aa" + "b" * 30], ["a" + "b" * 29, "b" * 40]),
        (r"(?P<year>\d{4})-(?:0[1-9]|1[0-2])", ["2024-12"], ["2024-13"]),
        ("(?x) a b  # comment\n c", ["abc"], ["a b c"]),
        (r"(a|b)(?#note)c\Z", ["ac"], ["ab"]),
        (r"[]a]+", ["]a"], ["b"]),
        (r"(a{0,2}){0,3}b", ["b", "aaaaaab"], ["aaaaaaab"]),
        (r"(a+){2,3}b", ["aab", "aaaaab"], ["ab", "b"]),
        (r"(a+){0}(a*){0}b", ["b"], ["ab"]),
        (r"\x41\u00e9\U0001F600\101", ["Aé😀A"], ["A"]),
    ],
)
def test_syntax(pattern, yes, no):
    grammar = regex(pattern).bind(VOCABULARY)
    assert all(accepts(grammar, text) for text in yes)
    assert not any(accepts(grammar, text) for text in no)


@pytest.mark.parametrize(
    ("pattern", "position"),
    [
        ("(a)\\1", 3),
        ("a(", 1),
        ("[a", 0),
        ("a{3,2}", 1),
        ("(?>a)", 0),
        ("*a", 0),
        ("\\", 0),
        (r"\p{Nope}", 0),
        ("a)", 1),
        ("a(?=b)c", 1),
        (r"a(?:b\b)+", 5),
        (r"\\b(a\b.)*", 5),
    ],
)
def test_refusal_carries_the_position(pattern, position):
    with pytest.raises(RegexSyntaxError) as caught:
        regex(pattern)
    assert caught.value.position == position
    assert isinstance(caught.value, GrammarError)
    assert isinstance(caught.value, ValueError)


@pytest.mark.parametrize(
    "pattern",
    [
        r"^(?=.*\d)(?=.*[a-c])(?!.*bb)[abc0-9.]{2,}$", r"^(?!a$)[ab]+", r"^[ab.]+(?<!a)(?<!b\.)$",
        r"^(?=a|b0)(?!ab|.$)",
        r"^(?!.*(a|0)$)(?=.{2,4}$)", r"^(?=.*a)[^b]*(?<=0.)$",
    ],
)  # fmt: skip
def test_look_around_at_the_ends_of_a_schema_s_pattern(pattern):
    grammar = json_schema({"type": "string", "pattern": pattern}).bind(VOCABULARY)
    for size in range(5):
        for letters in itertools.product("ab0.", repeat=size):
            text = "".join(letters)
            assert accepts(grammar, f'"{text}"') == bool(re.search(pattern, text)), (pattern, text)


@pytest.mark.parametrize(
    "pattern",
    [
        r"(?!ab).*", r"(?=.*0)(?=.*a)[ab0]{2,3}", r"^(?!.*b$)[ab.]*", r"[ab]+(?<=ab)", r"(?!a)[ab0]*(?<!00)$",
        r"\bab", r"[ab]+\b\.?0", r"a*\b[.]\b.*", r".*\b0\b.*", r"\Ba*\.", r"[ab0]\B[ab0.]*", r"(\ba\b|\b0+\b)\.*",
        r"(?!.*\bab\b).*", r"(?:.*\b)?a", r"\b.*", r".*\B", r"(?=\b0).*b", "(?=a)b",
        r"\b\b.*", r"\b\B.*", r"a?\b0?\b[.b]?\ba?",
    ],
)  # fmt: skip
def test_look_around_at_the_ends_and_word_boundaries_of_a_regex(pattern):
    try:
        grammar = regex(pattern).bind(VOCABULARY)
    except EmptyGrammar:
        grammar = None
    for size in range(1, 5):
        for letters in itertools.product("ab0.", repeat=size):
            text = "".join(letters)
            assert (grammar is not None and accepts(grammar, text)) == bool(re.fullmatch(pattern, text)), text
    if grammar is not None:
        for state in walk(grammar, lambda ids: ids[len(ids) // 2], 4):
            assert allowed(grammar, state) == allowed_one_by_one(grammar, state)
        assert accepts(
            grammar, b"".join(VOCABULARY.token_bytes[t] for t in grammar._budgets.plan(grammar.start)).decode()
        )


@pytest.mark.parametrize(
    "pattern", [r"\bab\b", r"^\b[ab]+\b", r"a\b", r"\B0", r"\b(a|\.)", r"a\b.*\bb$", r"(\ba|b\b)0?", r"\.?\b0"]
)
def test_word_boundaries_in_a_schema_s_pattern(pattern):
    grammar = json_schema({"type": "string", "pattern": pattern}).bind(VOCABULARY)
    for size in range(5):
        for letters in itertools.product("ab0.", repeat=size):
            text = "".join(letters)
            assert accepts(grammar, f'"{text}"') == bool(re.search(pattern, text)), (pattern, text)


@pytest.mark.parametrize("pattern", ["(?=a)b", "a(?=b)", "^a(?!b)c$", "^(?=a)(b|(?=c)d)"])
def test_look_around_elsewhere_is_refused(pattern):
    with pytest.raises(UnsupportedSchema, match="look-around"):
        json_schema({"type": "string", "pattern": pattern}).bind(VOCABULARY)

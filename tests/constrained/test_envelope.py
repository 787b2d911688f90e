"""Tool calls in free text; specs as text; grammars bound once; drawings."""

import numpy as np
import pytest
from tests.constrained.vocab import VOCABULARY, accepts, allowed, allowed_one_by_one

from infercore.constrained import GrammarSpec, choices, json_schema, regex, to_dot, tool_calls
from infercore.errors import UnsupportedSchema

TOOLS = {
    "add": {
        "type": "object",
        "properties": {"a": {"type": "integer"}},
        "required": ["a"],
        "additionalProperties": False,
    },
    "now": {"type": "object", "maxProperties": 0},
}


def test_text_between_calls_is_free_and_calls_are_not():
    grammar = tool_calls(TOOLS, trigger="<<call>", end="</call>").bind(VOCABULARY)
    call = '<<call>{"name": "add", "arguments": {"a": 3}}</call>'
    for text in (
        "",
        "Hé, 日本 🙂 <<cal",
        "x " + call + " y\n" + call,
        "<" + call,
        '<<call>\n{"name": "now", "arguments": {}}\n</call>',
    ):
        assert accepts(grammar, text), text
    for text in (
        "<<call>",
        "<<<call>x",
        call[:-1],
        call.replace("3", '"3"'),
        call.replace('"add"', '"sub"'),
        call.replace('"add"', '"now"'),
        "\ud800",
    ):
        assert not accepts(grammar, text), text


def test_masks_of_tool_calls_are_what_each_token_gives():
    grammar = tool_calls(TOOLS, trigger="{", end="}").bind(VOCABULARY)
    for text in (b"", b"ab \xe6", b"x{", b'x{{"name": "add", "arguments": {"a": 12'):
        state = grammar.advance_bytes(grammar.start, np.frombuffer(text, np.uint8))
        assert allowed(grammar, state) == allowed_one_by_one(grammar, state)


def test_misuse_of_tool_calls():
    with pytest.raises(ValueError, match="no tools"):
        tool_calls({})
    with pytest.raises(ValueError, match="ASCII"):
        tool_calls(TOOLS, trigger="é")
    with pytest.raises(UnsupportedSchema, match="uniqueItems"):
        tool_calls({"f": {"items": {"uniqueItems": True}}})


def test_specs_can_be_written_and_read():
    for spec in (regex("a|é"), choices(["x"]), json_schema({"type": "integer"}), tool_calls(TOOLS)):
        again = GrammarSpec.from_json(spec.to_json())
        assert again == spec
        grammar, other = spec.bind(VOCABULARY), again.bind(VOCABULARY)
        assert allowed(grammar, grammar.start) == allowed(other, other.start)
    for text in ("[]", '{"kind": "regex"}', '{"kind": "other", "source": ""}'):
        with pytest.raises(ValueError, match="to_json"):
            GrammarSpec.from_json(text)


def test_a_cached_grammar_is_the_same_again():
    spec = regex("[ab]c")
    assert spec.bind(VOCABULARY, cached=True) is regex("[ab]c").bind(VOCABULARY, cached=True)
    assert spec.bind(VOCABULARY) is not spec.bind(VOCABULARY, cached=True)


def test_drawing():
    text = to_dot(regex('a[b-d]"?').bind(VOCABULARY))
    assert text.startswith("digraph")
    assert text.count("doublecircle") == 2
    assert '[label="b-d"]' in text
    assert "dashed" not in text
    assert "dashed" in to_dot(regex("[a-z]{1,30}").bind(VOCABULARY), max_states=5)

"""A schema grammar accepts exactly the documents that `jsonschema` finds valid."""

import json
import re
from fractions import Fraction

import jsonschema
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.constrained.schemas import instances, schemas
from tests.constrained.vocab import VOCABULARY, accepts, accepts_value

from infercore.constrained import json_schema
from infercore.errors import EmptyGrammar, GrammarError, GrammarLimitError, UnsupportedSchema


def is_valid(schema, value) -> bool:
    return jsonschema.Draft202012Validator(schema).is_valid(value)


@settings(max_examples=120)
@given(schemas, st.lists(instances, min_size=1, max_size=6))
def test_verdict_is_that_of_jsonschema(schema, values):
    try:
        grammar = json_schema(schema).bind(VOCABULARY)
        verdicts = [accepts_value(grammar, value) for value in values]
    except (UnsupportedSchema, GrammarLimitError):
        return
    except EmptyGrammar:
        verdicts = [False] * len(values)
    for value, verdict in zip(values, verdicts, strict=True):
        assert verdict == is_valid(schema, value), (schema, value)


def bound(schema, **options):
    return json_schema(schema, **options).bind(VOCABULARY)


def test_keys_come_in_any_order_and_once():
    grammar = bound({"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]})
    assert accepts(grammar, '{"z": null, "a": 1, "y": []}')
    assert not accepts(grammar, '{"a": 1, "a": 2}')
    assert not accepts(grammar, '{"a": 1, "z": 1, "z": 2}')
    assert not accepts(grammar, '{"a": 1, "z": 1, "\\u007a": 2}')
    assert not accepts(grammar, '{"z": 1, "\\u0061": "x"}')
    assert accepts(grammar, '{"z": 1, "\\u0061": 3}')


def test_every_spelling_of_a_string():
    grammar = bound({"enum": ['é"/', "😀"]})
    for text in [
        '"é\\"/"',
        '"\\u00e9\\u0022\\/"',
        '"\\u00E9\\"\\u002f"',
        '"😀"',
        '"\\ud83d\\ude00"',
        '"\\uD83D\\uDE00"',
    ]:
        assert accepts(grammar, text), text
    for text in ['"é"', '"\\ud83d"', '"\\ude00"', '"\\u00e8\\"/"', '"é"/"']:
        assert not accepts(grammar, text), text


def test_length_counts_code_points_whatever_their_spelling():
    grammar = bound({"type": "string", "minLength": 2, "maxLength": 3})
    for text in ['"ab"', '"日本語"', '"\\n\\u0041😀"', '"\\ud83d\\ude00b"']:
        assert accepts(grammar, text), text
    for text in ['"a"', '"😀"', '"abcd"', '"\\n\\n\\n\\n"', '"\\ud83d\\ude00"']:
        assert not accepts(grammar, text), text


@settings(max_examples=30)
@given(
    st.fixed_dictionaries(
        {},
        optional={
            "minimum": st.integers(-120, 120),
            "maximum": st.integers(-120, 120) | st.sampled_from([0.75, 10**15]),
            "exclusiveMaximum": st.integers(-120, 120),
            "multipleOf": st.sampled_from([1, 7, 0.1, 0.25, 1.5]),
            "type": st.sampled_from(["integer", "number"]),
            "not": st.sampled_from([{"const": 3}, {"multipleOf": 2}, {"minimum": 50}]),
        },
    ),
    st.lists(st.integers(-130, 130) | st.decimals(-130, 130, places=2, allow_nan=False), min_size=1, max_size=12),
)
def test_numbers_between_bounds_by_exact_arithmetic(constraints, values):
    try:
        grammar = bound({"type": "number", **constraints})
    except EmptyGrammar:
        grammar = None

    def fits(constraint, value):
        checks = {
            "minimum": lambda bound: value >= bound,
            "maximum": lambda bound: value <= bound,
            "exclusiveMaximum": lambda bound: value < bound,
            "multipleOf": lambda step: value % Fraction(str(step)) == 0,
            "const": lambda other: value == other,
            "type": lambda name: name == "number" or value.denominator == 1,
            "not": lambda other: not fits(other, value),
        }
        return all(
            checks[name](Fraction(str(x)) if isinstance(x, int | float) else x) for name, x in constraint.items()
        )

    for value in values:
        text = str(value)
        if text.startswith("-0"):
            continue  # minus zero, and its fractions: spelled by few, refused above a bound of zero
        verdict = grammar is not None and accepts(grammar, text)
        assert verdict == fits(constraints, Fraction(text)), (constraints, text)


def test_an_integer_cannot_go_on_with_zeros_for_ever():
    grammar = bound({"type": "integer"})
    assert accepts(grammar, "1.0")
    assert not accepts(grammar, "1.0000")


def test_recursion():
    grammar = bound({"$defs": {"t": {"type": "array", "items": {"$ref": "#/$defs/t"}}}, "$ref": "#/$defs/t"})
    assert accepts(grammar, "[" * 300 + "]" * 300)
    assert not accepts(grammar, "[[1]]")


@pytest.mark.parametrize(
    ("schema", "pointer"),
    [
        ({"properties": {"a": {"$ref": "#/$defs/none"}}}, "/properties/a/$ref"),
        ({"properties": {"a/b": {"pattern": "(?=x"}}}, "/properties/a~1b/pattern"),
        ({"type": "strin"}, "/type"),
        ({"items": 3}, "/items"),
        ({"allOf": [{"minLength": "2"}]}, "/allOf/0/minLength"),
    ],
)
def test_refusal_carries_the_pointer(schema, pointer):
    with pytest.raises(UnsupportedSchema) as caught:
        json_schema(schema)
    assert caught.value.pointer == pointer
    assert isinstance(caught.value, GrammarError)


def test_python_types():
    import dataclasses
    import enum
    from typing import Literal

    import pydantic
    from typing_extensions import TypedDict

    class Colour(enum.Enum):
        RED = "red"

    class Person(pydantic.BaseModel):
        name: str = pydantic.Field(max_length=3)
        colour: Colour | None = None

    @dataclasses.dataclass
    class Point:
        x: int

    class Options(TypedDict):
        mode: Literal["a", "b"]

    for type_, good, bad in [
        (Person, {"name": "ab", "colour": "red"}, {"name": "abcd"}),
        (Point, {"x": 1}, {"x": "1"}),
        (Options, {"mode": "b"}, {"mode": "c"}),
        (list[int], [1, 2], [1.5]),
    ]:
        grammar = bound(type_)
        assert accepts_value(grammar, good)
        assert not accepts_value(grammar, bad)


def test_specs_are_values():
    assert json_schema({"type": "string"}) == json_schema({"type": "string"})
    assert hash(json_schema({})) == hash(json_schema("{}"))
    assert json_schema({}) != json_schema({}, whitespace="compact")


@pytest.mark.parametrize("whitespace", ["spaced", "compact", "flexible"])
def test_white_space(whitespace):
    grammar = bound({}, whitespace=whitespace)
    value = {"a": [1, {"b": None}], "c": "x y"}
    assert accepts(grammar, json.dumps(value)) == (whitespace != "compact")
    assert accepts(grammar, json.dumps(value, separators=(",", ":"))) == (whitespace != "spaced")
    assert accepts(grammar, json.dumps(value, indent=2)) == (whitespace == "flexible")
    assert not accepts(grammar, "[1," + " " * 60 + "2]")


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "array", "items": False, "contains": {}},
        {"type": "array", "prefixItems": [{}, False], "contains": {"const": 1}, "minContains": 2},
        {"type": "array", "items": False, "not": {"items": {"type": "string"}}},
        {"type": "array", "maxItems": 2, "contains": False},
        {"type": "array", "contains": {}, "minContains": 0, "maxContains": 0, "minItems": 1},
    ],
)
def test_an_array_that_cannot_hold_what_it_must_contain_is_empty(schema):
    with pytest.raises(EmptyGrammar):
        bound(schema)


@pytest.mark.parametrize(
    ("pattern", "max_length", "first"),
    [
        ("^[A\u0430-\u044f\u4e00\U0001f600-\U0001f64f]$", None, "[A\u0430-\u044f\u4e00\U0001f600-\U0001f64f]"),
        ("^[^\u0000-\u07bf\u0800-\uffff]$", None, "[^\u0000-\u07bf\u0800-\uffff]"),
        ("^([\u0100-\u013f]|\ue000|[\U00010000-\U0010fffe]b)$", 1, "[\u0100-\u013f\ue000]"),
        ("^([a-z]\u00e9?|[\u0080-\U0010ffff]+x)$", 1, "[a-z]"),
        ("[a-zA-Z]{3}", 3, "[a-zA-Z]"),
    ],
)
def test_an_escape_goes_on_exactly_where_a_character_of_its_digits_fits(pattern, max_length, first):
    schema = {"type": "string", "pattern": pattern, **({"maxLength": max_length} if max_length else {})}
    grammar = json_schema(schema).bind(VOCABULARY)
    every = "".join(chr(point) for point in range(0x110000) if not 0xD800 <= point < 0xE000)
    starts = set()
    for character in re.findall(first, every):
        units = character.encode("utf-16-be").hex()
        starts |= {units[:size] for size in range(len(units) + 1)}
    for high in ("", *"0123456789abcdef", "00", "04", "d83d", "d800", "dbff", "d83e"):
        for digits in [high, *(high + f"{n:x}" for n in range(0x130))]:
            if 0 < len(digits) <= 8 and (len(digits) <= 4 or digits[0] == "d"):
                text = '"\\u' + (digits if len(digits) <= 4 else digits[:4] + "\\u" + digits[4:])
                after = grammar.advance_bytes(grammar.start, np.frombuffer(text.encode(), np.uint8))
                assert (after >= 0) == (digits in starts), text

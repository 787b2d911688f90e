"""`check`: finds what cannot be enforced before any token is generated, with its JSON pointer."""

from collections.abc import Callable
from typing import Any

from infercore.constrained.schema.atoms import ANNOTATIONS, Forms
from infercore.constrained.schema.document import Document, Literal, Place
from infercore.constrained.schema.texts import pattern_node, pattern_nodes
from infercore.errors import GrammarLimitError, RegexSyntaxError, UnsupportedSchema

_TYPES = frozenset(["null", "boolean", "integer", "number", "string", "array", "object", "any"])
_COUNTS = frozenset(
    ["minLength", "maxLength", "minItems", "maxItems", "minProperties", "maxProperties", "minContains", "maxContains"]
)
_NUMBERS = frozenset(["minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf"])
_ONE = frozenset(["not", "if", "then", "else", "additionalProperties", "propertyNames", "contains", "additionalItems",
                  "unevaluatedItems", "unevaluatedProperties"])  # fmt: skip
_NEGATING = frozenset(["not", "oneOf", "if", "contains"])
_LISTS = frozenset(["allOf", "anyOf", "oneOf", "prefixItems"])
_DICTS = frozenset(["properties", "patternProperties", "dependentSchemas"])


def check(document: Document) -> bool:
    """Raise UnsupportedSchema for the first thing in reach of the root that is malformed or cannot be enforced.

    Definitions that nothing refers to are not looked at. Returns whether items must differ somewhere, and something may
    be negated: then `check_unique` has to look further.
    """
    unique = negates = False
    seen: set[Literal] = set()
    waiting: list[Literal] = [(document.root_place, True)]
    while waiting:
        literal = waiting.pop()
        if literal in seen:
            continue
        seen.add(literal)
        place = document.places[literal[0]]
        if isinstance(place.schema, dict):
            waiting += reversed(_check_place(document, place))
            unique = unique or place.schema.get("uniqueItems") is True
            negates = negates or not _NEGATING.isdisjoint(place.schema)
    return unique and negates


def check_unique(document: Document, forms: Forms) -> None:
    """Raise UnsupportedSchema where a value may have to have items that repeat."""
    if "uniqueItems" in document.ignore:
        return
    root: Literal = (document.root_place, True)
    seen = {root}
    waiting = [root]
    while waiting:
        literal = waiting.pop()
        try:
            alternatives = [a for type_ in ("array", "object") for a in forms.of(literal, type_)]
        except GrammarLimitError:  # is raised again when the grammar gets there
            continue
        for atom in frozenset().union(*alternatives):
            if atom == ("unique", False):
                pointer = document.places[literal[0]].pointer
                raise UnsupportedSchema(
                    "that items repeat, which a negated uniqueItems asks for, cannot be enforced", pointer=pointer
                )
            for part in atom[1:]:
                if _is_literal(part) and part not in seen:
                    seen.add(part)
                    waiting.append(part)


def _is_literal(part: Any) -> bool:
    return isinstance(part, tuple) and len(part) == 2 and isinstance(part[0], int) and isinstance(part[1], bool)


def _check_place(document: Document, place: Place) -> list[Literal]:
    """Checks one place, returns the places that it applies to the value or to parts of it."""
    children: list[Literal] = []
    if "$ref" in place.schema and place.draft <= 7:
        return [document.resolve(place.schema["$ref"], place)]
    for keyword, value in place.schema.items():
        if keyword in document.ignore or keyword in ANNOTATIONS:
            continue
        pointer = f"{place.pointer}/{keyword}"
        if keyword in ("$ref", "$dynamicRef", "$recursiveRef"):
            if keyword != "$ref" and not document.is_static(value, place):
                raise UnsupportedSchema("a reference that depends on the path taken to it; use $ref", pointer=pointer)
            children.append(document.resolve(value, place))
        elif keyword == "type":
            names = value if isinstance(value, list) else [value]
            if not all(isinstance(name, str) and name in _TYPES for name in names):
                raise UnsupportedSchema(
                    f"type is {value!r}, expected one of {', '.join(sorted(_TYPES))}", pointer=pointer
                )
        elif keyword in _COUNTS:
            if isinstance(value, bool) or not isinstance(value, int | float) or value != int(value) or value < 0:
                raise UnsupportedSchema(f"{keyword} is {value!r}, expected a count", pointer=pointer)
        elif keyword in _NUMBERS:
            _check_number(keyword, value, place.draft, pointer)
        elif keyword == "enum":
            if not isinstance(value, list):
                raise UnsupportedSchema(f"enum is {value!r}, expected a list", pointer=pointer)
        elif keyword == "required":
            if not isinstance(value, bool) and not (isinstance(value, list) and all(isinstance(k, str) for k in value)):
                raise UnsupportedSchema(f"required is {value!r}, expected a list of names", pointer=pointer)
        elif keyword == "pattern":
            _check_pattern(value, pointer)
        else:
            children += _children(document, place, keyword, value, pointer)
    return children


def _check_number(keyword: str, value: Any, draft: int, pointer: str) -> None:
    if isinstance(value, bool) and keyword.startswith("exclusive"):
        return
    if isinstance(value, bool) or not isinstance(value, int | float) or value != value or abs(value) == float("inf"):
        raise UnsupportedSchema(f"{keyword} is {value!r}, expected a number", pointer=pointer)
    if keyword == "multipleOf" and value <= 0:
        raise UnsupportedSchema(f"multipleOf is {value!r}, expected more than 0", pointer=pointer)


def _check_pattern(pattern: Any, pointer: str, parse_pattern: Callable[[str], object] = pattern_nodes) -> None:
    if not isinstance(pattern, str):
        raise UnsupportedSchema(f"pattern is {pattern!r}, expected a string", pointer=pointer)
    try:
        parse_pattern(pattern)
    except RegexSyntaxError as error:
        raise UnsupportedSchema(str(error), pointer=pointer) from error


def _children(document: Document, place: Place, keyword: str, value: Any, pointer: str) -> list[Literal]:
    if keyword in _ONE or (keyword == "items" and not isinstance(value, list)):
        _check_schema(value, pointer)
        return [document.literal(value, place, keyword)]
    if keyword in _LISTS or keyword == "items":
        if not isinstance(value, list):
            raise UnsupportedSchema(f"{keyword} is {value!r}, expected a list of schemas", pointer=pointer)
        for i, schema in enumerate(value):
            _check_schema(schema, f"{pointer}/{i}")
        return [document.literal(schema, place, f"{keyword}/{i}") for i, schema in enumerate(value)]
    if keyword in _DICTS or keyword in ("dependencies", "dependentRequired"):
        if not isinstance(value, dict):
            raise UnsupportedSchema(f"{keyword} is {value!r}, expected an object", pointer=pointer)
        result = []
        for name, schema in value.items():
            escaped = name.replace("~", "~0").replace("/", "~1")
            if keyword == "patternProperties":
                _check_pattern(name, f"{pointer}/{escaped}", pattern_node)
            if isinstance(schema, list | str) and keyword in ("dependencies", "dependentRequired"):
                continue
            _check_schema(schema, f"{pointer}/{escaped}")
            result.append(document.literal(schema, place, f"{keyword}/{escaped}"))
        return result
    return []


def _check_schema(schema: Any, pointer: str) -> None:
    if not isinstance(schema, dict | bool):
        raise UnsupportedSchema(f"{schema!r} is no schema, expected an object or a boolean", pointer=pointer)

"""The functions that make a `GrammarSpec`."""

import json
from collections.abc import Sequence
from typing import Any

from infercore.constrained.grammar import GrammarSpec
from infercore.constrained.regex import full_conjunction
from infercore.constrained.schema import Order, Separators, Whitespace, check_schema, check_source
from infercore.constrained.schema.python_types import schema_of_type


def regex(pattern: str) -> GrammarSpec:
    """Texts that `pattern`, in the syntax of Python's `re`, matches from end to end.

    Raises: RegexSyntaxError with the position, for a syntax error or what no automaton can hold (backreferences,
        atomic groups, possessive repeats, word boundaries within a repeat, look-around that is neither look-ahead where
        the pattern begins nor look-behind where it ends).
    """
    full_conjunction(pattern)
    return GrammarSpec("regex", pattern)


def choices(options: Sequence[str]) -> GrammarSpec:
    """One of these texts. Raises: ValueError if there are none, TypeError if one is no string."""
    options = list(options)
    if not options:
        raise ValueError("choices() got no options; pass at least one string")
    for option in options:
        if not isinstance(option, str):
            raise TypeError(f"choices() got {option!r}, expected strings")
    return GrammarSpec("choices", json.dumps(options))


def json_schema(
    schema: Any, *, whitespace: Whitespace = "spaced", order: Order = "any", ignore: Sequence[str] = ()
) -> GrammarSpec:
    """JSON documents that satisfy `schema`, each key once.

    Args:
        schema: a JSON Schema as a dict, a bool or JSON text; a Pydantic model; or a Python type (dataclass, TypedDict,
            Enum, Literal, list[int], ..), which pydantic turns into a schema.
        whitespace: "spaced" (one space after comma and colon, as `json.dumps` writes), "compact" (none), or "flexible"
            (up to 40 white-space characters anywhere).
        order: of an object's properties. "any"; or "declared": as `properties` lists them, others behind those, so that
            more of the text is forced. Where what is required cannot be told name by name (some of several keys, more
            properties than the required ones), an object keeps any order.
        ignore: keywords not to enforce; by this the caller takes what they mean on himself.
    Raises: UnsupportedSchema with the JSON pointer of what cannot be enforced.
    """
    if isinstance(schema, str):
        schema = json.loads(schema)
    elif not isinstance(schema, dict | bool):
        schema = schema_of_type(schema)
    Separators.of(whitespace)
    if order not in ("any", "declared"):
        raise ValueError(f"order is {order!r}, expected 'any' or 'declared'")
    try:
        source = json.dumps({"schema": schema, "whitespace": whitespace, "order": order, "ignore": sorted(ignore)})
    except TypeError:
        check_schema(schema, ignore=frozenset(ignore))  # says where it is no JSON Schema
        raise
    check_source(source)
    return GrammarSpec("json_schema", source)

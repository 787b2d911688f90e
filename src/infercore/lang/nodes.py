"""What a program appends to its state: `gen`, `select`, and turns of a chat."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from infercore.lang.types import GenOptions, Role, SelectMethod

_INT = r"-?(0|[1-9][0-9]{0,17})"
_FLOAT = r"-?(0|[1-9][0-9]{0,14})(\.[0-9]{1,15})?"


@dataclass(frozen=True, slots=True)
class Gen:
    """Generate text here. `parse` turns it into the variable's value."""

    name: str | None
    options: GenOptions
    kind: str = "str"
    parse: Callable[[str], Any] = field(default=str, compare=False)


@dataclass(frozen=True, slots=True)
class Select:
    """Pick one of `choices` here, by their likelihood."""

    name: str | None
    choices: tuple[str, ...]
    method: SelectMethod = "token_length"


@dataclass(frozen=True, slots=True)
class Message:
    """One turn of a chat; its parts are anything that a state takes."""

    role: Role
    parts: tuple[Any, ...]


def gen(
    name: str | None = None,
    *,
    regex: str | None = None,
    schema: Mapping[str, Any] | type | None = None,
    choices: Sequence[str] | None = None,
    dtype: type | None = None,
    stop: str | Sequence[str] = (),
    max_tokens: int = 128,
    temperature: float = 0.0,
    top_p: float = 1.0,
    top_k: int = 0,
    min_p: float = 0.0,
) -> Gen:
    """Generate text, under at most one constraint.

    Args:
        name: the variable that holds the value, read as `s[name]`; None if it is not read.
        regex: the whole text matches this. schema: a JSON Schema or a Pydantic model; the value is the parsed JSON.
        choices: the text is one of these, decoded token by token (`select` instead compares whole choices).
        dtype: int, float, bool or str, or a Pydantic model: constrains the text, and the value has this type.
        stop: strings that end the text; they are not part of it.
        temperature: 0 is greedy. top_p, top_k, min_p: as in `infercore.sampling`.
    Raises: ValueError for two constraints or limits that make no sense; TypeError for a dtype that is none of these.
    """
    given = [n for n, v in (("regex", regex), ("schema", schema), ("choices", choices)) if v is not None]
    if dtype not in (None, str):
        given.append("dtype")
    if len(given) > 1:
        raise ValueError(f"gen has {' and '.join(given)}; pass one constraint")
    if max_tokens < 1:
        raise ValueError(f"max_tokens is {max_tokens}, expected at least 1")
    kind, parse = "str", str
    if dtype is int:
        regex, kind, parse = _INT, "int", int  # type: ignore[assignment]
    elif dtype is float:
        regex, kind, parse = _FLOAT, "float", float  # type: ignore[assignment]
    elif dtype is bool:
        choices, kind, parse = ("true", "false"), "bool", _as_bool  # type: ignore[assignment]
    elif dtype not in (None, str):
        schema = dtype
    schema_text = None
    if schema is not None:
        schema_text, kind, parse = _schema(schema)  # type: ignore[assignment]
    stops = (stop,) if isinstance(stop, str) else tuple(stop)
    if any(not s for s in stops):
        raise ValueError("stop holds an empty string, which would end every text; remove it")
    listed = None if choices is None else _checked_choices(choices)
    options = GenOptions(max_tokens, stops, temperature, top_p, top_k, min_p, regex, schema_text, listed)
    return Gen(name, options, kind, parse)


def select(name: str | None = None, choices: Sequence[str] = (), *, method: SelectMethod = "token_length") -> Select:
    """Pick the choice that the model finds likeliest after the text so far.

    Args:
        method: "token_length" compares the mean log probability of the choices' tokens; "greedy" follows the likeliest
            token where choices part; "unconditional" subtracts what each choice would score with nothing before it.
    Raises: ValueError without choices, or with one given twice or empty.
    """
    if method not in ("token_length", "greedy", "unconditional"):
        raise ValueError(f'method is {method!r}, expected "token_length", "greedy" or "unconditional"')
    return Select(name, _checked_choices(choices), method)


def system(*parts: Any) -> Message:
    """A system turn."""
    return Message("system", parts)


def user(*parts: Any) -> Message:
    """A user turn."""
    return Message("user", parts)


def assistant(*parts: Any) -> Message:
    """An assistant turn; a `gen` among its parts ends with it."""
    return Message("assistant", parts)


def _checked_choices(choices: Sequence[str]) -> tuple[str, ...]:
    listed = tuple(choices)
    if isinstance(choices, str) or not listed or not all(isinstance(c, str) and c for c in listed):
        raise ValueError(f"choices is {choices!r}, expected a list of at least one string, none empty")
    if len(set(listed)) < len(listed):
        raise ValueError(f"choices is {choices!r}, expected each choice once")
    return listed


def _schema(schema: Mapping[str, Any] | type) -> tuple[str, str, Callable[[str], Any]]:
    """Canonical text of a schema, a name for it, and what reads its instances."""
    if isinstance(schema, Mapping):
        return _canonical(schema), "json", json.loads
    to_schema = getattr(schema, "model_json_schema", None)
    validate = getattr(schema, "model_validate_json", None)
    if to_schema is None or validate is None:
        raise TypeError(f"{schema!r} is no dtype or schema; expected int, float, bool, str, a Pydantic model or a dict")
    return _canonical(to_schema()), schema.__name__, validate


def _canonical(schema: Mapping[str, Any]) -> str:
    return json.dumps(schema, separators=(",", ":"), ensure_ascii=False)  # the order of properties means something


def _as_bool(text: str) -> bool:
    return text == "true"

"""From references to values, and from values to the text that a program appends."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from infercore.lang.ir import ArgRef, Concat, VarRef


def resolve(value: Any, values: Mapping[int, Any], arguments: Mapping[str, Any]) -> Any:
    """A named or returned value of a program, once its variables are known."""
    match value:
        case VarRef():
            return values[value.var]
        case ArgRef():
            return arguments[value.name]
        case Concat():
            return "".join(p if isinstance(p, str) else as_text(p, values, arguments) for p in value.parts)
        case dict():
            return {key: resolve(v, values, arguments) for key, v in value.items()}
    if type(value) in (tuple, list):
        return type(value)(resolve(v, values, arguments) for v in value)
    return value


def as_text(source: VarRef | ArgRef, values: Mapping[int, Any], arguments: Mapping[str, Any]) -> str:
    """What appending a variable or an argument writes: its value as Python formats it."""
    return format(values[source.var] if isinstance(source, VarRef) else arguments[source.name])


def seed_of(seed: int | None, var: int, *, is_greedy: bool) -> int | None:
    """The seed of one generation of a run: the same traced or op by op, alone or in a batch."""
    if seed is None or is_greedy:
        return None
    return (seed * 1_000_003 + var * 7_919 + 17) % 2**63

"""From references to values, and the seed of each generation."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from infercore.lang.ir import Concat, VarRef


def resolve(value: Any, values: Mapping[int, Any]) -> Any:
    """A named or returned value of a program, once its variables are known."""
    match value:
        case VarRef():
            return values[value.var]
        case Concat():
            return "".join(part if isinstance(part, str) else format(resolve(part, values)) for part in value.parts)
        case dict():
            return {key: resolve(v, values) for key, v in value.items()}
    if type(value) in (tuple, list):
        return type(value)(resolve(v, values) for v in value)
    return value


def seed_of(seed: int | None, var: int, *, is_greedy: bool) -> int | None:
    """The seed of one generation of a run: the same traced or op by op, alone or in a batch."""
    if seed is None or is_greedy:
        return None
    return (seed * 1_000_003 + var * 7_919 + 17) % 2**63

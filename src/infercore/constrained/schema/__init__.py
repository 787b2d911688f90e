"""JSON Schema to states.

Reading order: `document.py` (places and references), `check.py` (what is refused ahead), `atoms.py` (what a schema says
about each type, negations pushed down), `context.py` (values), `strings.py` with `texts.py` and `formats.py`,
`numbers.py`,
`arrays.py`, `objects.py`.
"""

import json
from typing import Any, Literal

from infercore.constrained.limits import Limits
from infercore.constrained.machine import Machine
from infercore.constrained.schema.arrays import array_lowering
from infercore.constrained.schema.check import check, check_unique
from infercore.constrained.schema.context import Context
from infercore.constrained.schema.document import Document
from infercore.constrained.schema.objects import object_lowering
from infercore.constrained.schema.separators import Separators, Whitespace

Order = Literal["any", "declared"]
"""In which order the properties of an object come."""

__all__ = ["Order", "Separators", "Whitespace", "check_schema", "check_source", "lower_schema", "lower_source"]


_MAX_KEPT = 8
_checked: dict[
    str, tuple[Document, Whitespace]
] = {}  # by the text of the arguments, until it is lowered: what was parsed once will do


def check_schema(schema: Any, *, ignore: frozenset[str]) -> None:
    """Raise UnsupportedSchema, with its JSON pointer, for what cannot be enforced."""
    _check(Document(schema, ignore))


def check_source(source: str) -> None:
    """`check_schema` of the arguments of `json_schema` as JSON text, which `lower_source` is called with next."""
    parsed = _parsed(source)
    _check(parsed[0])
    if len(_checked) >= _MAX_KEPT:
        _checked.clear()
    _checked[source] = parsed


def lower_source(source: str, machine: Machine) -> int:
    """State that reads one JSON value as the arguments of `json_schema`, as JSON text, say, and returns."""
    known = _checked.pop(source) if source in _checked else _parsed(source)
    return _lower(known[0], machine, known[1])


def _parsed(source: str) -> tuple[Document, Whitespace]:
    arguments = json.loads(source)
    ordered = arguments["order"] == "declared"
    return Document(arguments["schema"], frozenset(arguments["ignore"]), ordered), arguments["whitespace"]


def _check(document: Document) -> None:
    if check(document):
        check_unique(document, _context(Machine(Limits()), document, "spaced").forms)


def lower_schema(schema: Any, machine: Machine, *, whitespace: Whitespace, ignore: frozenset[str]) -> int:
    """State that reads one JSON value which satisfies `schema`, and returns."""
    return _lower(Document(schema, ignore), machine, whitespace)


def _lower(document: Document, machine: Machine, whitespace: Whitespace) -> int:
    return _context(machine, document, whitespace).value([(document.root_place, True)])


def _context(machine: Machine, document: Document, whitespace: Whitespace) -> Context:
    context = Context(machine, document, Separators.of(whitespace))
    context.lower_object = object_lowering(context)
    context.lower_array = array_lowering(context)
    return context

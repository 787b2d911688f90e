"""JSON Schema to states.

Reading order: `document.py` (places and references), `check.py` (what is refused ahead), `atoms.py` (what a schema says
about each type, negations pushed down), `context.py` (values), `strings.py` with `texts.py` and `formats.py`,
`numbers.py`,
`arrays.py`, `objects.py`.
"""

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

__all__ = ["Order", "Separators", "Whitespace", "check_schema", "lower_schema"]


def check_schema(schema: Any, *, ignore: frozenset[str]) -> None:
    """Raise UnsupportedSchema, with its JSON pointer, for what cannot be enforced."""
    document = Document(schema, ignore)
    if check(document):
        check_unique(document, _context(Machine(Limits()), document, "spaced").forms)


def lower_schema(
    schema: Any, machine: Machine, *, whitespace: Whitespace, ignore: frozenset[str], order: Order = "any"
) -> int:
    """State that reads one JSON value which satisfies `schema`, and returns."""
    document = Document(schema, ignore, ordered=order == "declared")
    return _context(machine, document, whitespace).value([(document.root_place, True)])


def _context(machine: Machine, document: Document, whitespace: Whitespace) -> Context:
    context = Context(machine, document, Separators.of(whitespace))
    context.lower_object = object_lowering(context)
    context.lower_array = array_lowering(context)
    return context

"""From schema places to constraints per JSON type, in disjunctive form.

For one type (say, objects) a schema is a disjunction of *alternatives*; an alternative is a set of atoms that all hold.
Negation is pushed down to the atoms, so `not`, `oneOf` and `if` need no trial: what is left are positive statements.
Keywords about other types are true here and drop out, which keeps the forms small.

Atoms are tuples; K is a set of keys: ("name", k), ("pattern", p) or ("rest", names, patterns); L is a literal.
    string   (pattern, p, holds) (min_length, n) (max_length, n) (format, f, holds) (in, values, holds)
    number   (min, x, strict) (max, x, strict) (multiple, m, holds) (in, values, holds)
    boolean  (in, values, holds)
    array    (item, i, L) (from, i, L) (count, i, L, low, high) (min_items, n) (max_items, n) (unique, holds)
    object   (all, K, L) (some, K, L) (min_props, n) (max_props, n) (names, L) (bad_name, L)
"""

import json
from collections.abc import Callable, Iterable
from decimal import Decimal
from fractions import Fraction
from itertools import chain
from typing import Any

from infercore.constrained.schema.document import FALSE, TRUE, Document, Json, Literal, Place
from infercore.errors import GrammarLimitError, UnsupportedSchema

Atom = tuple[Any, ...]
Alternative = frozenset[Atom]
Form = tuple[Alternative, ...]

TYPES = ("null", "boolean", "number", "string", "array", "object")
YES: Form = (frozenset(),)
NO: Form = ()

ANNOTATIONS = frozenset(
    {"$schema", "$id", "id", "$anchor", "$dynamicAnchor", "$recursiveAnchor", "$comment", "$defs", "definitions"}
    | {"$vocabulary", "title", "description", "default", "examples", "example", "readOnly", "writeOnly", "deprecated"}
    | {"contentEncoding", "contentMediaType", "contentSchema"}
)
"""Keywords that say nothing about which values are valid."""


class Forms:
    """Forms of every literal, by type, computed when asked for.

    Args:
        max_alternatives: a form with more raises GrammarLimitError.
        is_empty: whether no value at all satisfies these literals, as far as can be told cheaply.
    """

    def __init__(self, document: Document, max_alternatives: int) -> None:
        self.document = document
        self.max_alternatives = max_alternatives
        self.is_impossible: Callable[[str, Alternative], bool] = lambda _type, _alternative: False
        self._forms: dict[tuple[Literal, str], Form] = {}
        self._open: set[tuple[Literal, str]] = set()

    def of_all(self, literals: Iterable[Literal], type_: str) -> Form:
        """Form of a conjunction."""
        literals = tuple(literals)
        if len(literals) == 1:
            return self.of(literals[0], type_)
        form = YES
        for literal in sorted(literals):
            form = self.both(form, self.of(literal, type_), type_)
        return form

    def of(self, literal: Literal, type_: str, *, notes: bool = False) -> Form:
        """Form of one literal for values of `type_`.

        notes: alternatives carry ("note", ..) atoms that say which properties or items they evaluate, for an
            `unevaluated*` keyword above; only statements that hold make notes.
        """
        if not notes and (known := self._forms.get((literal, type_))) is not None:
            return known
        index, holds = literal
        schema = self.document.places[index].schema
        if isinstance(schema, bool):
            return YES if schema == holds else NO
        notes = notes and holds and type_ in ("array", "object")
        key = (literal, f"{type_}+" if notes else type_)
        form = self._forms.get(key)
        if form is None:
            place = self.document.places[index]
            if key in self._open:
                raise UnsupportedSchema(
                    "the schema refers to itself without an object or array between", pointer=place.pointer
                )
            self._open.add(key)
            try:
                form = self._of_schema(place, type_, holds, notes)
            finally:
                self._open.discard(key)
            self._forms[key] = form
        return form

    # Connectives -----------------------------------------------------------------------------------------------------

    def both(self, a: Form, b: Form, type_: str) -> Form:
        if a == YES:
            return b
        if b == YES:
            return a
        result: dict[Alternative, None] = {}
        for one in a:
            for other in b:
                joined = one | other
                if joined in result or self._contradicts(type_, joined, one, other):
                    continue
                result[joined] = None
            self._limit(len(result))
        return _absorb(result)

    def _strip(self, form: Form) -> Form:
        """Without notes."""
        return _absorb(dict.fromkeys(frozenset(a for a in alternative if a[0] != "note") for alternative in form))

    def either(self, forms: Iterable[Form]) -> Form:
        result = dict.fromkeys(chain.from_iterable(forms))
        self._limit(len(result))
        return _absorb(result)

    def _limit(self, count: int) -> None:
        if count > self.max_alternatives:
            raise GrammarLimitError(
                f"a place of the schema splits into more than {self.max_alternatives} cases; simplify its "
                f"oneOf, not or "
                "if, or raise Limits(max_alternatives=...)"
            )

    def _contradicts(self, type_: str, joined: Alternative, one: Alternative, other: Alternative) -> bool:
        return joined not in (one, other) and self.is_impossible(type_, joined)

    def _all(self, parts: Iterable[Form], type_: str, holds: bool) -> Form:
        """Conjunction of forms that are already negated where `holds` is False, in which case it is a disjunction."""
        if not holds:
            return self.either(parts)
        form = YES
        for part in parts:
            form = self.both(form, part, type_)
            if not form:
                return NO
        return form

    # Schemas ---------------------------------------------------------------------------------------------------------

    def _of_schema(self, place: Place, type_: str, holds: bool, notes: bool) -> Form:
        schema = place.schema
        if "$ref" in schema and place.draft <= 7:
            return self.of(_polar(self.document.resolve(schema["$ref"], place), holds), type_, notes=notes)
        if holds and self._excludes(schema, type_):
            return NO
        last = {"array": "unevaluatedItems", "object": "unevaluatedProperties"}.get(type_, "")
        if last not in schema or schema[last] in (True, {}) or last in self.document.ignore:
            form = self._all(self._keywords(place, type_, holds, notes, ""), type_, holds)
            if notes and last in schema:
                form = tuple(alternative | {("note", "all")} for alternative in form)
            return form
        if not holds:
            raise UnsupportedSchema(f"a negated {last} cannot be enforced", pointer=f"{place.pointer}/{last}")
        form = self._all(self._keywords(place, type_, True, True, last), type_, True)
        literal = self.document.literal(schema[last], place, last)
        result = []
        for alternative in form:
            rest = self._unevaluated(alternative, type_, literal, f"{place.pointer}/{last}")
            result.append(self.both((alternative,), rest, type_))
        joined = self.either(result)
        if notes:
            return tuple(alternative | {("note", "all")} for alternative in joined)
        return self._strip(joined)

    def _excludes(self, schema: Json, type_: str) -> bool:
        """Whether `type` alone says no, as it most often does."""
        if "type" not in schema or "type" in self.document.ignore:
            return False
        names = schema["type"]
        if isinstance(names, str):
            names = (names,)
        return not (type_ in names or "any" in names or (type_ == "number" and "integer" in names))

    def _unevaluated(self, alternative: Alternative, type_: str, literal: Literal, pointer: str) -> Form:
        """What the rest must satisfy that no note of `alternative` names."""
        noted = [atom[1:] for atom in alternative if atom[0] == "note"]
        if ("all",) in noted:
            return YES
        if type_ == "array":
            if any(note[0] == "contains" for note in noted):
                raise UnsupportedSchema("unevaluatedItems beside contains cannot be enforced", pointer=pointer)
            start = max((note[1] for note in noted if note[0] == "items"), default=0)
            return _form(("max_items", start)) if literal == FALSE else _form(("from", start, literal))
        names = frozenset(chain.from_iterable(note[0] for note in noted))
        patterns = tuple(sorted(set(chain.from_iterable(note[1] for note in noted))))
        return _form(("all", ("rest", names, patterns), literal))

    def _keywords(self, place: Place, type_: str, holds: bool, notes: bool, without: str) -> Iterable[Form]:
        """One form for each keyword that matters to `type_`, negated where `holds` is False."""
        schema = place.schema
        for keyword, value in schema.items():
            if keyword in self.document.ignore or keyword in ANNOTATIONS or keyword == without:
                continue
            form = self._keyword(keyword, value, place, type_, holds, notes)
            if form is not None:
                yield form
        if notes and (note := _note(place, type_)):
            yield (frozenset([note]),)

    def _keyword(
        self, keyword: str, value: Json, place: Place, type_: str, holds: bool, notes: bool = False
    ) -> Form | None:
        def fail(message: str) -> UnsupportedSchema:
            return UnsupportedSchema(message, pointer=f"{place.pointer}/{keyword}")

        child = self.document.literal
        if keyword == "type":
            names = [value] if isinstance(value, str) else value
            if "any" in names:
                return YES if holds else NO
            if type_ == "number" and "integer" in names and "number" not in names:
                return _form(("multiple", Fraction(1), holds))
            return YES if (type_ in names) == holds else NO
        if keyword in ("enum", "const"):
            return self._enum(value if keyword == "enum" else [value], place, type_, holds)
        if keyword in ("$recursiveRef", "$dynamicRef") and not self.document.is_static(value, place):
            raise fail("this reference depends on the path taken to it, which cannot be enforced; use $ref")
        if keyword in ("$ref", "$recursiveRef", "$dynamicRef"):
            return self.of(_polar(self.document.resolve(value, place), holds), type_, notes=notes)
        if keyword in ("allOf", "anyOf", "oneOf"):
            options = [child(option, place, f"{keyword}/{i}") for i, option in enumerate(value)]
            if keyword == "oneOf":
                return self._one_of(options, type_, holds, notes)
            forms = [self.of(_polar(option, holds), type_, notes=notes) for option in options]
            if keyword == "anyOf" and notes and len(forms) > 1:
                forms = [self._all(chosen, type_, True) for chosen in _subsets(forms, self.max_alternatives)]
            return self._all(forms, type_, holds == (keyword == "allOf"))
        if keyword == "not":
            return self.of(_polar(child(value, place, "not"), not holds), type_)
        if keyword == "if":
            if "then" not in place.schema and "else" not in place.schema and not notes:
                return None
            test = child(value, place, "if")
            then = child(place.schema.get("then", True), place, "then")
            other = child(place.schema.get("else", True), place, "else")
            return self.either(
                self.both(
                    self.of(_polar(test, sign), type_, notes=notes),
                    self.of(_polar(branch, holds), type_, notes=notes),
                    type_,
                )
                for sign, branch in ((True, then), (False, other))
            )
        if keyword == "dependentSchemas" and type_ == "object":
            return self._dependencies(keyword, value, place, holds, notes)
        handler = getattr(self, f"_{type_}_keyword", None)
        if handler is None:
            return None
        return handler(keyword, value, place, holds, fail)  # type: ignore[no-any-return]

    def _one_of(self, options: list[Literal], type_: str, holds: bool, notes: bool = False) -> Form:
        live = [option for option in options if self.of(option, type_)]
        result: list[Form] = []
        if holds:
            for i, option in enumerate(live):
                form = self.of(option, type_, notes=notes)
                for j, other in enumerate(live):
                    if i != j and (other == option or self.both(form, self.of(other, type_), type_)):
                        form = self.both(form, self.of(_polar(other, False), type_), type_)
                result.append(form)
            return self.either(result)
        none = self._all((self.of(_polar(option, False), type_) for option in options), type_, True)
        result.append(none)
        for i, option in enumerate(live):
            result += [self.both(self.of(option, type_), self.of(other, type_), type_) for other in live[:i]]
        return self.either(result)

    def _enum(self, values: list[Json], place: Place, type_: str, holds: bool) -> Form:
        mine = [value for value in values if type_of(value) == type_]
        if type_ == "null":
            return YES if bool(mine) == holds else NO
        if type_ in ("boolean", "string", "number"):
            if not mine:
                return NO if holds else YES
            scalars = frozenset(exact(value) if type_ == "number" else value for value in mine)
            if type_ == "boolean" and len(scalars) == 2:
                return YES if holds else NO
            return _form(("in", scalars, holds))
        literals = [
            self.document.synthetic(json.dumps(["const", value], sort_keys=True), _const_schema(value), place)
            for value in mine
        ]
        return self._all((self.of(_polar(literal, holds), type_) for literal in literals), type_, not holds)

    # Keywords of one type --------------------------------------------------------------------------------------------

    def _string_keyword(self, keyword: str, value: Json, place: Place, holds: bool, fail: Any) -> Form | None:
        if keyword == "minLength":
            return (
                _form(("min_length", _count(value)))
                if holds
                else _form(("max_length", _count(value) - 1))
                if _count(value)
                else NO
            )
        if keyword == "maxLength":
            return _form(("max_length", _count(value))) if holds else _form(("min_length", _count(value) + 1))
        if keyword == "pattern":
            return _form(("pattern", value, holds))
        if keyword == "format" and isinstance(value, str):
            from infercore.constrained.schema.formats import FORMATS

            return _form(("format", value, holds)) if value in FORMATS else (YES if holds else NO)
        return None

    def _number_keyword(self, keyword: str, value: Json, place: Place, holds: bool, fail: Any) -> Form | None:
        if keyword in ("minimum", "maximum"):
            strict = place.schema.get("exclusiveM" + keyword[1:]) is True
            side, other = ("min", "max") if keyword == "minimum" else ("max", "min")
            return _form((side, exact(value), strict) if holds else (other, exact(value), not strict))
        if keyword in ("exclusiveMinimum", "exclusiveMaximum"):
            if isinstance(value, bool):
                return None
            side, other = ("min", "max") if keyword == "exclusiveMinimum" else ("max", "min")
            return _form((side, exact(value), True) if holds else (other, exact(value), False))
        if keyword == "multipleOf":
            return _form(("multiple", exact(value), holds))
        return None

    def _array_keyword(self, keyword: str, value: Json, place: Place, holds: bool, fail: Any) -> Form | None:
        schema, child = place.schema, self.document.literal
        prefix = schema.get("prefixItems", []) if place.draft >= 2020 else []
        if isinstance(schema.get("items"), list):
            prefix = schema["items"]
        if keyword == "minItems":
            return (
                _form(("min_items", _count(value)))
                if holds
                else _form(("max_items", _count(value) - 1))
                if _count(value)
                else NO
            )
        if keyword == "maxItems":
            return _form(("max_items", _count(value))) if holds else _form(("min_items", _count(value) + 1))
        if keyword == "uniqueItems":
            if value is not True:
                return None
            return _form(("unique", holds))
        if (keyword == "prefixItems" and place.draft >= 2020) or (keyword == "items" and isinstance(value, list)):
            literals = [child(s, place, f"{keyword}/{i}") for i, s in enumerate(value)]
            if holds:
                return (frozenset(("item", i, literal) for i, literal in enumerate(literals) if literal != TRUE),)
            return self.either(
                (frozenset({("item", i, _polar(literal, False)), ("min_items", i + 1)}),)
                for i, literal in enumerate(literals)
                if literal != TRUE
            )
        if keyword == "items" or (keyword == "additionalItems" and isinstance(schema.get("items"), list)):
            literal = child(value, place, keyword)
            if literal == TRUE:
                return YES if holds else NO
            start = len(prefix)
            if literal == FALSE:
                return _form(("max_items", start)) if holds else _form(("min_items", start + 1))
            return _form(("from", start, literal) if holds else ("count", start, _polar(literal, False), 1, None))
        if keyword == "contains" and place.draft >= 6:
            low, high = 1, None
            if place.draft >= 2019:
                low, high = _count(schema.get("minContains", 1)), schema.get("maxContains")
                high = None if high is None else _count(high)
            literal = child(value, place, "contains")
            if holds:
                return _form(("count", 0, literal, low, high)) if low or high is not None else YES
            less = [_form(("count", 0, literal, 0, low - 1))] if low else []
            more = [_form(("count", 0, literal, high + 1, None))] if high is not None else []
            return self.either([*less, *more])
        return None

    def _object_keyword(self, keyword: str, value: Json, place: Place, holds: bool, fail: Any) -> Form | None:
        schema, child = place.schema, self.document.literal

        def every(pairs: Iterable[tuple[Atom, Literal]]) -> Form:
            pairs = [(keys, literal) for keys, literal in pairs if literal != TRUE]
            if holds:
                return (frozenset(("all", keys, literal) for keys, literal in pairs),)
            return self.either(_form(("some", keys, _polar(literal, False))) for keys, literal in pairs)

        if keyword == "properties":
            form = every((("name", k), child(s, place, f"properties/{_escaped(k)}")) for k, s in value.items())
            order = _form(("order", tuple(value))) if self.document.ordered and holds else YES
            return self.both(form, order, "object")
        if keyword == "patternProperties":
            return every(
                (("pattern", p), child(s, place, f"patternProperties/{_escaped(p)}")) for p, s in value.items()
            )
        if keyword == "additionalProperties":
            literal = child(value, place, keyword)
            if literal == TRUE:
                return YES if holds else NO
            names = frozenset(schema.get("properties", {}))
            patterns = tuple(sorted(schema.get("patternProperties", {})))
            return every([(("rest", names, patterns), literal)])
        if keyword == "required" and isinstance(value, list):
            if holds:
                return (frozenset(("some", ("name", k), TRUE) for k in value),)
            return self.either(_form(("all", ("name", k), FALSE)) for k in value)
        if keyword == "minProperties":
            return (
                _form(("min_props", _count(value)))
                if holds
                else _form(("max_props", _count(value) - 1))
                if _count(value)
                else NO
            )
        if keyword == "maxProperties":
            return _form(("max_props", _count(value))) if holds else _form(("min_props", _count(value) + 1))
        if keyword == "propertyNames":
            literal = child(value, place, "propertyNames")
            if literal == TRUE:
                return YES if holds else NO
            return _form(("names", literal) if holds else ("bad_name", _polar(literal, False)))
        if keyword in ("dependentRequired", "dependentSchemas", "dependencies"):
            return self._dependencies(keyword, value, place, holds)
        return None

    def _dependencies(self, keyword: str, value: Json, place: Place, holds: bool, notes: bool = False) -> Form:
        parts = []
        for name, needed in value.items():
            if isinstance(needed, str):
                needed = [needed]
            if isinstance(needed, list):
                if not needed:
                    continue
                if holds:
                    then: Form = (frozenset(("some", ("name", k), TRUE) for k in needed),)
                else:
                    then = self.either(_form(("all", ("name", k), FALSE)) for k in needed)
            else:
                literal = self.document.literal(needed, place, f"{keyword}/{_escaped(name)}")
                then = self.of(_polar(literal, holds), "object", notes=notes)
            present, absent = _form(("some", ("name", name), TRUE)), _form(("all", ("name", name), FALSE))
            if holds:
                parts.append(self.either([absent, self.both(present, then, "object")]))
            else:
                parts.append(self.both(present, then, "object"))
        return self._all(parts, "object", holds)


def _note(place: Place, type_: str) -> Atom | None:
    """What the keywords of one place, those below it left out, evaluate where the place holds."""
    schema = place.schema
    if type_ == "array":
        if "contains" in schema:
            return ("note", "contains")
        prefix = schema.get("prefixItems", [])
        if "items" in schema and not isinstance(schema["items"], list):
            return ("note", "all")
        return ("note", "items", len(prefix)) if prefix else None
    if "additionalProperties" in schema:
        return ("note", "all")
    names, patterns = frozenset(schema.get("properties", {})), tuple(sorted(schema.get("patternProperties", {})))
    return ("note", names, patterns) if names or patterns else None


def _subsets(forms: list[Form], limit: int) -> Iterable[list[Form]]:
    """Every choice of one or more, where there are not too many."""
    if 1 << len(forms) > limit:
        raise GrammarLimitError(f"anyOf of {len(forms)} options under an unevaluated keyword; raise max_alternatives")
    for chosen in range(1, 1 << len(forms)):
        yield [form for i, form in enumerate(forms) if chosen >> i & 1]


def type_of(value: Json) -> str:
    """JSON type of a value; integers are numbers."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "boolean"
    if isinstance(value, int | float | Decimal):
        return "number"
    return "string" if isinstance(value, str) else "array" if isinstance(value, list) else "object"


def exact(value: Json) -> Fraction:
    """The number that the shortest spelling of `value` stands for (0.1 is 1/10)."""
    return Fraction(str(value)) if isinstance(value, float) else Fraction(value)


def _polar(literal: Literal, holds: bool) -> Literal:
    return literal if holds else (literal[0], not literal[1])


def _form(*atoms: Atom) -> Form:
    return (frozenset(atoms),)


def _count(value: Json) -> int:
    return int(value)


def _escaped(name: str) -> str:
    return name.replace("~", "~0").replace("/", "~1")


def _absorb(alternatives: dict[Alternative, None]) -> Form:
    """Without alternatives that say more than another one does; a note does not make one say more."""
    if len(alternatives) > 64:
        return tuple(alternatives)
    notes = [frozenset(a for a in alternative if a[0] == "note") for alternative in alternatives]
    pairs = list(zip(alternatives, notes, strict=True))
    return tuple(a for a, noted in pairs if not any(b < a and other >= noted for b, other in pairs))


def _const_schema(value: Json) -> Json:
    if isinstance(value, list):
        return {
            "type": "array",
            "prefixItems": [{"const": item} for item in value],
            "minItems": len(value),
            "maxItems": len(value),
        }
    return {
        "type": "object",
        "properties": {key: {"const": item} for key, item in value.items()},
        "required": list(value),
        "additionalProperties": False,
    }

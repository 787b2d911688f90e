"""`Context`: what the parts of a schema's lowering share, and how a value of any type begins."""

from collections.abc import Callable, Iterable
from fractions import Fraction

from infercore.constrained.machine import Machine
from infercore.constrained.schema.atoms import ANNOTATIONS, TYPES, Alternative, Forms
from infercore.constrained.schema.document import FALSE, TRUE, Document, Json, Literal
from infercore.constrained.schema.numbers import NumberRange, NumberStates
from infercore.constrained.schema.separators import Separators
from infercore.constrained.schema.strings import StringStates
from infercore.constrained.schema.texts import Texts

Conjunction = frozenset[Literal]
"""Literals that one value must all satisfy."""


class Context:
    """One schema being lowered into one machine."""

    def __init__(self, machine: Machine, document: Document, separators: Separators) -> None:
        self.machine, self.document, self.separators = machine, document, separators
        self.forms = Forms(document, machine.limits.max_alternatives)
        self.forms.is_impossible = self.is_impossible
        self.texts = Texts(machine)
        self.numbers = NumberStates(machine)
        self.strings = StringStates(machine, self.texts)
        self.ret = machine.ret()
        self.lower_object: Callable[[Alternative], int] = _missing
        self.lower_array: Callable[[Alternative], int] = _missing
        self._values: dict[Conjunction, int] = {}
        self._typed: dict[tuple[str, Alternative], int] = {}
        self._empty: dict[Conjunction, bool] = {}
        self._plain: dict[int, bool] = {}
        self._impossible: dict[tuple[str, Alternative], bool] = {}
        self._depth = 0
        self._space_states: dict[tuple[int, int], int] = {}

    def value(self, literals: Iterable[Literal]) -> int:
        """State that reads one JSON value which satisfies every literal, and returns."""
        conjunction = conjoin(literals)
        state = self._values.get(conjunction)
        if state is None:
            state = self._values[conjunction] = self.machine.stub(lambda s: self._expand_value(s, conjunction))
        return state

    # Separators ------------------------------------------------------------------------------------------------------

    def space(self, then: int) -> int:
        """State where optional white space may stand before `then`."""
        return self._spaces(self.separators.flexible, then)

    def _spaces(self, count: int, then: int) -> int:
        if count == 0:
            return then
        key = (count, then)
        if key not in self._space_states:
            self._space_states[key] = self.machine.stub(
                lambda state: self.machine.define(
                    state, [(byte, byte, self._spaces(count - 1, then)) for byte in (9, 10, 13, 32)], [then]
                )
            )
        return self._space_states[key]

    def comma(self, then: int) -> int:
        """State that reads the comma between members or items."""
        return self.machine.literal(self.separators.comma, self.space(then))

    def define_colon(self, state: int, values: list[tuple[int, int]]) -> None:
        """Make `state` read the colon between key and value, then one of `values`: (its state, the state behind it).

        The byte itself stands in `state`, not behind a free move.
        """
        machine, text = self.machine, self.separators.colon[1:]
        if len(values) == 1 and not self.separators.flexible:
            rest = machine.literal_call(text, *values[0])
        else:
            calls = [machine.call(value, then) for value, then in values]
            rest = machine.literal(text, self.space(calls[0] if len(calls) == 1 else machine.node(free=calls)))
        edges = [(58, 58, rest)]
        if self.separators.flexible:
            before = self._spaces(self.separators.flexible - 1, machine.node([(58, 58, rest)]))
            edges += [(byte, byte, before) for byte in (9, 10, 13, 32)]
        machine.define(state, edges)

    # Values ----------------------------------------------------------------------------------------------------------

    def _expand_value(self, state: int, conjunction: Conjunction) -> None:
        options = []
        for type_ in TYPES:
            options += [
                self._typed_value(type_, alternative)
                for alternative in self.forms.of_all(conjunction, type_)
                if not self.is_impossible(type_, alternative)
            ]
        self.machine.define(state, free=options)

    def _typed_value(self, type_: str, alternative: Alternative) -> int:
        key = (type_, alternative)
        state = self._typed.get(key)
        if state is None:
            state = self._typed[key] = self._lower(type_, alternative)
        return state

    def _lower(self, type_: str, alternative: Alternative) -> int:
        machine = self.machine
        if type_ == "null":
            return machine.literal(b"null", self.ret)
        if type_ == "boolean":
            words = [b"true" if value else b"false" for value in booleans(alternative)]
            return machine.node(free=[machine.literal(word, self.ret) for word in words])
        if type_ == "number":
            values = number_values(alternative)
            if values is not None:
                return machine.node(free=[self.numbers.constant(value) for value in sorted(values)])
            return machine.node(free=[self.numbers.state(r) for r in number_ranges(alternative)])
        if type_ == "string":
            return self.strings.state(alternative)
        return self.lower_object(alternative) if type_ == "object" else self.lower_array(alternative)

    # Emptiness: cheap, and sure where it says yes --------------------------------------------------------------------

    def is_empty(self, literals: Iterable[Literal]) -> bool:
        """Whether no value satisfies every literal. False where that takes more than a shallow look to tell."""
        conjunction = conjoin(literals)
        if FALSE in conjunction:
            return True
        if not conjunction:
            return False
        known = self._empty.get(conjunction)
        if known is not None:
            return known
        if self._depth >= 6:
            return False
        if len(conjunction) == 1:
            ((index, holds),) = conjunction
            if holds and self._is_plain(index):
                return False
        self._depth += 1
        self._empty[conjunction] = False  # what a schema that refers to itself finds on the way
        try:
            empty = all(
                all(self.is_impossible(type_, alternative) for alternative in self.forms.of_all(conjunction, type_))
                for type_ in TYPES
            )
        finally:
            self._depth -= 1
            del self._empty[conjunction]
        if empty or self._depth == 0:
            self._empty[conjunction] = empty
        return empty

    def has_endless_strings(self, literals: Iterable[Literal]) -> bool:
        """Whether strings of any length satisfy every literal; False where patterns would have to be looked at."""
        kept = {"min_length", "note"}
        return any(
            all(atom[0] in kept or (atom[0] == "in" and not atom[2]) for atom in alternative)
            for alternative in self.forms.of_all(conjoin(literals), "string")
        )

    def _is_plain(self, index: int) -> bool:
        """Whether something simple satisfies the schema at a place, as its keywords tell."""
        plain = self._plain.get(index)
        if plain is None:
            place = self.document.places[index]
            schema = place.schema
            self._plain[index] = False  # what a schema that refers to itself finds on the way
            if isinstance(schema, dict) and "$ref" in schema and ANNOTATIONS.issuperset(schema.keys() - {"$ref"}):
                target, holds = self.document.resolve(schema["$ref"], place)
                plain = holds and self._is_plain(target)
            else:
                plain = _is_plain(schema)
            self._plain[index] = plain
        return plain

    def is_impossible(self, type_: str, alternative: Alternative) -> bool:
        """Whether these atoms contradict one another, as far as a shallow look tells."""
        key = (type_, alternative)
        known = self._impossible.get(key)
        if known is None:
            known = getattr(self, f"_impossible_{type_}")(alternative)
            if known or self._depth == 0:
                self._impossible[key] = known
        return known

    def _impossible_null(self, alternative: Alternative) -> bool:
        return False

    def _impossible_boolean(self, alternative: Alternative) -> bool:
        return not booleans(alternative)

    def _impossible_number(self, alternative: Alternative) -> bool:
        values = number_values(alternative)
        if values is not None:
            return not values
        return all(numbers.is_empty() for numbers in number_ranges(alternative))

    def _impossible_string(self, alternative: Alternative) -> bool:
        return self.strings.is_impossible(alternative)

    def _impossible_array(self, alternative: Alternative) -> bool:
        low = max((atom[1] for atom in alternative if atom[0] == "min_items"), default=0)
        low = max((low, *(atom[1] + atom[3] for atom in alternative if atom[0] == "count" and atom[3])))
        high = min((atom[1] for atom in alternative if atom[0] == "max_items"), default=None)
        for atom in alternative:
            if atom[0] == "count" and atom[2] == FALSE and atom[3]:
                return True
            if atom[0] == "count" and atom[2] == TRUE and atom[4] is not None:
                high = atom[1] + atom[4] if high is None else min(high, atom[1] + atom[4])
        if high is not None and (low > high or high < 0):
            return True
        for index in range(min(low, 16)):
            literals = [
                a[2] for a in alternative if (a[0] == "item" and a[1] == index) or (a[0] == "from" and a[1] <= index)
            ]
            if literals and self.is_empty(literals):
                return True
        return False

    def _impossible_object(self, alternative: Alternative) -> bool:
        required = {
            atom[1][1] for atom in alternative if atom[0] == "some" and atom[1][0] == "name" and atom[2] == TRUE
        }
        high = min((atom[1] for atom in alternative if atom[0] == "max_props"), default=None)
        low = max((atom[1] for atom in alternative if atom[0] == "min_props"), default=0)
        if high is not None and high < max(low, len(required)):
            return True
        of_names = [atom[1] for atom in alternative if atom[0] == "names"]
        if of_names and required:
            texts = self.forms.of_all(of_names, "string")
            if not all(any(self.strings.allows(text, name) for text in texts) for name in required):
                return True
        named: dict[str, list[Literal]] = {}
        for atom in alternative:
            if atom[0] == "some" and atom[1][0] == "name":
                named.setdefault(atom[1][1], []).append(atom[2])
        for name, needs in named.items():
            literals = [*needs, *self.literals_of_key(alternative, name)]
            if FALSE in literals or (len(literals) > 1 and self.is_empty(literals)):
                return True
        return False

    def literals_of_key(self, alternative: Alternative, name: str) -> list[Literal]:
        """What the value of key `name` must satisfy."""
        return [
            atom[2]
            for atom in alternative
            if atom[0] == "all" and (atom[1][1] == name if atom[1][0] == "name" else self.key_in(atom[1], name))
        ]

    def key_in(self, keys: tuple[object, ...], name: str) -> bool:
        """Whether a set of keys has `name`."""
        kind = keys[0]
        if kind == "name":
            return keys[1] == name
        if kind == "pattern":
            return self.texts.accepts(self.texts.pattern(str(keys[1])), name)
        _, names, patterns = keys
        return name not in names and not any(  # type: ignore[operator]
            self.texts.accepts(self.texts.pattern(pattern), name)
            for pattern in patterns  # type: ignore[attr-defined]
        )


def conjoin(literals: Iterable[Literal]) -> Conjunction:
    """The conjunction, `true` left out."""
    return frozenset(literal for literal in literals if literal != TRUE)


def booleans(alternative: Alternative) -> list[bool]:
    """The truth values that the atoms allow."""
    return [value for value in (True, False) if all((value in atom[1]) == atom[2] for atom in alternative)]


def number_values(alternative: Alternative) -> list[Fraction] | None:
    """The numbers that the atoms allow, where one of them is a list of values."""
    listed = [atom[1] for atom in alternative if atom[0] == "in" and atom[2]]
    if not listed:
        return None
    numbers = _range(alternative)
    excluded = set().union(*(atom[1] for atom in alternative if atom[0] == "in" and not atom[2]))
    return [v for v in sorted(frozenset.intersection(*listed)) if numbers.contains(v) and v not in excluded]


def number_ranges(alternative: Alternative) -> list[NumberRange]:
    """The ranges that the atoms allow, where none of them lists values: excluded values split a range."""
    whole = _range(alternative)
    ranges = []
    low, strict = whole.low, whole.low_strict
    for value in sorted(set().union(*(atom[1] for atom in alternative if atom[0] == "in"))):
        if whole.contains(value):
            ranges.append(NumberRange(low, strict, value, True, whole.multiples))
            low, strict = value, True
    ranges.append(NumberRange(low, strict, whole.high, whole.high_strict, whole.multiples))
    return [numbers for numbers in ranges if not numbers.is_empty()]


def _range(alternative: Alternative) -> NumberRange:
    low: tuple[Fraction, bool] | None = None
    high: tuple[Fraction, bool] | None = None
    for atom in alternative:
        if atom[0] == "min" and (low is None or (atom[1], atom[2]) > low):
            low = (atom[1], atom[2])
        elif atom[0] == "max" and (high is None or (-atom[1], atom[2]) > (-high[0], high[1])):
            high = (atom[1], atom[2])
    multiples = tuple(sorted((atom[1], atom[2]) for atom in alternative if atom[0] == "multiple"))
    least, most = low or (None, False), high or (None, False)
    return NumberRange(least[0], least[1], most[0], most[1], multiples)


_HARMLESS = (
    ANNOTATIONS
    | {"type", "properties", "patternProperties", "additionalProperties", "items", "format", "maxLength", "maxItems"}
    | {"minLength", "minimum", "maximum"}
)


def _is_plain(schema: Json) -> bool:
    """Whether some text, number, [], {}, a boolean or null satisfies `schema`, whatever its parts say."""
    if not isinstance(schema, dict) or not _HARMLESS.issuperset(schema):
        return False
    kinds = schema.get("type", "object")
    if not set([kinds] if isinstance(kinds, str) else kinds) & {*TYPES, "integer"}:
        return False
    if {"minimum", "maximum"} <= schema.keys() or ("minLength" in schema and schema.keys() & {"maxLength", "format"}):
        return False
    bounds = [schema[bound] for bound in ("maxLength", "maxItems") if bound in schema]
    return all(isinstance(bound, int) and bound >= 0 for bound in bounds) and not (bounds and "format" in schema)


def _missing(alternative: Alternative) -> int:
    raise AssertionError("the lowering of objects and arrays was not connected")

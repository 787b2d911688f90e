"""Objects: properties in any order, each key once, with the keys seen as memory.

An object stands, between its members, in a `_Memory`. Inside a key, the text config runs along the names that may come
(those not seen yet), the patterns, and any other text where other keys are allowed. Such an undeclared key is not part
of the config (masks would not be shared): the grammar state keeps its text beside the config, and when its closing
quote is accepted the text goes into the memory.
"""

from collections.abc import Callable
from typing import NamedTuple

from infercore.constrained.schema.atoms import Alternative
from infercore.constrained.schema.context import Context
from infercore.constrained.schema.document import TRUE, Literal
from infercore.constrained.schema.spelling import last_string

_OTHER = 0  # label of a key that no name and no pattern claims
_TOLD_APART = 8  # `some` atoms over sets of keys that one key may serve at once


class _Memory(NamedTuple):
    """What an object remembers between members.

    Attributes:
        seen: declared names that have come, one bit each.
        extra: other keys that have come.
        owed: indices of `some` atoms not served yet (those over one name are served by the name).
        members: how many so far, no further than where it stops to matter.
    """

    seen: int = 0
    extra: frozenset[str] = frozenset()
    owed: frozenset[int] = frozenset()
    members: int = 0


class ObjectStates:
    """States of one object schema (one alternative)."""

    def __init__(self, context: Context, alternative: Alternative) -> None:
        self.context, self.machine = context, context.machine
        self.every = sorted((atom for atom in alternative if atom[0] == "all"), key=repr)
        self.some = sorted((atom for atom in alternative if atom[0] == "some"), key=repr)
        self.low = max((atom[1] for atom in alternative if atom[0] == "min_props"), default=0)
        self.high: int | None = min((atom[1] for atom in alternative if atom[0] == "max_props"), default=None)
        orders = sorted(atom[1] for atom in alternative if atom[0] == "order")
        names: dict[str, None] = dict.fromkeys(name for order in orders for name in order)
        patterns: dict[str, None] = {}
        for _, keys, _ in (*self.some, *self.every):
            if keys[0] == "name":
                names[keys[1]] = None
            elif keys[0] == "pattern":
                patterns[keys[1]] = None
            else:
                names.update(dict.fromkeys(sorted(keys[1])))
                patterns.update(dict.fromkeys(keys[2]))
        self.patterns = list(patterns)
        self._bits = {name: 1 << i for i, name in enumerate(names)}
        self.required = 0
        for _, keys, _ in self.some:
            if keys[0] == "name":
                self.required |= self._bits[keys[1]]
        self._owed = self._owed_from_the_start(alternative)
        # where what is owed may be a key that has been passed, an order could lead to where nothing is left
        self.ordered = bool(orders) and self.low <= self.required.bit_count() and not self._owed
        self.name_literals = [atom[1] for atom in alternative if atom[0] == "names"]
        self.bad_names = [atom[1] for atom in alternative if atom[0] == "bad_name"]
        self._key_text = self._text_of_names(self.name_literals)
        self.values: dict[str, list[Literal]] = {}  # of every declared name that may come
        self._name_labels: dict[str, int] = {}
        for name in names:
            self._name_labels[name] = 1 + len(self.patterns) + len(self._name_labels)
            literals = context.literals_of_key(alternative, name)
            literals += [literal for _, keys, literal in self.some if keys == ("name", name)]
            if not context.is_empty(literals) and self._name_allowed(name):
                self.values[name] = literals
        self._names_by_label = {label: name for name, label in self._name_labels.items()}
        self._chains = self._make_chains(list(names))
        self.pattern_states = [self._pattern_state(i) for i in range(len(self.patterns))]
        other = [atom[2] for atom in self.every if atom[1][0] == "rest"]
        self.other_allowed = not context.is_empty(other)
        open_patterns = [i for i in range(len(self.patterns)) if self._class_allowed(frozenset([i]))]
        self.open_patterns = open_patterns
        self.has_extra = self.other_allowed or bool(open_patterns)
        cap = max(self.low, 0 if self.high is None else self.high)
        self.count_cap = cap
        self._states: dict[tuple[str, _Memory], int] = {}
        self._key_configs: dict[object, tuple[int, int]] = {}
        self._labels_of: dict[int, frozenset[int]] = {}
        self._name_states: dict[str, int] = {}
        self._class_of: dict[frozenset[int], tuple[list[Literal], bool, int]] = {}

    def _owed_from_the_start(self, alternative: Alternative) -> frozenset[int]:
        num_bad_names = sum(atom[0] == "bad_name" for atom in alternative)
        return frozenset(
            [i for i, (_, keys, _) in enumerate(self.some) if keys[0] != "name"]
            + [len(self.some) + i for i in range(num_bad_names)]
        )

    def entry(self) -> int:
        """State that reads the object and returns."""
        owed = self._owed
        return self.machine.literal(b"{", self.context.space(self._state("first", _Memory(owed=owed))))

    # Between members -------------------------------------------------------------------------------------------------

    def _state(self, kind: str, memory: _Memory) -> int:
        key = (kind, memory)
        if key not in self._states:
            self._states[key] = self.machine.stub(lambda s: self._expand(s, kind, memory))
        return self._states[key]

    def _expand(self, state: int, kind: str, memory: _Memory) -> None:
        """kind: "first" after the brace, "after" after a member, "key" where a key's text begins."""
        context, machine = self.context, self.machine
        if kind == "key":
            machine.define_string(state, self._spec(memory), self._key_config(memory))
            return
        edges = []
        if not self.required & ~memory.seen and not memory.owed and memory.members >= self.low:
            edges.append((125, 125, context.ret))
        free = []
        if (self.high is None or memory.members < self.high) and self._key_config(memory):
            if context.separators.flexible:
                key = machine.literal(b'"', self._state("key", memory))
                free.append(key if kind == "first" else context.comma(key))
            else:
                before = b'"' if kind == "first" else context.separators.comma + b'"'
                rest = machine.literal_stub(before[1:], lambda s: self._expand(s, "key", memory))
                edges.append((before[0], before[0], rest))
        machine.define(state, edges, free)

    def _spec(self, memory: _Memory) -> int:
        return self.machine.string_spec(
            close=-1,
            record=self.has_extra and self._extra_fits(memory),
            key_done=lambda state, config: self._key_done(state, config, memory, None),
            wanted=lambda: self._wanted(memory),
        )

    def _wanted(self, memory: _Memory) -> list[str]:
        """Names of which one comes next where the object is to be completed soon: the first that is missing."""
        return next(([name] for name, bit in self._bits.items() if bit & self.required & ~memory.seen), [])

    # Keys ------------------------------------------------------------------------------------------------------------

    def _must_be_required(self, memory: _Memory) -> bool:
        """Whether only required names still fit under maxProperties."""
        return self.high is not None and memory.members + 1 + (self.required & ~memory.seen).bit_count() > self.high

    def _extra_fits(self, memory: _Memory) -> bool:
        return not self._must_be_required(memory) and not (self.ordered and self.required & ~memory.seen)

    def _open_names(self, memory: _Memory) -> int:
        """Bits of the declared names that may come next."""
        if not self.ordered:
            return ~memory.seen
        if memory.extra:
            return 0
        missing = self.required & ~memory.seen
        up_to = 2 * (missing & -missing) - 1 if missing else -1  # the first that is required may not be passed
        return up_to & ~((1 << memory.seen.bit_length()) - 1)

    def _key_config(self, memory: _Memory) -> int:
        """Text config of the keys that may come; 0 where there are none."""
        only_required = self._must_be_required(memory)
        extra = self.has_extra and self._extra_fits(memory)
        key: object = memory.extra if extra else (memory.seen, only_required, bool(memory.extra))
        if self.ordered and extra:
            key = (memory.extra, self._open_names(memory))
        if self._key_text is not None and extra:
            key = (memory.extra, self._open_names(memory), only_required)
        known = self._key_configs.get(key)
        if known is None:
            known = self._key_configs[key] = self._make_key_config(memory, extra, only_required)
        config, num_keys = known
        return 0 if not extra and memory.members + num_keys < self.low else config

    def _make_key_config(self, memory: _Memory, extra: bool, only_required: bool) -> tuple[int, int]:
        """Text config, and of how many chains, patterns and rests it is made."""
        machine = self.machine
        free = []
        allowed = (self.required if only_required else -1) & self._open_names(memory)
        for name, chain in self._chains.items():
            if extra or (name in self.values and self._bits[name] & allowed):
                free.append(chain)
        if extra:
            free += [self._seen_chain(key) for key in sorted(memory.extra)]
            free += [
                self.pattern_states[i]
                for i in (range(len(self.patterns)) if self.other_allowed else self.open_patterns)
            ]
            if self.other_allowed:
                free.append(self.context.texts.any_state)
        config = machine.start(machine.node(free=free))
        if self._key_text is not None and config:
            texts = self.context.texts
            closed = {name for name, bit in self._bits.items() if name not in self.values or not bit & allowed}
            closed |= memory.extra  # where few names may come, one of these must not be begun
            config = texts.combine([(config, True), (self._key_text, True), (texts.one_of(closed), False)])
        return config, len(free)

    def _labels(self, config: int) -> frozenset[int]:
        """Labels of a key's text config, where it ends."""
        labels = self._labels_of.get(config)
        if labels is None:
            factors = self.context.texts.factors(config)
            if len(factors) == 1 and factors[0][1]:
                labels = frozenset(self.machine.labels(factors[0][0]))
            else:
                labels = frozenset().union(*(self.machine.labels(part) for part, holds in factors if holds))
            self._labels_of[config] = labels
        return labels

    def _options(self, config: int, memory: _Memory, key: str | None) -> list[tuple[int, _Memory]]:
        """States that read the value behind a finished key, each with the memory after it.

        key: the text of an undeclared key, None where it is not known yet.
        """
        labels = self._labels(config)
        num_patterns = len(self.patterns)
        declared = [label for label in labels if label > num_patterns]
        if declared:
            name = self._names_by_label.get(declared[0])
            if name is None or name not in self.values or not self._bits[name] & self._open_names(memory):
                return []
            if not self.required & self._bits[name] and self._must_be_required(memory):
                return []
            literals = self.values[name]
            members = memory.members + 1 if memory.members < self.count_cap else self.count_cap
            after = _Memory(memory.seen | self._bits[name], memory.extra, memory.owed, members)
            if not memory.owed:
                if name not in self._name_states:
                    self._name_states[name] = self.context.value(literals)
                return [(self._name_states[name], after)]
            matches = self._owed_by_name(memory, name)
        else:
            if not self.has_extra or not labels or not self._extra_fits(memory):
                return []
            claimed = frozenset(label - 1 for label in labels if label != _OTHER)
            if claimed not in self._class_of:
                literals = self._class_literals(claimed)
                empty = self.context.is_empty(literals)
                self._class_of[claimed] = (literals, empty, 0 if empty else self.context.value(literals))
            literals, empty, state = self._class_of[claimed]
            if empty:
                return []
            extra = memory.extra if key is None else memory.extra | {key}
            after = memory._replace(extra=extra, members=min(memory.members + 1, self.count_cap))
            if not memory.owed:
                return [(state, after)]
            matches = self._owed_by_class(memory, claimed, key)
        options: list[tuple[list[Literal], frozenset[int]]] = [(literals, after.owed)]
        for index in matches[:_TOLD_APART]:
            literal = self.some[index][2] if index < len(self.some) else TRUE
            served = [([*chosen, literal], owed - {index}) for chosen, owed in options]
            sure = literal == TRUE and (index < len(self.some) or key is not None or bool(declared))
            options = served if sure else [*options, *served]
        return [
            (self.context.value(chosen), after._replace(owed=owed))
            for chosen, owed in options
            if not self.context.is_empty(chosen)
        ]

    def _owed_by_name(self, memory: _Memory, name: str) -> list[int]:
        result = []
        for index in sorted(memory.owed):
            if index >= len(self.some):
                if self._matches_bad_name(index, name):
                    result.append(index)
            elif self.context.key_in(self.some[index][1], name):
                result.append(index)
        return result

    def _owed_by_class(self, memory: _Memory, claimed: frozenset[int], key: str | None) -> list[int]:
        result = []
        for index in sorted(memory.owed):
            if index >= len(self.some):
                if key is None or self._matches_bad_name(index, key):
                    result.append(index)  # while the key is not known, it may be
                continue
            keys = self.some[index][1]
            if keys[0] == "pattern":
                inside = self.patterns.index(keys[1]) in claimed
            else:
                inside = keys[0] == "rest" and not any(self.patterns.index(p) in claimed for p in keys[2])
            if inside:
                result.append(index)
        return result

    def _key_done(self, state: int, config: int, memory: _Memory, key: str | None) -> None:
        """Define the state behind a key's closing quote."""
        options = self._options(config, memory, key)
        if not options:
            self.machine.define(state)
            return
        then = [(value, self.context.space(self._state("after", after))) for value, after in options]
        self.context.define_colon(state, then)
        if key is None and max(self._labels(config)) <= len(self.patterns):  # not a declared name
            self.machine.tables.pending[state] = 2
            self.machine.pending_keys[state] = lambda text: self._resolved(config, memory, last_string(text))

    def _resolved(self, config: int, memory: _Memory, key: str) -> int:
        """The state behind the closing quote of an undeclared key, now that its text is known."""
        state = self.machine.new_states(1)
        self._key_done(state, config, memory, key)
        return state

    # Sets of keys ----------------------------------------------------------------------------------------------------

    def _class_literals(self, claimed: frozenset[int]) -> list[Literal]:
        """What the value of an undeclared key must satisfy that exactly these patterns claim."""
        result = []
        for _, keys, literal in self.every:
            if keys[0] == "pattern":
                if self.patterns.index(keys[1]) in claimed:
                    result.append(literal)
            elif keys[0] == "rest" and not any(self.patterns.index(p) in claimed for p in keys[2]):
                result.append(literal)
        return result

    def _class_allowed(self, claimed: frozenset[int]) -> bool:
        return not self.context.is_empty(self._class_literals(claimed))

    def _text_of_names(self, literals: list[Literal]) -> int | None:
        """Text config of what propertyNames allows; None: no restriction."""
        if not literals:
            return None
        texts = self.context.texts
        options = [self.context.strings.text(a) for a in self.context.forms.of_all(literals, "string")]
        machine = self.machine
        live = [option for option in options if option]
        if not live:
            return 0
        if len(live) == 1:
            return live[0]
        rejected = [texts.combine([(option, False)]) for option in live]
        return texts.combine([(texts.combine([(r, True) for r in rejected]), False)]) if machine else 0

    def _name_allowed(self, name: str) -> bool:
        return self._key_text is None or (self._key_text != 0 and self.context.texts.accepts(self._key_text, name))

    def _matches_bad_name(self, index: int, name: str) -> bool:
        text = self._text_of_names([self.bad_names[index - len(self.some)]])
        return text is None or (text != 0 and self.context.texts.accepts(text, name))

    # Text states -----------------------------------------------------------------------------------------------------

    def _make_chains(self, names: list[str]) -> dict[str, int]:
        machine = self.machine
        return {name: machine.literal(_utf8(name), machine.ret(self._name_labels[name])) for name in names}

    def _seen_chain(self, key: str) -> int:
        """Chain of an undeclared key that has come; its label stands for no name, so it leads nowhere."""
        return self.machine.literal(_utf8(key), self.machine.ret(1 << 20))

    def _pattern_state(self, index: int) -> int:
        from infercore.constrained.schema.texts import pattern_node

        return self.context.texts.search_state(pattern_node(self.patterns[index]), self.machine.ret(1 + index))


def _utf8(name: str) -> bytes:
    return name.encode("utf-8", "surrogatepass")


def object_lowering(context: Context) -> Callable[[Alternative], int]:
    """What `Context.lower_object` is set to."""
    return lambda alternative: ObjectStates(context, alternative).entry()

"""Objects: properties in any order, each key once, with the keys seen as memory.

An object stands, between its members, in a `_Memory`. Inside a key, the text config runs along the names that may come
(those not seen yet), the patterns, and any other text where other keys are allowed. Such an undeclared key is not part
of the config (masks would not be shared): the grammar state keeps its text beside the config, and when its closing
quote is accepted the text goes into the memory.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

from infercore.constrained.schema.atoms import Alternative
from infercore.constrained.schema.context import Context
from infercore.constrained.schema.document import TRUE, Literal
from infercore.constrained.schema.spelling import last_string

_OTHER = 0  # label of a key that no name and no pattern claims
_TOLD_APART = 8  # `some` atoms over sets of keys that one key may serve at once


@dataclass(frozen=True, slots=True)
class _Memory:
    """What an object remembers between members.

    Attributes:
        seen: declared names that have come.
        extra: other keys that have come.
        owed: indices of `some` atoms not served yet (those over one name are served by the name).
        count: members so far, no further than where it stops to matter.
    """

    seen: frozenset[str] = frozenset()
    extra: frozenset[str] = frozenset()
    owed: frozenset[int] = frozenset()
    count: int = 0


class ObjectStates:
    """States of one object schema (one alternative)."""

    def __init__(self, context: Context, alternative: Alternative) -> None:
        self.context, self.machine = context, context.machine
        self.every = sorted((atom for atom in alternative if atom[0] == "all"), key=repr)
        self.some = sorted((atom for atom in alternative if atom[0] == "some"), key=repr)
        self.low = max((atom[1] for atom in alternative if atom[0] == "min_props"), default=0)
        self.high: int | None = min((atom[1] for atom in alternative if atom[0] == "max_props"), default=None)
        names: dict[str, None] = {}
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
        self.required = frozenset(keys[1] for _, keys, literal in self.some if keys[0] == "name")
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
        self._key_configs: dict[_Memory, int] = {}

    def entry(self) -> int:
        """State that reads the object and returns."""
        owed = frozenset(
            [i for i, (_, keys, _) in enumerate(self.some) if keys[0] != "name"]
            + [len(self.some) + i for i in range(len(self.bad_names))]
        )
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
            machine.define(state, free=[self._string(memory, self._key_config(memory))])
            return
        free = []
        missing = self.required - memory.seen
        if not missing and not memory.owed and memory.count >= self.low:
            free.append(machine.literal(b"}", context.ret))
        if (self.high is None or memory.count < self.high) and self._key_config(memory):
            key = machine.literal(b'"', self._state("key", memory))
            free.append(key if kind == "first" else context.comma(key))
        machine.define(state, free=free)

    def _string(self, memory: _Memory, text: int) -> int:
        machine = self.machine
        spec = machine.string_spec(
            close=-1,
            record=self.has_extra and self._extra_fits(memory),
            key_done=lambda state, config: self._key_done(state, config, memory, None),
        )
        return machine.string_body(spec, text)

    # Keys ------------------------------------------------------------------------------------------------------------

    def _must_be_required(self, memory: _Memory) -> bool:
        """Whether only required names still fit under maxProperties."""
        return self.high is not None and memory.count + 1 + len(self.required - memory.seen) > self.high

    def _extra_fits(self, memory: _Memory) -> bool:
        return not self._must_be_required(memory)

    def _key_config(self, memory: _Memory) -> int:
        """Text config of the keys that may come; 0 where there are none."""
        known = self._key_configs.get(memory)
        if known is not None:
            return known
        machine = self.machine
        only_required = self._must_be_required(memory)
        extra = self.has_extra and not only_required
        free = []
        for name, chain in self._chains.items():
            if extra or (
                name in self.values and name not in memory.seen and (not only_required or name in self.required)
            ):
                free.append(chain)
        if extra:
            free += [self._seen_chain(key) for key in sorted(memory.extra)]
            free += [
                self.pattern_states[i]
                for i in (range(len(self.patterns)) if self.other_allowed else self.open_patterns)
            ]
            if self.other_allowed:
                free.append(self.context.texts.any_state)
        too_few = not extra and memory.count + len(free) < self.low
        config = 0 if too_few else machine.start(machine.node(free=free))
        if self._key_text is not None and config:
            config = self._restricted(config)
        self._key_configs[memory] = config
        return config

    def _restricted(self, config: int) -> int:
        assert self._key_text is not None
        return self.context.texts.combine([(config, True), (self._key_text, True)])

    def _labels(self, config: int) -> set[int]:
        """Labels of a key's text config, where it ends."""
        labels: set[int] = set()
        for part, holds in self.context.texts.factors(config):
            if holds:
                labels |= self.machine.labels(part)
        return labels

    def _options(self, config: int, memory: _Memory, key: str | None) -> list[tuple[list[Literal], _Memory]]:
        """What the value behind a finished key may be, and the memory after it.

        key: the text of an undeclared key, None where it is not known yet.
        """
        labels = self._labels(config)
        declared = [label for label in labels if label > len(self.patterns)]
        if declared:
            name = self._names_by_label.get(declared[0])
            if name is None or name in memory.seen or name not in self.values:
                return []
            if self._must_be_required(memory) and name not in self.required:
                return []
            literals = self.values[name]
            after = replace(memory, seen=memory.seen | {name})
            matches = self._owed_by_name(memory, name)
        else:
            if not self.has_extra or not labels or self._must_be_required(memory):
                return []
            claimed = frozenset(label - 1 for label in labels if label != _OTHER)
            literals = self._class_literals(claimed)
            if self.context.is_empty(literals):
                return []
            after = memory if key is None else replace(memory, extra=memory.extra | {key})
            matches = self._owed_by_class(memory, claimed, key)
        after = replace(after, count=min(memory.count + 1, self.count_cap))
        options: list[tuple[list[Literal], frozenset[int]]] = [(literals, after.owed)]
        for index in matches[:_TOLD_APART]:
            literal = self.some[index][2] if index < len(self.some) else TRUE
            served = [([*chosen, literal], owed - {index}) for chosen, owed in options]
            options = served if literal == TRUE else [*options, *served]
        return [(chosen, replace(after, owed=owed)) for chosen, owed in options if not self.context.is_empty(chosen)]

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
                if key is not None and self._matches_bad_name(index, key):
                    result.append(index)
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
        declared = any(label > len(self.patterns) for label in self._labels(config))
        then = [
            self.machine.call(self.context.value(literals), self.context.space(self._state("after", after)))
            for literals, after in options
        ]
        if not then:
            self.machine.define(state)
            return
        entry = then[0] if len(then) == 1 else self.machine.node(free=then)
        self.context.define_colon(state, entry)
        if not declared and key is None:
            self.machine.tables.pending[state] = 1
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

        return self.context.texts.regexes.state(pattern_node(self.patterns[index]), self.machine.ret(1 + index))


def _utf8(name: str) -> bytes:
    return name.encode("utf-8", "surrogatepass")


def object_lowering(context: Context) -> Callable[[Alternative], int]:
    """What `Context.lower_object` is set to."""
    return lambda alternative: ObjectStates(context, alternative).entry()

"""Arrays: a state per position that matters, with the counts of `contains` as memory."""

from collections.abc import Callable
from dataclasses import dataclass, replace

from infercore.constrained.schema.atoms import Alternative
from infercore.constrained.schema.context import Context
from infercore.constrained.schema.document import TRUE, Literal
from infercore.constrained.schema.spelling import canonical, last_item
from infercore.errors import UnsupportedSchema


@dataclass(frozen=True, slots=True)
class _Memory:
    """What an array remembers between items.

    Attributes:
        position: items so far, no further than where it stops to matter.
        counts: for each `contains`, matching items so far, capped likewise.
        values: items so far as canonical JSON, where they must differ.
    """

    position: int
    counts: tuple[int, ...]
    values: frozenset[str] = frozenset()


class ArrayStates:
    """States of one array schema (one alternative)."""

    def __init__(self, context: Context, alternative: Alternative) -> None:
        self.context, self.machine = context, context.machine
        self.items: dict[int, list[Literal]] = {}
        self.rest: list[tuple[int, Literal]] = []
        self.counted: list[tuple[int, Literal, int, int | None]] = []
        self.low, self.high = 0, None
        for atom in sorted(alternative, key=repr):
            if atom[0] == "item":
                self.items.setdefault(atom[1], []).append(atom[2])
            elif atom[0] == "from":
                self.rest.append((atom[1], atom[2]))
            elif atom[0] == "count":
                self.counted.append((atom[1], atom[2], atom[3], atom[4]))
            elif atom[0] == "min_items":
                self.low = max(self.low, atom[1])
            elif atom[0] == "max_items":
                self.high = atom[1] if self.high is None else min(self.high, atom[1])
        signs = {atom[1] for atom in alternative if atom[0] == "unique"}
        if False in signs:
            raise UnsupportedSchema(
                "that items repeat cannot be enforced; leave out the negated uniqueItems", pointer=""
            )
        self.unique = True in signs
        if self.unique:
            self.machine.records_all = True
        starts = [start for start, _ in self.rest] + [start for start, *_ in self.counted]
        self.settled = max([0, *(i + 1 for i in self.items), *starts])
        self.position_cap = max(self.settled, self.low, (self.high or -1) + 1 if self.high is not None else 0)
        self._states: dict[tuple[str, _Memory], int] = {}

    def entry(self) -> int:
        """State that reads the array and returns."""
        start = _Memory(0, (0,) * len(self.counted))
        return self.machine.literal(b"[", self.context.space(self._state("first", start)))

    def _state(self, kind: str, memory: _Memory) -> int:
        key = (kind, memory)
        if key not in self._states:
            self._states[key] = self.machine.stub(lambda s: self._expand(s, kind, memory))
        return self._states[key]

    def _expand(self, state: int, kind: str, memory: _Memory) -> None:
        """kind: "first" after the bracket, "after" after an item, "item" where an item begins."""
        context, machine = self.context, self.machine
        if kind == "item":
            free = [
                machine.call(context.value(literals), context.space(self._state("after", after)))
                for literals, after in self._items(memory)
            ]
            machine.define(state, free=free)
            return
        if kind == "after" and self.unique:
            self._expand_unknown(state, memory)
            return
        free = []
        if self._may_end(memory):
            free.append(machine.literal(b"]", context.ret))
        if self._may_go_on(memory):
            item = self._state("item", memory)
            free.append(item if kind == "first" else context.comma(item))
        machine.define(state, free=free)

    def _expand_unknown(self, state: int, memory: _Memory) -> None:
        """Define the state behind an item whose value is not known yet."""
        self._define_marks(state, memory)
        self.machine.tables.pending[state] = 1 if self._never_run_out(memory) else 2
        self.machine.pending_keys[state] = lambda text: self._known(
            replace(memory, values=memory.values | {canonical(last_item(text))})
        )

    def _known(self, memory: _Memory) -> int:
        key = ("known", memory)
        if key not in self._states:
            self._states[key] = self.machine.new_states(1)
            self._define_marks(self._states[key], memory)
        return self._states[key]

    def _define_marks(self, state: int, memory: _Memory) -> None:
        """Make `state` read the bracket or comma behind an item: the bytes stand in it, not behind a free move."""
        edges = []
        if self._may_end(memory):
            edges.append((93, 93, self.context.ret))
        if self._may_go_on(memory):
            comma = self.context.separators.comma
            rest = self.machine.literal(comma[1:], self.context.space(self._state("item", memory)))
            edges.append((comma[0], comma[0], rest))
        self.machine.define(state, edges)

    def _may_end(self, memory: _Memory) -> bool:
        return memory.position >= self.low and all(
            count >= low for count, (_, _, low, _) in zip(memory.counts, self.counted, strict=True)
        )

    def _never_run_out(self, memory: _Memory) -> bool:
        """Whether there is one more value for the next item, whatever has come before."""
        return any(self.context.has_endless_strings(literals) for literals, _ in self._items(memory))

    def _may_go_on(self, memory: _Memory) -> bool:
        if self.high is not None and memory.position >= self.high:
            return False
        return any(not self.context.is_empty(literals) for literals, _ in self._items(memory))

    def _items(self, memory: _Memory) -> list[tuple[list[Literal], _Memory]]:
        """What the next item may be, and the memory after it: an item that counts, or one that does not."""
        position = memory.position
        base = [*self.items.get(position, ()), *(literal for start, literal in self.rest if start <= position)]
        for value in sorted(memory.values):
            literal = self.context.document.constant(value)
            base.append((literal[0], False))
        options: list[tuple[list[Literal], tuple[int, ...]]] = [(base, ())]
        for count, (start, literal, low, high) in zip(memory.counts, self.counted, strict=True):
            if start > position or (high is None and count >= low):
                options = [(literals, (*counts, count)) for literals, counts in options]
                continue
            new = []
            for literals, counts in options:
                if high is None:
                    if literal != TRUE:
                        new.append((literals, (*counts, count)))
                else:
                    new.append(([*literals, (literal[0], not literal[1])], (*counts, count)))
                if high is None or count < high:
                    new.append(([*literals, literal], (*counts, count + 1)))
            options = new
        after = min(position + 1, self.position_cap)
        result = []
        for literals, counts in options:
            if self._enough_room(after, counts) and not self.context.is_empty(literals):
                result.append((literals, _Memory(after, counts, memory.values)))
        return result

    def _enough_room(self, position: int, counts: tuple[int, ...]) -> bool:
        if self.high is None:
            return True
        missing = max((low - count for count, (_, _, low, _) in zip(counts, self.counted, strict=True)), default=0)
        return bool(position + missing <= self.high)


def array_lowering(context: Context) -> Callable[[Alternative], int]:
    """What `Context.lower_array` is set to."""
    return lambda alternative: ArrayStates(context, alternative).entry()

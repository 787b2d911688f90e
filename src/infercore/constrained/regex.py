"""From the tree of a pattern to states of a machine, each part built when it is first reached.

The states are the positions of the pattern with what must follow (Antimirov's partial derivatives), so a bounded repeat
costs one state per count that some output has reached, not one per count that it might reach.
Source: V. Antimirov, "Partial derivatives of regular expressions", TCS 155 (1996).
"""

import re
from collections.abc import Callable
from functools import lru_cache

from infercore.constrained.boundaries import NotSupported, has_boundary, resolve_boundaries
from infercore.constrained.charsets import char_set
from infercore.constrained.machine import Machine, StateBlock
from infercore.constrained.regex_syntax import (
    ALL,
    EMPTY,
    NEVER,
    Alternate,
    Anchor,
    Chars,
    Concat,
    Look,
    Node,
    Ranges,
    Repeat,
    parse,
)
from infercore.constrained.utf8 import ByteSequence, byte_sequences
from infercore.errors import RegexSyntaxError

ANY_TEXT = Repeat(Chars(ALL), 0, None)


class RegexStates:
    """Turns trees into states of one machine; equal parts with equal continuations share states."""

    def __init__(self, machine: Machine) -> None:
        self.machine = machine
        self._states: dict[tuple[int, int], int] = {}
        self._keep: list[Node] = []  # so that an id in `_states` stays unique
        self._end = -1  # where what is counted returns

    def state(self, node: Node, then: int) -> int:
        """State from which the text of `node` leads to state `then`."""
        key = (id(node), then)
        state = self._states.get(key)
        if state is None:
            state = self._states[key] = self._build(node, then)
            self._keep.append(node)
        return state

    def _build(self, node: Node, then: int) -> int:
        machine = self.machine
        if isinstance(node, Chars):
            return self._chars(node, then)
        if isinstance(node, Concat):
            return self._concat(node, then)
        if isinstance(node, Alternate):
            return machine.stub(lambda s: machine.define(s, free=[self.state(option, then) for option in node.options]))
        if isinstance(node, Repeat):
            return self._counted(node, then)
        raise AssertionError(f"{node} should have been resolved before")

    def _concat(self, node: Concat, then: int) -> int:
        """One part after the other; bytes that stand for themselves are one literal."""
        text = b""
        for part in reversed(node.parts):
            if isinstance(part, Chars) and len(part.ranges) == 1 and part.ranges[0][0] == part.ranges[0][1]:
                text = chr(part.ranges[0][0]).encode() + text
                continue
            then = self.state(part, self.machine.literal(text, then))
            text = b""
        return self.machine.literal(text, then)

    def _chars(self, node: Chars, then: int) -> int:
        block = _automaton(node.ranges)
        if not len(block.nodes):
            return self.machine.node()
        if len(block.nodes) > 1 and then != 0:
            # a class beyond ASCII is built once and called, so that it costs one state per use
            return self.machine.call(self.state(node, 0), then)
        if then == 0:
            state = self.machine.add_block(block, self.machine.ret())
            bits = char_set(node.ranges)
            self.machine.tables.char_set[state] = _signed(bits.covered)
            if bits.covered == bits.touched:
                self.machine.exact_sets.add(state)
            return state
        return self.machine.node([(first, last, then) for first, last, _ in block.edges.tolist()])

    def _counted(self, node: Repeat, then: int) -> int:
        if node.high == 0:
            return then
        if nullable(node.part):  # may be left without a byte: then counts are states
            return self.machine.stub(self._repeat(node, then))
        if isinstance(node.part, Chars):
            entry = self.state(node.part, 0)
        else:
            if self._end < 0:
                self._end = self.machine.ret()
            entry = self.state(node.part, self._end)
        return self.machine.count(entry, then, node.low, node.high)

    def _repeat(self, node: Repeat, then: int) -> Callable[[int], None]:
        def expand(state: int) -> None:
            low, high = node.low, node.high
            if high == 0:
                self.machine.define(state, free=[then])
            elif high is None and low == 0:
                self.machine.define(state, free=[self.state(node.part, state), then])
            else:
                fewer = Repeat(node.part, max(low - 1, 0), None if high is None else high - 1)
                again = self.state(node.part, self._shared_repeat(fewer, then))
                self.machine.define(state, free=[again] if low > 0 else [again, then])

        return expand

    def _shared_repeat(self, node: Repeat, then: int) -> int:
        key = (id(node.part), node.low, node.high, then)
        if key not in self._repeats:
            self._repeats[key] = self.machine.stub(self._repeat(node, then))
            self._keep.append(node)
        return self._repeats[key]

    @property
    def _repeats(self) -> dict[tuple[int, int, int | None, int], int]:
        return self.__dict__.setdefault("_repeat_states", {})  # type: ignore[no-any-return]


@lru_cache(maxsize=512)
def _automaton(ranges: Ranges) -> StateBlock:
    """The states that read one of these characters, the first of them first; none where there are no characters.

    A trie over the byte ranges, equal tails shared.
    """
    rows: list[list[tuple[int, int, int]]] = []
    shared: dict[tuple[ByteSequence, ...], int] = {((),): -1}

    def build(tails: tuple[ByteSequence, ...]) -> int:
        if tails not in shared:
            index = shared[tails] = len(rows)
            rows.append([])
            groups: dict[tuple[int, int], list[ByteSequence]] = {}
            for tail in tails:
                groups.setdefault(tail[0], []).append(tail[1:])
            rows[index] = [(*first, build(tuple(rest))) for first, rest in groups.items()]
        return shared[tails]

    sequences = byte_sequences(ranges)
    if sequences:
        build(sequences)
    return StateBlock.of(rows)


def _signed(bits: int) -> int:
    return bits - (1 << 64) if bits >> 63 else bits


def alphabet(node: Node) -> int:
    """Bits of every character that a resolved tree can read, see `charsets`."""
    if isinstance(node, Chars):
        return char_set(node.ranges).touched
    bits = 0
    if isinstance(node, Concat | Alternate):
        for part in node.parts if isinstance(node, Concat) else node.options:
            bits |= alphabet(part)
    return alphabet(node.part) if isinstance(node, Repeat) else bits


def full_match(pattern: str, *, ecma: bool = False) -> Node:
    """The tree of texts that `pattern` matches from end to end, as `re.fullmatch` does, anchors resolved."""
    return resolve_anchors(parse(pattern, ecma=ecma), pattern, ecma=ecma)


def full_conjunction(pattern: str) -> list[tuple[Node, bool]]:
    """As `full_match`, with look-ahead at the beginning and look-behind at the end taken out.

    Returns: trees, each of which must match, or (False) must not.
    """
    node = parse(pattern)
    parts = list(node.parts) if isinstance(node, Concat) else [node]
    start, end, result = Anchor("start"), Anchor("end"), []
    first = int(parts[:1] == [start])
    while len(parts) > first and isinstance(look := parts[first], Look) and not look.behind:
        result.append((resolve_anchors(Concat((look.part, ANY_TEXT)), pattern), not look.negative))
        del parts[first]
    last = len(parts) - 1 - int(parts[-1:] == [end])
    while last >= first and isinstance(look := parts[last], Look) and look.behind:
        result.append((resolve_anchors(Concat((ANY_TEXT, look.part)), pattern), not look.negative))
        del parts[last]
        last -= 1
    return [(resolve_anchors(Concat(tuple(parts)) if result else node, pattern), True), *result]


def search_match(pattern: str) -> Node:
    """The tree of texts that contain a match of `pattern` in JSON Schema's dialect, anchors resolved."""
    return _search(parse(pattern, ecma=True), pattern)


def search_conjunction(pattern: str) -> list[tuple[Node, bool]]:
    """As `search_match`, with look-ahead right behind a leading ^ and look-behind right before a final $ taken out.

    Returns: trees, each of which must match, or (False) must not.
    """
    node = parse(pattern, ecma=True)
    parts = list(node.parts) if isinstance(node, Concat) else [node]
    result = []
    while len(parts) > 1 and parts[0] == Anchor("start") and isinstance(look := parts[1], Look) and not look.behind:
        result.append((_search(Concat((Anchor("start"), look.part)), pattern), not look.negative))
        del parts[1]
    while len(parts) > 1 and parts[-1] == Anchor("end") and isinstance(look := parts[-2], Look) and look.behind:
        result.append((_search(Concat((look.part, Anchor("end"))), pattern), not look.negative))
        del parts[-2]
    return [(_search(Concat(tuple(parts)) if result else node, pattern), True), *result]


def _search(node: Node, pattern: str) -> Node:
    return resolve_anchors(Concat((ANY_TEXT, node, ANY_TEXT)), pattern, ecma=True)


def resolve_anchors(node: Node, pattern: str, *, ecma: bool = False) -> Node:
    """`node` without anchors, for a text that begins and ends where the pattern does.

    Raises: RegexSyntaxError for look-around, and word boundaries where they cannot be taken out.
    """
    if _has(node, Look):
        raise RegexSyntaxError(
            "look-around is supported only where the pattern begins (look-ahead) or ends (look-behind), in a schema's "
            "pattern right behind a leading ^ or right before a final $; say it with classes and alternatives",
            pattern=pattern,
            position=_position(r"\(\?<?[=!]", pattern),
        )
    node = _resolve(_resolve(node, "start", True), "end", True)
    if not has_boundary(node):
        return node
    word = parse(r"(?a)\w" if ecma or re.search(r"\(\?\w*a", pattern) else r"\w")
    assert isinstance(word, Chars)
    try:
        return resolve_boundaries(node, word.ranges, empty_is_inside=ecma)
    except NotSupported as error:
        raise RegexSyntaxError(
            f"{error} is not supported; say it with classes and alternatives",
            pattern=pattern,
            position=_position(r"\\[bB]", pattern),
        ) from error


def _position(mark: str, pattern: str) -> int:
    """Where `mark` stands in `pattern`, backslashes that are escaped themselves left out."""
    found = re.search(rf"(?:[^\\]|\\[^bB])*?({mark})", pattern)
    return found.start(1) if found else 0


def _has(node: Node, kind: type) -> bool:
    if isinstance(node, kind):
        return True
    if isinstance(node, Concat):
        return any(_has(part, kind) for part in node.parts)
    if isinstance(node, Alternate):
        return any(_has(option, kind) for option in node.options)
    return isinstance(node, Repeat) and _has(node.part, kind)


def _has_kind(node: Node, kind: str) -> bool:
    if isinstance(node, Anchor):
        return node.kind == kind
    if isinstance(node, Concat):
        return any(_has_kind(part, kind) for part in node.parts)
    if isinstance(node, Alternate):
        return any(_has_kind(option, kind) for option in node.options)
    return isinstance(node, Repeat) and _has_kind(node.part, kind)


def matches_nothing(node: Node) -> bool:
    """Whether there is no text that a resolved tree matches."""
    if isinstance(node, Chars):
        return not byte_sequences(node.ranges)
    if isinstance(node, Concat):
        return any(matches_nothing(part) for part in node.parts)
    if isinstance(node, Alternate):
        return all(matches_nothing(option) for option in node.options)
    return isinstance(node, Repeat) and node.low > 0 and matches_nothing(node.part)


def nullable(node: Node) -> bool:
    """Whether the empty text matches; an anchor counts as empty."""
    if isinstance(node, Chars):
        return False
    if isinstance(node, Concat):
        return all(nullable(part) for part in node.parts)
    if isinstance(node, Alternate):
        return any(nullable(option) for option in node.options)
    if isinstance(node, Repeat):
        return node.low == 0 or nullable(node.part)
    return True


def _resolve(node: Node, kind: str, here: bool) -> Node:
    """Replace anchors of `kind`; `here`: `node` stands at that end of the text.

    An anchor further in holds exactly where all that stands before it (behind it, for "end") matched nothing.
    """
    if not _has_kind(node, kind):
        return node
    if isinstance(node, Anchor):
        return EMPTY if here else NEVER
    if isinstance(node, Alternate):
        options = [_resolve(option, kind, here) for option in node.options]
        options = [option for option in options if option != NEVER]
        return options[0] if len(options) == 1 else Alternate(tuple(options))
    if isinstance(node, Repeat):
        inner = _resolve(node.part, kind, False)
        rest = Repeat(inner, max(node.low - 1, 0), None if node.high is None else max(node.high - 1, 0))
        if not here:
            return (
                EMPTY
                if inner == NEVER and node.low == 0
                else NEVER
                if inner == NEVER
                else Repeat(inner, node.low, node.high)
            )
        edge = _resolve(node.part, kind, True)
        if nullable(edge):
            rest = Repeat(rest.part, 0, rest.high)
        once = _concat((edge, rest) if kind == "start" else (rest, edge))
        return Alternate((EMPTY, once)) if node.low == 0 else once
    assert isinstance(node, Concat)
    parts = node.parts if kind == "start" else node.parts[::-1]
    options = []
    before_empty = True
    for i, part in enumerate(parts):
        if before_empty and (i == 0 or (here and _has_kind(part, kind))):
            tail = [_resolve(other, kind, False) for other in parts[i + 1 :]]
            options.append(_ordered([_resolve(part, kind, here), *tail], kind))
        before_empty = before_empty and nullable(part)
    options = [option for option in dict.fromkeys(options) if option != NEVER]
    return options[0] if len(options) == 1 else Alternate(tuple(options))


def _ordered(parts: list[Node], kind: str) -> Node:
    return _concat(tuple(parts) if kind == "start" else tuple(reversed(parts)))


def _concat(parts: tuple[Node, ...]) -> Node:
    if NEVER in parts or any(part == Chars(()) for part in parts):
        return NEVER
    flat = tuple(part for part in parts if part != EMPTY)
    return flat[0] if len(flat) == 1 else Concat(flat)

r"""Word boundaries taken out of a pattern's tree: what stands on both sides is split by its last or first character.

`\b` between two parts holds where one side ends or begins with a word character and the other does not; so it is the
union of the two cases, and those in which a side is empty at an end of the text. This is done where a boundary stands
in the pattern's sequence or in one of its alternatives, not within a repeat.
"""

import itertools

from infercore.constrained.regex_syntax import (
    ALL,
    NEVER,
    Alternate,
    Anchor,
    Chars,
    Concat,
    Node,
    Ranges,
    Repeat,
    intersect,
    without,
)

_MAX_CASES = 256
_KINDS = ("word", "not word")


class NotSupported(Exception):
    """A boundary stands where it cannot be taken out; the text says where."""


def has_boundary(node: Node) -> bool:
    """Whether a word boundary, or its opposite, stands in a tree."""
    if isinstance(node, Anchor):
        return node.kind in _KINDS
    if isinstance(node, Concat | Alternate):
        return any(map(has_boundary, node.parts if isinstance(node, Concat) else node.options))
    return isinstance(node, Repeat) and has_boundary(node.part)


def resolve_boundaries(node: Node, word: Ranges, *, empty_is_inside: bool) -> Node:
    r"""`node`, from one end of the text to the other and without other anchors, with its boundaries taken out.

    Args:
        word: the word characters.
        empty_is_inside: whether `\B` holds in the empty text.
    Raises: NotSupported.
    """
    other = without(ALL, word)
    apart = [parts for sequence in _sequences(node) for parts in _apart(sequence)]
    cases = [parts for sequence in apart for parts in _solved(sequence, word, other, empty_is_inside)]
    options = tuple(dict.fromkeys(parts[0] if len(parts) == 1 else Concat(tuple(parts)) for parts in cases))
    return options[0] if len(options) == 1 else Alternate(options)


def _sequences(node: Node) -> list[list[Node]]:
    """Sequences of parts, each free of boundaries or one itself, that `node` is the union of."""
    if not has_boundary(node) or isinstance(node, Anchor):
        return [[node]]
    if isinstance(node, Alternate):
        return [parts for option in node.options for parts in _sequences(option)]
    if isinstance(node, Repeat):
        if node.high == 1:
            return ([[]] if node.low == 0 else []) + _sequences(node.part)
        raise NotSupported("a word boundary within a repeat")
    assert isinstance(node, Concat)
    result: list[list[Node]] = [[]]
    for part in node.parts:
        result = [[*before, *parts] for before in result for parts in _sequences(part)]
        if len(result) > _MAX_CASES:
            raise NotSupported("word boundaries in too many alternatives")
    return result


def _apart(parts: list[Node]) -> list[list[Node]]:
    """Sequences in which something stands between any two boundaries, that `parts` is the union of."""
    places = [i for i, part in enumerate(parts) if isinstance(part, Anchor)]
    for first, second in itertools.pairwise(places):
        between = parts[first + 1 : second]
        if all(map(_nullable, between)):
            head, tail = parts[:first], parts[second + 1 :]
            both = [parts[first]] if parts[first] == parts[second] else None  # one and its opposite never hold at once
            cases = [[*head, parts[first], *some, parts[second], *tail] for some in _beginning(between, ALL)]
            if both is not None:
                cases.append([*head, *both, *tail])
            return [apart for case in cases for apart in _apart(case)]
    return [parts]


def _solved(parts: list[Node], word: Ranges, other: Ranges, empty_is_inside: bool) -> list[list[Node]]:
    """Sequences without boundaries that one with boundaries is the union of."""
    at = next((i for i in reversed(range(len(parts))) if isinstance(parts[i], Anchor)), None)
    if at is None:
        return [parts]
    left, right = parts[:at], parts[at + 1 :]
    kind = parts[at]
    assert isinstance(kind, Anchor)
    is_boundary = kind.kind == "word"
    cases: list[list[Node]] = []
    for before, after in ((word, other), (other, word)) if is_boundary else ((word, word), (other, other)):
        cases += [[*a, *b] for a in _ending(left, before) for b in _beginning(right, after)]
    at_end = word if is_boundary else other  # beside an end of the text
    if _may_be_empty(left):
        cases += _beginning(right, at_end)
    if _may_be_empty(right):
        cases += _ending(left, at_end)
    if not is_boundary and empty_is_inside and _may_be_empty(left) and _may_be_empty(right):
        cases.append([])
    if len(cases) > _MAX_CASES:
        raise NotSupported("word boundaries in too many places")
    return [solved for case in cases for solved in _solved(case, word, other, empty_is_inside)]


def _may_be_empty(parts: list[Node]) -> bool:
    return not any(isinstance(part, Anchor) for part in parts) and all(map(_nullable, parts))


def _ending(parts: list[Node], last: Ranges) -> list[list[Node]]:
    """Sequences of the texts of `parts`, not empty, that end with one of these characters."""
    result = []
    for i in reversed(range(len(parts))):
        assert not isinstance(parts[i], Anchor), "two boundaries with perhaps nothing between them"
        ended = _edge(parts[i], last, -1)
        if ended != NEVER:
            result.append([*parts[:i], ended])
        if not _nullable(parts[i]):
            break
    return result


def _beginning(parts: list[Node], first: Ranges) -> list[list[Node]]:
    """The same of those that begin with one of these characters."""
    result = []
    for i, part in enumerate(parts):
        begun = _edge(part, first, 0)
        if begun != NEVER:
            result.append([begun, *parts[i + 1 :]])
        if not _nullable(part):
            break
    return result


def _edge(node: Node, ranges: Ranges, side: int) -> Node:
    """The texts of `node`, not empty, whose first (side 0) or last (side -1) character is one of these."""
    if isinstance(node, Chars):
        both = intersect(node.ranges, ranges)
        return Chars(both) if both else NEVER
    if isinstance(node, Alternate):
        return _union([_edge(option, ranges, side) for option in node.options])
    if isinstance(node, Repeat):
        if node.high == 0:
            return NEVER
        low = 0 if _nullable(node.part) else max(node.low - 1, 0)
        rest = Repeat(node.part, low, None if node.high is None else node.high - 1)
        edge = _edge(node.part, ranges, side)
        return NEVER if edge == NEVER else Concat((edge, rest) if side == 0 else (rest, edge))
    assert isinstance(node, Concat)
    parts = list(node.parts)
    found = _beginning(parts, ranges) if side == 0 else _ending(parts, ranges)
    return _union([Concat(tuple(sequence)) for sequence in found])


def _union(nodes: list[Node]) -> Node:
    live = [node for node in nodes if node != NEVER]
    return live[0] if len(live) == 1 else Alternate(tuple(live))


def _nullable(node: Node) -> bool:
    if isinstance(node, Concat):
        return all(map(_nullable, node.parts))
    if isinstance(node, Alternate):
        return any(map(_nullable, node.options))
    return isinstance(node, Repeat) and (node.low == 0 or _nullable(node.part))

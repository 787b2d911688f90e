"""`Texts`: configs that read the decoded text of JSON strings, and the Boolean operations on them.

A text config runs over the UTF-8 bytes of what a string stands for, whatever its escapes. One pattern is a config of
the machine as it is; intersections and complements are configs whose rows Python computes from the rows of their parts,
with every config left out from which nothing could be accepted any more.
"""

from collections import deque
from collections.abc import Iterable
from functools import lru_cache

import numpy as np
import numpy.typing as npt

from infercore.constrained.machine import Machine
from infercore.constrained.regex import ANY_TEXT, RegexStates, matches_nothing, search_conjunction, search_match
from infercore.constrained.regex_syntax import ALL, Alternate, Chars, Concat, Node, Repeat
from infercore.errors import GrammarLimitError

Part = tuple[int, bool]
"""A text config, and whether it must accept in the end (True) or must not (False)."""

EVERY_CODE_POINT = Chars(ALL)


class Texts:
    """Text configs of one machine."""

    def __init__(self, machine: Machine) -> None:
        self.machine = machine
        self.regexes = RegexStates(machine)
        self._end = machine.ret()
        self._of_node: dict[int, int] = {}
        self._keep: list[Node] = []
        self._products: dict[tuple[Part, ...], int] = {}
        self._parts: dict[int, tuple[Part, ...]] = {}
        self._live: dict[tuple[Part, ...], bool] = {}
        self._patterns: dict[str, int] = {}
        self.any_state = self.regexes.state(ANY_TEXT, self._end)
        self.any = machine.start(self.any_state)  # any text at all
        machine.mark_any(self.any)

    def of_node(self, node: Node) -> int:
        """Texts that a resolved pattern tree reads."""
        config = self._of_node.get(id(node))
        if config is None:
            config = self._of_node[id(node)] = self.machine.start(self.search_state(node, self._end))
            self._keep.append(node)
        return config

    def search_state(self, node: Node, then: int) -> int:
        """State that reads what `node` matches. Where that may begin with any text, masks are told so."""
        for option in node.options if isinstance(node, Alternate) else (node,):
            if (
                isinstance(option, Concat)
                and option.parts
                and option.parts[0] is ANY_TEXT
                and not matches_nothing(option)
            ):
                self.machine.any_loops.add(self.regexes.state(option, then))
        return self.regexes.state(node, then)

    def pattern(self, pattern: str) -> int:
        """Texts that contain a match of `pattern`, in JSON Schema's dialect."""
        config = self._patterns.get(pattern)
        if config is None:
            config = self._patterns[pattern] = self.combine(search_parts(self, pattern))
        return config

    def lengths(self, low: int, high: int | None) -> int:
        """Texts of so many code points."""
        return self.machine.start(self.regexes.state(Repeat(EVERY_CODE_POINT, low, high), self._end))

    def one_of(self, values: Iterable[str]) -> int:
        """One of these texts."""
        machine = self.machine
        return machine.start(
            machine.node(
                free=[machine.literal(value.encode("utf-8", "surrogatepass"), self._end) for value in sorted(values)]
            )
        )

    def combine(self, parts: Iterable[Part]) -> int:
        """Texts that every part agrees to; 0 where there are none."""
        parts = tuple(sorted({part for part in parts if part != (self.any, True)}))
        flat: list[Part] = []
        for config, holds in parts:
            if config in self._parts and holds:
                flat.extend(self._parts[config])
            else:
                flat.append((config, holds))
        parts = tuple(sorted(set(flat)))
        if not parts:
            return self.any
        if len(parts) == 1 and parts[0][1]:
            return parts[0][0]
        if not any(holds for _, holds in parts):
            parts = tuple(sorted([*parts, (self.any, True)]))
        return self._product(parts)

    def accepts(self, config: int, text: str) -> bool:
        """Whether `config` reads `text` from end to end."""
        try:
            data = np.frombuffer(text.encode(), np.uint8)
        except UnicodeEncodeError:
            return False  # a lone surrogate is no text
        after, _ = self.machine.step(config, data, 0, 0)
        return after != 0 and self.machine.accepts(after)

    def factors(self, config: int) -> tuple[Part, ...]:
        """The parts that a combined config is made of."""
        return self._parts.get(config, ((config, True),))

    def _product(self, parts: tuple[Part, ...]) -> int:
        """Config of the parts' product; 0 where nothing can be accepted from it."""
        if any(holds and config == 0 for config, holds in parts):
            return 0
        parts = tuple(part for part in parts if part != (0, False))
        config = self._products.get(parts)
        if config is None:
            if not self._lives(parts):
                config = 0
            else:
                accepts = self._accepts(parts)
                config = self.machine.config_from_rows(lambda _: self._row(parts), accepts=accepts)
                self._parts[config] = parts
            self._products[parts] = config
        return config

    def _accepts(self, parts: tuple[Part, ...]) -> bool:
        return all(self.machine.accepts(config) == holds for config, holds in parts)

    def _steps(self, parts: tuple[Part, ...]) -> list[tuple[int, tuple[Part, ...]]]:
        """Runs of bytes behind which the parts are the same: (first byte, parts); none where the product is refused."""
        signs = [holds for _, holds in parts]
        rows = np.stack([self.machine.row(config) for config, _ in parts])
        starts = np.flatnonzero((rows[:, 1:] != rows[:, :-1]).any(axis=0)) + 1
        first_bytes = [0, *starts.tolist()]
        known: dict[tuple[int, ...], tuple[Part, ...]] = {}
        result = []
        for byte, targets in zip(first_bytes, zip(*rows[:, first_bytes].tolist(), strict=True), strict=True):
            after = known.get(targets)
            if after is None:
                if any(holds and target == 0 for target, holds in zip(targets, signs, strict=True)):
                    after = ()
                else:
                    after = tuple(sorted({(t, s) for t, s in zip(targets, signs, strict=True) if t != 0 or s}))
                known[targets] = after
            result.append((byte, after))
        return result

    def _row(self, parts: tuple[Part, ...]) -> npt.NDArray[np.int32]:
        known: dict[tuple[Part, ...], int] = {(): 0}
        row = np.zeros(256, np.int32)
        for byte, after in self._steps(parts):
            if after not in known:
                known[after] = self._product(after)
            row[byte:] = known[after]
        return row

    def _lives(self, parts: tuple[Part, ...]) -> bool:
        """Whether some text is accepted from here on: a breadth-first search, whose findings are kept."""
        known = self._live.get(parts)
        if known is not None:
            return known
        before: dict[tuple[Part, ...], tuple[Part, ...] | None] = {parts: None}
        queue = deque([parts])
        while queue:
            here = queue.popleft()
            if self._live.get(here) or self._accepts(here):
                at: tuple[Part, ...] | None = here
                while at is not None:
                    self._live[at] = True
                    at = before[at]
                return True
            if self._live.get(here) is False:
                continue
            for after in dict.fromkeys(after for _, after in self._steps(here)):
                if after and after not in before:
                    before[after] = here
                    queue.append(after)
            if len(before) > 20_000:
                raise GrammarLimitError("a string's pattern, length and negations together take too many states")
        for dead in before:
            self._live[dead] = False
        return False


@lru_cache(maxsize=1024)
def pattern_node(pattern: str) -> Node:
    """Tree of `search_match`, parsed once."""
    return search_match(pattern)


@lru_cache(maxsize=1024)
def pattern_nodes(pattern: str) -> tuple[tuple[Node, bool], ...]:
    """What `search_conjunction` gives, parsed once."""
    return tuple(search_conjunction(pattern))


def search_parts(texts: Texts, pattern: str) -> list[Part]:
    """The configs that a pattern is the intersection of."""
    return [(texts.of_node(node), holds) for node, holds in pattern_nodes(pattern)]

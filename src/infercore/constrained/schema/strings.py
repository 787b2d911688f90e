"""JSON strings: the text they stand for, their length, every spelling of it."""

import re

from infercore.constrained.machine import Machine
from infercore.constrained.schema.atoms import Alternative
from infercore.constrained.schema.format_blocks import format_block
from infercore.constrained.schema.texts import Part, Texts


class StringStates:
    """States for string values, in one machine."""

    def __init__(self, machine: Machine, texts: Texts) -> None:
        self.machine, self.texts = machine, texts
        self.ret = machine.ret()
        self._formats: dict[str, int] = {}
        self._specs: dict[tuple[int, int | None], int] = {}
        self._bodies: dict[tuple[int, int, int | None], int] = {}
        self._values: dict[Alternative, list[str] | None] = {}

    def state(self, alternative: Alternative) -> int:
        """State that reads a JSON string which the atoms allow, and returns."""
        values = self.values(alternative)
        if values is not None:
            return self._quoted(self.texts.one_of(values), 0, None) if values else self.machine.node()
        alternative = _counted(alternative)
        low, high = lengths(alternative)
        parts = self._parts(alternative)
        if not parts:
            return self._quoted(self.texts.any, low, high)
        if high is not None and low > high:
            return self.machine.node()
        text = self.texts.combine(parts)
        if len(parts) == 1 and any(atom[0] == "pattern" and _LOOP.fullmatch(atom[1]) for atom in alternative):
            return self._quoted(text, low, high)  # can grow to any length
        if text and low and low > self.machine.distance(text):  # a search, so only where it matters
            text = self.texts.combine([*parts, (self.texts.lengths(low, None), True)])
        if text == 0 or (high is not None and self.machine.distance(text) > high):
            return self.machine.node()
        return self._quoted(text, 0, high)

    def text(self, alternative: Alternative) -> int:
        """Text config of the strings that the atoms allow; 0 where there are none."""
        values = self.values(alternative)
        if values is not None:
            return self.texts.one_of(values) if values else 0
        low, high = lengths(alternative)
        parts = self._parts(alternative)
        if low > 0 or high is not None:
            parts.append((self.texts.lengths(low, high), True))
        return self.texts.combine(parts)

    def is_impossible(self, alternative: Alternative) -> bool:
        """Whether the atoms contradict one another, as far as a look at each pattern's first character tells."""
        low, high = lengths(alternative)
        if high is not None and (high < low or high < 0):
            return True
        values = self.values(alternative)
        if values is not None:
            return not values
        sides: dict[tuple[str, str], set[bool]] = {
            (atom[0], atom[1]): set() for atom in alternative if atom[0] in ("pattern", "format")
        }
        for atom in alternative:
            if atom[0] in ("pattern", "format"):
                sides[(atom[0], atom[1])].add(atom[2])
        if any(len(signs) == 2 for signs in sides.values()):
            return True
        patterns = [self.texts.pattern(of) for kind, of in sides if kind == "pattern" and True in sides[kind, of]]
        return low > 0 and any(text == 0 or self.machine.is_end(text) for text in patterns)  # "" at most

    def allows(self, alternative: Alternative, value: str) -> bool:
        """Whether the atoms allow one string."""
        listed = [atom[1] for atom in alternative if atom[0] == "in" and atom[2]]
        return bool(self._listed(alternative, [*listed, frozenset([value])]))

    def values(self, alternative: Alternative) -> list[str] | None:
        """The strings that the atoms allow, where one of them is a list of values."""
        listed = [atom[1] for atom in alternative if atom[0] == "in" and atom[2]]
        if not listed:
            return None
        known = self._values.get(alternative)
        if known is None:
            known = self._values[alternative] = self._listed(alternative, listed)
        return known

    def _listed(self, alternative: Alternative, listed: list[frozenset[str]]) -> list[str]:
        low, high = lengths(alternative)
        parts = self._parts(alternative, with_values=False)
        excluded = set().union(*(atom[1] for atom in alternative if atom[0] == "in" and not atom[2]))
        return [
            value
            for value in sorted(frozenset.intersection(*listed))
            if value not in excluded
            and len(value) >= low
            and (high is None or len(value) <= high)
            and all(self.texts.accepts(config, value) == holds for config, holds in parts)
        ]

    def _parts(self, alternative: Alternative, *, with_values: bool = True) -> list[Part]:
        parts: list[Part] = []
        for atom in sorted(alternative, key=repr):
            if atom[0] == "pattern":
                parts.append((self.texts.pattern(atom[1]), atom[2]))
            elif atom[0] == "format":
                parts.append((self._format(atom[1]), atom[2]))
            elif atom[0] == "in" and with_values and not atom[2]:
                parts.append((self.texts.one_of(atom[1]), False))
        return parts

    def _format(self, name: str) -> int:
        if name not in self._formats:
            self._formats[name] = format_block(name).copy_to(self.machine)
        return self._formats[name]

    def _quoted(self, text: int, low: int, high: int | None) -> int:
        if text == 0:
            return self.machine.node()
        key = (text, low, high)
        if key not in self._bodies:
            if (low, high) not in self._specs:
                self._specs[(low, high)] = self.machine.string_spec(close=self.ret, min_length=low, max_length=high)
            body = self.machine.string_body(self._specs[(low, high)], text)
            self._bodies[key] = self.machine.literal(b'"', body)
        return self._bodies[key]


def _counted(alternative: Alternative) -> Alternative:
    """`alternative` with each pattern like ^[a-z]{1,63}$ as ^[a-z]*$ and bounds of the length.

    The length is counted beside the text, so masks do not differ from one count to the next.
    """
    result = set(alternative)
    for atom in alternative:
        if atom[0] == "pattern" and atom[2] and (found := _COUNTED.fullmatch(atom[1])):
            characters, sign, low, comma, high = found.groups()
            result.remove(atom)
            result.add(("pattern", f"^{characters}*$", True))
            least = {"+": 1, "*": 0}.get(sign, int(low or 0))
            most = None if sign in ("+", "*") or (comma and not high) else int(high or low)
            result.add(("min_length", least))
            if most is not None:
                result.add(("max_length", most))
    return frozenset(result)


_LOOP = re.compile(r"\^(\[\^?(?:[^\]\\\[]|\\.)+\]|\\[dws])\*\$", re.DOTALL)
_COUNTED = re.compile(r"\^(\[\^?(?:[^\]\\\[]|\\.)+\]|\\[dws])(?:([+*])|\{(\d+)(?:(,)(\d*))?\})\$", re.DOTALL)
"""One character class between anchors, repeated."""


def lengths(alternative: Alternative) -> tuple[int, int | None]:
    """Bounds on the number of code points."""
    low = max((atom[1] for atom in alternative if atom[0] == "min_length"), default=0)
    high = min((atom[1] for atom in alternative if atom[0] == "max_length"), default=None)
    return low, high

"""From a pattern in Python's `re` syntax to a tree of nodes. `regex.py` turns the tree into states."""

import re
import sys
import unicodedata
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, lru_cache

import numpy as np

from infercore.constrained.charsets import categories, ranges_where
from infercore.errors import RegexSyntaxError

Ranges = tuple[tuple[int, int], ...]
"""Sorted, disjoint, inclusive ranges of code points (surrogates left out)."""

LAST = sys.maxunicode


@dataclass(frozen=True, slots=True)
class Chars:
    """One code point of these."""

    ranges: Ranges


@dataclass(frozen=True, slots=True)
class Concat:
    parts: tuple["Node", ...]


@dataclass(frozen=True, slots=True)
class Alternate:
    options: tuple["Node", ...]


@dataclass(frozen=True, slots=True)
class Repeat:
    """`part` from `low` to `high` times; None: without bound."""

    part: "Node"
    low: int
    high: int | None


@dataclass(frozen=True, slots=True)
class Anchor:
    """^ or \\A ("start"), $ or \\Z ("end"), \\b ("word"), \\B ("not word")."""

    kind: str


@dataclass(frozen=True, slots=True)
class Look:
    """(?=..), (?!..), (?<=..), (?<!..)."""

    part: "Node"
    behind: bool
    negative: bool


Node = Chars | Concat | Alternate | Repeat | Anchor | Look
EMPTY = Concat(())
NEVER = Alternate(())


def parse(pattern: str, *, ecma: bool = False) -> Node:
    """The tree of `pattern`.

    Args:
        ecma: the dialect of JSON Schema: \\d and \\w are ASCII, \\s is JavaScript's, \\cX is known, and an escape that
            stands for nothing else is the character itself.
    Raises: RegexSyntaxError for what cannot be parsed, or what no automaton can hold (backreferences, atomic groups).
    """
    return _Parser(pattern, ecma=ecma).parse()


class _Parser:
    def __init__(self, pattern: str, *, ecma: bool) -> None:
        self.pattern = pattern
        self.at = 0
        self.ecma = ecma
        self.ignore_case = self.dot_all = self.multiline = self.verbose = False
        self.ascii = ecma
        self.groups = 0

    def error(self, message: str, at: int | None = None) -> RegexSyntaxError:
        return RegexSyntaxError(message, pattern=self.pattern, position=self.at if at is None else at)

    def parse(self) -> Node:
        node = self.alternate()
        if self.at < len(self.pattern):
            raise self.error("unbalanced )")
        return node

    def peek(self, text: str) -> bool:
        return self.pattern.startswith(text, self.at)

    def take(self, text: str) -> bool:
        if self.peek(text):
            self.at += len(text)
            return True
        return False

    def alternate(self) -> Node:
        options = [self.concat()]
        while self.take("|"):
            options.append(self.concat())
        if len(options) > 1 and all(isinstance(option, Chars) for option in options):
            return chars(merge([span for option in options if isinstance(option, Chars) for span in option.ranges]))
        return options[0] if len(options) == 1 else Alternate(tuple(options))

    def concat(self) -> Node:
        parts: list[Node] = []
        while self.at < len(self.pattern) and self.pattern[self.at] not in "|)":
            if self.verbose:
                if self.pattern[self.at].isspace():
                    self.at += 1
                    continue
                if self.pattern[self.at] == "#":
                    end = self.pattern.find("\n", self.at)
                    self.at = len(self.pattern) if end < 0 else end + 1
                    continue
            node = self.atom()
            if node is not None:
                parts.append(self.repeated(node))
        return parts[0] if len(parts) == 1 else Concat(tuple(parts))

    def repeated(self, node: Node) -> Node:
        begin = self.at
        found = _REPEAT.match(self.pattern, self.at)
        if not found or found.group() == "{,}":
            return node
        low, high, exact, sign = found["low"], found["high"], found["exact"], found["sign"]
        self.at = found.end()
        if sign:
            bounds = {"*": (0, None), "+": (1, None), "?": (0, 1)}[sign]
        elif exact is not None:
            bounds = (int(exact), int(exact))
        else:
            bounds = (int(low or 0), int(high) if high else None)
        if bounds[1] is not None and bounds[0] > bounds[1]:
            raise self.error("the lower bound of a repeat is above its upper bound", begin)
        if self.peek("+"):
            raise self.error("possessive repeats are no regular language; leave out the +")
        self.take("?")  # lazy or greedy, the language is the same
        if _REPEAT.match(self.pattern, self.at) and self.pattern[self.at] != "{":
            raise self.error("multiple repeat")
        return _repeated(node, *bounds)

    def atom(self) -> Node | None:
        begin = self.at
        character = self.pattern[self.at]
        self.at += 1
        if character == "(":
            return self.group(begin)
        if character == "[":
            return self.fold(self.char_class(begin))
        if character == ".":
            if self.dot_all:
                return chars(ALL)
            return chars(without(ALL, ((10, 10), (13, 13), (0x2028, 0x2029)) if self.ecma else ((10, 10),)))
        if character == "^":
            if self.multiline:
                return Alternate((Anchor("start"), Look(Chars(((10, 10),)), behind=True, negative=False)))
            return Anchor("start")
        if character == "$":
            if self.multiline:
                return Alternate((Anchor("end"), Look(Chars(((10, 10),)), behind=False, negative=False)))
            return Anchor("end")
        if character in "*+?":
            raise self.error("nothing to repeat", begin)
        if character == "{" and not self.ecma and _REPEAT.match(self.pattern, begin):
            raise self.error("nothing to repeat", begin)
        if character == "\\":
            return self.escape(begin)
        return self.fold(((ord(character), ord(character)),))

    def group(self, begin: int) -> Node | None:
        saved = (self.ignore_case, self.dot_all, self.multiline, self.verbose, self.ascii)
        look: tuple[bool, bool] | None = None
        if self.take("?"):
            if self.take("#"):
                end = self.pattern.find(")", self.at)
                if end < 0:
                    raise self.error("comment without )", begin)
                self.at = end + 1
                return None
            if self.take("="):
                look = (False, False)
            elif self.take("!"):
                look = (False, True)
            elif self.take("<="):
                look = (True, False)
            elif self.take("<!"):
                look = (True, True)
            elif self.peek("P=") or self.peek("("):
                raise self.error("backreferences are no regular language", begin)
            elif self.take(">"):
                raise self.error("atomic groups are no regular language; use (?:...)", begin)
            elif found := _NAME.match(self.pattern, self.at):
                self.at = found.end()
            elif found := _FLAGS.match(self.pattern, self.at):
                self.set_flags(found["on"], found["off"] or "")
                self.at = found.end()
                if found["end"] == ")":
                    return None  # flags for the rest of the enclosing group
            elif not self.take(":"):
                raise self.error("unknown extension after (?", begin)
        node = self.alternate()
        if not self.take(")"):
            raise self.error("missing )", begin)
        self.ignore_case, self.dot_all, self.multiline, self.verbose, self.ascii = saved
        return node if look is None else Look(node, *look)

    def set_flags(self, on: str, off: str) -> None:
        for names, value in ((on, True), (off, False)):
            for name in names:
                if name == "i":
                    self.ignore_case = value
                elif name == "s":
                    self.dot_all = value
                elif name == "m":
                    self.multiline = value
                elif name == "x":
                    self.verbose = value
                elif name == "a":
                    self.ascii = value
                elif name == "u":
                    self.ascii = not value
                else:
                    raise self.error(f"flag {name} is not supported")

    def escape(self, begin: int) -> Node:
        if self.at == len(self.pattern):
            raise self.error("pattern ends in a backslash", begin)
        character = self.pattern[self.at]
        if character in "AZz" and not (self.ecma and character != "Z"):
            self.at += 1
            return Anchor("start" if character == "A" else "end")
        if character in "bB":
            self.at += 1
            return Anchor("word" if character == "b" else "not word")
        if not self.ecma and (octal := _OCTAL.match(self.pattern, self.at)):
            self.at = octal.end()
            return self.fold(((int(octal[0], 8), int(octal[0], 8)),))
        if character in "123456789" or (character == "k" and self.pattern[self.at + 1 : self.at + 2] == "<"):
            raise self.error("backreferences are no regular language", begin)
        return self.fold(self.class_escape(begin))

    def class_escape(self, begin: int) -> Ranges:
        """Ranges of the escape whose letter is at `self.at`."""
        character = self.pattern[self.at]
        self.at += 1
        if character in "dDsSwW":
            ranges = _named_class(character.lower(), ascii_only=self.ascii, ecma=self.ecma)
            return ranges if character.islower() else without(ALL, ranges)
        if character in "pP":
            found = _PROPERTY.match(self.pattern, self.at)
            if not found:
                raise self.error("\\p needs a name in braces, as in \\p{L}", begin)
            self.at = found.end()
            ranges = _property(found["name"] or found["short"])
            if not ranges:
                raise self.error(f"unknown Unicode property {found['name'] or found['short']}", begin)
            negative = (character == "P") != bool(found["not"])
            return without(ALL, ranges) if negative else ranges
        if character in _CONTROLS:
            point = _CONTROLS[character]
        elif character == "x" and (found := _HEX2.match(self.pattern, self.at)):
            point = self.hex(found)
        elif character == "u" and (
            found := _HEX_BRACED.match(self.pattern, self.at) or _HEX4.match(self.pattern, self.at)
        ):
            point = self.hex(found)
            if 0xD800 <= point < 0xDC00 and (low := _LOW_SURROGATE.match(self.pattern, self.at)):
                self.at = low.end()
                point = 0x10000 + ((point - 0xD800) << 10) + int(low[1], 16) - 0xDC00
        elif character == "U" and (found := _HEX8.match(self.pattern, self.at)):
            point = self.hex(found)
        elif character == "0":
            octal = "" if self.ecma else re.compile("[0-7]{0,2}").match(self.pattern, self.at)[0]  # type: ignore[index]
            self.at += len(octal)
            point = int(octal or "0", 8)
        elif self.ecma and character == "c" and self.pattern[self.at : self.at + 1].isalpha():
            point = ord(self.pattern[self.at]) % 32
            self.at += 1
        elif character.isascii() and character.isalnum():
            raise self.error(f"unknown escape \\{character}", begin)
        else:
            point = ord(character)
        if point > LAST:
            raise self.error(f"code point {point:#x} does not exist", begin)
        return ((point, point),)

    def hex(self, found: re.Match[str]) -> int:
        self.at = found.end()
        return int(found[1], 16)

    def char_class(self, begin: int) -> Ranges:
        negative = self.take("^")
        ranges: list[tuple[int, int]] = []
        first = True
        while True:
            if self.at >= len(self.pattern):
                raise self.error("missing ]", begin)
            if self.take("]"):
                if not first or self.ecma:
                    break
                item: Ranges = ((93, 93),)
            else:
                item = self.class_item()
            first = False
            if self.peek("-") and not self.peek("-]") and len(item) == 1 and item[0][0] == item[0][1]:
                at = self.at
                self.at += 1
                last = self.class_item() if self.at < len(self.pattern) else ()
                if len(last) != 1 or last[0][0] != last[0][1]:
                    self.at = at  # a class after the dash: the dash stands for itself
                elif last[0][0] < item[0][0]:
                    raise self.error("a range goes backwards", at)
                else:
                    item = ((item[0][0], last[0][0]),)
            ranges.extend(item)
        result = self.fold_ranges(merge(ranges))
        return without(ALL, result) if negative else result

    def class_item(self) -> Ranges:
        character = self.pattern[self.at]
        begin = self.at
        self.at += 1
        if character != "\\":
            return ((ord(character), ord(character)),)
        if self.at == len(self.pattern):
            raise self.error("pattern ends in a backslash", begin)
        if self.pattern[self.at] == "b":
            self.at += 1
            return ((8, 8),)
        if self.ecma and self.pattern[self.at] in "123456789":
            raise self.error("octal escapes are not allowed here", begin)
        return self.class_escape(begin)

    def fold(self, ranges: Ranges) -> Chars:
        return chars(self.fold_ranges(ranges))

    def fold_ranges(self, ranges: Ranges) -> Ranges:
        ranges = _ordered(ranges)
        return _other_cases(ranges, self.ascii) if self.ignore_case else ranges


@lru_cache(maxsize=1024)
def _ordered(ranges: Ranges) -> Ranges:
    return without(merge(list(ranges)), ((0xD800, 0xDFFF),))


@lru_cache(maxsize=1024)
def chars(ranges: Ranges) -> Chars:
    """The same node for the same ranges, so that states can be shared."""
    return Chars(ranges)


def _repeated(node: Node, low: int, high: int | None) -> Node:
    """`node` from `low` to `high` times; a repeat of a repeat is one repeat where that is the same.

    Else (.{0,300}){0,300} would have a state for each pair of counts.
    """
    if high == 0:
        return Repeat(node, 0, 0)
    if isinstance(node, Repeat) and node.low == 0:
        return Repeat(node.part, 0, None if node.high is None or high is None else node.high * high)
    if isinstance(node, Repeat) and node.low == 1 and node.high is None:
        return Repeat(node.part, low, None)
    return Repeat(node, low, high)


_REPEAT = re.compile(r"(?P<sign>[*+?])|\{(?:(?P<exact>\d+)|(?P<low>\d*),(?P<high>\d*))\}")
_NAME = re.compile(r"P?<[^\W\d]\w*>")
_FLAGS = re.compile(r"(?P<on>[a-zA-Z]*)(?:-(?P<off>[a-zA-Z]+))?(?P<end>[:)])")
_PROPERTY = re.compile(r"\{(?P<not>\^?)(?P<name>[^}]+)\}|(?P<short>[A-Z])")
_HEX2, _HEX4, _HEX8 = (re.compile(f"([0-9a-fA-F]{{{n}}})") for n in (2, 4, 8))
_OCTAL = re.compile("[0-3][0-7]{2}")
_HEX_BRACED = re.compile(r"\{([0-9a-fA-F]{1,6})\}")
_LOW_SURROGATE = re.compile(r"\\u([dD][c-fC-F][0-9a-fA-F]{2})")
_CONTROLS = {"a": 7, "f": 12, "n": 10, "r": 13, "t": 9, "v": 11}


def merge(ranges: list[tuple[int, int]]) -> Ranges:
    """Sorted and disjoint, touching ranges joined."""
    result: list[tuple[int, int]] = []
    for low, high in sorted(ranges):
        if result and low <= result[-1][1] + 1:
            result[-1] = (result[-1][0], max(high, result[-1][1]))
        else:
            result.append((low, high))
    return tuple(result)


def without(ranges: Ranges, removed: Ranges) -> Ranges:
    result = []
    for low, high in ranges:
        for r_low, r_high in removed:
            if r_high < low or r_low > high:
                continue
            if r_low > low:
                result.append((low, r_low - 1))
            low = r_high + 1
            if low > high:
                break
        if low <= high:
            result.append((low, high))
    return tuple(result)


def intersect(a: Ranges, b: Ranges) -> Ranges:
    """Code points in both."""
    return without(a, without(ALL, b))


ALL: Ranges = ((0, 0xD7FF), (0xE000, LAST))


@cache
def _named_class(letter: str, *, ascii_only: bool, ecma: bool) -> Ranges:
    if letter == "s" and ecma:
        return merge([(9, 13), (32, 32), (0xA0, 0xA0), (0x1680, 0x1680), (0x2000, 0x200A), (0x2028, 0x2029),
                      (0x202F, 0x202F), (0x205F, 0x205F), (0x3000, 0x3000), (0xFEFF, 0xFEFF)])  # fmt: skip
    if ascii_only:
        return {
            "d": ((48, 57),),
            "w": ((48, 57), (65, 90), (95, 95), (97, 122)),
            "s": ((9, 13), (32, 32)),
        }[letter]
    if letter == "s":
        return _points_where(lambda point: point <= 0x3000 and chr(point).isspace(), 0x3000)
    if letter == "d":
        return _property("Nd")
    return merge([*_property("L"), *_property("N"), (95, 95)])


def _points_where(test: Callable[[int], bool], last: int = LAST) -> Ranges:
    result = []
    start = -1
    for point in range(last + 2):
        inside = point <= last and not 0xD800 <= point <= 0xDFFF and test(point)
        if inside and start < 0:
            start = point
        elif not inside and start >= 0:
            result.append((start, point - 1))
            start = -1
    return tuple(result)


@cache
def _property(name: str) -> Ranges:
    for prefix in ("General_Category=", "gc=", "Script=", "sc="):
        name = name.removeprefix(prefix)
    category = _CATEGORY_NAMES.get(name.lower().replace("_", ""), name)
    if name in ("Any", "any"):
        return ALL
    if name in ("ASCII", "ascii"):
        return ((0, 127),)
    if name.lower() in ("alphabetic", "alpha"):
        return _property("L")
    if category in _CATEGORIES:
        table, names = categories()
        return ranges_where(np.array([name.startswith(category) for name in names])[table])
    script = name.upper()
    if script in _SCRIPTS:
        return _points_where(lambda point: unicodedata.name(chr(point), "").startswith(_SCRIPTS[script]))
    return ()


_CATEGORIES = frozenset(
    "L M N P S Z C Lu Ll Lt Lm Lo Mn Mc Me Nd Nl No Pc Pd Ps Pe Pi Pf Po Sm Sc Sk So Zs Zl Zp Cc Cf Co Cn".split()  # noqa: SIM905
)
_CATEGORY_NAMES = {
    "letter": "L", "uppercaseletter": "Lu", "lowercaseletter": "Ll", "mark": "M", "number": "N", "decimalnumber": "Nd",
    "digit": "Nd", "punctuation": "P", "symbol": "S", "separator": "Z", "spaceseparator": "Zs", "other": "C",
    "control": "Cc",
}  # fmt: skip
_SCRIPTS: dict[str, str | tuple[str, ...]] = {
    "LATIN": ("LATIN", "FULLWIDTH LATIN"), "GREEK": "GREEK", "CYRILLIC": "CYRILLIC", "HEBREW": "HEBREW",
    "ARABIC": "ARABIC", "HAN": "CJK", "HIRAGANA": "HIRAGANA", "KATAKANA": "KATAKANA", "HANGUL": "HANGUL",
    "THAI": "THAI",
    "DEVANAGARI": "DEVANAGARI",
}  # fmt: skip


_CASED = frozenset({"Lu", "Ll", "Lt", "Lm", "Mn", "Nl", "So"})  # what has another case is among these


@lru_cache(maxsize=256)
def _other_cases(ranges: Ranges, ascii_only: bool) -> Ranges:
    points = set()
    if ascii_only:
        for low, high in ranges:
            for point in range(low, min(high, 127) + 1):
                points.add(ord(chr(point).swapcase()) if chr(point).isalpha() else point)
    else:
        families = _case_families()
        for low, high in ranges:
            if high - low > 5000:
                for point, family in families.items():
                    if low <= point <= high:
                        points.update(family)
            else:
                for point in range(low, high + 1):
                    points.update(families.get(point, ()))
    return merge([*ranges, *((point, point) for point in points)])


@cache
def _case_families() -> dict[int, tuple[int, ...]]:
    """Code points that `re` takes for the same letter: those with one lower-case form, joined by simple upper case."""
    families: dict[int, set[int]] = {}
    table, names = categories()
    for point in np.flatnonzero(np.array([name in _CASED for name in names])[table[:0x20000]]).tolist():
        character = chr(point)
        lower = character.lower()
        if len(lower) != 1:
            lower = lower[0] if point == 0x130 else character
        key = ord(lower)
        upper = lower.upper()
        if len(upper) == 1 and len(upper.lower()) == 1:
            key = ord(upper.lower())
        families.setdefault(key, set()).update({point, ord(lower)})
    return {point: tuple(family) for family in families.values() if len(family) > 1 for point in family}

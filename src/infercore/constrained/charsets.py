"""Sets of characters as bits of an int, so that whole tokens, and whole subtrees of a trie, can be told to be within.

A bit stands for one ASCII character or a few that patterns rarely split (`_compiled.BYTE_CLASS`), or for a *cell* of
the characters beyond ASCII: capital letters, small ones, other letters, numbers, white space, the rest. A class of a
regex *covers* a bit where it has all the characters of it, and *touches* it where it has any.
"""

import unicodedata
from functools import cache, lru_cache
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from infercore.constrained.loops import loops as c

Ranges = tuple[tuple[int, int], ...]

_LAST = 0x10FFFF
_BLANKS = (0x85, 0xA0, 0x1680, *range(0x2000, 0x200B), 0x2028, 0x2029, 0x202F, 0x205F, 0x3000, 0xFEFF)
_CELL_OF_CATEGORY = {"Lu": c.CAPITAL, "Ll": c.SMALL, "Lt": c.LETTER, "Lm": c.LETTER, "Lo": c.LETTER}


class CharSet(NamedTuple):
    """Bits of the characters of a class."""

    covered: int
    touched: int


@cache
def categories() -> tuple[npt.NDArray[np.uint8], list[str]]:
    """General category of every code point, as an index into a list of their names; 20 ms, once in a process."""
    names: dict[str, int] = {}
    table = np.empty(_LAST + 1, np.uint8)
    for first, last in ((0, 0x3FFFF), (0xE0000, 0xE0FFF)):  # the planes between hold nothing, those above private use
        points = map(unicodedata.category, map(chr, range(first, last + 1)))
        table[first : last + 1] = [names.setdefault(name, len(names)) for name in points]
    nothing, private = names.setdefault("Cn", len(names)), names.setdefault("Co", len(names))
    table[0x40000:0xE0000] = table[0xE1000:0xF0000] = nothing
    table[0xF0000:] = private
    table[[0xFFFFE, 0xFFFFF, 0x10FFFE, 0x10FFFF]] = nothing
    return table, list(names)


@cache
def cells() -> npt.NDArray[np.uint8]:
    """Cell of every code point, uint8; below 0x80 that of the byte."""
    table, names = categories()
    of_name = [_CELL_OF_CATEGORY.get(name, c.NUMBER if name[0] == "N" else c.OTHER) for name in names]
    result = np.array(of_name, np.uint8)[table]
    result[list(_BLANKS)] = c.BLANK
    result[:128] = c.BYTE_CLASS[:128]
    return result


def ranges_where(wanted: npt.NDArray[np.bool_]) -> Ranges:
    """Ranges of the code points that are set, surrogates left out."""
    wanted = wanted.copy()
    wanted[0xD800:0xE000] = False
    edges = np.flatnonzero(np.diff(wanted, prepend=False, append=False))
    return tuple((first, last - 1) for first, last in edges.reshape(-1, 2).tolist())


@lru_cache(maxsize=1024)
def char_set(ranges: Ranges) -> CharSet:
    """Bits of sorted, disjoint ranges of code points."""
    ascii_bits = 0
    for low, high in ranges:
        if low > 0x7F:
            break
        ascii_bits |= (1 << (min(high, 0x7F) + 1)) - (1 << low)
    covered = touched = 0
    for bit, members in _ascii_members():
        if ascii_bits & members:
            touched |= bit
            if ascii_bits & members == members:
                covered |= bit
    beyond = tuple((max(low, 0x80), high) for low, high in ranges if high > 0x7F)
    if not beyond:
        return CharSet(covered, touched)
    if beyond in (((0x80, _LAST),), ((0x80, 0xD7FF), (0xE000, _LAST))):
        return CharSet(covered | c.CELLS, touched | c.CELLS)
    starts, ends = (np.array(side) for side in zip(*beyond, strict=True))
    touched |= 1 << c.PARTIAL
    for cell, (first, last) in _cell_ranges().items():
        before = np.searchsorted(starts, first, "right") - 1
        if ((before >= 0) & (ends[before] >= last)).all():
            covered |= 1 << cell
        if (np.searchsorted(starts, last, "right") > np.searchsorted(ends, first, "left")).any():
            touched |= 1 << cell
    if covered & _DENSE == _DENSE:
        covered |= 1 << c.PARTIAL
    return CharSet(covered, touched)


_DENSE = sum(1 << cell for cell in (c.CAPITAL, c.SMALL, c.LETTER, c.NUMBER, c.OTHER))
"""Every beginning of a character can be completed to one of these: no 64 neighbours are all white space."""


@cache
def _ascii_members() -> list[tuple[int, int]]:
    """(bit, members as bits of a number of 128) of each ASCII class."""
    members: dict[int, int] = {}
    for byte in range(128):
        bit = 1 << int(c.BYTE_CLASS[byte])
        members[bit] = members.get(bit, 0) | 1 << byte
    return list(members.items())


@cache
def _cell_ranges() -> dict[int, tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]]:
    """First and last code points of the runs of each cell beyond ASCII."""
    result = {}
    for cell in (c.CAPITAL, c.SMALL, c.LETTER, c.NUMBER, c.BLANK, c.OTHER):
        wanted = cells() == cell
        wanted[:0x80] = False
        runs = np.array(ranges_where(wanted), np.int64)
        result[cell] = (runs[:, 0], runs[:, 1])
    return result

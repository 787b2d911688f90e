"""Ranges of code points as sequences of byte ranges."""

from functools import lru_cache

from infercore.constrained.regex_syntax import Ranges

ByteSequence = tuple[tuple[int, int], ...]
"""One to four byte ranges, one after the other."""

_LAST_OF_SIZE = (0x7F, 0x7FF, 0xFFFF, 0x10FFFF)


@lru_cache(maxsize=1024)
def byte_sequences(ranges: Ranges) -> tuple[ByteSequence, ...]:
    """UTF-8 of every code point in `ranges`, as disjoint sequences of byte ranges."""
    result: list[ByteSequence] = []
    for low, high in ranges:
        for last in _LAST_OF_SIZE:
            if low <= min(last, high):
                _split(low, min(last, high), result)
                low = last + 1
    return tuple(result)


def _split(low: int, high: int, result: list[ByteSequence]) -> None:
    """Sequences for low..high, which all have the same number of bytes."""
    size = len(chr(high).encode())
    for i in range(1, size):
        block = (1 << (6 * i)) - 1
        if low & ~block != high & ~block:
            if low & block:
                _split(low, low | block, result)
                _split((low | block) + 1, high, result)
                return
            if high & block != block:
                _split(low, (high & ~block) - 1, result)
                _split(high & ~block, high, result)
                return
    result.append(tuple(zip(chr(low).encode(), chr(high).encode(), strict=True)))

"""`build_trie` without machine code: the same arrays by numpy, level by level.

Run as plain Python, `_compiled.build_trie` would take most of a cold start: a step for each byte of each token.
"""

import numpy as np
import numpy.typing as npt

from infercore.constrained import _compiled as c

Array = npt.NDArray[np.generic]


def build_trie(
    data: npt.NDArray[np.uint8], ends: npt.NDArray[np.int64], order: npt.NDArray[np.int32], cells: npt.NDArray[np.uint8]
) -> tuple[Array, ...]:
    """What `_compiled.build_trie` returns, for the same arguments."""
    begins = np.concatenate([[0], ends[:-1]]).astype(np.int64)
    token_ids = order[(ends - begins)[order] > 0].astype(np.int32)
    sizes = (ends - begins)[token_ids]
    if not len(token_ids):
        none = {dtype: np.zeros(0, dtype) for dtype in (np.uint8, np.int16, np.int32, np.int64, np.int8)}
        first = (none[np.uint8], none[np.int16], none[np.int32], np.zeros(1, np.int32), none[np.int32])
        return (*first, none[np.int64], none[np.int16], none[np.int8])
    shared = _shared_with_previous(data, begins[token_ids], sizes)
    fresh = sizes - shared  # nodes that a token adds
    last = np.cumsum(fresh)
    count = int(last[-1])
    token = np.repeat(np.arange(len(token_ids)), fresh)
    depth = (np.arange(count) - np.repeat(last - fresh, fresh) + shared[token]).astype(np.int16)
    byte = data[begins[token_ids][token] + depth]
    tokens_at = np.searchsorted(last - 1, np.arange(count + 1)).astype(np.int32)
    skip, parent = np.empty(count, np.int32), np.full(count, -1, np.int64)
    within, point = np.zeros(count, np.int64), np.zeros(count, np.int64)
    own_class, own = np.empty(count, np.int64), np.empty(count, np.int8)
    levels = [np.flatnonzero(depth == level) for level in range(int(depth.max()) + 1)]
    for level, here in enumerate(levels):
        ends_at = np.append(np.flatnonzero(depth <= level), count)
        skip[here] = ends_at[np.searchsorted(ends_at, here, "right")]
        before = np.zeros(len(here), np.int64)
        above = np.zeros(len(here), np.int64)
        if level:
            parent[here] = levels[level - 1][np.searchsorted(levels[level - 1], here) - 1]
            before, above = within[parent[here]], point[parent[here]]
        value = byte[here].astype(np.int64)
        after = within[here] = _within(before, value)
        low_bits = np.where(value < 0xE0, 0x1F, np.where(value < 0xF0, 0x0F, 0x07))
        lead = np.where(value < 0x80, value, value & low_bits)
        point[here] = np.where((value & 0xC0) == 0x80, (above << 6 | (value & 0x3F)) & 0x1FFFFF, lead)
        from_parent = own_class[parent[here]] if level else before
        own_class[here] = np.where(after < 0, c.ODD, np.where(before == 0, c.BYTE_CLASS[value], from_parent))
        whole = cells[np.minimum(point[here], len(cells) - 1)]
        own[here] = np.where(after < 0, c.ODD, np.where(after > 0, c.PARTIAL, whole))
    bits: npt.NDArray[np.int64] = np.left_shift(np.int64(1), own_class)
    told = (own != c.PARTIAL) | (tokens_at[1:] > tokens_at[:-1])
    bits |= np.where(told, np.left_shift(np.int64(1), own.astype(np.int64)), 0)
    classes, tall = np.zeros(count, np.int64), np.zeros(count, np.int16)
    for here in levels[:0:-1]:
        np.bitwise_or.at(classes, parent[here], classes[here] | bits[here])
        np.maximum.at(tall, parent[here], tall[here] + 1)
    return byte, depth, skip, tokens_at, token_ids, classes, tall, own


def _shared_with_previous(
    data: npt.NDArray[np.uint8], begins: npt.NDArray[np.int64], sizes: npt.NDArray[np.int64]
) -> npt.NDArray[np.int64]:
    """Bytes at the start of each token that it shares with the one before it."""
    shared = np.zeros(len(sizes), np.int64)
    alike = np.arange(1, len(sizes))
    level = 0
    while len(alike):
        alike = alike[(sizes[alike] > level) & (sizes[alike - 1] > level)]
        alike = alike[data[begins[alike] + level] == data[begins[alike - 1] + level]]
        shared[alike] += 1
        level += 1
    return shared


def _within(before: npt.NDArray[np.int64], byte: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """`_compiled._within` of each pair."""
    first = _FIRST[byte]
    fits = (byte >= (before >> 8) & 0xFF) & (byte <= before & 0xFF)
    more = np.where(before >> 16 > 1, ((before >> 16) - 1) << 16 | 0x80BF, 0)
    return np.where(before < 0, -1, np.where(before == 0, first, np.where(fits, more, -1)))


_FIRST = np.full(256, -1, np.int64)
_FIRST[:0x80] = 0
_FIRST[0xC2:0xE0], _FIRST[0xE0:0xF0], _FIRST[0xF0:0xF5] = 0x180BF, 0x280BF, 0x380BF
_FIRST[[0xE0, 0xED, 0xF0, 0xF4]] = 0x2A0BF, 0x2809F, 0x390BF, 0x3808F

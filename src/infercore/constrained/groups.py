"""`TokenGroups`: the tokens of a vocabulary by the characters they are made of."""

import numpy as np
import numpy.typing as npt

from infercore.constrained.charsets import cells
from infercore.constrained.loops import loops as c

_NUM_MASKS = 96  # groups with a mask of their own: most tokens are letters, with or without a space


class TokenGroups:
    """Which tokens are wholly within a set of characters, told as bits (`charsets`).

    Letters and digits fall into six bits; where all six are asked for, fewer, larger groups do.
    """

    def __init__(self, data: npt.NDArray[np.uint8], ends: npt.NDArray[np.int64], num_words: int) -> None:
        self.num_words = num_words
        sets, self.num_chars = c.token_sets(data, ends, cells())
        self._has_text = np.diff(ends, prepend=0) > 0
        self._fine = _Groups(sets, self._has_text, num_words)
        self._coarse = _Groups(np.where(sets & WORDS, sets & ~WORDS | 1 << _FIRST, sets), self._has_text, num_words)
        longest = int(self.num_chars.max(initial=0))
        self._up_to = [_words(self._has_text & (self.num_chars <= n), num_words) for n in range(longest + 1)]
        self._fine.measure(self.num_chars)

    def within(self, wanted: int) -> npt.NDArray[np.uint32]:
        """Words of the mask of the tokens whose bits are all `wanted`; some 30 µs."""
        groups = self._coarse if wanted & WORDS == WORDS else self._fine
        mask = np.zeros(self.num_words, np.uint32)
        c.union_of_sets(groups.sets, wanted, groups.masks, groups.group_at, groups.token_ids, mask)
        return mask

    def between(self, low: int, high: int, most: int) -> npt.NDArray[np.int64] | None:
        """The tokens whose bits are among `high`, but not all among `low`; None where there are more than `most`."""
        sets = self._fine.sets
        chosen = np.flatnonzero((sets & ~np.int64(high) == 0) & (sets & ~np.int64(low) != 0))
        if int(self._fine.sizes[chosen].sum()) > most:
            return None
        return self._fine.members(chosen)

    def up_to(self, num_chars: int) -> npt.NDArray[np.uint32]:
        """Words of the mask of the tokens of at most so many characters; not to be changed."""
        return self._up_to[min(num_chars, len(self._up_to) - 1)]

    def longest(self, wanted: int) -> int:
        """Characters of the longest token whose bits are all `wanted`."""
        return int(self._fine.longest[self._fine.sets & ~np.int64(wanted) == 0].max(initial=0))


class _Groups:
    """Tokens of equal bits together, the largest groups first.

    Attributes:
        sets: bits of each group.
        sizes: tokens of each.
        masks: words of the first groups' tokens.
        token_ids, group_at: tokens of group g are token_ids[group_at[g]:group_at[g + 1]].
    """

    def __init__(self, sets: npt.NDArray[np.int64], has_text: npt.NDArray[np.bool_], num_words: int) -> None:
        ids = np.flatnonzero(has_text)
        values, inverse, counts = np.unique(sets[ids], return_inverse=True, return_counts=True)
        by_size = np.argsort(-counts, kind="stable")
        rank = np.empty_like(by_size)
        rank[by_size] = np.arange(len(by_size))
        self.sets, self.sizes = values[by_size], counts[by_size]
        self.token_ids = ids[np.argsort(rank[inverse], kind="stable")].astype(np.int32)
        self.group_at = np.concatenate([[0], np.cumsum(self.sizes)])
        self.masks = np.zeros((min(_NUM_MASKS, len(values)), num_words), np.uint32)
        for group, mask in enumerate(self.masks):
            member = np.zeros(32 * num_words, np.bool_)
            member[self.token_ids[self.group_at[group] : self.group_at[group + 1]]] = True
            mask[:] = _words(member, num_words)

    def measure(self, num_chars: npt.NDArray[np.int32]) -> None:
        """Make known how long the longest token of each group is."""
        self.longest = np.maximum.reduceat(num_chars[self.token_ids], self.group_at[:-1]) if len(self.sets) else _NONE

    def members(self, groups: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        parts = [self.token_ids[self.group_at[g] : self.group_at[g + 1]] for g in groups.tolist()]
        return np.concatenate(parts).astype(np.int64) if parts else np.zeros(0, np.int64)


_NONE = np.zeros(0, np.int32)
WORDS = sum(1 << n for n in range(50, 56))
"""Bits of letters and digits of ASCII."""
_FIRST = 50


def _words(member: npt.NDArray[np.bool_], num_words: int) -> npt.NDArray[np.uint32]:
    padded = np.zeros(32 * num_words, np.bool_)
    padded[: len(member)] = member
    return np.packbits(padded, bitorder="little").view(np.uint32).copy()

"""`OutlinesRegex`: a regex compiled by outlines-core, behind the contract of a `Grammar`.

For patterns in the dialect of Rust's `regex-automata`, or to check one engine against the other. The whole index is
built ahead, which takes seconds where ours takes none; masks are then a lookup.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from torch import Tensor

from infercore.constrained.bitmask import words_of
from infercore.constrained.vocabulary import Vocabulary

FINAL = 0


class OutlinesRegex:
    """States are outlines-core's, plus one; 0 is the state after an end token.

    Args:
        pattern: matched from end to end.
    Raises: ImportError without outlines-core; ValueError with its message where it cannot compile the pattern.
    """

    def __init__(self, pattern: str, vocabulary: Vocabulary) -> None:
        import outlines_core

        self.vocabulary = vocabulary
        eos = vocabulary.eos_token_ids[0]
        ids: dict[bytes, list[int]] = {}
        for i, token in enumerate(vocabulary.token_bytes):
            if token:
                ids.setdefault(token, []).append(i)
        self._index: Any = outlines_core.Index(pattern, outlines_core.Vocabulary(eos, ids))
        self._eos = frozenset(vocabulary.eos_token_ids)
        self.start = int(self._index.get_initial_state()) + 1
        self._masks: dict[int, npt.NDArray[np.uint32]] = {}

    def advance(self, state: int, token_id: int) -> int:
        """State after one more token; -1 where the pattern refuses it."""
        if token_id in self._eos:
            return FINAL if self.is_accepting(state) else -1
        if state == FINAL:
            return -1
        after = self._index.get_next_state(state - 1, token_id)
        return -1 if after is None else int(after) + 1

    def fill_bitmask(self, states: Sequence[int], bitmask: Tensor | npt.NDArray[np.int32]) -> None:
        """Write the allowed tokens of each state to the rows of `bitmask`, int32 on the CPU."""
        words = words_of(bitmask, len(states), self.vocabulary.vocab_size)
        for row, state in enumerate(states):
            words[row] = self._mask(state)

    def _mask(self, state: int) -> npt.NDArray[np.uint32]:
        if state == FINAL:
            return self.vocabulary.eos_mask
        mask = self._masks.get(state)
        if mask is None:
            mask = (
                self.vocabulary.eos_mask.copy() if self.is_accepting(state) else np.zeros_like(self.vocabulary.eos_mask)
            )
            ids = np.array([i for i in self._index.get_allowed_tokens(state - 1) or () if i not in self._eos], np.int64)
            np.bitwise_or.at(mask, ids >> 5, np.uint32(1) << (ids & 31).astype(np.uint32))
            self._masks[state] = mask
        return mask

    def is_accepting(self, state: int) -> bool:
        return state == FINAL or bool(self._index.is_final_state(state - 1))

    def is_finished(self, state: int) -> bool:
        """Whether nothing but an end token may come next."""
        return self.is_accepting(state) and bool((self._mask(state) & ~self.vocabulary.eos_mask == 0).all())

    def forced_tokens(self, state: int) -> npt.NDArray[np.int32]:
        """The one token that is allowed, perhaps none."""
        mask = self._mask(state)
        if int(np.bitwise_count(mask).sum()) != 1:
            return np.empty(0, np.int32)
        word = int(np.flatnonzero(mask)[0])
        return np.array([word * 32 + int(mask[word]).bit_length() - 1], np.int32)

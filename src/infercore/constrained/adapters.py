"""Grammars of other engines as a `Matcher`: what llguidance or xgrammar compiled runs in the engine as it is.

    from infercore.constrained.adapters import LLGuidanceMatcher
    matcher = LLGuidanceMatcher(llguidance.LLMatcher(tokenizer, grammar), vocab_size=model.config.vocab_size)
    engine.generate(prompt, grammar=matcher)

A matcher has one position only, so it takes no draft trees. Neither package is imported before its adapter is used.
"""

from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from infercore.constrained.bitmask import words_of


class LLGuidanceMatcher:
    """Over an `llguidance.LLMatcher`, which it takes over.

    Args:
        matcher: at the start of its output, without an error.
        vocab_size: rows of the model's embedding; tokens beyond the tokenizer's are refused.
        tokenizer_size: tokens that `matcher`'s tokenizer has; None: `vocab_size`.
    Raises: ValueError, with llguidance's message, where the matcher is in an error state, now or after a token.
    """

    def __init__(self, matcher: Any, *, vocab_size: int, tokenizer_size: int | None = None) -> None:
        import llguidance.numpy

        self._fill = llguidance.numpy.fill_next_token_bitmask
        self.matcher, self.vocab_size = matcher, vocab_size
        self._row: npt.NDArray[np.int32] = llguidance.numpy.allocate_token_bitmask(1, tokenizer_size or vocab_size)
        self._tokenizer_size = tokenizer_size or vocab_size
        self._check()

    def _check(self) -> None:
        if self.matcher.is_error():
            raise ValueError(f"llguidance: {self.matcher.get_error()}")

    def accept(self, token_id: int) -> bool:
        if self.matcher.is_stopped() or self.matcher.try_consume_tokens([token_id]) != 1:
            self._check()
            return False
        return True

    def rollback(self, num_tokens: int) -> None:
        self.matcher.rollback(num_tokens)
        self._check()

    def fill_bitmask(self, bitmask: Tensor | npt.NDArray[np.int32]) -> None:
        """Write the tokens that may come next into one row (int32, [words] or [1, words])."""
        words = words_of(bitmask if bitmask.ndim == 2 else bitmask[None], 1, self.vocab_size)
        self._fill(self.matcher, self._row, 0)
        self._check()
        _copy_row(self._row.view(np.uint32)[0], self._tokenizer_size, words[0])

    def forced_tokens(self) -> npt.NDArray[np.int32]:
        if self.matcher.is_stopped():
            return np.empty(0, np.int32)
        return np.array(self.matcher.compute_ff_tokens(), np.int32)

    @property
    def is_finished(self) -> bool:
        return bool(self.matcher.is_stopped())

    def fork(self) -> "LLGuidanceMatcher":
        return LLGuidanceMatcher(
            self.matcher.deep_copy(), vocab_size=self.vocab_size, tokenizer_size=self._tokenizer_size
        )


class XGrammarMatcher:
    """Over an `xgrammar.GrammarMatcher`, which it takes over. It forces no tokens: xgrammar forces text, not tokens.

    Args:
        matcher: at the start of its output.
        vocab_size: rows of the model's embedding; tokens beyond the tokenizer's are refused.
        tokenizer_size: `vocab_size` of the `xgrammar.TokenizerInfo` that it was compiled for; None: `vocab_size`.
    """

    def __init__(self, matcher: Any, *, vocab_size: int, tokenizer_size: int | None = None) -> None:
        self.matcher, self.vocab_size = matcher, vocab_size
        self._tokenizer_size = tokenizer_size or vocab_size
        self._row = torch.full((1, -(-self._tokenizer_size // 32)), -1, dtype=torch.int32)

    def accept(self, token_id: int) -> bool:
        return not self.matcher.is_terminated() and bool(self.matcher.accept_token(token_id))

    def rollback(self, num_tokens: int) -> None:
        self.matcher.rollback(num_tokens)

    def fill_bitmask(self, bitmask: Tensor | npt.NDArray[np.int32]) -> None:
        """Write the tokens that may come next into one row (int32, [words] or [1, words])."""
        words = words_of(bitmask if bitmask.ndim == 2 else bitmask[None], 1, self.vocab_size)
        self.matcher.fill_next_token_bitmask(self._row, 0)
        _copy_row(self._row.numpy().view(np.uint32)[0], self._tokenizer_size, words[0])

    def forced_tokens(self) -> npt.NDArray[np.int32]:
        return np.empty(0, np.int32)

    @property
    def is_finished(self) -> bool:
        return bool(self.matcher.is_terminated())

    def fork(self) -> "XGrammarMatcher":
        return XGrammarMatcher(self.matcher.fork(), vocab_size=self.vocab_size, tokenizer_size=self._tokenizer_size)


def _copy_row(source: npt.NDArray[np.uint32], num_tokens: int, target: npt.NDArray[np.uint32]) -> None:
    """Copy the bits of the first `num_tokens` tokens, the rest of `target` cleared."""
    size = min(len(source), len(target))
    target[:size] = source[:size]
    target[size:] = 0
    if num_tokens & 31 and num_tokens >> 5 < len(target):
        target[num_tokens >> 5] &= np.uint32((1 << (num_tokens & 31)) - 1)

"""Output text, whole or growing."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from infercore.hf.stopping import Tokenizer


def decode(tokenizer: Tokenizer | None, token_ids: Sequence[int], *, end: str | None = None) -> str:
    """The text of output tokens without special tokens, cut before `end`; "" without a tokenizer."""
    if tokenizer is None:
        return ""
    text = tokenizer.decode(list(token_ids), skip_special_tokens=True)
    if end is not None and (position := text.find(end)) >= 0:
        text = text[:position]
    return text


class TextStream:
    """Turns growing output into pieces of text that, joined, equal the text of the whole.

    Held back: characters whose bytes have not all arrived, and an end that may become a stop string.
    """

    def __init__(self, tokenizer: Tokenizer, stop: tuple[str, ...]) -> None:
        self._tokenizer = tokenizer
        self._stop = stop
        self._emitted = ""

    def push(self, output_ids: npt.NDArray[np.int32]) -> str:
        """New text that is certain, given the whole output so far."""
        text = decode(self._tokenizer, output_ids.tolist()).rstrip("�")
        held = max((_overlap(text, s) for s in self._stop), default=0)
        return self._emit(text[: len(text) - held])

    def finish(self, text: str) -> str:
        """The rest, given the completion's text."""
        return self._emit(text)

    def _emit(self, text: str) -> str:
        if not text.startswith(self._emitted):
            return ""  # the tokenizer rewrote its end (joined accents); the next piece or the rest brings it
        piece = text[len(self._emitted) :]
        self._emitted += piece
        return piece


def _overlap(text: str, stop: str) -> int:
    """Length of the longest end of `text` that begins `stop`."""
    return next((n for n in range(min(len(text), len(stop)), 0, -1) if text.endswith(stop[:n])), 0)

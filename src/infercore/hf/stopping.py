"""When an output ends: end tokens, stop strings, length, the caller's criteria."""

from typing import Any, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt
import torch

_MAX_BYTES_PER_CHARACTER = 4
_EXTRA_TOKENS = 4  # so that a character split over tokens, or a leading space, decodes as it does in the whole text


@runtime_checkable
class Tokenizer(Protocol):
    """What the engine uses of a Hugging Face tokenizer."""

    def decode(self, token_ids: Any, skip_special_tokens: bool = ...) -> str: ...
    def encode(self, text: str, add_special_tokens: bool = ...) -> list[int]: ...


class StopStrings:
    """Finds stop strings in a growing output, decoding only its tail."""

    def __init__(self, tokenizer: Tokenizer, stop: tuple[str, ...]) -> None:
        self._tokenizer = tokenizer
        self._stop = stop
        longest = max(len(s) for s in stop)
        self._window = longest * _MAX_BYTES_PER_CHARACTER + _EXTRA_TOKENS  # a token is at least a byte

    def found(self, output_ids: npt.NDArray[np.int32]) -> str | None:
        """The stop string that the last token completed, the earliest one if there are several."""
        text = self._tokenizer.decode(output_ids[-self._window :].tolist(), skip_special_tokens=False)
        hits = [(position, s) for s in self._stop if (position := text.find(s)) >= 0]
        return min(hits)[1] if hits else None


def criterion_stops(criteria: tuple[Any, ...], token_ids: npt.NDArray[np.int32]) -> bool:
    """Ask Hugging Face stopping criteria about one sequence, prompt included."""
    ids = torch.from_numpy(token_ids.astype(np.int64))[None]
    return any(bool(torch.as_tensor(criterion(ids, None)).any()) for criterion in criteria)

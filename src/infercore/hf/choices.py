"""`Choices`: the best token of each row, chosen and kept on the device, and brought to the host in one copy."""

import numpy as np
import numpy.typing as npt
import torch
from jaxtyping import Float
from torch import Tensor

from infercore.hf import _compiled

_WIDEST = 8  # bytes of a logit
# Of a logit's bits, those that are all set in NaN and infinity; numpy has no bfloat16.
_EXPONENTS: dict[torch.dtype, tuple[type[np.unsignedinteger], int]] = {
    torch.bfloat16: (np.uint16, 0x7F80),
    torch.float16: (np.uint16, 0x7C00),
    torch.float32: (np.uint32, 0x7F800000),
    torch.float64: (np.uint64, 0x7FF0000000000000),
}


def choices_size(max_rows: int) -> int:
    """Bytes of device memory that `Choices` takes."""
    return max_rows * (_WIDEST + 8)


class Choices:
    """Where one step's choices stand: `tokens`, int64 `[max_rows]`, and their logits, which tell whether they are any.

    Args:
        memory: uint8, on the device; `tokens` are the end of it.
    """

    def __init__(self, memory: Tensor, max_rows: int) -> None:
        on_gpu = memory.device.type == "cuda"
        first = max_rows * _WIDEST
        self.tokens = memory[first:].view(torch.int64)
        self._memory = memory
        self._best = {dtype: memory[:first].view(dtype) for dtype in _EXPONENTS}
        self._host = torch.zeros(len(memory), dtype=torch.uint8, pin_memory=on_gpu)
        bytes_ = self._host.numpy()
        self._host_tokens: npt.NDArray[np.int64] = bytes_[first:].view(np.int64)
        self._host_best = {dtype: bytes_[:first].view(of) for dtype, (of, _) in _EXPONENTS.items()}
        self._masks = {dtype: of(mask) for dtype, (of, mask) in _EXPONENTS.items()}
        self._parts: dict[int, tuple[Tensor, Tensor]] = {}
        self._is_read = torch.cuda.Event() if on_gpu else None  # type: ignore[no-untyped-call]
        self._fetched: tuple[int, torch.dtype] = 0, torch.float32

    def __len__(self) -> int:
        return len(self.tokens)

    def choose(self, logits: Float[Tensor, "rows vocab"]) -> None:
        """Put the best token of every row to the front; may be captured in a graph.

        A model that is spread over devices gives its logits on another one than these are on: they are brought here.
        """
        count = logits.shape[0]
        logits = logits.to(self.tokens.device)  # itself, if it is there
        torch.max(logits, -1, out=(self._best[logits.dtype][:count], self.tokens[:count]))

    def fetch(self, count: int, dtype: torch.dtype) -> None:
        """Start the copy of the first `count` choices, among logits of `dtype`, to the host; those before were read."""
        size = self._memory.shape[0] - 8 * (self.tokens.shape[0] - count)
        if size not in self._parts:
            self._parts[size] = self._host[:size], self._memory[:size]
        here, there = self._parts[size]
        here.copy_(there, non_blocking=True)
        if self._is_read is not None:
            self._is_read.record()
        self._fetched = count, dtype

    def read(self) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.bool_] | None]:
        """The tokens that `fetch` brings, once they are here, and which of them are none: their rows are not finite.

        None where all are tokens. Both hold until the next `fetch`.
        """
        if self._is_read is not None:
            self._is_read.synchronize()
        count, dtype = self._fetched
        best, mask = self._host_best[dtype], self._masks[dtype]
        is_bad = None
        if _compiled.holds_all_bits(best, count, mask):
            is_bad = (best[:count] & mask) == mask
        return self._host_tokens[:count], is_bad

"""The bitmask: int32 words, lowest bit first, 1 = allowed."""

import sys
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from torch import Tensor

    Bitmask = Tensor | npt.NDArray[np.int32]
    """int32 [rows, words], a tensor on the CPU or an array."""
else:  # grammars with masks of numpy do without torch, which takes a second to import; `words_of` looks at what came
    Bitmask = Tensor = Any


def allocate_bitmask(rows: int, vocab_size: int) -> Tensor:
    """A bitmask that allows everything, on the CPU: a tensor, int32 [rows, ceil(vocab_size / 32)], all -1."""
    import torch

    return torch.full((rows, -(-vocab_size // 32)), -1, dtype=torch.int32)


def is_tensor(value: object) -> bool:
    """Whether `value` is a tensor; without torch there are none."""
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(value, torch.Tensor)


def words_of(bitmask: Bitmask, rows: int, vocab_size: int) -> npt.NDArray[np.uint32]:
    """`bitmask` as a uint32 array over the same memory.

    Raises: TypeError if it is not int32 on the CPU; ValueError if it has too few rows or words.
    """
    array: Any = bitmask
    if is_tensor(bitmask) and array.device.type == "cpu":
        array = array.numpy()
    if not isinstance(array, np.ndarray) or array.dtype != np.int32:
        raise TypeError(
            f"bitmask is {getattr(bitmask, 'dtype', type(bitmask).__name__)}, expected int32 on the CPU; allocate it "
            f"with allocate_bitmask(rows, {vocab_size})"
        )
    words = -(-vocab_size // 32)
    if array.ndim != 2 or array.shape[0] < rows or array.shape[1] != words:
        raise ValueError(
            f"bitmask has shape {list(array.shape)}, but {rows} states and vocab_size {vocab_size} need "
            f"[{rows}, {words}]; allocate it with allocate_bitmask({rows}, {vocab_size})"
        )
    return array.view(np.uint32)

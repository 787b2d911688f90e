"""The bitmask: int32 words, lowest bit first, 1 = allowed."""

import numpy as np
import numpy.typing as npt
import torch
from jaxtyping import Int32
from torch import Tensor


def allocate_bitmask(rows: int, vocab_size: int) -> Int32[Tensor, "rows words"]:
    """A bitmask that allows everything, on the CPU: int32 [rows, ceil(vocab_size / 32)], all -1."""
    return torch.full((rows, -(-vocab_size // 32)), -1, dtype=torch.int32)


def words_of(
    bitmask: Int32[Tensor, "rows words"] | Int32[np.ndarray, "rows words"], rows: int, vocab_size: int
) -> npt.NDArray[np.uint32]:
    """`bitmask` as a uint32 array over the same memory.

    Raises: TypeError if it is not int32 on the CPU; ValueError if it has too few rows or words.
    """
    array = bitmask.numpy() if isinstance(bitmask, Tensor) and bitmask.device.type == "cpu" else bitmask
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

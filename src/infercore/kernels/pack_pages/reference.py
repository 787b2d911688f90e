"""`page_packer` in plain torch: one indexed copy a tensor."""

from collections.abc import Sequence

import torch
from jaxtyping import Int64, UInt8
from torch import Tensor


class ReferencePacker:
    """See `page_packer`."""

    def __init__(self, tensors: Sequence[Tensor]) -> None:
        self._bytes = [tensor.view(tensor.shape[0], -1).view(torch.uint8) for tensor in tensors]
        self.page_bytes = sum(tensor.shape[1] for tensor in self._bytes)

    def pack(self, page_ids: Int64[Tensor, " n"], blocks: UInt8[Tensor, "n page_bytes"]) -> None:
        first = 0
        for tensor in self._bytes:
            blocks[:, first : first + tensor.shape[1]] = tensor[page_ids]
            first += tensor.shape[1]

    def unpack(self, blocks: UInt8[Tensor, "n page_bytes"], page_ids: Int64[Tensor, " n"]) -> None:
        first = 0
        for tensor in self._bytes:
            tensor[page_ids] = blocks[:, first : first + tensor.shape[1]]
            first += tensor.shape[1]

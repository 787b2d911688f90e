"""`SideRows`: what somebody keeps beside a pool's own K and V, one row a slot, and which slots hold one."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Bool, Int32, Int64

if TYPE_CHECKING:
    from torch import Tensor

    from infercore.radix.pool import KVPool


class SideRows:
    """Pairs of tensors `[num_pages, page_size, heads, dim]` that follow the pages of a pool.

    A row goes along where its slot is copied or moved, and is void from when its page is handed out again: nothing of a
    page's last owner is ever taken for the next one's. It is poisoned with its page. Pages that leave for the host or
    for a file leave it behind. The pool knows it as long as somebody else does.

    Args:
        pool: of whose slots. examples: a pair for each layer, `[..., heads, dim]`, for shape, dtype and device.
    Memory: as one of the pool's layers for each pair, and a byte a slot on the host.
    Raises: what torch raises where the memory cannot be had; the pool is as before then.
    """

    def __init__(self, pool: "KVPool", examples: "Sequence[tuple[Tensor, Tensor]]") -> None:
        self._page_size = pool.page_size
        shape = pool.num_pages, pool.page_size
        self.layers = [tuple(t.new_zeros(*shape, *t.shape[-2:]) for t in pair) for pair in examples]
        self.is_valid: Bool[np.ndarray, " slots"] = np.zeros(pool.num_pages * pool.page_size, np.bool_)
        pool.attach(self)

    def write(self, slots: Int64[np.ndarray, " n"], rows: "Sequence[tuple[Tensor, Tensor]]") -> None:
        """`rows`: a pair `[n, heads, dim]` for each layer."""
        for flat, at, part in self._each(slots, rows):
            flat[at] = part
        self.is_valid[slots] = True

    def read(self, slots: Int64[np.ndarray, " n"]) -> "list[tuple[Tensor, Tensor]]":
        """Pairs `[n, heads, dim]`. Raises: ValueError if a slot holds none."""
        if not self.is_valid[slots].all():
            raise ValueError(f"{int((~self.is_valid[slots]).sum())} of {len(slots)} slots hold no row; see is_valid")
        taken = [flat[at] for flat, at, _ in self._each(slots)]
        return list(zip(taken[::2], taken[1::2], strict=True))

    def move(self, src: Int64[np.ndarray, " n"], dst: Int64[np.ndarray, " n"]) -> None:
        """What `KVPool.move_slots` does; nothing on the device where no source holds a row."""
        is_valid = self.is_valid[src]
        self.is_valid[dst] = is_valid
        if is_valid.any():
            taken = [flat[at] for flat, at, _ in self._each(src[is_valid])]
            for (flat, at, _), rows in zip(self._each(dst[is_valid]), taken, strict=True):
                flat[at] = rows

    def forget(self, page_ids: Int32[np.ndarray, " n"]) -> None:
        """These pages are handed out anew."""
        self.is_valid.reshape(-1, self._page_size)[page_ids] = False

    def poison(self, page_ids: Int32[np.ndarray, " n"]) -> None:
        """Fill pages with NaN; they hold no rows then."""
        import torch

        self.forget(page_ids)
        host = torch.from_numpy(page_ids.astype(np.int64))
        for pair in self.layers:
            for tensor in pair:
                tensor[host.to(tensor.device)] = float("nan")

    def _each(
        self, slots: Int64[np.ndarray, " n"], rows: "Sequence[tuple[Tensor, Tensor]] | None" = None
    ) -> "list[tuple[Tensor, Tensor, Tensor]]":
        """Every tensor as rows, `slots` on its device, and what belongs there (the tensor itself if that is None)."""
        import torch

        parts = [part for pair in rows for part in pair] if rows is not None else None
        tensors = [tensor for pair in self.layers for tensor in pair]
        at = torch.from_numpy(np.ascontiguousarray(slots, np.int64)).to(tensors[0].device)
        return [(tensor.flatten(0, 1), at, tensor if parts is None else parts[i]) for i, tensor in enumerate(tensors)]

"""Slots in ordinary memory, and the door to pinned memory where the pool is on a GPU."""

import logging
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
from jaxtyping import Int32

from infercore.radix.host.types import HostStore, PagePacker, Ticket
from infercore.radix.pool import KVPool

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    MakePacker = Callable[[Sequence[Tensor]], PagePacker]

_log = logging.getLogger(__name__)
SLAB_BYTES = 1 << 28  # memory is asked for in pieces of this size; pinned ones are rounded up to powers of two


def host_memory(
    pool: KVPool,
    num_bytes: int,
    *,
    page_bytes: int,
    make_packer: "MakePacker",
    device: "torch.device",
) -> HostStore | None:
    """Slots for the pages of `pool` within `num_bytes` of host memory: pinned for a GPU, ordinary for a CPU.

    Args:
        page_bytes: K/V of one page in all layers.
        make_packer: `infercore.kernels.page_packer`.
        device: where the pool's tensors are, or will be.
    Returns: None, with a warning, where the memory cannot be had, or a single page does not fit.
    """
    from infercore.radix.host.pinned import PinnedMemory

    if num_bytes < page_bytes:
        _log.warning("no pages in host memory: %d bytes hold none of %d", num_bytes, page_bytes)
        return None
    kind = PinnedMemory if device.type == "cuda" else HostMemory
    try:
        return kind(pool, num_bytes, page_bytes=page_bytes, make_packer=make_packer, device=device)
    except (MemoryError, RuntimeError) as error:  # torch raises the latter, on a GPU and on a CPU
        _log.warning("no pages in host memory: %d bytes cannot be had (%s)", num_bytes, str(error).splitlines()[0])
        return None


def check_available(num_bytes: int) -> None:
    """Raises: MemoryError where so much memory is not free: pinned memory cannot be swapped out, so that trying to
    have it would end other processes, or this one. Where the system does not say what is free nothing is checked.
    """
    available = _available_bytes(Path("/proc/meminfo"), Path("/sys/fs/cgroup"))
    if available is not None and num_bytes > available:
        raise MemoryError(f"{available} bytes are free")


def _available_bytes(meminfo: Path, cgroup: Path) -> int | None:
    """What the machine and, if there is one, its container have left, as Linux tells it; None elsewhere."""
    limits = []
    if meminfo.exists():
        lines = dict(line.split(":", 1) for line in meminfo.read_text().splitlines() if ":" in line)
        if "MemAvailable" in lines:
            limits.append(int(lines["MemAvailable"].split()[0]) * 1024)
    limit, used = cgroup / "memory.max", cgroup / "memory.current"
    if limit.exists() and used.exists() and (text := limit.read_text().strip()).isdigit():
        limits.append(int(text) - int(used.read_text()))
    return min(limits, default=None)


class _Done:
    """The ticket of a copy that has ended."""

    def is_ready(self) -> bool:
        return True

    def wait(self) -> None:
        pass


class HostMemory:
    """A `HostStore` of ordinary memory: copies are made at once. For pools on a CPU.

    Raises: RuntimeError, as torch does, where the memory cannot be had.
    """

    def __init__(
        self,
        pool: KVPool,
        num_bytes: int,
        *,
        page_bytes: int,
        make_packer: "MakePacker",
        device: "torch.device",
    ) -> None:
        self.slot_bytes = page_bytes
        self.slabs = Slabs(num_bytes, page_bytes, pinned=False)
        self.num_slots = self.slabs.num_slots
        self.packing = Packing(pool, make_packer)

    def fits(self) -> bool:
        return self.packing.page_bytes == self.slot_bytes

    def copy_out(self, page_ids: Int32[np.ndarray, "n"], slots: Int32[np.ndarray, "n"]) -> None:
        import torch

        packer = self.packing.packer()
        for first, stop, block in self.slabs.runs(slots):
            packer.pack(torch.from_numpy(page_ids[first:stop].astype(np.int64)), block)

    def copy_in(self, slots: Int32[np.ndarray, "n"], page_ids: Int32[np.ndarray, "n"]) -> Ticket:
        import torch

        packer = self.packing.packer()
        for first, stop, block in self.slabs.runs(slots):
            packer.unpack(block, torch.from_numpy(page_ids[first:stop].astype(np.int64)))
        return _Done()

    def warmup(self) -> None:
        """Nothing: there is nothing to compile."""

    def poison_slots(self, slots: Int32[np.ndarray, "n"]) -> None:
        self.slabs.poison(slots)


class Packing:
    """The packer of a pool's layers, made anew when a layer came."""

    def __init__(self, pool: KVPool, make_packer: "MakePacker") -> None:
        self._pool = pool
        self._make_packer = make_packer
        self._num_layers = 0
        self._packer: PagePacker | None = None

    def packer(self) -> PagePacker:
        self._pool.catch_up()  # pages are copied as they will be read
        if self._packer is None or self._num_layers != len(self._pool.layers):
            self._num_layers = len(self._pool.layers)
            self._packer = self._make_packer([tensor for pair in self._pool.layers.values() for tensor in pair])
        return self._packer

    @property
    def page_bytes(self) -> int:
        """Of one page in all layers that there are; 0 without any."""
        return self.packer().page_bytes if self._pool.layers else 0


class Slabs:
    """Slots of equal size in a few large pieces of memory, as many as fit."""

    def __init__(self, num_bytes: int, slot_bytes: int, *, pinned: bool) -> None:
        import torch

        self._slab_slots = max(1, SLAB_BYTES // slot_bytes)
        self.num_slots = num_bytes // slot_bytes
        self._slabs: list[Tensor] = []
        for first in range(0, self.num_slots, self._slab_slots):
            count = min(self._slab_slots, self.num_slots - first)
            self._slabs.append(torch.empty((count, slot_bytes), dtype=torch.uint8, pin_memory=pinned))

    def runs(self, slots: npt.NDArray[np.int32]) -> "Iterator[tuple[int, int, Tensor]]":
        """`slots[first:stop]` that stand side by side in one slab, and their bytes: a view, one row a slot."""
        if not len(slots):
            return
        slab, row = slots // self._slab_slots, slots % self._slab_slots
        breaks = np.flatnonzero((np.diff(row) != 1) | (np.diff(slab) != 0)) + 1
        for first, stop in zip([0, *breaks.tolist()], [*breaks.tolist(), len(slots)], strict=True):
            yield first, stop, self._slabs[slab[first]][row[first] : row[first] + stop - first]

    def poison(self, slots: npt.NDArray[np.int32]) -> None:
        """All bits set: NaN in every dtype of K/V."""
        for _, _, block in self.runs(slots):
            block.fill_(0xFF)

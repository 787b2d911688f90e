"""Slots in pinned memory, and copies that run beside the device's work.

Out: the pages are packed into a block of device memory in the order of the device's own work, so that they may be
written right after; from there a stream of its own copies the block to the host. Two blocks take turns; where both are
still on their way, the device's work waits for one.

Back: another stream copies from the host into a third block and unpacks it into the pages, once the work has ended
that was given to the device before. Who wants to read the pages has the device wait for that stream's event.
"""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Int32

from infercore.radix.host.memory import Packing, Slabs, check_available
from infercore.radix.host.types import PagePacker, Ticket
from infercore.radix.pool import KVPool

if TYPE_CHECKING:
    import torch
    from torch import Tensor

BLOCK_BYTES = 1 << 27  # of device memory, three times, at most a quarter of the host's


class _Event:
    """The ticket of a copy whose end an event marks."""

    def __init__(self, event: "torch.cuda.Event", device: "torch.device") -> None:
        self._event = event
        self._device = device

    def is_ready(self) -> bool:
        return bool(self._event.query())  # type: ignore[no-untyped-call]

    def wait(self) -> None:
        import torch

        torch.cuda.current_stream(self._device).wait_event(self._event)


class PinnedMemory:
    """A `HostStore` of pinned memory for a pool on one GPU; nothing here makes the host wait.

    Raises: MemoryError, or RuntimeError as torch does, where pinned memory or the blocks on the device cannot be had.
    """

    def __init__(
        self,
        pool: KVPool,
        num_bytes: int,
        *,
        page_bytes: int,
        make_packer: "Callable[[Sequence[Tensor]], PagePacker]",
        device: "torch.device",
    ) -> None:
        import torch

        check_available(num_bytes)
        self.slot_bytes = page_bytes
        self.slabs = Slabs(num_bytes, page_bytes, pinned=True)
        self.num_slots = self.slabs.num_slots
        self.packing = Packing(pool, make_packer)
        self._device = device
        self._block_pages = max(1, min(BLOCK_BYTES, num_bytes // 4) // page_bytes)
        shape = (3, self._block_pages, page_bytes)
        blocks = torch.empty(shape, dtype=torch.uint8, device=device)
        self._blocks_out, self._block_in = [blocks[0], blocks[1]], blocks[2]
        self._left: list[torch.cuda.Event | None] = [None, None]  # when each block's last copy to the host has ended
        self._next = 0
        self._out, self._back = (torch.cuda.Stream(device) for _ in range(2))  # type: ignore[no-untyped-call]
        self._written = np.zeros(self.num_slots, np.int64)  # number of the copy that wrote each slot last
        self._num_copies = 0
        self._under_way: dict[int, torch.cuda.Event] = {}  # copies to the host that may not have ended, oldest first

    def fits(self) -> bool:
        return self.packing.page_bytes == self.slot_bytes

    def copy_out(self, page_ids: Int32[np.ndarray, "n"], slots: Int32[np.ndarray, "n"]) -> None:
        import torch

        packer, current = self.packing.packer(), torch.cuda.current_stream(self._device)
        self._forget_ended()
        pages = self._on_device(page_ids)
        for start in range(0, len(slots), self._block_pages):
            some = slots[start : start + self._block_pages]
            block = self._blocks_out[self._next][: len(some)]
            left = self._left[self._next]
            if left is not None:
                current.wait_event(left)
            packer.pack(pages[start : start + len(some)], block)
            self._out.wait_event(current.record_event())
            with torch.cuda.stream(self._out):
                for first, stop, there in self.slabs.runs(some):
                    there.copy_(block[first:stop], non_blocking=True)
            self._left[self._next] = ended = self._out.record_event()
            self._next = 1 - self._next
            self._num_copies += 1
            self._under_way[self._num_copies] = ended
            self._written[some] = self._num_copies

    def copy_in(self, slots: Int32[np.ndarray, "n"], page_ids: Int32[np.ndarray, "n"]) -> Ticket:
        import torch

        packer, back = self.packing.packer(), self._back
        before = torch.cuda.current_stream(self._device).record_event()
        self._wait_for_slots(slots)
        with torch.cuda.stream(back):
            pages = self._on_device(page_ids)
            for start in range(0, len(slots), self._block_pages):
                some = slots[start : start + self._block_pages]
                block = self._block_in[: len(some)]
                for first, stop, there in self.slabs.runs(some):
                    block[first:stop].copy_(there, non_blocking=True)
                if start == 0:
                    back.wait_event(before)
                packer.unpack(block, pages[start : start + len(some)])
            ended = back.record_event()
        return _Event(ended, self._device)

    def warmup(self) -> None:
        """Run the two kernels once, on the page that nobody owns."""
        import torch

        packer, block, left = self.packing.packer(), self._blocks_out[self._next][:1], self._left[self._next]
        if left is not None:
            torch.cuda.current_stream(self._device).wait_event(left)
        page = self._on_device(np.zeros(1, np.int32))
        packer.pack(page, block)
        packer.unpack(block, page)

    def poison_slots(self, slots: Int32[np.ndarray, "n"]) -> None:
        """As the protocol says; waits for the device, so that no copy that was started is spoilt."""
        import torch

        torch.cuda.synchronize(self._device)
        self.slabs.poison(slots)

    def _wait_for_slots(self, slots: Int32[np.ndarray, "n"]) -> None:
        """Have the way back wait for the last copy to the host that wrote one of these slots; they end in order."""
        self._forget_ended()
        event = self._under_way.get(int(self._written[slots].max(initial=0)))
        if event is not None:
            self._back.wait_event(event)

    def _forget_ended(self) -> None:
        for number, event in list(self._under_way.items()):
            if not event.query():  # type: ignore[no-untyped-call]
                break
            del self._under_way[number]

    def _on_device(self, page_ids: Int32[np.ndarray, "n"]) -> "Tensor":
        import torch

        host = torch.from_numpy(page_ids.astype(np.int64)).pin_memory()
        return host.to(self._device, non_blocking=True)

"""Stores of one number per token, on the device's side and on the host's, whose contents a test can tell."""

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from infercore.radix.host import Ticket

_POISON = -1


class ArrayStore:
    """A `PageStore` of one int64 per slot."""

    def __init__(self, num_pages: int, page_size: int) -> None:
        self.rows = np.zeros((num_pages, page_size), np.int64)

    def move_slots(self, src: npt.NDArray[np.int64], dst: npt.NDArray[np.int64]) -> None:
        flat = self.rows.reshape(-1)
        flat[dst] = flat[src]

    def zero_pages(self, page_ids: npt.NDArray[np.int32]) -> None:
        self.rows[page_ids] = 0

    def poison_pages(self, page_ids: npt.NDArray[np.int32]) -> None:
        self.rows[page_ids] = _POISON


class _Copy:
    """A copy from an `ArrayHostStore` to the pages: made at the latest moment that is allowed, or at the first."""

    def __init__(self, copy: Callable[[], None], *, at_once: bool) -> None:
        self._copy: Callable[[], None] | None = copy
        if at_once:
            self.wait()

    def is_ready(self) -> bool:
        return self._copy is None

    def wait(self) -> None:
        if self._copy is not None:
            self._copy()
            self._copy = None


class ArrayHostStore:
    """A `HostStore` of one int64 per slot, beside an `ArrayStore`; copies back end at once and late in turns."""

    def __init__(self, device: ArrayStore, num_slots: int) -> None:
        self.device = device
        self.num_slots = num_slots
        self.slot_bytes = device.rows.shape[1] * 8
        self.rows = np.full((num_slots, device.rows.shape[1]), _POISON, np.int64)
        self.num_copies_back = 0

    def fits(self) -> bool:
        return True

    def copy_out(self, page_ids: npt.NDArray[np.int32], slots: npt.NDArray[np.int32]) -> None:
        if len(set(slots.tolist())) < len(slots):
            raise AssertionError(f"two pages go to one slot: {slots}")
        self.rows[slots] = self.device.rows[page_ids]

    def copy_in(self, slots: npt.NDArray[np.int32], page_ids: npt.NDArray[np.int32]) -> Ticket:
        self.device.rows[page_ids] = _POISON
        self.num_copies_back += 1

        def copy() -> None:
            self.device.rows[page_ids] = self.rows[slots]

        return _Copy(copy, at_once=self.num_copies_back % 2 == 0)

    def warmup(self) -> None:
        pass

    def poison_slots(self, slots: npt.NDArray[np.int32]) -> None:
        self.rows[slots] = _POISON

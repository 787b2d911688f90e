"""Protocols and records of the host tier."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Int32

if TYPE_CHECKING:
    from torch import Tensor


@runtime_checkable
class Ticket(Protocol):
    """A copy to the device that was started."""

    def is_ready(self) -> bool:
        """Whether it has ended; does not wait."""
        ...

    def wait(self) -> None:
        """Have all later work on the device come after it. The host goes on at once."""
        ...


@runtime_checkable
class HostStore(Protocol):
    """Slots in host memory, each as large as the K/V of one page in all layers: `num_slots` of `slot_bytes` each.

    Laws: `copy_out` has read the pages before any work that is given to the device later writes them. `copy_in` writes
    pages after all work that was given to the device before, and what it wrote is there once its ticket was waited
    for; it reads what the last `copy_out` to a slot wrote, ended or not. (Where a slot is written before the ticket was
    waited for, any bytes may come: who does that drops them.)
    """

    num_slots: int
    slot_bytes: int

    def fits(self) -> bool:
        """Whether a page of the pool is what a slot holds; False while the pool has no layers."""
        ...

    def copy_out(self, page_ids: Int32[np.ndarray, "n"], slots: Int32[np.ndarray, "n"]) -> None: ...
    def copy_in(self, slots: Int32[np.ndarray, "n"], page_ids: Int32[np.ndarray, "n"]) -> Ticket: ...
    def warmup(self) -> None:
        """Compile ahead what copies need."""
        ...

    def poison_slots(self, slots: Int32[np.ndarray, "n"]) -> None:
        """Fill slots that nobody uses any more with NaN. For tests."""
        ...


@runtime_checkable
class PagePacker(Protocol):
    """Puts the pages of all layers into one block of bytes each, and back: `kernels.page_packer` makes one."""

    page_bytes: int

    def pack(self, page_ids: "Tensor", blocks: "Tensor") -> None: ...
    def unpack(self, blocks: "Tensor", page_ids: "Tensor") -> None: ...


@dataclass(frozen=True, slots=True)
class HostStats:
    """Counted since the tier was made, but for `num_used`.

    num_slots, num_used: pages that fit, pages that are there now. slot_bytes: of one page.
    bytes_out, bytes_back: copied to the host and back to the device. num_fetches: prefixes that were brought back;
    num_tokens_back: their tokens. num_known: pages that were evicted on the device while the host still had them, which
    takes no copy. num_evicted: pages that left the host for want of room. num_lost: evicted on the device and not kept.
    """

    num_slots: int
    num_used: int
    slot_bytes: int
    bytes_out: int
    bytes_back: int
    num_fetches: int
    num_tokens_back: int
    num_known: int
    num_evicted: int
    num_lost: int

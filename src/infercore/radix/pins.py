"""Prefixes that stay whatever happens: pinned by name of their tokens, for ever or for a while."""

import heapq
import math
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from infercore.radix.types import Namespace


@dataclass(frozen=True, slots=True, eq=False)
class Pin:
    """A pinned prefix of `num_tokens` tokens; `expires_at` in seconds of the cache's clock, infinity for none."""

    num_tokens: int
    namespace: Namespace
    expires_at: float
    page_ids: npt.NDArray[np.int32] = field(repr=False)


class PinBoard:
    """The pins of one cache. Holds no reference itself: what it hands back, the cache releases."""

    def __init__(self, clock: Callable[[], int | float]) -> None:
        self._clock = clock
        self._pins: dict[int, Pin] = {}
        self._by_expiry: list[tuple[float, int]] = []

    def __len__(self) -> int:
        return len(self._pins)

    def add(self, pages: npt.NDArray[np.int32], page_size: int, namespace: Namespace, ttl_s: int | float | None) -> Pin:
        expires_at = math.inf if ttl_s is None else self._clock() + ttl_s
        pin = Pin(len(pages) * page_size, namespace, expires_at, pages)
        self._pins[id(pin)] = pin
        if ttl_s is not None:
            heapq.heappush(self._by_expiry, (expires_at, id(pin)))
        return pin

    def remove(self, pin: Pin) -> bool:
        """Whether `pin` still stood."""
        return self._pins.pop(id(pin), None) is not None

    def pop_expired(self) -> list[Pin]:
        """Pins whose time is over; they no longer stand."""
        expired = []
        while self._by_expiry and self._by_expiry[0][0] <= self._clock():
            pin = self._pins.pop(heapq.heappop(self._by_expiry)[1], None)
            if pin is not None:
                expired.append(pin)
        return expired

    def pop_if(self, dropped: Callable[[Pin], bool]) -> list[Pin]:
        """Pins for which `dropped` holds; they no longer stand."""
        gone = [pin for pin in self._pins.values() if dropped(pin)]
        for pin in gone:
            del self._pins[id(pin)]
        return gone

"""`Seen`: how far a head has come in one request's text."""

from dataclasses import dataclass, field

from torch import Tensor


@dataclass(slots=True)
class Seen:
    """One request. Entries of `length` tokens from position `first` on are in the cache; `num_new` are still to come.

    Features of those wait in the cache's own memory, the last of them in the ring (`told`: their numbers there), or,
    where they are too many, all in `more`. An entry depends on the token behind its feature: the last one stays, and
    comes with each draft anew.
    """

    slot: int
    first: int
    length: int = 0
    num_new: int = 0
    more: Tensor | None = None
    told: list[int] = field(default_factory=list)
    outputs: list[Tensor] = field(default_factory=list)
    places: list[list[int]] = field(default_factory=list)

    @property
    def end(self) -> int:
        """The first position that nothing is known of."""
        return self.first + self.length + self.num_new

    @property
    def num_waiting(self) -> int:
        """How many wait in the cache's memory."""
        return self.num_new - len(self.told) if self.more is None else 0

    def begin_at(self, position: int) -> None:
        """Forget what is known from `position` on; all of it where there would be a gap."""
        if not self.first <= position <= self.end:
            self.first, self.length, self.num_new, self.more, self.told = position, 0, 0, None, []
        elif position < self.end:
            kept = position - self.first
            num_waiting = self.num_waiting
            self.length, self.num_new = min(kept, self.length), max(kept - self.length, 0)
            self.told = self.told[: max(0, self.num_new - num_waiting)]
            if self.more is not None:
                self.more = self.more[: self.num_new] if self.num_new else None

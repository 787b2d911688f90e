"""A prefix on its way back from the host."""

from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from infercore.radix.host.types import Ticket
from infercore.radix.sequence import Sequence

if TYPE_CHECKING:
    from infercore.radix.host.tier import HostTier


class Arrival:
    """The next `num_tokens` tokens of `sequence`, whose K/V is being copied into rows that are reserved for them.

    Made by `HostTier.fetch`. Ends with `finish` or `cancel`; until then the sequence is left alone.
    """

    def __init__(
        self,
        tier: "HostTier",
        sequence: Sequence,
        token_ids: npt.NDArray[np.int32],
        nodes: npt.NDArray[np.int32],
        ticket: Ticket,
    ) -> None:
        self.sequence = sequence
        self.num_tokens = len(token_ids)
        self._tier = tier
        self._token_ids = token_ids
        self._nodes = nodes
        self._ticket = ticket

    @property
    def is_ready(self) -> bool:
        """Whether the copies have ended, so that `finish` makes nobody wait."""
        return self._ticket.is_ready()

    def finish(self) -> int:
        """Make the tokens part of the sequence, and publish them; returns how many.

        The device's later work waits for the copies where they have not ended; the host does not. Where the prefix was
        cleared or invalidated in the meantime it is dropped, and 0 comes back.
        """
        still_wanted = self._tier._stand(self._nodes)
        self._end(self._token_ids if still_wanted else self._token_ids[:0])
        if not still_wanted:
            return 0
        self.sequence.insert()
        return self.num_tokens

    def cancel(self) -> None:
        """Give the reserved rows back; the sequence is as it was before. Nothing after `finish`, or a second time."""
        self._end(self._token_ids[:0])

    def _end(self, kept: npt.NDArray[np.int32]) -> None:
        if len(self._nodes) == 0:
            return
        nodes, self._nodes = self._nodes, self._nodes[:0]
        self._ticket.wait()  # also of a cancelled one: its pages are written until then
        self.sequence.commit(kept)
        self._tier._let_go(nodes)

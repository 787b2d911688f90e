"""`Block`: a whole automaton over the text of strings, ready to be copied into any machine.

The states of a format are the same in every grammar, so they are computed once in a process, and a grammar that uses
the format gets its rows by one copy instead of building them while masks are waited for.
"""

from collections import deque
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from infercore.constrained.loops import loops as c
from infercore.constrained.machine import Machine

_NEVER = 1 << 30


@dataclass(frozen=True)
class Block:
    """Text configs 0.. of one automaton, the first one its start.

    Attributes:
        span: [configs, 3] first byte that is not refused, number of cells, where they begin in `cells`.
        cells: 1 + next config, 0 where refused.
        accepts: [configs] whether the text may end.
        loops, distance: as in `_compiled.TABLES`.
    """

    span: npt.NDArray[np.int32]
    cells: npt.NDArray[np.int32]
    accepts: npt.NDArray[np.bool_]
    loops: npt.NDArray[np.int64]
    distance: npt.NDArray[np.int32]

    @classmethod
    def of(cls, machine: Machine, start: int) -> "Block":
        """What can be reached from text config `start` of `machine`."""
        number = {start: 0}
        queue = deque([start])
        rows = []
        while queue:
            row = machine.row(queue.popleft())
            rows.append(row)
            for target in dict.fromkeys(row.tolist()):
                if target and target not in number:
                    number[target] = len(number)
                    queue.append(target)
        configs = np.array(list(number), np.int64)
        renamed = np.zeros(int(configs.max()) + 1, np.int32)
        renamed[configs] = np.arange(1, len(configs) + 1)
        table = renamed[np.array(rows)]
        live = table != 0
        first = np.where(live.any(1), live.argmax(1), 0)
        size = np.where(live.any(1), 256 - live[:, ::-1].argmax(1) - first, 0)
        inside = (np.arange(256) >= first[:, None]) & (np.arange(256) < (first + size)[:, None])
        accepts = (machine.tables.status[configs] & c.ACCEPTS) != 0
        span = np.column_stack([first, size]).astype(np.int32)
        return cls.from_rows(span, table[inside], accepts, machine.tables.loops[configs], _distances(table, accepts))

    @classmethod
    def from_rows(
        cls,
        span: npt.NDArray[np.int32],
        cells: npt.NDArray[np.int32],
        accepts: npt.NDArray[np.bool_],
        loops: npt.NDArray[np.int64],
        distance: npt.NDArray[np.int32],
    ) -> "Block":
        """The same from the first two columns of `span`: rows lie one behind the other in `cells`."""
        at = np.cumsum(span[:, 1]) - span[:, 1]
        return cls(np.column_stack([span, at]).astype(np.int32), cells, accepts, loops, distance)

    def copy_to(self, machine: Machine) -> int:
        """Config of the start in `machine`."""
        return machine.add_configs(self.span, self.cells, self.accepts, self.loops, self.distance)


def _distances(table: npt.NDArray[np.int32], accepts: npt.NDArray[np.bool_]) -> npt.NDArray[np.int32]:
    """Code points that each config needs at least until it accepts."""
    source, byte = np.nonzero(table)
    costs = np.where((byte >= 0x80) & (byte < 0xC0), 0, 1)
    moves = np.unique(np.stack([source, table[source, byte] - 1, costs], axis=1), axis=0)
    distance = np.where(accepts, 0, _NEVER).astype(np.int64)
    while True:
        before = distance.copy()
        np.minimum.at(distance, moves[:, 0], distance[moves[:, 1]] + moves[:, 2])
        if (distance == before).all():
            return np.minimum(distance, _NEVER).astype(np.int32)

"""`shortest_text`: what a config of a text may go on with to its end, in few and readable characters."""

from collections import deque

from infercore.constrained.machine import Machine

_MAX_TEXTS = 20_000
_FILLERS = b"a0A- _.:/@#,1"  # characters tried first where text must grow


def texts_after(machine: Machine, config: int) -> list[tuple[int, int]]:
    """(byte, text config) for each text config one byte further, friendly bytes first, a quote and a backslash last."""
    row = machine.row(config).tolist()
    found: dict[int, int] = {}
    for byte in (*_FILLERS, *range(32, 256), *range(32)):
        if row[byte] and byte not in (34, 92):
            found.setdefault(row[byte], byte)
    for byte in (34, 92):
        if row[byte]:
            found.setdefault(row[byte], byte)
    return [(byte, target) for target, byte in found.items()]


def shortest_text(machine: Machine, config: int) -> bytes | None:
    """The fewest bytes behind which `config` accepts; None where a long search finds none.

    Cost: a breadth-first search over configs.
    """
    came: dict[int, tuple[int, int]] = {config: (-1, 0)}
    queue = deque([config])
    while queue and len(came) < _MAX_TEXTS:
        here = queue.popleft()
        if machine.accepts(here):
            text = bytearray()
            while here != config:
                here, byte = came[here]
                text.append(byte)
            return bytes(reversed(text))
        for byte, target in texts_after(machine, here):
            if target not in came:
                came[target] = (here, byte)
                queue.append(target)
    return None

"""`Completions`: short text that completes an output, so that it can be whole when its tokens run out.

The cost of a state is the least number of bytes from it to a return of its frame, found by Dijkstra's algorithm over
the states of that frame, calls counted with the cost of what they call; a config's completion is that of its cheapest
pair and of every frame on that pair's stack. In objects the order of the keys does not change the cost, so only one
missing key is tried next (`Machine.wanted_keys`). What is found is a completion, nearly always a shortest one.
"""

import heapq
from collections import deque

from infercore.constrained.loops import loops as c
from infercore.constrained.machine import Machine
from infercore.constrained.shortest import shortest_text, texts_after

_MAX_STATES = 4000  # of one frame; one that has no return within so many is given up
_MAX_TEXTS = 20_000
_SHORT_ESCAPES = {8: b"\\b", 9: b"\\t", 10: b"\\n", 12: b"\\f", 13: b"\\r", 34: b'\\"', 92: b"\\\\"}


class Completions:
    """Completions of the configs of one machine, remembered by state."""

    def __init__(self, machine: Machine) -> None:
        self.machine = machine
        self._of_state: dict[int, bytes | None] = {}
        self._by_rows: dict[int, bytes | None] = {}
        self._open: set[int] = set()
        self._was_cut = False

    def of_config(self, config: int) -> bytes | None:
        """Bytes that complete what `config` has read; None where none were found."""
        best: bytes | None = None
        pairs = self.machine.pairs(config)
        if not pairs:
            return self._of_rows(config)
        for state, stack in pairs:
            text = self._of_pair(state, stack, None if best is None else len(best))
            if text is not None and (best is None or len(text) < len(best)):
                best = text
        return best

    def _of_rows(self, config: int) -> bytes | None:
        """The same of a config of several automata at once, which has rows but no states."""
        if config not in self._by_rows:
            self._by_rows[config] = shortest_text(self.machine, config)
        return self._by_rows[config]

    def _of_pair(self, state: int, stack: int, limit: int | None) -> bytes | None:
        parts = []
        size = 0
        while True:
            text = self.of_state(state)
            if text is None:
                return None
            parts.append(text)
            size += len(text)
            if limit is not None and size >= limit:
                return None
            if stack == 0:
                return b"".join(parts)
            state, stack = (int(x) for x in self.machine.tables.stacks[stack, :2])

    def after_keys(self, config: int) -> list[bytes | None]:
        """For each key that may come of the one begun in `config`, its rest and a completion; None: none found."""
        machine = self.machine
        result: list[bytes | None] = []
        for state, stack in machine.pairs(config):
            _, spec, text, _, _ = machine.tables.node[state].tolist()
            came: dict[int, bytes] = {text: b""}
            queue = deque([text])
            while queue:
                here = queue.popleft()
                if machine.accepts(here):
                    ending = self._of_pair(machine.key_stub(spec, here), stack, None)
                    if ending is not None:  # else the key has come before
                        result.append(_encoded(came[here]) + b'"' + ending)
                for byte, target in texts_after(self.machine, here):
                    if target not in came:
                        came[target] = came[here] + bytes([byte])
                        queue.append(target)
                if len(came) > _MAX_TEXTS:
                    return [None]
        return result

    def of_state(self, state: int) -> bytes | None:
        """Bytes from `state` to a return of its frame."""
        if state in self._of_state:
            return self._of_state[state]
        if state in self._open:  # a shortest text of a value has no such value inside
            self._was_cut = True
            return None
        self._open.add(state)
        before, self._was_cut = self._was_cut, False
        try:
            text = self._search(state)
        finally:
            self._open.discard(state)
        if text is not None or not self._was_cut:
            self._of_state[state] = text
        self._was_cut = before or (self._was_cut and text is None)
        return text

    def _search(self, start: int) -> bytes | None:
        best = {start: 0}
        came: dict[int, tuple[int, bytes]] = {}
        heap = [(0, start)]
        num_done = 0
        while heap and num_done < _MAX_STATES:
            cost, state = heapq.heappop(heap)
            if cost > best[state]:
                continue
            num_done += 1
            known = self._of_state.get(state) if state != start else None
            if known is not None or int(self.machine.kind(state)) == c.RET:
                parts = [known or b""]
                while state != start:
                    state, text = came[state]
                    parts.append(text)
                return b"".join(reversed(parts))
            for text, target in self._moves(state):
                new = cost + len(text)
                if new < best.get(target, 1 << 60):
                    best[target] = new
                    came[target] = (state, text)
                    heapq.heappush(heap, (new, target))
        return None

    def _moves(self, state: int) -> list[tuple[bytes, int]]:
        """Texts that lead to other states of the same frame."""
        machine, tables = self.machine, self.machine.tables
        kind = machine.kind(state)  # expands a stub
        _, a, b, free_at, num_free = machine.tables.node[state].tolist()
        tables = machine.tables
        if kind == c.LIT:
            return [(bytes([a]), state + 1)]
        if kind == c.NODE:
            moves = [(b"", int(target)) for target in tables.free[free_at : free_at + num_free]]
            seen = set()
            for first, last, target in tables.edges[a : a + b].tolist():
                if target not in seen:
                    seen.add(target)
                    moves.append((bytes([48 if first <= 48 <= last else first]), target))
            return moves
        if kind == c.CALL:
            text = self.of_state(a)
            return [] if text is None else [(text, b)]
        if kind == c.COUNT:
            low, high = free_at, num_free
            moves = [(b"", b)] if low == 0 else []
            text = self.of_state(a) if high else None
            if text is not None and (low > 0 or high > 0):
                moves.append((text, machine.count(a, b, max(low - 1, 0), None if high < 0 else high - 1)))
            return moves
        if kind == c.STRING:
            return self._string_moves(state)
        return []

    def _string_moves(self, state: int) -> list[tuple[bytes, int]]:
        """The end of a JSON string, escapes that were begun included."""
        machine = self.machine
        _, spec, text, count, mode = machine.tables.node[state].tolist()
        if mode:
            return self._escape_moves(state)
        if (wanted := machine.wanted_keys.get(spec)) is not None:
            whole = self._wanted_moves(spec, text, wanted())
            if whole:
                return whole
        low, high = int(machine.tables.specs[spec, c.MIN_LEN]), int(machine.tables.specs[spec, c.MAX_LEN])
        close = int(machine.tables.specs[spec, c.CLOSE])
        start = (text, count)
        came: dict[tuple[int, int], tuple[tuple[int, int], int]] = {}
        queue = deque([start])
        met = {start}
        while queue and len(met) < _MAX_TEXTS:
            here = queue.popleft()
            config, length = here
            if machine.accepts(config) and length >= low:
                behind = close if close != c.KEY_DONE else machine.key_stub(spec, config)
                if close != c.KEY_DONE or self.of_state(behind) is not None:
                    decoded = bytearray()
                    while here != start:
                        here, byte = came[here]
                        decoded.append(byte)
                    return [(_encoded(bytes(reversed(decoded))) + b'"', behind)]
            for byte, target in texts_after(self.machine, config):
                more = length
                if byte & 0xC0 != 0x80:
                    if high >= 0 and length + 1 + machine.distance(target) > high:
                        continue
                    more = length + 1 if high >= 0 else min(length + 1, low)
                new = (target, more)
                if new not in met:
                    met.add(new)
                    came[new] = (here, byte)
                    queue.append(new)
        return []

    def _wanted_moves(self, spec: int, text: int, keys: list[str]) -> list[tuple[bytes, int]]:
        """Keys that are missing, from the start of their text on; none where another one has been begun."""
        machine = self.machine
        moves = []
        for key in keys:
            after = machine.text_after(text, key)
            if after and machine.accepts(after):
                moves.append((_encoded(key.encode()) + b'"', machine.key_stub(spec, after)))
        return moves

    def _escape_moves(self, state: int) -> list[tuple[bytes, int]]:
        """One byte further inside an escape."""
        machine = self.machine
        config = machine.intern([(state, 0)])
        row = machine.row(config).tolist()
        moves: dict[int, bytes] = {}
        for byte in (*b'nt"\\/bfr0123456789abcdefABCDEFu', *range(256)):
            if row[byte]:
                pairs = machine.pairs(row[byte])
                if len(pairs) == 1:
                    moves.setdefault(pairs[0][0], bytes([byte]))
        return [(text, target) for target, text in moves.items()]


def _encoded(decoded: bytes) -> bytes:
    """The UTF-8 of some text, or of its end, as a JSON string spells it."""
    if not any(byte < 32 or byte in (34, 92) for byte in decoded):
        return decoded
    return b"".join(_SHORT_ESCAPES.get(byte) or (b"\\u%04x" % byte if byte < 32 else bytes([byte])) for byte in decoded)

"""`Machine`: owns the arrays of the lazy pushdown, grows them, and expands stubs when the compiled loops ask for it.

Grammar frontends build states with the verbs below (`literal`, `node`, `call`, `ret`, `stub`, `string`); a stub is a
Python function that is called when a config first contains the state, and then defines it. So nothing is built that no
mask and no output has reached. States may refer to one another in any order, which gives recursion.
"""

from collections import deque
from collections.abc import Callable, Sequence
from time import monotonic
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from infercore._jit import Directory
from infercore.constrained.limits import Limits
from infercore.constrained.loops import loops as c
from infercore.constrained.trie import Trie
from infercore.errors import GrammarLimitError

Expander = Callable[[int], None]
"""Defines the stub state it is given, through `Machine.define_*`."""


class Tables(NamedTuple):
    """The arrays; `_compiled.TABLES` says what each holds."""

    header: npt.NDArray[np.int64]
    node: npt.NDArray[np.int32]
    native_key: npt.NDArray[np.int32]
    native_hash: npt.NDArray[np.int32]
    char_set: npt.NDArray[np.int64]
    pending: npt.NDArray[np.uint8]
    edges: npt.NDArray[np.int32]
    free: npt.NDArray[np.int32]
    specs: npt.NDArray[np.int32]
    stacks: npt.NDArray[np.int32]
    stack_hash: npt.NDArray[np.int32]
    row_span: npt.NDArray[np.int32]
    cells: npt.NDArray[np.int32]
    wanted: npt.NDArray[np.int32]
    row_work: npt.NDArray[np.int32]
    status: npt.NDArray[np.uint8]
    stay_set: npt.NDArray[np.int64]
    stay_room: npt.NDArray[np.int32]
    stay_far: npt.NDArray[np.int32]
    loops: npt.NDArray[np.int64]
    used: npt.NDArray[np.int64]
    twin: npt.NDArray[np.int32]
    twin_walk: npt.NDArray[np.int64]
    distance: npt.NDArray[np.int32]
    pairs_at: npt.NDArray[np.int64]
    pairs: npt.NDArray[np.int64]
    config_hash: npt.NDArray[np.int32]
    work: npt.NDArray[np.int64]
    pairs_out: npt.NDArray[np.int64]
    seen: npt.NDArray[np.int64]
    seen_stamp: npt.NDArray[np.int64]
    marks: npt.NDArray[np.uint8]
    stand: npt.NDArray[np.int32]
    line: npt.NDArray[np.int32]
    path: npt.NDArray[np.int32]
    alive: npt.NDArray[np.uint8]
    alive_walk: npt.NDArray[np.int64]
    met: npt.NDArray[np.int64]
    queue: npt.NDArray[np.int32]
    near: npt.NDArray[np.int32]
    doubts: npt.NDArray[np.uint32]


class StateBlock(NamedTuple):
    """States with byte edges alone, ready to be copied into machines."""

    nodes: npt.NDArray[np.int32]  # as in `Tables`, edges counted from 0
    edges: npt.NDArray[np.int32]  # first byte, last byte, target counted from 0
    leaving: npt.NDArray[np.int64]  # the edges that lead out of the block

    @classmethod
    def of(cls, rows: Sequence[Sequence[tuple[int, int, int]]]) -> "StateBlock":
        """The states with these edges (first, last, target); target -1 is behind the block."""
        edges = np.array([edge for row in rows for edge in row], np.int32).reshape(-1, 3)
        sizes = np.array([len(row) for row in rows], np.int32)
        nodes = np.zeros((len(rows), 5), np.int32)
        nodes[:, 0], nodes[:, 1], nodes[:, 2] = c.NODE, np.cumsum(sizes) - sizes, sizes
        return cls(nodes, edges, np.flatnonzero(edges[:, 2] < 0))


_UNUSED = np.full(5120, -1, np.int32)


class Machine:
    """States on demand, configs on demand.

    Args:
        limits: bounds on states, configs, depth and the seconds of one call.
    """

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self._expanders: dict[int, Expander] = {}
        self._row_makers: dict[int, Callable[[int], npt.NDArray[np.int32]]] = {}
        self.key_done: dict[int, Callable[[int, int], None]] = {}  # string spec -> expander (state, text config)
        self.wanted_keys: dict[int, Callable[[], list[str]]] = {}  # string spec of a key -> keys to complete an object
        self.pending_keys: dict[int, Callable[[bytes], int]] = {}  # state behind a key or item -> by text, the state
        # COUNT states that read any text, behind which what must follow can always still come
        self.any_loops: set[int] = set()
        self._configs_of: dict[int, int] = {}  # of states that stand for a config, see `state_of`
        self._num_served = 0
        self.exact_sets: set[int] = set()  # states whose `char_set` is all that they read
        self.is_plain = False  # no JSON strings, now or later
        self.alphabet = -1  # bits of characters that the output can have, see `charsets`
        self.records_all = False  # outputs remember their whole text, not only undeclared keys
        self.num_edges = self.num_free = self.num_specs = 0
        self._free_lists: dict[tuple[int, ...], int] = {}
        self.tables = Tables(
            header=np.zeros(c.HEADER_SIZE, np.int64),
            node=np.zeros((1024, 5), np.int32),
            native_key=_UNUSED[:5120].reshape(1024, 5).copy(),
            native_hash=_UNUSED[:2048].copy(),
            char_set=np.zeros(1024, np.int64),
            pending=np.zeros(1024, np.uint8),
            edges=np.zeros((512, 3), np.int32),
            free=np.zeros(1024, np.int32),
            specs=np.zeros((64, 6), np.int32),
            stacks=np.zeros((512, 3), np.int32),
            stack_hash=_UNUSED[:1024].copy(),
            row_span=np.zeros((256, 3), np.int32),
            cells=np.zeros(8192, np.int32),
            wanted=np.zeros(64, np.int32),
            row_work=np.zeros(256, np.int32),
            status=np.zeros(256, np.uint8),
            stay_set=np.zeros(256, np.int64),
            stay_room=np.zeros(256, np.int32),
            stay_far=_UNUSED[:256].copy(),
            loops=np.zeros(256, np.int64),
            used=np.zeros(256, np.int64),
            twin=np.zeros(256, np.int32),
            twin_walk=np.zeros(256, np.int64),
            distance=_UNUSED[:256].copy(),
            pairs_at=np.zeros(257, np.int64),
            pairs=np.zeros(2048, np.int64),
            config_hash=_UNUSED[:512].copy(),
            work=np.zeros(1024, np.int64),
            pairs_out=np.zeros(1024, np.int64),
            seen=np.zeros(2048, np.int64),
            seen_stamp=np.zeros(2048, np.int64),
            marks=np.zeros(257, np.uint8),
            stand=np.zeros((2, 7), np.int32),
            line=np.zeros(2, np.int32),
            path=np.zeros((2, 7), np.int32),
            alive=np.zeros((256, 10), np.uint8),
            alive_walk=np.zeros((256, 5), np.int64),
            met=np.zeros(256, np.int64),
            queue=np.zeros((64, 2), np.int32),
            near=np.zeros(128, np.int32),
            doubts=np.zeros(1, np.uint32),
        )
        self._directory = Directory(c.TABLES)
        self._view()
        header = self.tables.header
        header[c.NUM_STATES] = header[c.NUM_CONFIGS] = header[c.NUM_STACKS] = (
            1  # 0: dead state, dead config, empty stack
        )
        header[c.MAX_DEPTH] = limits.max_depth
        self.tables.status[0] = c.KNOWN

    def use_vocabulary(self, max_token_size: int, num_words: int) -> None:
        """Make room for walks over a vocabulary's tries."""
        self._replace(
            line=np.zeros(max_token_size + 2, np.int32),
            path=np.zeros((max_token_size + 2, 7), np.int32),
            doubts=np.zeros(num_words, np.uint32),
        )

    # Building states -------------------------------------------------------------------------------------------------

    def new_states(self, count: int) -> int:
        """First of `count` consecutive undefined states."""
        first: int = self._header[c.NUM_STATES]
        while first + count > self._state_room:
            self._grow_states()
        self._header[c.NUM_STATES] = first + count
        return first

    def stub(self, expander: Expander) -> int:
        """A state that `expander` defines at its first visit."""
        state = self.new_states(1)
        self._expanders[state] = expander
        return state

    def _set(self, state: int, kind: int, a: int, b: int) -> None:
        """Define a state by its first three columns."""
        flat, at = self._node_view, 5 * state
        flat[at], flat[at + 1], flat[at + 2], flat[at + 3], flat[at + 4] = kind, a, b, 0, 0

    def literal(self, text: bytes, then: int) -> int:
        """First state of a chain that reads `text` and goes on at `then`."""
        if not text:
            return then
        first = self._chain(text)
        self.define(first + len(text), free=[then])
        return first

    def literal_call(self, text: bytes, entry: int, then: int) -> int:
        """First state of a chain that reads `text`, runs `entry` up to its `ret`, and goes on at `then`."""
        first = self._chain(text)
        self._set(first + len(text), c.CALL, entry, then)
        return first

    def literal_stub(self, text: bytes, expander: Expander) -> int:
        """First state of a chain that reads `text` and ends in a stub."""
        first = self._chain(text)
        self._expanders[first + len(text)] = expander
        return first

    def _chain(self, text: bytes) -> int:
        """First of consecutive states that read `text`; the one behind them is yet to be defined."""
        first = self.new_states(len(text) + 1)
        if len(text) > 8:
            node = self.tables.node
            node[first : first + len(text), 0] = c.LIT
            node[first : first + len(text), 1] = np.frombuffer(text, np.uint8)
            return first
        flat = self._node_view  # for few, items of a memoryview are set faster than slices of an array
        for i, byte in enumerate(text, first):
            flat[5 * i] = c.LIT
            flat[5 * i + 1] = byte
        return first

    def node(self, edges: Sequence[tuple[int, int, int]] = (), free: Sequence[int] = ()) -> int:
        """A state with byte edges (first, last, target) and free moves."""
        state = self.new_states(1)
        self.define(state, edges, free)
        return state

    def define(self, state: int, edges: Sequence[tuple[int, int, int]] = (), free: Sequence[int] = ()) -> None:
        """Turn a stub, or an undefined state, into one with these edges and free moves."""
        edge_at, free_at = self.num_edges, self.num_free
        if edges:
            if edge_at + len(edges) > self._edge_room:
                self._replace(edges=_longer(self.tables.edges, edge_at + len(edges)))
            if len(edges) < 4:
                at = 3 * edge_at
                for edge in edges:
                    self._edges_view[at], self._edges_view[at + 1], self._edges_view[at + 2] = edge
                    at += 3
            else:
                self.tables.edges[edge_at : edge_at + len(edges)] = edges
            self.num_edges += len(edges)
        if free:
            if free_at + len(free) > self._free_room:
                self._replace(free=_longer(self.tables.free, free_at + len(free)))
            if len(free) == 1:
                self._free_view[free_at] = free[0]
            else:
                self.tables.free[free_at : free_at + len(free)] = free
            self.num_free += len(free)
        flat, at = self._node_view, 5 * state
        flat[at], flat[at + 1], flat[at + 2], flat[at + 3], flat[at + 4] = (
            c.NODE,
            edge_at,
            len(edges),
            free_at,
            len(free),
        )

    def define_string(self, state: int, spec: int, text: int) -> None:
        """Turn a stub into the state after the opening quote of a JSON string whose text is read by config `text`."""
        if text == self.tables.header[c.ANY_CONFIG]:  # the state is met again further on
            self.define(state, free=[self.string_body(spec, text)])
        else:
            self._set(state, c.STRING, spec, text)

    def call(self, entry: int, then: int) -> int:
        """A state that runs what starts at `entry` up to its `ret`, then goes on at `then`."""
        state = self.new_states(1)
        self._set(state, c.CALL, entry, then)
        return state

    def count(self, entry: int, then: int, low: int, high: int | None) -> int:
        """A state that runs what starts at `entry` `low` to `high` times (None: without bound), then goes on at `then`.

        What is run must read something before it returns.
        """
        most = -1 if high is None else min(high, 2**31 - 2)
        least = min(low, 2**31 - 2)
        return self._run(lambda: int(c.native_state(self._handle, c.COUNT, entry, then, least, most)))

    def add_block(self, block: StateBlock, then: int) -> int:
        """First of new states that are those of `block`, which lead to state `then`."""
        first = self.new_states(len(block.nodes))
        at, end = self.num_edges, self.num_edges + len(block.edges)
        if end > self.tables.edges.shape[0]:
            self._replace(edges=_longer(self.tables.edges, end))
        edges = self.tables.edges[at:end]
        edges[:] = block.edges
        edges[:, 2] += first
        edges[block.leaving, 2] = then
        self.num_edges = end
        node = self.tables.node[first : first + len(block.nodes)]
        node[:] = block.nodes
        node[:, 1] += at
        return first

    def ret(self, label: int = 0) -> int:
        """A state that returns to the caller; on an empty stack the config accepts, with `label`."""
        state = self.new_states(1)
        self._set(state, c.RET, label, 0)
        return state

    def string_spec(
        self,
        *,
        close: int,
        min_length: int = 0,
        max_length: int | None = None,
        record: bool = False,
        key_done: Callable[[int, int], None] | None = None,
        wanted: Callable[[], list[str]] | None = None,
    ) -> int:
        """What a JSON string must be: length in code points, and where its closing quote leads.

        Args:
            close: state after the closing quote, or -1: `key_done(state, text_config)` defines a state for each text.
            record: outputs remember the text so far while they are inside this string.
            wanted: for a key: keys of which one is to come next where the object is to be completed soon; empty: any.
        """
        index = self.num_specs
        if index == self.tables.specs.shape[0]:
            self._replace(specs=_longer(self.tables.specs, index + 1))
        limit = -1 if max_length is None else min(max_length, 2**31 - 1)
        self.tables.specs[index] = (min(min_length, 2**31 - 1), limit, close, record, 0, 0)
        self.num_specs += 1
        if key_done is not None:
            self.key_done[index] = key_done
        if wanted is not None:
            self.wanted_keys[index] = wanted
        return index

    def string_body(self, spec: int, text: int) -> int:
        """State after the opening quote of a JSON string whose decoded text is read by config `text`."""
        return self._run(lambda: int(c.native_state(self._handle, c.STRING, spec, text, 0, 0)))

    def mark_any(self, config: int) -> None:
        """Make known which config reads any text, before other text configs are made: masks use slices for it."""
        self.tables.header[c.ANY_CONFIG] = config
        self.tables.status[config] |= c.HAS_ANY

    def config_from_rows(self, row_maker: Callable[[int], npt.NDArray[np.int32]], *, accepts: bool) -> int:
        """A config whose row Python computes: `row_maker(config)` gives 256 next configs when it is asked for."""
        while self.tables.header[c.NUM_CONFIGS] + 1 >= self.tables.row_span.shape[0]:
            self._grow_configs()
        config = int(self.tables.header[c.NUM_CONFIGS])
        self.tables.header[c.NUM_CONFIGS] = config + 1
        self.tables.pairs_at[config + 1] = self.tables.pairs_at[config]
        self.tables.status[config] = c.FROM_PYTHON | (c.ACCEPTS if accepts else 0)
        self.tables.distance[config] = 0 if accepts else -1
        self._row_makers[config] = row_maker
        return config

    def add_configs(
        self,
        span: npt.NDArray[np.int32],
        cells: npt.NDArray[np.int32],
        accepts: npt.NDArray[np.bool_],
        loops: npt.NDArray[np.int64],
        distance: npt.NDArray[np.int32],
    ) -> int:
        """The first of new text configs whose rows are known; see `block.Block` for what the arrays hold."""
        header = self.tables.header
        first, at = int(header[c.NUM_CONFIGS]), int(header[c.NUM_CELLS])
        end = first + len(span)
        while end + 1 >= self.tables.row_span.shape[0]:
            self._grow_configs()
        if at + len(cells) > self.tables.cells.shape[0]:
            self._replace(cells=_longer(self.tables.cells, at + len(cells)))
        tables = self.tables
        tables.cells[at : at + len(cells)] = np.where(cells, cells + (first - 1), 0)
        tables.row_span[first:end] = span
        tables.row_span[first:end, 2] += at
        tables.pairs_at[first + 1 : end + 1] = tables.pairs_at[first]
        tables.status[first:end] = np.where(accepts, c.KNOWN | c.ACCEPTS, c.KNOWN)
        tables.loops[first:end] = loops
        tables.distance[first:end] = distance
        header[c.NUM_CONFIGS], header[c.NUM_CELLS] = end, at + len(cells)
        return first

    # Running ---------------------------------------------------------------------------------------------------------

    def start(self, state: int) -> int:
        """Config of `state` with an empty stack."""
        if state in self._configs_of:
            return self._configs_of[state]
        return self._run(lambda: int(c.start_config(self._handle, state)))

    def state_of(self, config: int) -> int:
        """A state that `start` turns into `config`, and that leads nowhere elsewhere."""
        state = self.node()
        self._configs_of[state] = config
        return state

    def row(self, config: int) -> npt.NDArray[np.int32]:
        """Next config for each byte, 0 where refused."""
        self._run(lambda: int(c.ensure_row(self._handle, config)))
        first, size, at = self.tables.row_span[config].tolist()
        row = np.zeros(256, np.int32)
        row[first : first + size] = self.tables.cells[at : at + size]
        return row

    def is_end(self, config: int) -> bool:
        """Whether no byte may follow."""
        self._run(lambda: int(c.ensure_row(self._handle, config)))
        return int(self.tables.row_span[config, 1]) == 0

    def accepts(self, config: int) -> bool:
        return bool(self.status[config] & c.ACCEPTS)

    def pairs(self, config: int) -> list[tuple[int, int]]:
        """(state, stack) pairs of a config."""
        begin, end = self.tables.pairs_at[config : config + 2]
        return [(item >> 32, item & 0xFFFFFFFF) for item in self.tables.pairs[begin:end].tolist()]

    def labels(self, config: int) -> set[int]:
        """Labels of the accepting states in a config; 0 for one that was copied and accepts."""
        begin, end = self.tables.pairs_at[config : config + 2].tolist()
        if begin == end:
            return {0} if self.accepts(config) else set()
        node = self._node_view
        return {
            node[5 * (item >> 32) + 1]
            for item in self.tables.pairs[begin:end].tolist()
            if not item & 0xFFFFFFFF and node[5 * (item >> 32)] == c.RET
        }

    def intern(self, pairs: Sequence[tuple[int, int]]) -> int:
        """Config of these pairs, which must be closed under free moves."""
        items = sorted({(state << 32) | stack for state, stack in pairs})
        while len(items) > self.tables.pairs_out.shape[0]:
            self._grow_work()

        def step() -> int:
            self.tables.pairs_out[: len(items)] = items
            return int(c.intern_pairs(self._handle, len(items)))

        return self._run(step)

    def step(
        self, config: int, data: npt.NDArray[np.uint8], begin: int, stop_mask: int, recording: int = 0
    ) -> tuple[int, int]:
        """Config after the bytes from `begin` on, and how many were read.

        Stops early at a config with a bit of `stop_mask`, or without the bit `recording`.
        """
        deadline = 0.0
        header = self._header
        while (after := int(c.step_bytes(self._handle, config, data, begin, stop_mask, recording))) == c.NEED:
            config, begin = header[c.NEED_CONFIG], header[c.POSITION]
            deadline = self.serve(deadline)
        return after, header[c.POSITION]

    def walk_plain(
        self,
        trie: Trie,
        config: int,
        bitmask: npt.NDArray[np.uint32],
        covered: int = 0,
        room: int = 0,
        *,
        is_text: bool = False,
    ) -> None:
        """As `walk`, for a machine without JSON strings, or (is_text) for decoded text.

        covered, room: `bitmask` has the tokens of up to `room` bytes whose bits are all `covered`, see `charsets`.
        """
        begin, deadline = 0, 0.0
        while c.walk_plain(self._handle, trie.handle, config, begin, bitmask, covered, room, is_text) == c.NEED:
            begin = self._header[c.POSITION]
            deadline = self.serve(deadline)

    def walk(self, trie: Trie, config: int, bitmask: npt.NDArray[np.uint32]) -> None:
        """Set in `bitmask` what `config` allows of `trie`; see `_compiled.walk_trie`."""
        begin, deadline = 0, 0.0
        while c.walk_trie(self._handle, trie.handle, config, begin, bitmask) == c.NEED:
            begin = self._header[c.POSITION]
            deadline = self.serve(deadline)

    def try_tokens(
        self,
        data: npt.NDArray[np.uint8],
        ends: npt.NDArray[np.int64],
        token_ids: npt.NDArray[np.int64],
        config: int,
        bitmask: npt.NDArray[np.uint32],
    ) -> None:
        """Set in `bitmask` those of `token_ids` that `config` allows; `ends` says where each token ends in `data`."""
        begin, deadline = 0, 0.0
        while c.try_tokens(self._handle, data, ends, token_ids, begin, config, bitmask) == c.NEED:
            begin = self._header[c.POSITION]
            deadline = self.serve(deadline)

    def ends(
        self,
        trie: Trie,
        config: int,
        wanted: npt.NDArray[np.uint32],
        num_tokens: int,
    ) -> npt.NDArray[np.int32]:
        """Config behind each token of `trie` that is set in `wanted`, by token id."""
        ends = np.zeros(num_tokens, np.int32)
        begin, deadline = 0, 0.0
        while c.walk_ends(self._handle, trie.handle, config, begin, wanted, ends) == c.NEED:
            begin = self._header[c.POSITION]
            deadline = self.serve(deadline)
        return ends

    def same_shape(self, first: int, second: int, used: npt.NDArray[np.int64]) -> bool:
        """Whether tokens go on from text config `second` as from `first`; see `_compiled.same_shape`."""
        queue = np.zeros(512, np.int32)
        return bool(self._run(lambda: int(c.same_shape(self._handle, first, second, used, queue))))

    def distance(self, config: int) -> int:
        """Code points that text config `config` needs at least until it accepts; 2**30 where it never does."""
        known = self.tables.distance
        if known[config] >= 0:
            return int(known[config])
        best = {config: 0}
        before: dict[int, tuple[int, int]] = {}
        queue = deque([config])
        found = -1
        while queue and found < 0:
            here = queue.popleft()
            if self.accepts(here):
                found = here
                break
            row = self.row(here)
            starts, follows = set(row[:0x80].tolist()) | set(row[0xC0:].tolist()), set(row[0x80:0xC0].tolist())
            for cost, targets in ((0, follows), (1, starts)):
                for target in targets - {0}:
                    if best[here] + cost < best.get(target, 1 << 30):
                        best[target] = best[here] + cost
                        before[target] = (here, cost)
                        if cost:
                            queue.append(target)
                        else:
                            queue.appendleft(target)
        left = 0 if found >= 0 else 1 << 30
        self.tables.distance[config if found < 0 else found] = left
        while found >= 0 and found in before:
            found, cost = before[found]
            left += cost
            self.tables.distance[found] = left
        return int(self.tables.distance[config])

    def any_loop(self, config: int) -> int:
        """The loop of `any_loops` that text config `config` is in, between two characters; -1: none."""
        if not self.any_loops:
            return -1
        stacks, node = self.tables.stacks, self.tables.node
        for state, stack in self.pairs(config):
            under = int(stacks[stack, 0])
            if under in self.any_loops and node[under, 1] == state:
                return under
        return -1

    def is_last_count(self, config: int) -> bool:
        """Whether all that may follow is what `stay_set` says, `stay_room` times at most, and the end."""
        node, stacks = self.tables.node, self.tables.stacks
        for state, stack in self.pairs(config):
            under, below = stacks[stack, :2].tolist()
            if stack == 0:
                if node[state, 0] != c.RET:
                    return False
            elif (
                below
                or state not in self.exact_sets
                or node[under, 0] != c.COUNT
                or node[under, 1] != state
                or node[node[under, 2], 0] != c.RET
            ):
                return False
        return True

    def string_at(self, config: int) -> tuple[int, int, int] | None:
        """(spec, text config, code points) of a config inside one JSON string, not inside an escape."""
        begin, end = self.tables.pairs_at[config : config + 2].tolist()
        if begin == end:
            return None
        state = int(self.tables.pairs[begin]) >> 32
        kind, spec, text, count, mode = self.tables.node[state].tolist()
        if kind != c.STRING or mode or int(self.tables.pairs[end - 1]) >> 32 != state:
            return None
        return spec, text, count

    def kind(self, state: int) -> int:
        """Kind of a state, which is expanded if it is a stub."""
        if self.tables.node[state, 0] == c.STUB:
            self._expand(state)
        return int(self.tables.node[state, 0])

    def key_stub(self, spec: int, text: int) -> int:
        """State behind the closing quote of a key whose text is read by `text`."""
        return self._run(lambda: int(c.native_state(self._handle, c.STUB, spec, text, 0, 0)))

    def text_after(self, text: int, more: str) -> int:
        """Text config after these characters; 0 where they are refused."""
        return self.step(text, np.frombuffer(more.encode(), np.uint8), 0, 0)[0]

    def is_wide(self, text: int) -> bool:
        """Whether many bytes may follow text config `text`, some of which begin a character."""
        if not self.tables.status[text] & c.KNOWN:
            self._run(lambda: int(c.ensure_row(self._handle, text)))
        return int(self.tables.row_span[text, 0]) < 0x80 and int(self.tables.row_span[text, 1]) >= 24

    def forced_byte(self, config: int) -> int:
        """The one byte that may follow, -1 if there is a choice or the config accepts."""
        deadline = 0.0
        while (byte := int(c.forced_byte(self._handle, config))) == -2:
            deadline = self.serve(deadline)
        return byte

    def _run(self, function: Callable[[], int]) -> int:
        deadline = 0.0
        while (result := function()) == c.NEED:
            deadline = self.serve(deadline)
        return result

    def serve(self, deadline: float) -> float:
        """Do what compiled code asked for. `deadline` is 0 in the first call of an operation, then what this returned.

        Raises: GrammarLimitError where that would pass a limit.
        """
        now = monotonic()
        self._num_served += 1
        if not deadline:
            deadline = now + self.limits.max_seconds
            self._num_served = 0
        elif now > deadline and self._num_served > 200:  # a few slow ones are code being compiled
            raise GrammarLimitError(
                f"one step of this grammar takes more than {self.limits.max_seconds} s; simplify it, or raise "
                "Limits(max_seconds=...)"
            )
        what, arg = self._header[c.NEED_WHAT], self._header[c.NEED_ARG]
        if what == c.EXPAND:
            for state in set(self.tables.wanted[: self._header[c.NUM_WANTED]].tolist()):
                if self._node_view[5 * state] == c.STUB:
                    self._expand(state)
        elif what == c.PYTHON_ROW:
            if arg in self._row_makers and not self.tables.status[arg] & c.KNOWN:
                row = self._row_makers.pop(arg)(arg)
                self._run(lambda: int(c.store_row(self._handle, arg, row)))
            else:
                self.row(arg)
        elif what == c.DISTANCE:
            self.distance(arg)
        elif what == c.GROW_STATES:
            self._grow_states()
        elif what == c.GROW_CONFIGS:
            self._grow_configs()
        elif what == c.GROW_STACKS:
            stacks = _longer(self.tables.stacks, 2 * self.tables.stacks.shape[0])
            self._replace(stacks=stacks, stack_hash=np.full(2 * stacks.shape[0], -1, np.int32))
            c.rehash(self._handle, _NONE, _NONE, self.tables.stack_hash)
        elif what == c.GROW_CELLS:
            self._replace(cells=_longer(self.tables.cells, 2 * self.tables.cells.shape[0]))
        elif what == c.GROW_PAIRS:
            self._replace(pairs=_longer(self.tables.pairs, 2 * self.tables.pairs.shape[0] + arg))
        elif what == c.GROW_WORK:
            self._grow_work()
        else:
            raise GrammarLimitError(
                f"the output would be nested more than {self.limits.max_depth} deep, or the schema refers to itself "
                "without end; raise Limits(max_depth=...)"
            )
        return deadline

    def _expand(self, state: int) -> None:
        expander = self._expanders.get(state)
        if expander is not None:
            expander(state)
            del self._expanders[state]  # not before: it may raise, and is asked again then
            return
        kind, spec, text = self.tables.native_key[state, :3].tolist()
        if kind != c.STUB:
            raise AssertionError(f"state {state} was never defined")
        self.key_done[spec](state, text)

    def _grow_states(self) -> None:
        tables = self.tables
        size = 2 * tables.node.shape[0]
        if size > 2 * self.limits.max_states:
            raise GrammarLimitError(
                f"the grammar needs more than {self.limits.max_states} states; simplify it, or raise "
                f"Limits(max_states=...)"
            )
        self._replace(
            node=_longer(tables.node, size),
            native_key=_longer(tables.native_key, size, fill=-1),
            native_hash=np.full(2 * size, -1, np.int32),
            char_set=_longer(tables.char_set, size),
            pending=_longer(tables.pending, size),
        )
        c.rehash(self._handle, _NONE, self.tables.native_hash, _NONE)

    def _grow_configs(self) -> None:
        tables = self.tables
        size = 2 * tables.row_span.shape[0]
        if size > 2 * self.limits.max_configs:
            raise GrammarLimitError(
                f"the grammar needs more than {self.limits.max_configs} configs; simplify it, or raise "
                "Limits(max_configs=...)"
            )
        self._replace(
            row_span=_longer(tables.row_span, size),
            status=_longer(tables.status, size),
            stay_set=_longer(tables.stay_set, size),
            stay_room=_longer(tables.stay_room, size),
            stay_far=_longer(tables.stay_far, size),
            loops=_longer(tables.loops, size),
            used=_longer(tables.used, size),
            twin=_longer(tables.twin, size),
            twin_walk=_longer(tables.twin_walk, size),
            alive=_longer(tables.alive, size),
            alive_walk=_longer(tables.alive_walk, size),
            met=_longer(tables.met, size),
            distance=_longer(tables.distance, size),
            pairs_at=_longer(tables.pairs_at, size + 1),
            config_hash=np.full(2 * size, -1, np.int32),
        )
        c.rehash(self._handle, self.tables.config_hash, _NONE, _NONE)

    def _grow_work(self) -> None:
        size = 2 * self.tables.work.shape[0]
        if size > 2 * self.limits.max_configs:
            raise GrammarLimitError("one config of the grammar holds too many states; simplify it")
        self._replace(
            work=np.zeros(size, np.int64),
            pairs_out=np.zeros(size, np.int64),
            seen=np.zeros(2 * size, np.int64),
            seen_stamp=np.zeros(2 * size, np.int64),
        )

    def _replace(self, **arrays: npt.NDArray[np.generic]) -> None:
        self.tables = self.tables._replace(**arrays)  # type: ignore[arg-type]
        self._view()

    def _view(self) -> None:
        self._directory.show(self.tables)
        self._handle = self._directory.handle
        tables = self.tables  # single items of a memoryview are read and set faster than those of an array
        self._header = tables.header.data
        self.status = tables.status.data
        self._node_view, self._state_room = tables.node.reshape(-1).data, tables.node.shape[0]
        self._edges_view, self._edge_room = tables.edges.reshape(-1).data, tables.edges.shape[0]
        self._free_view, self._free_room = tables.free.data, tables.free.shape[0]


def _longer(array: npt.NDArray[np.generic], rows: int, *, fill: int = 0) -> npt.NDArray[np.generic]:
    rows = max(rows, 2 * array.shape[0])
    longer = np.empty((rows, *array.shape[1:]), array.dtype)
    longer[: array.shape[0]] = array
    longer[array.shape[0] :] = fill
    return longer


_NONE = np.zeros(1, np.int32)

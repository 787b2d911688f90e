"""The lazy pushdown machine as loops over arrays: rows of the deterministic automaton, and walks over the token trie.

A *state* is a row of `node`; a *config* is a sorted set of (state, stack) pairs interned to an int, with one row of 256
next configs, filled at first use. A *stack* is a hash-consed list of return states. `machine.py` says what each array
holds and grows them. A function that meets something only Python can do (expand a stub, grow an array) notes it in
`header`, returns NEED, and is called again; all it did before is kept and harmless.
"""

from typing import no_type_check

import numpy as np

from infercore._jit import Field, arrays_at, compiled, compiled_in_place

# Columns of `node` (int32 [states, 5]) are kind, a, b, c, d.
STUB = 0  # not expanded yet; KEY_DONE natives: a = string spec, b = config of the key
LIT = 1  # byte a leads to the next state
NODE = 2  # b byte edges from `edges[a]` on, d free moves from `free[c]` on
CALL = 3  # enter state a, return to state b
RET = 4  # return to the caller; with an empty stack: accept, with label a
STRING = 5  # inside a JSON string: a = spec, b = config of the decoded text, c = code points so far, d = mode
COUNT = 6  # enter state a, c to d times (d = -1: any number of times), then go on at state b

# Entries of `header` (int64).
NUM_STATES, NUM_CONFIGS, NUM_STACKS, NUM_PAIRS, NUM_NATIVE = 0, 1, 2, 3, 4
NEED_WHAT, NEED_ARG, NEED_CONFIG, POSITION, STAMP = 5, 6, 7, 8, 9
MAX_DEPTH, ANY_CONFIG, REACH, NUM_CELLS, NUM_WANTED, DOUBTS, FARTHEST, WALK = 10, 11, 12, 13, 14, 15, 16, 17
SEARCH, LEFT_AT = 18, 19
HEADER_SIZE = 20

# ANY_CONFIG: the config that reads any text. REACH: code points that one token may add. FARTHEST: the longest distance
# that a bounded string has met. WALK: what `used` gets for each text config whose row is looked at.

# What NEED asks for, in header[NEED_WHAT].
EXPAND, PYTHON_ROW, GROW_STATES, GROW_CONFIGS, GROW_STACKS, GROW_PAIRS, GROW_WORK, TOO_DEEP = 1, 2, 3, 4, 5, 6, 7, 8
DISTANCE, GROW_CELLS = 9, 10
NEED = -1
REFUSED = -2

# Bits of `status` (uint8, one per config).
KNOWN, ACCEPTS, FROM_PYTHON, RECORDS, PENDING, FREE, HAS_ANY, STRICT = 1, 2, 4, 8, 16, 32, 64, 128

_LARGE = 12  # subtrees of more nodes may be worth a look ahead
_FAR = 1 << 20  # code points to a bound that no token comes near

# Columns of `specs` (int32 [specs, 6]): of JSON strings.
MIN_LEN, MAX_LEN, CLOSE, RECORD = 0, 1, 2, 3
KEY_DONE = -1  # value of CLOSE: the closing quote leads to a stub (spec, config), not to one state

# Modes of a STRING state: stage << 24 | value.
STAGE = 1 << 24
IN_STRING = -1  # in a path: inside one JSON string
PLAIN, ESCAPE, HEX0, HEX1, HEX2, HEX3, HIGH, HIGH_ESCAPE, LOW0, LOW1, LOW2, LOW3 = 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11


TABLES = (
    Field("header", "int64"),  # counters and requests, see above
    Field("node", "int32", 5),  # [states] kind and four columns
    Field("native_key", "int32", 5),  # [states] what a state made by compiled code stands for
    Field("native_hash", "int32"),  # open addressing over `native_key`
    Field("char_set", "int64"),  # [states] where one reads a character and returns: the bits covered, see `charsets`
    Field(
        "pending", "uint8"
    ),  # [states] 1: a key or item has just ended here, its text is not yet known; 2: and decides what follows
    Field("edges", "int32", 3),  # [edges] first byte, last byte, target
    Field("free", "int32"),  # [free moves] target
    Field("specs", "int32", 6),  # [specs] of JSON strings
    Field("stacks", "int32", 3),  # [stacks] return state, stack below, depth; stack 0 is empty
    Field("stack_hash", "int32"),
    Field("row_span", "int32", 3),  # [configs] first byte that is not refused, number of cells, where they begin
    Field("cells", "int32"),  # next configs, 0 = refused
    Field("wanted", "int32"),  # [64] stubs to expand
    Field("row_work", "int32"),  # [256] a row being computed
    Field("status", "uint8"),  # [configs] bits
    Field("stay_set", "int64"),  # [configs] characters of these bits leave the config alive, so many times
    Field("stay_room", "int32"),  # [configs]
    Field("stay_far", "int32"),  # [configs] see `_stay_far`; -1: unknown
    Field("loops", "int64"),  # [configs] classes of bytes that all lead a config to itself, once its row is known
    Field("used", "int64"),  # [configs] header[WALK] when the row of a text config was last looked at
    Field("twin", "int32"),  # [configs] of `same_shape`, valid where `twin_walk` says so
    Field("twin_walk", "int64"),
    Field("distance", "int32"),  # [configs] code points that a text config needs at least to accept, -1: unknown
    Field("pairs_at", "int64"),  # [configs + 1] where a config's pairs begin
    Field("pairs", "int64"),  # state << 32 | stack, sorted within a config
    Field("config_hash", "int32"),
    Field("work", "int64"),
    Field("pairs_out", "int64"),
    Field("seen", "int64"),
    Field("seen_stamp", "int64"),
    Field("marks", "uint8"),
    Field("stand", "int32", 7),  # [2] where `step_bytes` stands, as rows of a path
    Field("line", "int32"),  # [depths of a trie] configs of a plain walk, see `walk_plain`
    Field("path", "int32", 7),  # [depths of a trie] where a walk stands, see `walk_trie`
    Field(
        "alive", "uint8", 10
    ),  # [configs] for each of SETS the height of `_stays_alive`, then that at which it failed
    Field("alive_walk", "int64", 5),  # [configs] header[WALK] when that was last looked at
    Field("met", "int64"),  # [configs] header[SEARCH] when a search came past
    Field("queue", "int32", 2),  # [64] configs of `_stays_alive`, and what must follow in a character
    Field("near", "int32"),  # [128] configs of `_distance_of`
    Field("doubts", "uint32"),  # words of a mask: tokens that only `advance` can decide, see `walk_trie`
)
"""The arrays of a machine, as loops see them; `machine.py` owns them."""

TRIE = (
    Field("byte", "uint8"),
    Field("depth", "int16"),
    Field("skip", "int32"),
    Field("tokens_at", "int32"),
    Field("token_ids", "int32"),
    Field("classes", "int64"),
    Field("tall", "int16"),
    Field("own", "int8"),
)
"""The arrays of a trie, see `build_trie`."""

_tables = arrays_at(TABLES)
_trie = arrays_at(TRIE)

# Bit of the class of each byte, int64 [256]: classes that patterns rarely split. Above 0x7F one byte does not tell it.
_SINGLES = [9, 10, 13, 32, *range(33, 48), *range(58, 65), *range(91, 97), *range(123, 128)]
# Classes of bytes above 0x7F. Of a character, or of its beginning: SPACED where others with its first byte are white
# space, else FOREIGN. ODD: of anything else.
FOREIGN, SPACED, ODD = 61, 62, 63
BYTE_CLASS = np.full(256, ODD, np.int64)
BYTE_CLASS[0xC2:0xF5] = FOREIGN
BYTE_CLASS[[0xC2, 0xE1, 0xE2, 0xE3]] = SPACED
BYTE_CLASS[:32] = 0
BYTE_CLASS[_SINGLES] = np.arange(1, 1 + len(_SINGLES))
BYTE_CLASS[48] = 50
BYTE_CLASS[49:58] = 51
BYTE_CLASS[97:103], BYTE_CLASS[103:123], BYTE_CLASS[65:71], BYTE_CLASS[71:91] = 52, 53, 54, 55
# Cells of the characters beyond ASCII, in the same numbering: bits hold both, the first byte's above and the cell's.
# PARTIAL: a token that ends within a character.
CAPITAL, SMALL, LETTER, NUMBER, BLANK, OTHER, PARTIAL = 38, 39, 40, 41, 42, 43, 44
CELLS = sum(1 << n for n in range(38, 45))
BY_CELL = ~(1 << FOREIGN | 1 << SPACED)  # what is left of a set of bits where cells are asked for
_LETTERS = sum(1 << n for n in range(50, 56)) | CELLS  # cells are not asked for in SETS
_JOINERS, _PROSE = (sum({1 << int(BYTE_CLASS[byte]) for byte in text}) for text in (b"-_", b"-_ ./'()&+"))
SETS = np.array(
    [
        _LETTERS,
        _LETTERS | _JOINERS,
        _LETTERS | _PROSE,
        _LETTERS | 1 << FOREIGN,
        _LETTERS | 1 << FOREIGN | 1 << SPACED,
    ],
    np.int64,
)
"""Sets of classes, see `_stays_alive`."""
NOT_TEXT = sum({1 << int(BYTE_CLASS[byte]) for byte in (*range(32), 0x22, 0x5C)})  # what is no text inside a string


@no_type_check
@compiled_in_place
def _need(m, what, arg):
    m.header[NEED_WHAT] = what
    m.header[NEED_ARG] = arg
    return NEED


@no_type_check
@compiled_in_place
def target_of(m, config, byte):
    """Next config; 0 where `byte` is refused. The row must be known."""
    cell = np.int64(byte) - m.row_span[config, 0]
    if cell < 0 or cell >= m.row_span[config, 1]:
        return np.int64(0)
    return np.int64(m.cells[m.row_span[config, 2] + cell])


@no_type_check
@compiled_in_place
def _store_row(m, config, row):
    """Make `row` (256 next configs) the row of `config`, the refused bytes at both ends left out; 0, or NEED."""
    first = 0
    while first < 256 and row[first] == 0:
        first += 1
    last = 255
    while last > first and row[last] == 0:
        last -= 1
    size = last - first + 1 if first < 256 else 0
    at = m.header[NUM_CELLS]
    if at + size > m.cells.shape[0]:
        return _need(m, GROW_CELLS, 0)
    for byte in range(first, first + size):
        m.cells[at + byte - first] = row[byte]
    m.row_span[config, 0] = first
    m.row_span[config, 1] = size
    m.row_span[config, 2] = at
    m.header[NUM_CELLS] = at + size
    leaves = np.int64(0)  # classes that have a byte which leads elsewhere
    for byte in range(128):
        if row[byte] != config:
            leaves |= np.int64(1) << BYTE_CLASS[byte]
    m.loops[config] = ~leaves & 0x1FFFFFFFFFFFFFFF
    m.status[config] |= KNOWN
    return 0


@no_type_check
@compiled_in_place
def push_stack(m, ret, parent):
    """Id of the stack with `ret` on top of `parent`; NEED where there is no room."""
    table = m.stack_hash
    mask = table.shape[0] - 1
    slot = (np.int64(ret) * 1000003 + np.int64(parent) * 7919 + (np.int64(parent) >> 7)) & mask
    while True:
        found = table[slot]
        if found < 0:
            break
        if m.stacks[found, 0] == ret and m.stacks[found, 1] == parent:
            return np.int64(found)
        slot = (slot + 1) & mask
    index = m.header[NUM_STACKS]
    depth = m.stacks[parent, 2] + 1
    if depth > m.header[MAX_DEPTH]:
        return _need(m, TOO_DEEP, depth)
    if index >= m.stacks.shape[0]:
        return _need(m, GROW_STACKS, 0)
    m.header[NUM_STACKS] = index + 1
    m.stacks[index, 0] = ret
    m.stacks[index, 1] = parent
    m.stacks[index, 2] = depth
    table[slot] = index
    return index


@no_type_check
@compiled_in_place
def _native_state(m, kind, a, b, c, d):
    """Id of the state with these columns, made where it is missing; NEED where there is no room."""
    table = m.native_hash
    mask = table.shape[0] - 1
    key = np.int64(a) * 1000003 + np.int64(b) * 7919 + np.int64(c) * 104729 + np.int64(d) * 31 + kind
    slot = (key ^ (key >> 15)) & mask
    node = m.node
    while True:
        found = table[slot]
        if found < 0:
            break
        own = m.native_key  # not `node`: a stub's columns change when it is expanded
        if (
            own[found, 0] == kind
            and own[found, 1] == a
            and own[found, 2] == b
            and own[found, 3] == c
            and own[found, 4] == d
        ):
            return np.int64(found)
        slot = (slot + 1) & mask
    index = m.header[NUM_STATES]
    if index >= node.shape[0] or 2 * m.header[NUM_NATIVE] >= table.shape[0]:
        return _need(m, GROW_STATES, 0)
    m.header[NUM_STATES] = index + 1
    m.header[NUM_NATIVE] += 1
    for own in (node, m.native_key):
        own[index, 0] = kind
        own[index, 1] = a
        own[index, 2] = b
        own[index, 3] = c
        own[index, 4] = d
    table[slot] = index
    return index


@no_type_check
@compiled_in_place
def _first_time(m, item):
    """Whether `item` was not met since the last change of header[STAMP]; 2 where the table is full."""
    table = m.seen
    mask = table.shape[0] - 1
    stamp = m.header[STAMP]
    slot = ((item >> 32) * 1000003 + (item & 0xFFFFFFFF) * 7919) & mask
    for _probe in range(64):
        if m.seen_stamp[slot] != stamp:
            m.seen_stamp[slot] = stamp
            table[slot] = item
            return 1
        if table[slot] == item:
            return 0
        slot = (slot + 1) & mask
    return 2


@no_type_check
@compiled_in_place
def _closure(m, state, stack, count):
    """Append to `pairs_out[count:]` what `state` reaches without a byte; returns the new count, or NEED."""
    work = m.work
    out = m.pairs_out
    node = m.node
    top = 0
    item = (np.int64(state) << 32) | stack
    first = _first_time(m, item)
    if first == 0:
        return count
    if first == 2:
        return _need(m, GROW_WORK, 0)
    work[0] = item
    top = 1
    while top > 0:
        top -= 1
        item = work[top]
        s = item >> 32
        k = item & 0xFFFFFFFF
        kind = node[s, 0]
        fan_out = node[s, 4] if kind == NODE else 2
        if count + 1 >= out.shape[0] or top + fan_out >= work.shape[0]:
            return _need(m, GROW_WORK, 0)
        if kind == LIT or kind == STRING:
            out[count] = item
            count += 1
        elif kind == NODE:
            if node[s, 2] > 0:
                out[count] = item
                count += 1
            at = node[s, 3]
            for e in range(at, at + node[s, 4]):
                new = (np.int64(m.free[e]) << 32) | k
                first = _first_time(m, new)
                if first == 2:
                    return _need(m, GROW_WORK, 0)
                if first == 1:
                    work[top] = new
                    top += 1
        elif kind == CALL:
            under = k
            if node[node[s, 2], 0] != RET:  # a call in last place needs no frame
                under = push_stack(m, node[s, 2], k)
                if under < 0:
                    return NEED
            new = (np.int64(node[s, 1]) << 32) | under
            first = _first_time(m, new)
            if first == 2:
                return _need(m, GROW_WORK, 0)
            if first == 1:
                work[top] = new
                top += 1
        elif kind == RET:
            if k == 0:
                out[count] = item
                count += 1
            else:
                new = (np.int64(m.stacks[k, 0]) << 32) | m.stacks[k, 1]
                first = _first_time(m, new)
                if first == 2:
                    return _need(m, GROW_WORK, 0)
                if first == 1:
                    work[top] = new
                    top += 1
        elif kind == COUNT:
            low = node[s, 3]
            high = node[s, 4]
            if low == 0:
                new = (np.int64(node[s, 2]) << 32) | k
                first = _first_time(m, new)
                if first == 2:
                    return _need(m, GROW_WORK, 0)
                if first == 1:
                    work[top] = new
                    top += 1
            if high != 0:
                behind = s
                if high == 1:
                    behind = np.int64(node[s, 2])
                elif low > 0 or high > 0:
                    behind = _native_state(m, COUNT, node[s, 1], node[s, 2], max(low - 1, 0), max(high - 1, -1))
                    if behind < 0:
                        return NEED
                under = k
                if node[behind, 0] != RET:
                    under = push_stack(m, behind, k)
                    if under < 0:
                        return NEED
                new = (np.int64(node[s, 1]) << 32) | under
                first = _first_time(m, new)
                if first == 2:
                    return _need(m, GROW_WORK, 0)
                if first == 1:
                    work[top] = new
                    top += 1
        else:  # go on without it, so that Python is asked once for all the stubs of a row
            wanted = m.header[NUM_WANTED]
            if wanted >= m.wanted.shape[0]:
                return _need(m, EXPAND, 0)
            m.wanted[wanted] = s
            m.header[NUM_WANTED] = wanted + 1
    return count


@no_type_check
@compiled_in_place
def _is_free(m, state):
    """Whether no token can bring a STRING state to a bound of its length; its text must have any text among it."""
    spec = m.node[state, 1]
    limit = m.specs[spec, MAX_LEN]
    count = m.node[state, 3]
    return count >= m.specs[spec, MIN_LEN] and (limit < 0 or limit - count > m.header[REACH])


@no_type_check
@compiled_in_place
def _rehash(m, config_hash, native_hash, stack_hash):
    """Fill empty tables (all -1) for the configs, native states and stacks there are; one of length 1 is left alone."""
    if config_hash.shape[0] > 1:
        mask = config_hash.shape[0] - 1
        for config in range(1, m.header[NUM_CONFIGS]):
            at = m.pairs_at[config]
            count = m.pairs_at[config + 1] - at
            if count > 0:
                key = np.int64(count)
                for i in range(at, at + count):
                    key = ((key ^ (m.pairs[i] >> 32) ^ (m.pairs[i] << 13)) & 0x7FFFFFFF) * 1000003
                    key ^= key >> 15
                slot = key & mask
                while config_hash[slot] >= 0:
                    slot = (slot + 1) & mask
                config_hash[slot] = config
    if native_hash.shape[0] > 1:
        mask = native_hash.shape[0] - 1
        own = m.native_key
        for state in range(1, m.header[NUM_STATES]):
            if own[state, 0] >= 0:
                key = np.int64(own[state, 1]) * 1000003 + np.int64(own[state, 2]) * 7919
                key += np.int64(own[state, 3]) * 104729 + np.int64(own[state, 4]) * 31 + own[state, 0]
                slot = (key ^ (key >> 15)) & mask
                while native_hash[slot] >= 0:
                    slot = (slot + 1) & mask
                native_hash[slot] = state
    if stack_hash.shape[0] > 1:
        mask = stack_hash.shape[0] - 1
        for stack in range(1, m.header[NUM_STACKS]):
            parent = np.int64(m.stacks[stack, 1])
            slot = (np.int64(m.stacks[stack, 0]) * 1000003 + parent * 7919 + (parent >> 7)) & mask
            while stack_hash[slot] >= 0:
                slot = (slot + 1) & mask
            stack_hash[slot] = stack


@no_type_check
@compiled_in_place
def _intern_pairs(m, count):
    """Config of `pairs_out[:count]`; 0, the dead config, where that is empty; NEED where there is no room."""
    if count == 0:
        return np.int64(0)
    pairs = m.pairs_out
    gap = 1
    while gap < count // 9:
        gap = 3 * gap + 1
    while gap > 0:  # Shell sort: in place, and few pairs are the rule
        for i in range(gap, count):
            item = pairs[i]
            j = i
            while j >= gap and pairs[j - gap] > item:
                pairs[j] = pairs[j - gap]
                j -= gap
            pairs[j] = item
        gap //= 3
    key = np.int64(count)
    for i in range(count):
        key = ((key ^ (pairs[i] >> 32) ^ (pairs[i] << 13)) & 0x7FFFFFFF) * 1000003
        key ^= key >> 15
    table = m.config_hash
    mask = table.shape[0] - 1
    slot = key & mask
    while True:
        found = table[slot]
        if found < 0:
            break
        at = m.pairs_at[found]
        if m.pairs_at[found + 1] - at == count:
            same = True
            for i in range(count):
                if m.pairs[at + i] != pairs[i]:
                    same = False
                    break
            if same:
                return np.int64(found)
        slot = (slot + 1) & mask
    config = m.header[NUM_CONFIGS]
    at = m.header[NUM_PAIRS]
    if config + 1 >= m.row_span.shape[0]:
        return _need(m, GROW_CONFIGS, 0)
    if at + count > m.pairs.shape[0]:
        return _need(m, GROW_PAIRS, count)
    status = 0
    any_at = m.pairs_at[m.header[ANY_CONFIG]]
    any_end = m.pairs_at[m.header[ANY_CONFIG] + 1]
    stay_set = np.int64(0)
    stay_room = np.int64(0)
    for i in range(count):
        stack = pairs[i] & 0xFFFFFFFF
        if stack > 0:
            under = m.stacks[stack, 0]
            if m.node[under, 0] == COUNT and m.node[under, 1] == pairs[i] >> 32:
                own = m.char_set[m.node[under, 1]]
                room = np.int64(m.node[under, 4] + 1)  # code points to come, this one included
                if room == 0:
                    room = np.int64(_FAR)
                if stay_set & ~own == 0 and (own != stay_set or room > stay_room):
                    stay_set = own
                    stay_room = room
        m.pairs[at + i] = pairs[i]
        if any_at < any_end and m.pairs[any_at] == pairs[i]:
            any_at += 1
        s = pairs[i] >> 32
        kind = m.node[s, 0]
        if kind == RET:
            status |= ACCEPTS
        elif kind == STRING:
            spec = m.node[s, 1]
            if m.specs[spec, RECORD] != 0:
                status |= RECORDS
            if m.node[s, 4] == 0 and m.status[m.node[s, 2]] & HAS_ANY:
                if _is_free(m, s):
                    status |= FREE
        elif m.pending[s] != 0:
            status |= PENDING if m.pending[s] == 1 else PENDING | STRICT
    if any_at == any_end and any_end > 0:
        status |= HAS_ANY
    m.header[NUM_CONFIGS] = config + 1
    m.header[NUM_PAIRS] = at + count
    m.pairs_at[config + 1] = at + count
    m.status[config] = status
    m.stay_set[config] = stay_set
    m.stay_room[config] = stay_room
    m.stay_far[config] = -1
    m.distance[config] = 0 if status & ACCEPTS else -1
    table[slot] = config
    return config


@no_type_check
@compiled_in_place
def _start_config(m, state):
    """Config of `state` with an empty stack, or NEED."""
    m.header[STAMP] += 1
    m.header[NUM_WANTED] = 0
    count = _closure(m, state, np.int64(0), 0)
    if count < 0:
        return NEED
    if m.header[NUM_WANTED] > 0:
        return _need(m, EXPAND, 0)
    return _intern_pairs(m, count)


@no_type_check
@compiled_in_place
def _text_step(m, config, code_point):
    """Config of the decoded text after one code point; 0 where refused; NEED with the row that is missing."""
    return _text_bytes(m, config, code_point, 4)


@no_type_check
@compiled_in_place
def _text_bytes(m, config, code_point, count):
    """Config of the decoded text after the first `count` bytes of a code point, or all; as `_text_step`."""
    if code_point < 0x80:
        size = 1
    elif code_point < 0x800:
        size = 2
    elif code_point < 0x10000:
        size = 3
    else:
        size = 4
    for i in range(min(size, count)):
        if size == 1:
            byte = code_point
        elif i == 0:
            byte = ((0xF00 >> size) & 0xFF) | (code_point >> (6 * (size - 1)))
        else:
            byte = 0x80 | ((code_point >> (6 * (size - 1 - i))) & 0x3F)
        if not m.status[config] & KNOWN:
            return _need(m, PYTHON_ROW, config)
        m.used[config] = m.header[WALK]
        config = target_of(m, config, byte)
        if config == 0:
            return config
    return config


@no_type_check
@compiled_in_place
def _text_range_lives(m, config, low, high, room):
    """1 if some code point of low..high may come next in the decoded text, what then must follow in `room`; 0; NEED.

    Blocks of 64, 4096 or 2**18 whose first bytes are refused, or lead where those of a block before led, are skipped.
    """
    code_point = np.int64(low)
    tried6 = np.int64(0)  # where the first bytes of the last block of 64 led
    tried12 = np.int64(0)
    tried18 = np.int64(0)
    while code_point <= high:
        if 0xD800 <= code_point <= 0xDFFF:
            code_point = np.int64(0xE000)
            continue
        if code_point >= 0x80 and code_point & 63 == 0:
            skip = np.int64(0)
            size = 2 if code_point < 0x800 else (3 if code_point < 0x10000 else 4)
            for level in range(size - 1, 0, -1):  # 2**(6 * level) code points follow the first bytes
                block = np.int64(1) << (6 * level)
                if code_point & (block - 1) != 0:
                    continue
                inner = _text_bytes(m, config, code_point, size - level)
                if inner < 0:
                    return np.int64(NEED)
                if inner == 0 or inner == (tried6 if level == 1 else (tried12 if level == 2 else tried18)):
                    skip = block
                    break
                if level == 1:
                    tried6 = inner
                elif level == 2:
                    tried12 = inner
                else:
                    tried18 = inner
            if skip > 0:
                code_point += skip
                continue
        after = _text_step(m, config, code_point)
        if after < 0:
            return np.int64(NEED)
        if after > 0:
            fits = _fits(m, after, room)
            if fits != 0:
                return np.int64(fits)
        code_point += 1
    return np.int64(0)


@no_type_check
@compiled_in_place
def _find_distance(m, text):
    """Make the distance of a text config known: 0, or NEED. One character away is told from its row."""
    if m.distance[text] >= 0:
        return 0
    if not m.status[text] & KNOWN:
        return _need(m, PYTHON_ROW, text)  # not `_ensure_row`, which may come here
    for byte in range(0xC0):
        if m.status[target_of(m, text, byte)] & ACCEPTS:
            m.distance[text] = 1 if byte < 0x80 else 0
    return 0 if m.distance[text] >= 0 else _need(m, DISTANCE, text)


@no_type_check
@compiled_in_place
def _room(m, spec, count):
    """Code points that may come behind the next one of a JSON string; -1: as many as you like."""
    limit = m.specs[spec, MAX_LEN]
    return np.int64(-1) if limit < 0 else np.int64(limit - count - 1)


@no_type_check
@compiled_in_place
def _fits(m, text, room):
    """1 if what a text config needs fits into `room`, else 0; NEED."""
    if room < 0 or text == m.header[ANY_CONFIG]:
        return 1
    if _find_distance(m, text) < 0:
        return NEED
    return 1 if m.distance[text] <= room else 0


@no_type_check
@compiled_in_place
def _text_goes_on(m, text, room):
    """1 if some character may follow in the decoded text, behind which the rest fits into `room`, else 0; NEED."""
    first = np.int64(m.row_span[text, 0])
    for lead in range(first, first + m.row_span[text, 1]):
        target = target_of(m, text, lead)
        if target != 0 and (lead < 0x80 or lead > 0xBF):
            fits = _fits(m, target, room)
            if fits != 0:
                return fits
    return 0


@no_type_check
@compiled_in_place
def _more(m, spec, text, count):
    """Code points of a string after one more, whose text is then `text`; REFUSED by the length bounds; NEED."""
    limit = m.specs[spec, MAX_LEN]
    if limit < 0:
        return np.int64(count + 1) if count < m.specs[spec, MIN_LEN] else np.int64(count)
    if count >= limit:
        return np.int64(REFUSED)
    if text != m.header[ANY_CONFIG]:  # what the text still needs must fit
        if _find_distance(m, np.int64(text)) < 0:
            return np.int64(NEED)
        if m.distance[text] > m.header[FARTHEST]:
            m.header[FARTHEST] = m.distance[text]
        if count + 1 + m.distance[text] > limit:
            return np.int64(REFUSED)
    return np.int64(count + 1)


@no_type_check
@compiled_in_place
def _string_state(m, state, text, more, mode):
    """The STRING state after `state` with these changes; 0 where the length bound refuses it."""
    spec = m.node[state, 1]
    count = np.int64(m.node[state, 3])
    if more:
        count = _more(m, spec, text, count)
        if count < 0:
            return np.int64(0) if count == REFUSED else count
    return _native_state(m, STRING, spec, text, count, mode)


@no_type_check
@compiled_in_place
def _unescaped(byte):
    """The character that a backslash and `byte` stand for; -1 where they stand for none, or for \\u."""
    if byte == 0x22 or byte == 0x5C or byte == 0x2F:
        return np.int64(byte)
    if byte == 0x62:
        return np.int64(8)
    if byte == 0x66:
        return np.int64(12)
    if byte == 0x6E:
        return np.int64(10)
    if byte == 0x72:
        return np.int64(13)
    if byte == 0x74:
        return np.int64(9)
    return np.int64(-1)


@no_type_check
@compiled_in_place
def _hex_digit(byte):
    if 48 <= byte <= 57:
        return byte - 48
    if 65 <= byte <= 70:
        return byte - 55
    if 97 <= byte <= 102:
        return byte - 87
    return -1


@no_type_check
@compiled_in_place
def _string_step(m, state, byte):
    """State after one byte of a JSON string (escapes are decoded); 0 where refused; NEED."""
    node = m.node
    spec = node[state, 1]
    text = np.int64(node[state, 2])
    mode = node[state, 4]
    stage = mode >> 24
    value = np.int64(mode & (STAGE - 1))
    if not m.status[text] & KNOWN:
        return _need(m, PYTHON_ROW, text)
    m.used[text] = m.header[WALK]
    full = m.specs[spec, MAX_LEN] >= 0 and node[state, 3] >= m.specs[spec, MAX_LEN]
    room = _room(m, spec, np.int64(node[state, 3]))
    if stage == PLAIN:
        if byte == 0x22:
            if not m.status[text] & ACCEPTS or node[state, 3] < m.specs[spec, MIN_LEN]:
                return np.int64(0)
            if m.specs[spec, CLOSE] == KEY_DONE:
                return _native_state(m, STUB, spec, text, 0, 0)
            return np.int64(m.specs[spec, CLOSE])
        if byte == 0x5C:
            if full:
                return np.int64(0)
            lives = _text_goes_on(m, text, room)
            if lives <= 0:
                return np.int64(lives)
            return _native_state(m, STRING, spec, text, node[state, 3], ESCAPE * STAGE)
        if byte < 0x20:
            return np.int64(0)
        after = target_of(m, text, byte)
        if after == 0:
            return after
        return _string_state(m, state, after, byte & 0xC0 != 0x80, 0)
    if stage == ESCAPE:
        if byte == 0x75:
            return _native_state(m, STRING, spec, text, node[state, 3], HEX0 * STAGE)
        decoded = _unescaped(byte)
        if decoded < 0:
            return np.int64(0)
        after = target_of(m, text, decoded)
        if after == 0:
            return after
        return _string_state(m, state, after, True, 0)
    if stage == HIGH:
        return (
            _native_state(m, STRING, spec, text, node[state, 3], HIGH_ESCAPE * STAGE + value)
            if byte == 0x5C
            else np.int64(0)
        )
    if stage == HIGH_ESCAPE:
        return (
            _native_state(m, STRING, spec, text, node[state, 3], LOW0 * STAGE + (value << 12))
            if byte == 0x75
            else np.int64(0)
        )
    digit = _hex_digit(byte)
    if digit < 0:
        return np.int64(0)
    if stage < HIGH:  # one of four digits of \uXXXX
        rest = 4 * (HEX3 - stage)
        value = value * 16 + digit
        low = value << rest
        high = low + (1 << rest) - 1
        if low >= 0xD800 and high <= 0xDFFF:
            if low >= 0xDC00:
                return np.int64(0)
            first = 0x10000 + ((low - 0xD800) << 10)
            last = 0x10000 + ((min(high, 0xDBFF) - 0xD800) << 10) + 0x3FF
            lives = _text_range_lives(m, text, first, last, room)
        else:
            lives = _text_range_lives(m, text, low, high, room)
            if lives == 0 and low <= 0xD800 and high >= 0xDBFF:
                lives = _text_range_lives(m, text, 0x10000, 0x10FFFF, room)
        if lives <= 0:
            return lives
        if rest > 0:
            return _native_state(m, STRING, spec, text, node[state, 3], (stage + 1) * STAGE + value)
        if 0xD800 <= value <= 0xDBFF:
            return _native_state(m, STRING, spec, text, node[state, 3], HIGH * STAGE + (value - 0xD800))
        after = _text_step(m, text, value)
        return after if after <= 0 else _string_state(m, state, after, True, 0)
    rest = 4 * (LOW3 - stage)
    high10 = value >> 12
    low_bits = (value & 0xFFF) * 16 + digit
    low = max(low_bits << rest, 0xDC00)
    high = min((low_bits << rest) + (1 << rest) - 1, 0xDFFF)
    if low > high:
        return np.int64(0)
    base = 0x10000 + (high10 << 10) - 0xDC00
    lives = _text_range_lives(m, text, base + low, base + high, room)
    if lives <= 0:
        return lives
    if rest > 0:
        return _native_state(m, STRING, spec, text, node[state, 3], (stage + 1) * STAGE + (high10 << 12) + low_bits)
    after = _text_step(m, text, base + low)
    return after if after <= 0 else _string_state(m, state, after, True, 0)


@no_type_check
@compiled_in_place
def _mark_string(m, state):
    """Mark in `marks` where the row of a STRING state may change; 0, or NEED."""
    marks = m.marks
    if m.node[state, 4] == 0:
        text = np.int64(m.node[state, 2])
        if not m.status[text] & KNOWN:
            return _need(m, PYTHON_ROW, text)
        for byte in range(1, 256):
            if target_of(m, text, byte) != target_of(m, text, byte - 1):
                marks[byte] = 1
        marks[0x20] = marks[0x22] = marks[0x23] = marks[0x5C] = marks[0x5D] = marks[0x80] = marks[0xC0] = 1
    else:
        for byte in range(0x22, 0x78):
            marks[byte] = 1
    return 0


@no_type_check
@compiled_in_place
def _plain_row(m, config):
    """Fill the row of `config`: 0, or NEED."""
    marks = m.marks
    for byte in range(257):
        marks[byte] = 0
    node = m.node
    begin = m.pairs_at[config]
    end = m.pairs_at[config + 1]
    for i in range(begin, end):
        s = m.pairs[i] >> 32
        kind = node[s, 0]
        if kind == LIT:
            marks[node[s, 1]] = 1
            marks[node[s, 1] + 1] = 1
        elif kind == NODE:
            for e in range(node[s, 1], node[s, 1] + node[s, 2]):
                marks[m.edges[e, 0]] = 1
                marks[m.edges[e, 1] + 1] = 1
        elif kind == STRING:
            if _mark_string(m, s) < 0:
                return NEED
    m.header[NUM_WANTED] = 0
    low = 0
    while low < 256:
        high = low + 1
        while high < 256 and marks[high] == 0:
            high += 1
        m.header[STAMP] += 1
        count = 0
        for i in range(begin, end):
            s = m.pairs[i] >> 32
            k = m.pairs[i] & 0xFFFFFFFF
            kind = node[s, 0]
            if kind == LIT:
                if node[s, 1] == low:
                    count = _closure(m, s + 1, k, count)
            elif kind == NODE:
                for e in range(node[s, 1], node[s, 1] + node[s, 2]):
                    if m.edges[e, 0] <= low <= m.edges[e, 1]:
                        count = _closure(m, m.edges[e, 2], k, count)
                        if count < 0:
                            return NEED
            elif kind == STRING:
                after = _string_step(m, s, low)
                if after < 0:
                    return NEED
                if after > 0:
                    count = _closure(m, after, k, count)
            if count < 0:
                return NEED
        if m.header[NUM_WANTED] == 0:
            target = _intern_pairs(m, count)
            if target < 0:
                return NEED
            for byte in range(low, high):
                m.row_work[byte] = target
        low = high
    if m.header[NUM_WANTED] > 0:
        return _need(m, EXPAND, 0)
    return _store_row(m, config, m.row_work)


@no_type_check
@compiled_in_place
def _ensure_row(m, config):
    """Fill the row of `config`, rows of decoded text that it needs first; 0, or NEED for what Python must do."""
    if m.status[config] & KNOWN:
        return 0
    while True:
        if m.status[config] & FROM_PYTHON:
            return _need(m, PYTHON_ROW, config)
        if _plain_row(m, config) == 0:
            return 0
        inner = m.header[NEED_ARG]
        if m.header[NEED_WHAT] != PYTHON_ROW or m.status[inner] & FROM_PYTHON:
            return NEED
        if _plain_row(m, inner) < 0:
            return NEED


@no_type_check
@compiled_in_place
def _distance_of(m, text):
    """As `_find_distance`, rows made on the way: not for what `_ensure_row` calls. Searches level by level."""
    if m.distance[text] >= 0:
        return 0
    m.header[SEARCH] += 1
    search = m.header[SEARCH]
    near = m.near
    near[0] = text
    m.met[text] = search
    count = 1
    begin = 0
    level = 0
    best = np.int64(1) << 30
    while begin < count and level < best:
        q = begin
        while q < count:  # bytes that continue a character cost nothing
            here = np.int64(near[q])
            q += 1
            if m.distance[here] >= 0:
                best = min(best, level + np.int64(m.distance[here]))
                continue
            if not m.status[here] & KNOWN and _ensure_row(m, here) < 0:
                return NEED
            for byte in range(0x80, 0xC0):
                target = target_of(m, here, byte)
                if target != 0 and m.met[target] != search:
                    if count == near.shape[0]:
                        return _need(m, DISTANCE, text)
                    m.met[target] = search
                    near[count] = target
                    count += 1
        end = count
        for q in range(begin, end):
            here = np.int64(near[q])
            if m.distance[here] >= 0:
                continue
            first = np.int64(m.row_span[here, 0])
            for byte in range(first, first + m.row_span[here, 1]):
                target = target_of(m, here, byte)
                if not 0x80 <= byte < 0xC0 and target != 0 and m.met[target] != search:
                    if count == near.shape[0]:
                        return _need(m, DISTANCE, text)
                    m.met[target] = search
                    near[count] = target
                    count += 1
        begin = end
        level += 1
    m.distance[text] = best
    return 0


@no_type_check
@compiled_in_place
def _stay_far(m, config):
    """Least number of code points that suffice to accept, whatever characters of `stay_set` have come; or NEED."""
    if m.stay_far[config] >= 0:
        return np.int64(m.stay_far[config])
    item = np.int64(0)
    for i in range(m.pairs_at[config], m.pairs_at[config + 1]):
        stack = m.pairs[i] & 0xFFFFFFFF
        if stack > 0:
            under = m.stacks[stack, 0]
            own = m.pairs[i] >> 32
            if m.node[under, 0] == COUNT and m.node[under, 1] == own and m.char_set[own] == m.stay_set[config]:
                room = np.int64(m.node[under, 4] + 1)
                if room == m.stay_room[config] or (room == 0 and m.stay_room[config] == _FAR):
                    item = m.pairs[i]
    m.pairs_out[0] = item  # what stays is this alone; the other parts of the config can only be nearer
    alone = _intern_pairs(m, 1)
    if alone < 0:
        return np.int64(NEED)
    if _distance_of(m, alone) < 0:
        return np.int64(NEED)
    m.stay_far[config] = m.distance[alone]
    return np.int64(m.distance[alone])


@no_type_check
@compiled_in_place
def enter(m, at, config):
    """Make `at`, a row of a path, stand for `config`; inside a JSON string it is taken apart, see `walk_trie`."""
    first = m.pairs_at[config]
    last = m.pairs_at[config + 1] - 1
    at[0] = config
    if last >= first:
        state = m.pairs[first] >> 32
        if m.node[state, 0] == STRING and m.node[state, 4] == 0 and m.pairs[last] >> 32 == state:
            at[0] = IN_STRING
            at[1] = m.node[state, 2]
            at[2] = m.node[state, 3]
            at[3] = 0
            at[4] = m.node[state, 1]
            at[5] = config


@no_type_check
@compiled_in_place
def _left_as(m, at, state):
    """Config of `state` with each stack of the string that `at` stands in, free moves taken; NEED."""
    m.header[STAMP] += 1
    m.header[NUM_WANTED] = 0
    count = np.int64(0)
    for i in range(m.pairs_at[at[5]], m.pairs_at[at[5] + 1]):
        count = _closure(m, state, m.pairs[i] & 0xFFFFFFFF, count)
        if count < 0:
            return np.int64(NEED)
    if m.header[NUM_WANTED] > 0:
        return np.int64(_need(m, EXPAND, 0))
    return _intern_pairs(m, count)


@no_type_check
@compiled_in_place
def _closed(m, at):
    """Config behind the closing quote of the string that `at` stands in; 0 where it may not end here; NEED."""
    text = at[1]
    spec = at[4]
    if not m.status[text] & ACCEPTS or at[2] < m.specs[spec, MIN_LEN]:
        return np.int64(0)
    state = np.int64(m.specs[spec, CLOSE])
    if state == KEY_DONE:
        state = _native_state(m, STUB, spec, text, 0, 0)
        if state < 0:
            return np.int64(NEED)
    return _left_as(m, at, state)


@no_type_check
@compiled_in_place
def _whole(m, at, mode):
    """Config of the string that `at` stands in, its mode this; NEED."""
    state = _native_state(m, STRING, at[4], at[1], at[2], mode)
    if state < 0:
        return np.int64(NEED)
    return _left_as(m, at, state)


@no_type_check
@compiled_in_place
def _in_string(m, at, byte, after):
    """Make `after` stand for `at`, inside a JSON string, after one more byte: 1; 0 where refused; NEED.

    2: the string is left for the config in after[0], by the closing quote or for the digits of \\u.
    """
    text = np.int64(at[1])
    if not m.status[text] & KNOWN and _ensure_row(m, text) < 0:
        return NEED
    m.used[text] = m.header[WALK]
    spec = at[4]
    if at[3] == PLAIN:
        if byte == 0x22:
            config = _closed(m, at)
            after[0] = config
            return 2 if config > 0 else config
        if byte < 0x20:
            return 0
        if byte == 0x5C:
            limit = m.specs[spec, MAX_LEN]
            if limit >= 0 and at[2] >= limit:
                return 0
            lives = _text_goes_on(m, text, _room(m, spec, np.int64(at[2])))
            if lives <= 0:
                return lives
            for column in range(6):
                after[column] = at[column]
            after[3] = ESCAPE
            return 1
        decoded = np.int64(byte)
    elif byte == 0x75:
        config = _whole(m, at, HEX0 * STAGE)
        after[0] = config
        return 2 if config > 0 else config
    else:
        decoded = _unescaped(byte)
        if decoded < 0:
            return 0
    target = target_of(m, text, decoded)
    if target == 0:
        return 0
    count = np.int64(at[2])
    if decoded & 0xC0 != 0x80:
        if m.specs[spec, MAX_LEN] >= 0 and target != m.header[ANY_CONFIG] and _distance_of(m, target) < 0:
            return NEED
        count = _more(m, spec, target, count)
        if count < 0:
            return 0 if count == REFUSED else NEED
    after[0] = IN_STRING
    after[1] = target
    after[2] = count
    after[3] = PLAIN
    after[4] = spec
    after[5] = at[5]
    return 1


@no_type_check
@compiled_in_place
def _step_bytes(m, config, data, begin, stop_mask, recording):
    """Config after data[begin:]; stops early after a byte that leads to a config with a bit of `stop_mask`.

    recording: RECORDS, to stop where that bit of the config goes as well; else 0.
    header[POSITION] is where it stopped. 0: refused. NEED: go on from there with the config in header[NEED_CONFIG].
    Inside a JSON string nothing is interned but the end.
    """
    config = np.int64(config)
    i = np.int64(begin)
    m.header[POSITION] = i
    while i < data.shape[0]:
        m.header[POSITION] = i
        m.header[NEED_CONFIG] = config
        at = m.stand[0]
        enter(m, at, config)
        if at[0] == IN_STRING:
            lives = 1
            side = 0
            while lives == 1 and i < data.shape[0]:
                lives = _in_string(m, m.stand[side], data[i], m.stand[1 - side])
                if lives < 0:
                    return np.int64(NEED)
                if lives == 0:
                    return np.int64(0)
                side = 1 - side
                i += 1
            if lives == 1:
                config = _whole(m, m.stand[side], np.int64(m.stand[side, 3]) * STAGE)
                if config < 0:
                    return np.int64(NEED)
            else:
                config = np.int64(m.stand[side, 0])
        else:
            if not m.status[config] & KNOWN and _ensure_row(m, config) < 0:
                return np.int64(NEED)
            config = target_of(m, config, data[i])
            if config == 0:
                return config
            i += 1
        m.header[POSITION] = i
        if m.status[config] & stop_mask or m.status[config] & recording != recording:
            return config
    return config


@no_type_check
@compiled_in_place
def _within(within, byte):
    """What must follow in a character after one more byte: count << 16 | first << 8 | last; 0: nothing; -1: no text."""
    if within < 0:
        return np.int64(-1)
    if within > 0:
        if byte < (within >> 8) & 0xFF or byte > within & 0xFF:
            return np.int64(-1)
        return ((np.int64(within) >> 16) - 1) << 16 | 0x80BF if within >> 16 > 1 else np.int64(0)
    if byte < 0x80:
        return np.int64(0)
    if byte < 0xC2 or byte > 0xF4:
        return np.int64(-1)
    if byte < 0xE0:
        return np.int64(0x180BF)
    if byte < 0xF0:
        return np.int64(0x2A0BF if byte == 0xE0 else (0x2809F if byte == 0xED else 0x280BF))
    return np.int64(0x390BF if byte == 0xF0 else (0x3808F if byte == 0xF4 else 0x380BF))


@no_type_check
@compiled_in_place
def _point(point, byte):
    """The code point that a character's bytes up to `byte` give; `point` is that of the bytes before."""
    if byte < 0x80:
        return np.int64(byte)
    if byte < 0xC0:
        return (np.int64(point) << 6 | (byte & 0x3F)) & 0x1FFFFF
    return np.int64(byte & (0x1F if byte < 0xE0 else (0x0F if byte < 0xF0 else 0x07)))


@no_type_check
@compiled_in_place
def _cell(cells, within, point, byte):
    """Class or cell of a character that `byte` ends; PARTIAL where it goes on; ODD where it is no text."""
    if within < 0:
        return np.int64(ODD)
    if within > 0:
        return np.int64(PARTIAL)
    return np.int64(cells[point])


@no_type_check
@compiled_in_place
def _set_of(classes):
    """The first of SETS that has all `classes`; -1: none has."""
    for which in range(SETS.shape[0]):
        if classes & ~SETS[which] == 0:
            return which
    return -1


@no_type_check
@compiled_in_place
def _stays_alive(m, config, which, height, is_text):
    """1 if every string of up to `height` bytes over SETS[which] is allowed from `config`, 0 if not known; NEED.

    is_text: the configs are of decoded text; header[FARTHEST] then covers the distances of those met.
    What was found is kept for this walk: later ones look again, so that `used` is right for each.
    """
    alive = m.alive
    if alive[config, which] >= height and m.alive_walk[config, which] == m.header[WALK]:
        return 1
    if alive[config, 5 + which] != 0 and alive[config, 5 + which] <= height:
        return 0
    m.header[SEARCH] += 1
    search = m.header[SEARCH]
    queue = m.queue
    queue[0, 0] = config
    queue[0, 1] = 0
    count = 1
    begin = 0
    level = 0
    failed = False
    while level < height and begin < count and not failed:
        level += 1
        end = count
        for q in range(begin, end):
            here = np.int64(queue[q, 0])
            within = np.int64(queue[q, 1])
            if not m.status[here] & KNOWN and _ensure_row(m, here) < 0:
                return NEED
            m.used[here] = m.header[WALK]
            first = (within >> 8) & 0xFF if within else np.int64(0x20)
            last = within & 0xFF if within else np.int64(0xF4 if SETS[which] >> FOREIGN & 1 else 0x7E)
            for byte in range(first, last + 1):
                if not within and not SETS[which] >> BYTE_CLASS[byte] & 1:
                    continue
                after = _within(within, byte)
                target = target_of(m, here, byte)
                if target == 0:
                    failed = True
                    break
                if m.met[target] != search:
                    if count == queue.shape[0]:
                        failed = True
                        break
                    m.met[target] = search
                    queue[count, 0] = target
                    queue[count, 1] = after
                    count += 1
            if failed:
                break
        begin = end
    if failed:
        alive[config, 5 + which] = level
        return 0
    if is_text:
        for q in range(count):
            here = np.int64(queue[q, 0])
            if _distance_of(m, here) < 0:
                return NEED
            if m.distance[here] > m.header[FARTHEST]:
                m.header[FARTHEST] = m.distance[here]
    alive[config, which] = 255 if begin == count else min(level, 255)
    m.alive_walk[config, which] = m.header[WALK]
    return 1


@no_type_check
@compiled_in_place
def _doubt(before, byte):
    """Whether the text of a key or item that is not known yet matters after one more byte of the same token.

    1: it has ended; 2: and a comma has come; 3: it has ended, and decides what may follow; 4: it matters.
    """
    if before == 1:
        return 2 if byte == 0x2C else (0 if byte == 0x5D or byte == 0x7D else 1)
    if before == 2:
        return 2 if byte == 0x20 or byte == 0x0A or byte == 0x0D or byte == 0x09 else 4
    if before == 3:
        return 4 if byte == 0x2C or byte == 0x5D or byte == 0x7D else 3
    return before


@no_type_check
@compiled_in_place
def _walk_trie(m, trie, config, begin, bitmask):
    """Set in `bitmask` every token of `trie` that `config` allows, from trie node `begin` on.

    trie: (byte, depth, skip, tokens_at, token_ids, classes, tall), nodes in preorder; see `build_trie`. A subtree whose
        bytes all lead a config to itself is allowed as a whole.
    path: int32 [depths, 7], kept between calls. Column 0 is a config, or IN_STRING: one JSON string, in which nothing
        is interned; then text config, code points, PLAIN or ESCAPE, string spec, and the config where it was entered
        (for the stacks) follow. Column 6 says whether the text of a key or item matters that is not known yet, see
        `_doubt`.
    bitmask, doubts: uint32. In `doubts`, tokens that `bitmask` allows but only `advance` can decide; header[DOUBTS] is
        set to 1 with the first.
    Returns 0 when done; NEED: go on from header[POSITION].
    """
    node_byte, node_depth, node_skip, node_classes, node_tall = (
        trie.byte,
        trie.depth,
        trie.skip,
        trie.classes,
        trie.tall,
    )
    tokens_at, token_ids = trie.tokens_at, trie.token_ids
    path, doubts = m.path, m.doubts
    i = begin
    if begin == 0:
        enter(m, path[0], config)
        path[0, 6] = 0
    # the closing quote met last: most strings of a walk end in one config
    closing = np.int64(-1)
    closing_text = np.int64(-1)
    closing_spec = np.int64(-1)
    closing_origin = np.int64(-1)
    while i < node_byte.shape[0]:
        depth = node_depth[i]
        byte = node_byte[i]
        at = path[depth]
        after = path[depth + 1]
        after[6] = at[6] if at[6] == 0 else _doubt(at[6], byte)
        if at[0] == IN_STRING:
            target = np.int64(0)
            if at[3] == PLAIN and byte >= 0x20 and byte != 0x22 and byte != 0x5C and m.status[at[1]] & KNOWN:
                # the usual case, without a call: one costs as much as 20 steps, for all the arrays it hands over
                lives = 0
                m.used[at[1]] = m.header[WALK]
                cell = np.int64(byte) - m.row_span[at[1], 0]
                if 0 <= cell < m.row_span[at[1], 1]:
                    target = np.int64(m.cells[m.row_span[at[1], 2] + cell])
                if target != 0:
                    lives = 1
                    count = np.int64(at[2])
                    if byte & 0xC0 != 0x80:
                        limit = m.specs[at[4], MAX_LEN]
                        if limit < 0:
                            if count < m.specs[at[4], MIN_LEN]:
                                count += 1
                        else:
                            count += 1
                            if count > limit:
                                lives = 0
                            elif target != m.header[ANY_CONFIG]:
                                if m.distance[target] < 0 and _distance_of(m, target) < 0:
                                    m.header[POSITION] = i
                                    return NEED
                                if m.distance[target] > m.header[FARTHEST]:
                                    m.header[FARTHEST] = m.distance[target]
                                if count + m.distance[target] > limit:
                                    lives = 0
                    after[0] = IN_STRING
                    after[1] = target
                    after[2] = count
                    after[3] = PLAIN
                    after[4] = at[4]
                    after[5] = at[5]
            elif byte == 0x22 and at[3] == PLAIN:
                spec = np.int64(at[4])
                if not m.status[at[1]] & ACCEPTS or at[2] < m.specs[spec, MIN_LEN]:
                    lives = 0
                else:
                    text = np.int64(at[1]) if m.specs[spec, CLOSE] == KEY_DONE else np.int64(0)
                    if closing < 0 or closing_text != text or closing_spec != spec or closing_origin != at[5]:
                        closing = _closed(m, at)
                        if closing < 0:
                            m.header[POSITION] = i
                            return NEED
                        closing_text = text
                        closing_spec = spec
                        closing_origin = np.int64(at[5])
                    lives = 1 if closing > 0 else 0
                if lives == 1:
                    enter(m, after, closing)
                    if m.status[closing] & PENDING:
                        after[6] = max(after[6], 3 if m.status[closing] & STRICT else 1)
            else:
                lives = _in_string(m, at, byte, after)
                if lives < 0:
                    m.header[POSITION] = i
                    return NEED
                if lives == 2:
                    enter(m, after, np.int64(after[0]))
        else:
            config = np.int64(at[0])
            if not m.status[config] & KNOWN and _ensure_row(m, config) < 0:
                m.header[POSITION] = i
                return NEED
            target = target_of(m, config, byte)
            lives = 0
            if target != 0:
                lives = 1
                enter(m, after, target)
                if m.status[target] & PENDING:
                    after[6] = max(after[6], 3 if m.status[target] & STRICT else 1)
        if lives == 0:
            i = node_skip[i]
            continue
        if after[6] == 0:
            config = np.int64(after[0])
            apart = np.int64(0)
            if config == IN_STRING:
                config = np.int64(after[1])
                apart = NOT_TEXT
                if after[3] != PLAIN:
                    config = np.int64(0)
                elif m.specs[after[4], MAX_LEN] >= 0:
                    room = np.int64(m.specs[after[4], MAX_LEN]) - after[2] - node_tall[i]
                    if config != m.header[ANY_CONFIG]:
                        room = np.int64(-1) if m.distance[config] < 0 else room - m.distance[config]
                    if room < 0:
                        config = np.int64(0)
            if node_classes[i] != 0 and node_classes[i] & (apart | ~m.loops[config]) == 0:
                for t in range(tokens_at[i], tokens_at[node_skip[i]]):
                    token = token_ids[t]
                    bitmask[token >> 5] |= np.uint32(1) << np.uint32(token & 31)
                i = node_skip[i]
                continue
            if node_skip[i] - i > _LARGE and config != 0:
                which = _set_of(node_classes[i])
                between = node_byte[i + 1] < 0x80 or node_byte[i + 1] > 0xBF
                far = after[0] != IN_STRING or m.specs[after[4], MAX_LEN] < 0
                far = far or m.specs[after[4], MAX_LEN] - after[2] > _FAR
                if which >= 0 and between and far:
                    lives = _stays_alive(m, config, which, np.int64(node_tall[i]), after[0] == IN_STRING)
                    if lives < 0:
                        m.header[POSITION] = i
                        return NEED
                    if lives == 1:
                        for t in range(tokens_at[i], tokens_at[node_skip[i]]):
                            token = token_ids[t]
                            bitmask[token >> 5] |= np.uint32(1) << np.uint32(token & 31)
                        i = node_skip[i]
                        continue
        for t in range(tokens_at[i], tokens_at[i + 1]):
            token = token_ids[t]
            bitmask[token >> 5] |= np.uint32(1) << np.uint32(token & 31)
            if after[6] == 4:
                doubts[token >> 5] |= np.uint32(1) << np.uint32(token & 31)
                m.header[DOUBTS] = 1
        i += 1
    return 0


@no_type_check
@compiled_in_place
def _walk_plain(m, trie, config, begin, bitmask, covered, room, is_text):
    """As `_walk_trie`, for a machine without JSON strings, or for decoded text.

    covered, room: `bitmask` has the tokens of up to `room` bytes whose bits are all `covered`.
    is_text: `used` and header[FARTHEST] are kept, as for the texts of JSON strings.
    """
    node_byte, node_depth, node_skip, node_classes, node_tall, node_own = (
        trie.byte, trie.depth, trie.skip, trie.classes, trie.tall, trie.own
    )  # fmt: skip
    tokens_at, token_ids = trie.tokens_at, trie.token_ids
    line = m.line
    i = np.int64(begin)
    outside = np.int64(_FAR)  # depth of the first node on the way here that is not covered
    if begin == 0:
        line[0] = config
        if is_text and covered != 0:
            far = _stay_far(m, np.int64(config))
            if far < 0:
                m.header[POSITION] = 0
                return NEED
            m.header[FARTHEST] = max(m.header[FARTHEST], far)
    else:
        outside = m.header[LEFT_AT]
    while i < node_byte.shape[0]:
        depth = np.int64(node_depth[i])
        here = np.int64(line[depth])
        if not m.status[here] & KNOWN:
            m.header[POSITION] = i
            m.header[LEFT_AT] = outside
            if _ensure_row(m, here) < 0:
                return NEED
        cell = np.int64(node_byte[i]) - m.row_span[here, 0]
        target = np.int64(0)
        if 0 <= cell < m.row_span[here, 1]:
            target = np.int64(m.cells[m.row_span[here, 2] + cell])
        if is_text:
            m.used[here] = m.header[WALK]
        if target == 0:
            i = np.int64(node_skip[i])
            continue
        if is_text:
            if m.distance[target] < 0 and _distance_of(m, target) < 0:
                m.header[POSITION] = i
                m.header[LEFT_AT] = outside
                return NEED
            m.header[FARTHEST] = max(m.header[FARTHEST], m.distance[target])
        line[depth + 1] = target
        if depth <= outside:
            outside = depth if covered >> np.int64(node_own[i]) & 1 == 0 else np.int64(_FAR)
        below = node_classes[i]
        following = np.int64(node_skip[i])
        if below != 0:
            tall = node_tall[i]
            stays = below & BY_CELL & ~m.stay_set[target] == 0 and tall <= m.stay_room[target]
            if stays and is_text:
                far = _stay_far(m, target)
                if far < 0:
                    m.header[POSITION] = i
                    m.header[LEFT_AT] = outside
                    return NEED
                m.header[FARTHEST] = max(m.header[FARTHEST], far)
            if stays or below & ~m.loops[target] == 0:
                if outside != _FAR or below & BY_CELL & ~covered != 0 or depth + 1 + tall > room:
                    for t in range(tokens_at[i], tokens_at[following]):
                        token = token_ids[t]
                        bitmask[token >> 5] |= np.uint32(1) << np.uint32(token & 31)
                i = following
                continue
        for t in range(tokens_at[i], tokens_at[i + 1]):
            token = token_ids[t]
            bitmask[token >> 5] |= np.uint32(1) << np.uint32(token & 31)
        i += 1
    return 0


@no_type_check
@compiled_in_place
def _same_shape(m, first, second, used, queue):
    """1 if a walk from text config `second` finds the live tokens that one from `first` found; 0 if not known; NEED.

    used: the text configs whose rows that walk looked at. Step by step each gets a twin; their rows must refuse the
    same bytes and lead to twins. header[FARTHEST] is then the longest distance of the second walk's texts.
    """
    m.header[WALK] += 1
    walk = m.header[WALK]
    for i in range(used.shape[0]):
        m.used[used[i]] = walk
    m.twin[first] = second
    m.twin_walk[first] = walk
    queue[0] = first
    count = 1
    farthest = 0
    i = 0
    while i < count:
        here = np.int64(queue[i])
        there = np.int64(m.twin[here])
        i += 1
        if not m.status[there] & KNOWN and _ensure_row(m, there) < 0:
            return NEED
        if _distance_of(m, there) < 0:
            return NEED
        farthest = max(farthest, m.distance[there])
        if m.stay_set[here] != 0:  # subtrees may have been taken as a whole for it
            if m.stay_set[there] & m.stay_set[here] != m.stay_set[here]:
                return 0
            if m.stay_room[there] < min(np.int64(m.stay_room[here]), m.header[REACH]):
                return 0
            far = _stay_far(m, there)
            if far < 0:
                return NEED
            farthest = max(farthest, far)
        if m.used[here] != walk:
            continue
        for byte in range(256):
            one = target_of(m, here, byte)
            other = target_of(m, there, byte)
            if (one == 0) != (other == 0):
                return 0
            if one != 0:
                if m.twin_walk[one] != walk:
                    if count == queue.shape[0]:
                        return 0
                    m.twin[one] = other
                    m.twin_walk[one] = walk
                    queue[count] = one
                    count += 1
                elif m.twin[one] != other:
                    return 0
    m.header[FARTHEST] = farthest
    return 1


@no_type_check
@compiled_in_place
def _walk_ends(m, trie, config, begin, wanted, ends):
    """Write to `ends`, int32 by token, the config behind each token of `trie` that is set in `wanted`; as `walk_trie`.

    Unlike there, the strings that tokens end in are interned.
    """
    node_byte, node_depth, node_skip, tokens_at, token_ids = (
        trie.byte, trie.depth, trie.skip, trie.tokens_at, trie.token_ids
    )  # fmt: skip
    path = m.path
    i = begin
    if begin == 0:
        enter(m, path[0], config)
    while i < node_byte.shape[0]:
        m.header[POSITION] = i
        byte = node_byte[i]
        at = path[node_depth[i]]
        after = path[node_depth[i] + 1]
        if at[0] == IN_STRING:
            lives = _in_string(m, at, byte, after)
            if lives < 0:
                return NEED
            if lives == 2:
                enter(m, after, np.int64(after[0]))
        else:
            here = np.int64(at[0])
            if not m.status[here] & KNOWN and _ensure_row(m, here) < 0:
                return NEED
            target = target_of(m, here, byte)
            lives = 1 if target != 0 else 0
            if lives == 1:
                enter(m, after, target)
        if lives == 0:
            i = node_skip[i]
            continue
        end = np.int64(-1)
        for t in range(tokens_at[i], tokens_at[i + 1]):
            token = token_ids[t]
            if wanted[token >> 5] >> np.uint32(token & 31) & np.uint32(1):
                if end < 0:
                    end = np.int64(after[0])
                    if end == IN_STRING:
                        end = _whole(m, after, np.int64(after[3]) * STAGE)
                        if end < 0:
                            return NEED
                ends[token] = end
        i += 1
    return 0


@no_type_check
@compiled_in_place
def _try_tokens(m, data, ends, token_ids, begin, config, bitmask):
    """Set in `bitmask` those of `token_ids[begin:]` that `config` allows, each tried from its first byte on.

    data, ends: bytes of all tokens, and where each ends. Returns 0 when done; NEED: go on from header[POSITION].
    """
    for index in range(begin, token_ids.shape[0]):
        m.header[POSITION] = index
        token = token_ids[index]
        first = ends[token - 1] if token > 0 else np.int64(0)
        enter(m, m.stand[0], config)
        side = 0
        lives = 1
        for i in range(first, ends[token]):
            at = m.stand[side]
            after = m.stand[1 - side]
            if at[0] == IN_STRING:
                lives = _in_string(m, at, data[i], after)
                if lives < 0:
                    return NEED
                if lives == 2:
                    enter(m, after, np.int64(after[0]))
            else:
                here = np.int64(at[0])
                if not m.status[here] & KNOWN and _ensure_row(m, here) < 0:
                    return NEED
                target = target_of(m, here, data[i])
                lives = 1 if target != 0 else 0
                if lives == 1:
                    enter(m, after, target)
            if lives == 0:
                break
            side = 1 - side
        if lives != 0:
            bitmask[token >> 5] |= np.uint32(1) << np.uint32(token & 31)
    return 0


@no_type_check
@compiled_in_place
def _forced_byte(m, config):
    """The one byte that may follow `config`, -1 if there are several or none, or it accepts; -2: NEED.

    A backslash in a JSON string, where it would only respell what one other byte says, does not count.
    """
    if m.status[config] & ACCEPTS:
        return -1
    if _ensure_row(m, config) < 0:
        return -2
    stage = 0
    for i in range(m.pairs_at[config], m.pairs_at[config + 1]):
        s = m.pairs[i] >> 32
        this = 3
        if m.node[s, 0] == STRING:
            this = 1 if m.node[s, 4] == 0 else (2 if m.node[s, 4] >> 24 == ESCAPE else 3)
        if stage == 0:
            stage = this
        elif stage != this:
            stage = 3
    respelling = 0x5C if stage == 1 else (0x75 if stage == 2 else -1)
    found = -1
    respelled = False
    for byte in range(256):
        if target_of(m, config, byte) != 0:
            if byte == respelling:
                respelled = True
            elif found >= 0:
                return -1
            else:
                found = byte
    if found < 0 and respelled:
        return respelling
    return found


# ---------------------------------------------------------------------------------------------------- called by Python
# `handle` is that of a machine's `Directory`, `trie` that of a vocabulary's.


@no_type_check
@compiled_in_place
def start_config(handle, state):
    """Config of `state` with an empty stack, or NEED."""
    return _start_config(_tables(handle), state)


@no_type_check
@compiled_in_place
def ensure_row(handle, config):
    """Fill the row of `config`: 0, or NEED."""
    return _ensure_row(_tables(handle), config)


@no_type_check
@compiled_in_place
def store_row(handle, config, row):
    """Make `row` the row of `config`: 0, or NEED."""
    return _store_row(_tables(handle), config, row)


@no_type_check
@compiled_in_place
def intern_pairs(handle, count):
    """Config of `pairs_out[:count]`, or NEED."""
    return _intern_pairs(_tables(handle), count)


@no_type_check
@compiled_in_place
def native_state(handle, kind, a, b, c, d):
    """Id of the state with these columns, or NEED."""
    return _native_state(_tables(handle), kind, a, b, c, d)


@no_type_check
@compiled_in_place
def rehash(handle, config_hash, native_hash, stack_hash):
    """Fill empty tables; see `_rehash`."""
    return _rehash(_tables(handle), config_hash, native_hash, stack_hash)


@no_type_check
@compiled_in_place
def step_bytes(handle, config, data, begin, stop_mask, recording):
    """Config after data[begin:]; see `_step_bytes`."""
    return _step_bytes(_tables(handle), config, data, begin, stop_mask, recording)


@no_type_check
@compiled_in_place
def forced_byte(handle, config):
    """The one byte that may follow; see `_forced_byte`."""
    return _forced_byte(_tables(handle), config)


@no_type_check
@compiled_in_place
def same_shape(handle, first, second, used, queue):
    """Whether two text configs find the same tokens; see `_same_shape`."""
    return _same_shape(_tables(handle), first, second, used, queue)


@no_type_check
@compiled_in_place
def try_tokens(handle, data, ends, token_ids, begin, config, bitmask):
    """Set in `bitmask` those of `token_ids[begin:]` that `config` allows; see `_try_tokens`."""
    return _try_tokens(_tables(handle), data, ends, token_ids, begin, config, bitmask)


@no_type_check
@compiled_in_place
def walk_trie(handle, trie, config, begin, bitmask):
    """Set in `bitmask` what `config` allows; see `_walk_trie`."""
    return _walk_trie(_tables(handle), _trie(trie), config, begin, bitmask)


@no_type_check
@compiled_in_place
def walk_plain(handle, trie, config, begin, bitmask, covered, room, is_text):
    """Set in `bitmask` what `config` allows, where there are no JSON strings; see `_walk_plain`."""
    return _walk_plain(_tables(handle), _trie(trie), config, begin, bitmask, covered, room, is_text)


@no_type_check
@compiled_in_place
def walk_ends(handle, trie, config, begin, wanted, ends):
    """Write the configs behind tokens; see `_walk_ends`."""
    return _walk_ends(_tables(handle), _trie(trie), config, begin, wanted, ends)


@no_type_check
@compiled
def build_trie(data, ends, order, cells):
    """Preorder trie of byte strings sorted by `order`, no empty ones.

    data: all bytes one after the other. ends: end of each string in `data`. cells: cell of each code point.
    Returns (byte, depth, skip, tokens_at, token_ids, classes, tall, own): of each node its byte, its depth, the first
    node behind its subtree, where its tokens begin in `token_ids`, the bits (see BYTE_CLASS, FOREIGN, CELLS) of the
    bytes and characters below it, how many levels are below it, and its own class or cell (of a byte that does not end
    a character, PARTIAL).
    """
    count = order.shape[0]
    total = 0
    for i in range(count):
        token = order[i]
        total += ends[token] - (ends[token - 1] if token > 0 else 0)
    node_byte = np.empty(total, np.uint8)
    node_depth = np.empty(total, np.int16)
    node_skip = np.empty(total, np.int32)
    tokens_at = np.zeros(total + 1, np.int32)
    token_ids = np.empty(count, np.int32)
    nodes = 0
    tokens = 0
    longest = 0
    for i in range(count):
        token = order[i]
        longest = max(longest, ends[token] - (ends[token - 1] if token > 0 else 0))
    open_node = np.empty(longest + 1, np.int32)
    own_class = np.empty(total, np.int8)
    own_cell = np.empty(total, np.int8)
    points = np.zeros(longest + 1, np.int64)
    within = np.zeros(longest + 1, np.int32)  # at each depth, as of `_within`
    open_depth = 0
    before = 0
    before_size = 0
    for i in range(count):
        token = order[i]
        begin = ends[token - 1] if token > 0 else 0
        size = ends[token] - begin
        if size == 0:
            continue
        shared = 0
        while shared < size and shared < before_size and data[before + shared] == data[begin + shared]:
            shared += 1
        while open_depth > shared:
            open_depth -= 1
            node_skip[open_node[open_depth]] = nodes
        for depth in range(shared, size):
            byte = np.int64(data[begin + depth])
            node_byte[nodes] = byte
            node_depth[nodes] = depth
            tokens_at[nodes] = tokens
            open_node[depth] = nodes
            within[depth + 1] = _within(within[depth], byte)
            points[depth + 1] = _point(points[depth], byte)
            own_cell[nodes] = _cell(cells, within[depth + 1], points[depth + 1], byte)
            if within[depth + 1] < 0:
                own_class[nodes] = ODD
            elif within[depth] == 0:
                own_class[nodes] = BYTE_CLASS[byte]
            else:
                own_class[nodes] = own_class[open_node[depth - 1]]
            nodes += 1
        open_depth = size
        token_ids[tokens] = token
        tokens += 1
        tokens_at[nodes] = tokens
        before = begin
        before_size = size
    while open_depth > 0:
        open_depth -= 1
        node_skip[open_node[open_depth]] = nodes
    node_classes = np.zeros(nodes, np.int64)
    node_tall = np.zeros(nodes, np.int16)
    for i in range(nodes - 1, -1, -1):  # children come behind their parent, so they are done
        child = i + 1
        while child < node_skip[i]:
            node_classes[i] |= node_classes[child] | np.int64(1) << np.int64(own_class[child])
            if own_cell[child] != PARTIAL or tokens_at[child + 1] > tokens_at[child]:
                node_classes[i] |= np.int64(1) << np.int64(own_cell[child])
            node_tall[i] = max(node_tall[i], node_tall[child] + 1)
            child = node_skip[child]
    return (
        node_byte[:nodes].copy(),
        node_depth[:nodes].copy(),
        node_skip[:nodes].copy(),
        tokens_at[: nodes + 1].copy(),
        token_ids[:tokens].copy(),
        node_classes,
        node_tall,
        own_cell[:nodes].copy(),
    )


@no_type_check
@compiled
def token_sets(data, ends, cells):
    """Bits of the characters of each token (int64; FOREIGN and SPACED left out), and how many it begins (int32)."""
    sets = np.zeros(ends.shape[0], np.int64)
    chars = np.zeros(ends.shape[0], np.int32)
    for token in range(ends.shape[0]):
        within = np.int64(0)
        point = np.int64(0)
        cell = np.int64(0)
        for i in range(ends[token - 1] if token > 0 else 0, ends[token]):
            byte = np.int64(data[i])
            if within == 0:
                chars[token] += 1
            within = np.int64(_within(within, byte))
            point = _point(point, byte)
            cell = _cell(cells, within, point, byte)
            if cell != PARTIAL:
                sets[token] |= np.int64(1) << cell
        if cell == PARTIAL:
            sets[token] |= np.int64(1) << PARTIAL
    return sets, chars


@no_type_check
@compiled
def union_of_sets(sets, wanted, masks, group_at, token_ids, out):
    """Set in `out` the tokens of every group whose bits are all `wanted`.

    sets: bits of each group. masks: words of the first groups' tokens. group_at, token_ids: those of the groups behind.
    """
    for group in range(sets.shape[0]):
        if sets[group] & ~wanted == 0:
            if group < masks.shape[0]:
                for word in range(out.shape[0]):
                    out[word] |= masks[group, word]
            else:
                for i in range(group_at[group], group_at[group + 1]):
                    out[token_ids[i] >> 5] |= np.uint32(1) << np.uint32(token_ids[i] & 31)


@no_type_check
@compiled
def classify_tokens(data, ends):
    """What each token does inside a JSON string of any text, from the start of a character on: (length, close).

    length: code points it adds, one it only begins included; -1: it cannot stand there. close: where in the token the
    closing quote is, -1: nowhere.
    """
    length = np.full(ends.shape[0], -1, np.int32)
    close = np.full(ends.shape[0], -1, np.int32)
    for token in range(ends.shape[0]):
        begin = ends[token - 1] if token > 0 else 0
        count = 0
        due = 0  # continuation bytes
        low = 0x80
        high = 0xBF
        stage = PLAIN
        value = 0
        surrogate = False
        good = ends[token] > begin
        for i in range(begin, ends[token]):
            byte = np.int64(data[i])
            if due > 0:
                good = low <= byte <= high
                due -= 1
                low = 0x80
                high = 0xBF
            elif stage == ESCAPE:
                stage = PLAIN
                if byte == 0x75 or (surrogate and byte != 0x75):
                    good = byte == 0x75
                    stage = HEX0
                    value = 0
                else:
                    good = byte == 0x22 or byte == 0x5C or byte == 0x2F or byte == 0x62 or byte == 0x66
                    good = good or byte == 0x6E or byte == 0x72 or byte == 0x74
            elif stage >= HEX0:
                digit = _hex_digit(byte)
                good = digit >= 0
                value = value * 16 + digit
                rest = 4 * (HEX3 - stage)
                least = value << rest
                most = least + (1 << rest) - 1
                if surrogate:
                    good = good and most >= 0xDC00 and least <= 0xDFFF
                else:
                    good = good and not (least >= 0xDC00 and most <= 0xDFFF)
                if stage < HEX3:
                    stage += 1
                else:
                    stage = PLAIN
                    surrogate = not surrogate and 0xD800 <= value <= 0xDBFF
            elif surrogate:
                good = byte == 0x5C
                stage = ESCAPE
            elif byte == 0x22:
                close[token] = i - begin
                break
            elif byte == 0x5C:
                stage = ESCAPE
                count += 1
            elif byte < 0x20:
                good = False
            else:
                count += 1
                if byte >= 0x80:
                    if 0xC2 <= byte <= 0xDF:
                        due = 1
                    elif 0xE0 <= byte <= 0xEF:
                        due = 2
                        low = 0xA0 if byte == 0xE0 else 0x80
                        high = 0x9F if byte == 0xED else 0xBF
                    elif 0xF0 <= byte <= 0xF4:
                        due = 3
                        low = 0x90 if byte == 0xF0 else 0x80
                        high = 0x8F if byte == 0xF4 else 0xBF
                    else:
                        good = False
            if not good:
                break
        if good:
            length[token] = count
    return length, close

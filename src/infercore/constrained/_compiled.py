"""The lazy pushdown machine as loops over arrays: rows of the deterministic automaton, and walks over the token trie.

A *state* is a row of `node`; a *config* is a sorted set of (state, stack) pairs interned to an int, with one row of 256
next configs, filled at first use. A *stack* is a hash-consed list of return states. `machine.py` says what each array
holds and grows them. A function that meets something only Python can do (expand a stub, grow an array) notes it in
`header`, returns NEED, and is called again; all it did before is kept and harmless.
"""

from typing import no_type_check

import numpy as np

from infercore._jit import compiled

# Columns of `node` (int32 [states, 5]) are kind, a, b, c, d.
STUB = 0  # not expanded yet; KEY_DONE natives: a = string spec, b = config of the key
LIT = 1  # byte a leads to the next state
NODE = 2  # b byte edges from `edges[a]` on, d free moves from `free[c]` on
CALL = 3  # enter state a, return to state b
RET = 4  # return to the caller; with an empty stack: accept, with label a
STRING = 5  # inside a JSON string: a = spec, b = config of the decoded text, c = code points so far, d = mode

# Entries of `header` (int64).
NUM_STATES, NUM_CONFIGS, NUM_STACKS, NUM_PAIRS, NUM_NATIVE = 0, 1, 2, 3, 4
NEED_WHAT, NEED_ARG, NEED_CONFIG, POSITION, STAMP = 5, 6, 7, 8, 9
MAX_DEPTH, ANY_CONFIG, REACH, NUM_CELLS, NUM_WANTED = 10, 11, 12, 13, 14
HEADER_SIZE = 16

# ANY_CONFIG: the config that reads any text. REACH: code points that one token may add.

# What NEED asks for, in header[NEED_WHAT].
EXPAND, PYTHON_ROW, GROW_STATES, GROW_CONFIGS, GROW_STACKS, GROW_PAIRS, GROW_WORK, TOO_DEEP = 1, 2, 3, 4, 5, 6, 7, 8
DISTANCE, GROW_CELLS = 9, 10
NEED = -1

# Bits of `status` (uint8, one per config).
KNOWN, ACCEPTS, FROM_PYTHON, RECORDS, PENDING, FREE, HAS_ANY, BOUNDED = 1, 2, 4, 8, 16, 32, 64, 128

# Columns of `specs` (int32 [specs, 6]): of JSON strings.
MIN_LEN, MAX_LEN, CLOSE, RECORD = 0, 1, 2, 3
KEY_DONE = -1  # value of CLOSE: the closing quote leads to a stub (spec, config), not to one state

# Modes of a STRING state: stage << 24 | value.
STAGE = 1 << 24
PLAIN, ESCAPE, HEX0, HEX1, HEX2, HEX3, HIGH, HIGH_ESCAPE, LOW0, LOW1, LOW2, LOW3 = 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11


@no_type_check
@compiled
def _need(m, what, arg):
    m.header[NEED_WHAT] = what
    m.header[NEED_ARG] = arg
    return NEED


@no_type_check
@compiled
def target_of(m, config, byte):
    """Next config; 0 where `byte` is refused. The row must be known."""
    cell = np.int64(byte) - m.row_span[config, 0]
    if cell < 0 or cell >= m.row_span[config, 1]:
        return np.int64(0)
    return np.int64(m.cells[m.row_span[config, 2] + cell])


@no_type_check
@compiled
def store_row(m, config, row):
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
    m.status[config] |= KNOWN
    return 0


@no_type_check
@compiled
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
@compiled
def native_state(m, kind, a, b, c, d):
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
@compiled
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
@compiled
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
        fan_out = node[s, 4] if kind == NODE else 1
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
        else:  # go on without it, so that Python is asked once for all the stubs of a row
            wanted = m.header[NUM_WANTED]
            if wanted >= m.wanted.shape[0]:
                return _need(m, EXPAND, 0)
            m.wanted[wanted] = s
            m.header[NUM_WANTED] = wanted + 1
    return count


@no_type_check
@compiled
def _is_free(m, state):
    """Whether no token can bring a STRING state to a bound of its length; its text must have any text among it."""
    spec = m.node[state, 1]
    limit = m.specs[spec, MAX_LEN]
    count = m.node[state, 3]
    return count >= m.specs[spec, MIN_LEN] and (limit < 0 or limit - count > m.header[REACH])


@no_type_check
@compiled
def free_config(m, config):
    """What a FREE config becomes behind plain text that none of its keys or patterns begins with; NEED."""
    count = 0
    for i in range(m.pairs_at[config], m.pairs_at[config + 1]):
        s = m.pairs[i] >> 32
        if m.node[s, 0] == STRING and m.node[s, 4] == 0 and m.status[m.node[s, 2]] & HAS_ANY and _is_free(m, s):
            own = native_state(m, STRING, m.node[s, 1], m.header[ANY_CONFIG], m.node[s, 3], 0)
            if own < 0:
                return own
            m.pairs_out[count] = (own << 32) | (m.pairs[i] & 0xFFFFFFFF)
            count += 1
    return intern_pairs(m, count)


@no_type_check
@compiled
def rehash(m, config_hash, native_hash, stack_hash):
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
@compiled
def intern_pairs(m, count):
    """Config of `pairs_out[:count]`; 0, the dead config, where that is empty; NEED where there is no room."""
    if count == 0:
        return np.int64(0)
    pairs = m.pairs_out
    if count > 24:
        pairs[:count] = np.sort(pairs[:count])
    else:
        for i in range(1, count):
            item = pairs[i]
            j = i - 1
            while j >= 0 and pairs[j] > item:
                pairs[j + 1] = pairs[j]
                j -= 1
            pairs[j + 1] = item
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
    for i in range(count):
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
                elif count == 1 and m.node[s, 2] == m.header[ANY_CONFIG]:
                    status |= BOUNDED
        elif m.pending[s] != 0:
            status |= PENDING
    if any_at == any_end and any_end > 0:
        status |= HAS_ANY
    m.header[NUM_CONFIGS] = config + 1
    m.header[NUM_PAIRS] = at + count
    m.pairs_at[config + 1] = at + count
    m.status[config] = status
    m.distance[config] = -1
    table[slot] = config
    return config


@no_type_check
@compiled
def start_config(m, state):
    """Config of `state` with an empty stack, or NEED."""
    m.header[STAMP] += 1
    m.header[NUM_WANTED] = 0
    count = _closure(m, state, np.int64(0), 0)
    if count < 0:
        return NEED
    if m.header[NUM_WANTED] > 0:
        return _need(m, EXPAND, 0)
    return intern_pairs(m, count)


@no_type_check
@compiled
def _text_step(m, config, code_point):
    """Config of the decoded text after one code point; 0 where refused; NEED with the row that is missing."""
    if code_point < 0x80:
        size = 1
    elif code_point < 0x800:
        size = 2
    elif code_point < 0x10000:
        size = 3
    else:
        size = 4
    for i in range(size):
        if size == 1:
            byte = code_point
        elif i == 0:
            byte = ((0xF00 >> size) & 0xFF) | (code_point >> (6 * (size - 1)))
        else:
            byte = 0x80 | ((code_point >> (6 * (size - 1 - i))) & 0x3F)
        if not m.status[config] & KNOWN:
            return _need(m, PYTHON_ROW, config)
        config = target_of(m, config, byte)
        if config == 0:
            return config
    return config


@no_type_check
@compiled
def _text_range_lives(m, config, low, high):
    """1 if some code point of low..high may come next in the decoded text, else 0; NEED with the missing row."""
    code_point = low
    while code_point <= high:
        if 0xD800 <= code_point <= 0xDFFF:
            code_point = 0xE000
            continue
        after = _text_step(m, config, code_point)
        if after != 0:
            return np.int64(1) if after > 0 else np.int64(NEED)
        if code_point >= 0x80 and code_point & 63 == 0:  # skip a block of 64 or 4096 whose first bytes are refused
            if code_point >= 0x10000:
                lead = 0xF0 | (code_point >> 18)
                block = 1 << 18
            elif code_point >= 0x800:
                lead = 0xE0 | (code_point >> 12)
                block = 1 << 12
            else:
                lead = 0xC0 | (code_point >> 6)
                block = 1 << 6
            if target_of(m, config, lead) == 0:
                code_point = (code_point // block + 1) * block
                continue
        code_point += 1
    return np.int64(0)


@no_type_check
@compiled
def _string_state(m, state, text, more, mode):
    """The STRING state after `state` with these changes; 0 where the length bound refuses it."""
    spec = m.node[state, 1]
    count = m.node[state, 3]
    if more:
        limit = m.specs[spec, MAX_LEN]
        if limit < 0:
            if count < m.specs[spec, MIN_LEN]:
                count += 1
        else:
            if count >= limit:
                return np.int64(0)
            count += 1
            if text != m.header[ANY_CONFIG]:  # what the text still needs must fit
                if m.distance[text] < 0:
                    return _need(m, DISTANCE, text)
                if count + m.distance[text] > limit:
                    return np.int64(0)
    return native_state(m, STRING, spec, text, count, mode)


@no_type_check
@compiled
def _hex_digit(byte):
    if 48 <= byte <= 57:
        return byte - 48
    if 65 <= byte <= 70:
        return byte - 55
    if 97 <= byte <= 102:
        return byte - 87
    return -1


@no_type_check
@compiled
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
    full = m.specs[spec, MAX_LEN] >= 0 and node[state, 3] >= m.specs[spec, MAX_LEN]
    if stage == PLAIN:
        if byte == 0x22:
            if not m.status[text] & ACCEPTS or node[state, 3] < m.specs[spec, MIN_LEN]:
                return np.int64(0)
            if m.specs[spec, CLOSE] == KEY_DONE:
                return native_state(m, STUB, spec, text, 0, 0)
            return np.int64(m.specs[spec, CLOSE])
        if byte == 0x5C:
            if full:
                return np.int64(0)
            for lead in range(0xF5):
                if target_of(m, text, lead) != 0 and (lead < 0x80 or lead > 0xBF):
                    return native_state(m, STRING, spec, text, node[state, 3], ESCAPE * STAGE)
            return np.int64(0)
        if byte < 0x20:
            return np.int64(0)
        after = target_of(m, text, byte)
        if after == 0:
            return after
        return _string_state(m, state, after, byte & 0xC0 != 0x80, 0)
    if stage == ESCAPE:
        if byte == 0x75:
            return native_state(m, STRING, spec, text, node[state, 3], HEX0 * STAGE)
        if byte == 0x22 or byte == 0x5C or byte == 0x2F:
            decoded = byte
        elif byte == 0x62:
            decoded = 8
        elif byte == 0x66:
            decoded = 12
        elif byte == 0x6E:
            decoded = 10
        elif byte == 0x72:
            decoded = 13
        elif byte == 0x74:
            decoded = 9
        else:
            return np.int64(0)
        after = target_of(m, text, decoded)
        if after == 0:
            return after
        return _string_state(m, state, after, True, 0)
    if stage == HIGH:
        return (
            native_state(m, STRING, spec, text, node[state, 3], HIGH_ESCAPE * STAGE + value)
            if byte == 0x5C
            else np.int64(0)
        )
    if stage == HIGH_ESCAPE:
        return (
            native_state(m, STRING, spec, text, node[state, 3], LOW0 * STAGE + (value << 12))
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
            lives = _text_range_lives(m, text, first, last)
        else:
            lives = _text_range_lives(m, text, low, high)
            if lives == 0 and low <= 0xD800 and high >= 0xDBFF:
                lives = _text_range_lives(m, text, 0x10000, 0x10FFFF)
        if lives <= 0:
            return lives
        if rest > 0:
            return native_state(m, STRING, spec, text, node[state, 3], (stage + 1) * STAGE + value)
        if 0xD800 <= value <= 0xDBFF:
            return native_state(m, STRING, spec, text, node[state, 3], HIGH * STAGE + (value - 0xD800))
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
    lives = _text_range_lives(m, text, base + low, base + high)
    if lives <= 0:
        return lives
    if rest > 0:
        return native_state(m, STRING, spec, text, node[state, 3], (stage + 1) * STAGE + (high10 << 12) + low_bits)
    after = _text_step(m, text, base + low)
    return after if after <= 0 else _string_state(m, state, after, True, 0)


@no_type_check
@compiled
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
@compiled
def _plain_row(m, config):
    """Fill the row of `config`: 0, or NEED."""
    marks = m.marks
    marks[:] = 0
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
            target = intern_pairs(m, count)
            if target < 0:
                return NEED
            for byte in range(low, high):
                m.row_work[byte] = target
        low = high
    if m.header[NUM_WANTED] > 0:
        return _need(m, EXPAND, 0)
    return store_row(m, config, m.row_work)


@no_type_check
@compiled
def ensure_row(m, config):
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
@compiled
def step_bytes(m, config, data, begin, stop_mask):
    """Config after data[begin:]; stops early after a byte that leads to a config with a bit of `stop_mask`.

    header[POSITION] is where it stopped. 0: refused. NEED: go on from there with the config in header[NEED_CONFIG].
    """
    for i in range(begin, data.shape[0]):
        if not m.status[config] & KNOWN and ensure_row(m, config) < 0:
            m.header[POSITION] = i
            m.header[NEED_CONFIG] = config
            return np.int64(NEED)
        config = target_of(m, config, data[i])
        if config == 0:
            m.header[POSITION] = i
            return config
        if m.status[config] & stop_mask:
            m.header[POSITION] = i + 1
            return config
    m.header[POSITION] = data.shape[0]
    return config


@no_type_check
@compiled
def walk_trie(m, trie, begin, path, bitmask):
    """Set in `bitmask` every token of `trie` that the config path[0] allows, from trie node `begin` on.

    trie: (byte, depth, skip, tokens_at, token_ids), nodes in preorder. path: configs by depth, kept between calls.
    bitmask: uint32. Returns 0 when done; NEED: go on from header[POSITION].
    """
    node_byte, node_depth, node_skip, tokens_at, token_ids = trie
    i = begin
    while i < node_byte.shape[0]:
        depth = node_depth[i]
        config = path[depth]
        if not m.status[config] & KNOWN and ensure_row(m, config) < 0:
            m.header[POSITION] = i
            return NEED
        target = target_of(m, config, node_byte[i])
        if target == 0:
            i = node_skip[i]
        else:
            path[depth + 1] = target
            for t in range(tokens_at[i], tokens_at[i + 1]):
                token = token_ids[t]
                bitmask[token >> 5] |= np.uint32(1) << np.uint32(token & 31)
            i += 1
    return 0


@no_type_check
@compiled
def walk_departures(m, trie, node_plain, begin, path, free, bitmask):
    """As `walk_trie`, for a FREE config whose mask already holds what `free`, its free config, allows.

    Only tokens that begin like one of the keys or patterns are walked; where plain text (node_plain) has led to `free`,
    what stands in the mask is right.
    """
    node_byte, node_depth, node_skip, tokens_at, token_ids = trie
    i = begin
    while i < node_byte.shape[0]:
        depth = node_depth[i]
        config = path[depth]
        if not m.status[config] & KNOWN and ensure_row(m, config) < 0:
            m.header[POSITION] = i
            return NEED
        target = target_of(m, config, node_byte[i])
        if target == free and node_plain[i]:
            i = node_skip[i]
        elif target == 0:
            for t in range(tokens_at[i], tokens_at[node_skip[i]]):
                token = token_ids[t]
                bitmask[token >> 5] &= ~(np.uint32(1) << np.uint32(token & 31))
            i = node_skip[i]
        else:
            path[depth + 1] = target
            for t in range(tokens_at[i], tokens_at[i + 1]):
                token = token_ids[t]
                bitmask[token >> 5] |= np.uint32(1) << np.uint32(token & 31)
            i += 1
    return 0


@no_type_check
@compiled
def forced_byte(m, config):
    """The one byte that may follow `config`, -1 if there are several or none, or it accepts; -2: NEED.

    A backslash in a JSON string, where it would only respell what one other byte says, does not count.
    """
    if m.status[config] & ACCEPTS:
        return -1
    if ensure_row(m, config) < 0:
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


@no_type_check
@compiled
def build_trie(data, ends, order):
    """Preorder trie of byte strings sorted by `order`: (byte, depth, skip, tokens_at, token_ids); no empty ones.

    data: all bytes one after the other. ends: end of each string in `data`.
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
            node_byte[nodes] = data[begin + depth]
            node_depth[nodes] = depth
            tokens_at[nodes] = tokens
            open_node[depth] = nodes
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
    return (
        node_byte[:nodes].copy(),
        node_depth[:nodes].copy(),
        node_skip[:nodes].copy(),
        tokens_at[: nodes + 1].copy(),
        token_ids[:tokens].copy(),
    )


@no_type_check
@compiled
def plain_nodes(node_byte, node_depth):
    """uint8 per trie node: 1 where the bytes from the root to it are whole UTF-8 that JSON needs no escape for."""
    plain = np.zeros(node_byte.shape[0], np.uint8)
    # by depth: continuation bytes still due (-1: not plain), and the range of the next one
    due = np.zeros(node_byte.shape[0] + 2, np.int32)
    least = np.zeros(node_byte.shape[0] + 2, np.int32)
    most = np.zeros(node_byte.shape[0] + 2, np.int32)
    for i in range(node_byte.shape[0]):
        depth = node_depth[i]
        byte = node_byte[i]
        after = -1
        low = 0x80
        high = 0xBF
        if due[depth] > 0:
            if least[depth] <= byte <= most[depth]:
                after = due[depth] - 1
        elif due[depth] == 0:
            if byte < 0x80:
                if byte >= 0x20 and byte != 0x22 and byte != 0x5C:
                    after = 0
            elif 0xC2 <= byte <= 0xDF:
                after = 1
            elif 0xE0 <= byte <= 0xEF:
                after = 2
                low = 0xA0 if byte == 0xE0 else 0x80
                high = 0x9F if byte == 0xED else 0xBF
            elif 0xF0 <= byte <= 0xF4:
                after = 3
                low = 0x90 if byte == 0xF0 else 0x80
                high = 0x8F if byte == 0xF4 else 0xBF
        due[depth + 1] = after
        least[depth + 1] = low
        most[depth + 1] = high
        if after == 0:
            plain[i] = 1
    return plain


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

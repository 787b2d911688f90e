"""The suffix automaton and the trees grown from it, as loops over int32 arrays. Each also runs as plain Python.

One automaton is four arrays, which loops that are called from outside get as the handle of a `Directory`:
    header [6]: number of states, number of edges, state of the whole text, tokens in the text, and where the end of
        this text is in another automaton: state and matched length, as its owner keeps them
    states [capacity, 4]: longest length, suffix link, occurrences, first edge (-1: none)
    edges [capacity, 4]: from state, token, to state, next edge of the same state (newest first, -1: last)
    table [power of two]: open addressing over (state, token) -> edge, -1: free
State 0 is the empty context. A negative token separates texts and is never proposed.
"""

from typing import no_type_check

import numpy as np

from infercore._jit import Field, arrays_at, compiled

MAX_COUNTED = 64  # suffix links followed per token to keep occurrences exact; only degenerate text has longer chains
MAX_EDGES = 32  # followers of one context that are looked at, newest first
MAX_FOLLOWERS = 12  # of those, the likeliest that become candidates
MIN_CHANCE = 0.002  # candidates below this are not worth looking for
MAX_LEVELS = 6  # contexts looked at, longest first, both automata together

AUTOMATON = (
    Field("header", "int32"),
    Field("states", "int32", 4),
    Field("edges", "int32", 4),
    Field("table", "int32"),
)
"""The arrays of an automaton, as loops see them; `automaton.py` owns them."""

_automaton = arrays_at(AUTOMATON)


@no_type_check
@compiled
def find_edge(edges, table, state, token):
    """Index of the edge from `state` over `token`, -1 if there is none."""
    mask = table.shape[0] - 1
    mixed = np.int64(state) * 668265263 + np.int64(token) * 374761393
    slot = (mixed ^ (mixed >> 17)) & mask
    while True:
        edge = table[slot]
        if edge < 0:
            return -1
        if edges[edge, 0] == state and edges[edge, 1] == token:
            return edge
        slot = (slot + 1) & mask


@no_type_check
@compiled
def index_edge(edges, table, edge):
    """Put an edge that is not there yet into the table."""
    mask = table.shape[0] - 1
    mixed = np.int64(edges[edge, 0]) * 668265263 + np.int64(edges[edge, 1]) * 374761393
    slot = (mixed ^ (mixed >> 17)) & mask
    while table[slot] >= 0:
        slot = (slot + 1) & mask
    table[slot] = edge


@no_type_check
@compiled
def index_edges(header, edges, table):
    """Fill an empty table with all edges."""
    for edge in range(header[1]):
        index_edge(edges, table, edge)


@no_type_check
@compiled
def add_edge(header, states, edges, table, state, token, target):
    edge = header[1]
    header[1] += 1
    edges[edge, 0] = state
    edges[edge, 1] = token
    edges[edge, 2] = target
    edges[edge, 3] = states[state, 3]
    states[state, 3] = edge
    index_edge(edges, table, edge)


@no_type_check
@compiled
def extend(header, states, edges, table, token_ids):
    """Append tokens to the text. Room for 2 states and 3 edges per token must be there. Blumer et al. 1985."""
    for position in range(token_ids.shape[0]):
        token = token_ids[position]
        state = header[2]
        new = header[0]
        header[0] += 1
        states[new, 0] = states[state, 0] + 1
        states[new, 1] = 0
        states[new, 2] = 0
        states[new, 3] = -1
        edge = -1
        while state >= 0:
            edge = find_edge(edges, table, state, token)
            if edge >= 0:
                break
            add_edge(header, states, edges, table, state, token, new)
            state = states[state, 1]
        if state >= 0:
            target = edges[edge, 2]
            if states[target, 0] == states[state, 0] + 1:
                states[new, 1] = target
            else:
                clone = header[0]
                header[0] += 1
                states[clone, 0] = states[state, 0] + 1
                states[clone, 1] = states[target, 1]
                states[clone, 2] = states[target, 2]
                states[clone, 3] = -1
                copied = states[target, 3]
                while copied >= 0:
                    add_edge(header, states, edges, table, clone, edges[copied, 1], edges[copied, 2])
                    copied = edges[copied, 3]
                while state >= 0:
                    edge = find_edge(edges, table, state, token)
                    if edge < 0 or edges[edge, 2] != target:
                        break
                    edges[edge, 2] = clone
                    state = states[state, 1]
                states[target, 1] = clone
                states[new, 1] = clone
        header[2] = new
        header[3] += 1
        counted = 0
        while new > 0 and counted < MAX_COUNTED:
            states[new, 2] += 1
            new = states[new, 1]
            counted += 1


@no_type_check
@compiled
def step(states, edges, table, state, length, token):
    """The longest suffix of a matched context plus `token` that occurs in the text: its state and length."""
    while True:
        edge = find_edge(edges, table, state, token)
        if edge >= 0:
            return edges[edge, 2], length + 1
        if state == 0:
            return np.int32(0), np.int32(0)
        state = states[state, 1]
        length = states[state, 0]


@no_type_check
@compiled
def advance(header, states, edges, table, token_ids):
    """Move the end that `header` keeps (state, matched length) over tokens, in an automaton that may have grown since.

    `states`, `edges` and `table` are those of that automaton.
    """
    state = header[4]
    length = header[5]
    while state > 0 and length <= states[states[state, 1], 0]:  # a clone took over the shorter contexts of this state
        state = states[state, 1]
    for position in range(token_ids.shape[0]):
        state, length = step(states, edges, table, state, length, token_ids[position])
    header[4] = state
    header[5] = length


@no_type_check
@compiled
def followers(states, edges, state, tokens, counts, num_excluded):
    """Append the likeliest followers of a context that are not yet in `tokens[:num_excluded]`.

    Returns their number and the occurrences of all that were looked at, the excluded ones left out.
    """
    found = 0
    total = 0
    looked = 0
    edge = states[state, 3]
    while edge >= 0 and looked < MAX_EDGES:
        looked += 1
        token = edges[edge, 1]
        count = states[edges[edge, 2], 2]
        edge = edges[edge, 3]
        known = token < 0
        for other in range(num_excluded):
            if tokens[other] == token:
                known = True
                break
        if known:
            continue
        total += count
        rank = found
        while rank > 0 and counts[num_excluded + rank - 1] < count:
            rank -= 1
        if num_excluded + rank >= MAX_FOLLOWERS:
            continue
        last = min(found, MAX_FOLLOWERS - 1 - num_excluded)
        for later in range(last, rank, -1):
            tokens[num_excluded + later] = tokens[num_excluded + later - 1]
            counts[num_excluded + later] = counts[num_excluded + later - 1]
        tokens[num_excluded + rank] = token
        counts[num_excluded + rank] = count
        found = min(found + 1, MAX_FOLLOWERS - num_excluded)
    return found, total


@no_type_check
@compiled
def rarity(total):
    """Bucket of a number of occurrences: 1, 2 to 3, 4 to 7, more."""
    if total < 2:
        return 0
    if total < 4:
        return 1
    return 2 if total < 8 else 3


@no_type_check
@compiled
def predict(
    states,
    edges,
    state,
    length,
    other_states,
    other_edges,
    other_state,
    other_length,
    trust,
    score,
    tokens,
    counts,
    probs,
):
    """Likeliest next tokens after a context, from the longest match in two automata down to shorter ones.

    Each level (automaton, matched length, occurrences) gets the share `trust` of the probability that the levels
    before it left, split by occurrences, tokens already named left out. Fills `tokens` and `probs`; returns how many.
    """
    found = 0
    left = np.float32(1.0)
    for _ in range(MAX_LEVELS):
        if found >= MAX_FOLLOWERS or (length <= 0 and other_length <= 0) or score * left < MIN_CHANCE:
            break
        if length >= other_length:
            new, total = followers(states, edges, state, tokens, counts, found)
            share = left * trust[0, min(length, trust.shape[1] - 1), rarity(total)]
            state = max(0, states[state, 1])
            length = states[state, 0]
        else:
            new, total = followers(other_states, other_edges, other_state, tokens, counts, found)
            share = left * trust[1, min(other_length, trust.shape[1] - 1), rarity(total)]
            other_state = max(0, other_states[other_state, 1])
            other_length = other_states[other_state, 0]
        if new == 0:
            continue
        for index in range(found, found + new):
            probs[index] = share * np.float32(counts[index]) / np.float32(total)
        found += new
        left -= share
    return found


@no_type_check
@compiled
def judge(states, edges, state, length, other_states, other_edges, other_state, other_length, trust, rate, token):
    """Move `trust` of each level that had a say to 1 if it named `token`, else to 0; the first hit ends it."""
    tokens = np.empty(MAX_FOLLOWERS, np.int32)
    counts = np.empty(MAX_FOLLOWERS, np.int32)
    found = 0
    for _ in range(MAX_LEVELS):
        if found >= MAX_FOLLOWERS or (length <= 0 and other_length <= 0):
            return
        if length >= other_length:
            which = 0
            matched = length
            new, total = followers(states, edges, state, tokens, counts, found)
            state = max(0, states[state, 1])
            length = states[state, 0]
        else:
            which = 1
            matched = other_length
            new, total = followers(other_states, other_edges, other_state, tokens, counts, found)
            other_state = max(0, other_states[other_state, 1])
            other_length = other_states[other_state, 0]
        if new == 0:
            continue
        hit = False
        for index in range(found, found + new):
            if tokens[index] == token:
                hit = True
        found += new
        cell = min(matched, trust.shape[1] - 1)
        bucket = rarity(total)
        trust[which, cell, bucket] += rate * ((1.0 if hit else 0.0) - trust[which, cell, bucket])
        if hit:
            return


@no_type_check
@compiled
def read(own, shared, trust, rate, token_ids):
    """Append tokens to the own text and move its end in the shared one, learning `trust` from each of them."""
    a, b = _automaton(own), _automaton(shared)
    header, states, edges, table = a.header, a.states, a.edges, a.table
    other_states, other_edges, other_table = b.states, b.edges, b.table
    for position in range(token_ids.shape[0]):
        repeat = max(0, states[header[2], 1])
        judge(states, edges, repeat, states[repeat, 0], other_states, other_edges, header[4], header[5],
              trust, rate, token_ids[position])  # fmt: skip
        extend(header, states, edges, table, token_ids[position : position + 1])
        advance(header, other_states, other_edges, other_table, token_ids[position : position + 1])


@no_type_check
@compiled
def grow(own, shared, trust, max_depth, recent, max_nodes, nodes, start):
    """Best-first tree below the end of the own text, read on by both automata, in `nodes` from `start` on.

    The end of the own text is first moved over `recent` in the shared one. The likeliest candidate under any node so
    far becomes the next node. Returns the number of nodes.
    """
    a, b = _automaton(own), _automaton(shared)
    header, states, edges, table = a.header, a.states, a.edges, a.table
    other_states, other_edges, other_table = b.states, b.edges, b.table
    advance(header, other_states, other_edges, other_table, recent)
    token_ids = nodes[0, start : start + max_nodes]
    parents = nodes[1, start : start + max_nodes]
    scores = nodes[2, start : start + max_nodes].view(np.float32)
    capacity = (max_nodes + 1) * MAX_FOLLOWERS
    open_scores = np.empty(capacity, np.float32)
    open_tokens = np.empty(capacity, np.int32)
    open_parents = np.empty(capacity, np.int32)
    num_open = 0
    cursors = np.empty((max_nodes + 1, 5), np.int32)  # per row, the root first: depth, then both (state, length)
    tokens = np.empty(MAX_FOLLOWERS, np.int32)
    counts = np.empty(MAX_FOLLOWERS, np.int32)
    probs = np.empty(MAX_FOLLOWERS, np.float32)
    repeat = max(0, states[header[2], 1])  # the longest suffix that occurred before
    cursors[0, 0] = 0
    cursors[0, 1] = repeat
    cursors[0, 2] = states[repeat, 0]
    cursors[0, 3] = header[4]
    cursors[0, 4] = header[5]
    num_nodes = 0
    score = np.float32(1.0)
    while True:
        row = num_nodes
        if cursors[row, 0] < max_depth:
            found = predict(
                states, edges, cursors[row, 1], cursors[row, 2], other_states, other_edges, cursors[row, 3],
                cursors[row, 4], trust, score, tokens, counts, probs,
            )  # fmt: skip
            for index in range(found):
                if score * probs[index] < MIN_CHANCE:
                    continue
                open_scores[num_open] = score * probs[index]
                open_tokens[num_open] = tokens[index]
                open_parents[num_open] = row - 1
                num_open += 1
        if num_nodes == max_nodes or num_open == 0:
            break
        best = 0
        for candidate in range(1, num_open):
            if open_scores[candidate] > open_scores[best]:
                best = candidate
        score = open_scores[best]
        token = open_tokens[best]
        above = open_parents[best] + 1
        num_open -= 1
        open_scores[best] = open_scores[num_open]
        open_tokens[best] = open_tokens[num_open]
        open_parents[best] = open_parents[num_open]
        token_ids[num_nodes] = token
        parents[num_nodes] = above - 1
        scores[num_nodes] = score
        num_nodes += 1
        cursors[num_nodes, 0] = cursors[above, 0] + 1
        state, length = step(states, edges, table, cursors[above, 1], cursors[above, 2], token)
        cursors[num_nodes, 1] = state
        cursors[num_nodes, 2] = length
        state, length = step(other_states, other_edges, other_table, cursors[above, 3], cursors[above, 4], token)
        cursors[num_nodes, 3] = state
        cursors[num_nodes, 4] = length
    return num_nodes

"""Attention of few rows over a paged pool in float32, as plain loops for numba.

Loops run over blocks of 8 keys copied into a small buffer, so that pages of any size cost the same, and over 4 rows at
a time, so that each key loaded serves several. Heads run outside sequences: pages that sequences share are then still
in the second-level cache when the next one reads them.
"""

import math
import typing

import numpy as np

from infercore._jit import compiled_float

_BLOCK = 8  # keys per block
_WIDTH = 64  # a row of scores is padded with -inf to this multiple: what vector code leaves over would run one by one
_LOG2_E = np.float32(1.4426950408889634)
_LOWEST = np.float32(-126.0)  # 2**-126 is the smallest normal float32: a weight below it counts as zero
_C6, _C5, _C4 = (
    np.float32(0.00021702250523958355),
    np.float32(0.0012439689598977566),
    np.float32(0.009678840637207031),
)  # 2**f on [0, 1], relative error below 1e-8
_C3, _C2, _C1, _C0 = (
    np.float32(0.055483341217041016),
    np.float32(0.24022983014583588),
    np.float32(0.6931470036506653),
    np.float32(1.0),
)


@compiled_float
@typing.no_type_check
def attend(
    query,  # [rows, heads, k_dim] float32
    k_pages,  # [num_pages, page_size, kv_heads, k_dim]
    v_pages,  # [num_pages, page_size, kv_heads, v_dim]
    out,  # [rows, heads, v_dim], written for the rows of `sequences` only; holds what goes with `known_lse`
    sequences,  # int64: which sequences to run
    first_keys,  # int64 [seqs]: keys before these are known already
    known_lse,  # [rows, heads] float32: log2 of the sum of weights over known keys, -inf: none; [0, 0]: none at all
    row_starts,
    context_lens,
    num_causal_rows,
    block_table,
    position_ids,
    ancestor_bits,  # [rows, words] int32; [0, 0] where no sequence has tree rows
    scaling,
    sliding_window,  # 0: none
    softcap,  # 0: none
    sinks,  # [heads] float32; [0]: none
):
    """`tree_attention` for the listed sequences; page ids and lengths have been checked."""
    heads, k_dim = query.shape[1], query.shape[2]
    page_size, kv_heads, v_dim = k_pages.shape[1], k_pages.shape[2], v_pages.shape[3]
    group = heads // kv_heads
    most_rows, most_keys = 0, 0
    for s in sequences:
        num_rows = row_starts[s + 1] - row_starts[s]
        most_rows = max(most_rows, num_rows)
        most_keys = max(most_keys, context_lens[s] + num_rows - first_keys[s])
    most_rows = (most_rows * group + 3) // 4 * 4
    most_keys = (most_keys + _WIDTH - 1) // _WIDTH * _WIDTH
    scaled = np.zeros((most_rows, k_dim), np.float32)
    scores = np.empty((most_rows, most_keys), np.float32)
    sums = np.zeros((most_rows, v_dim), np.float32)
    k_block = np.zeros((_BLOCK, k_dim), np.float32)
    v_block = np.zeros((_BLOCK, v_dim), np.float32)
    exponents = np.empty(most_keys, np.int32)
    powers = exponents.view(np.float32)
    inverses = np.empty(most_rows, np.float32)
    known = np.zeros(most_rows, np.float32)
    lanes = np.empty(16, np.float32)
    factor = np.float32(scaling) if softcap > 0 else np.float32(scaling) * _LOG2_E
    cap = np.float32(softcap)
    for h in range(kv_heads):
        for s in sequences:
            start, context_len, num_causal = row_starts[s], context_lens[s], num_causal_rows[s]
            num_rows = row_starts[s + 1] - start
            first_key = first_keys[s]
            if sliding_window > 0:
                lowest = position_ids[start]
                for i in range(1, num_rows):
                    lowest = min(lowest, position_ids[start + i])
                first_key = max(first_key, min(lowest - sliding_window + 1, context_len))
            num_keys = context_len + num_rows - first_key
            width = (num_keys + _WIDTH - 1) // _WIDTH * _WIDTH
            packed = num_rows * group
            padded = (packed + 3) // 4 * 4
            for i in range(num_rows):
                for g in range(group):
                    for d in range(k_dim):
                        scaled[i * group + g, d] = query[start + i, h * group + g, d] * factor
            for r in range(packed, padded):
                for d in range(k_dim):
                    scaled[r, d] = np.float32(0)
            table = block_table[s]
            _score(scaled, padded, k_pages, table, page_size, h, first_key, num_keys, k_dim, k_block, scores)
            if softcap > 0:
                for r in range(packed):
                    for x in range(num_keys):
                        scores[r, x] = cap * np.float32(math.tanh(scores[r, x] / cap)) * _LOG2_E
            _hide(
                scores, group, first_key, context_len, num_causal, num_rows, start, position_ids, ancestor_bits,
                sliding_window,
            )  # fmt: skip
            for r in range(packed):
                for x in range(num_keys, width):
                    scores[r, x] = np.float32(-np.inf)
                high = _highest(scores, r, width, lanes)
                total = np.float32(0)
                if len(sinks) > 0:
                    sink = sinks[h * group + r % group] * _LOG2_E
                    high = max(high, sink)
                    total = np.float32(2.0 ** (sink - high))
                if len(known_lse) > 0:
                    lse = known_lse[start + r // group, h * group + r % group]
                    high = max(high, lse)
                    known[r] = np.float32(2.0 ** (lse - high))
                    total += known[r]
                total += _exp2_row(scores, r, width, high, exponents, powers)
                inverses[r] = np.float32(1) / total
            _weigh(scores, packed, v_pages, table, page_size, h, first_key, num_keys, v_dim, v_block, sums)
            for i in range(num_rows):
                for g in range(group):
                    r = i * group + g
                    if known[r] > 0:
                        for d in range(v_dim):
                            sums[r, d] += known[r] * out[start + i, h * group + g, d]
                    for d in range(v_dim):
                        out[start + i, h * group + g, d] = sums[r, d] * inverses[r]


@compiled_float
@typing.no_type_check
def _load_block(pages, table, page_size, h, key, count, dim, block):
    """Copy `count` keys from logical index `key` on into `block`; the rest of it becomes zero."""
    u = 0
    while u < count:
        page = np.int64(table[(key + u) // page_size])
        offset = (key + u) % page_size
        for v in range(min(count - u, page_size - offset)):
            for d in range(dim):
                block[u + v, d] = pages[page, offset + v, h, d]
        u += min(count - u, page_size - offset)
    for u in range(count, _BLOCK):
        for d in range(dim):
            block[u, d] = np.float32(0)


@compiled_float
@typing.no_type_check
def _score(scaled, padded, k_pages, table, page_size, h, first_key, num_keys, dim, block, scores):
    """scores[r, x] = scaled[r] . key x; written up to the end of the last block."""
    for x in range(0, num_keys, _BLOCK):
        _load_block(k_pages, table, page_size, h, first_key + x, min(_BLOCK, num_keys - x), dim, block)
        for r in range(0, padded, 4):
            for u in range(0, _BLOCK, 2):
                a0 = np.float32(0)
                a1, a2, a3, b0, b1, b2, b3 = a0, a0, a0, a0, a0, a0, a0
                for d in range(dim):
                    k0, k1 = block[u, d], block[u + 1, d]
                    q0, q1, q2, q3 = scaled[r, d], scaled[r + 1, d], scaled[r + 2, d], scaled[r + 3, d]
                    a0 += q0 * k0
                    a1 += q1 * k0
                    a2 += q2 * k0
                    a3 += q3 * k0
                    b0 += q0 * k1
                    b1 += q1 * k1
                    b2 += q2 * k1
                    b3 += q3 * k1
                scores[r, x + u], scores[r, x + u + 1] = a0, b0
                scores[r + 1, x + u], scores[r + 1, x + u + 1] = a1, b1
                scores[r + 2, x + u], scores[r + 2, x + u + 1] = a2, b2
                scores[r + 3, x + u], scores[r + 3, x + u + 1] = a3, b3


@compiled_float
@typing.no_type_check
def _hide(scores, group, first_key, context_len, num_causal, num_rows, start, position_ids, ancestor_bits, window):
    """Set to -inf the scores of keys that a row may not see."""
    hidden = np.float32(-np.inf)
    own = context_len - first_key  # where the sequence's own rows begin among the scores
    for i in range(num_rows):
        here = position_ids[start + i]
        if window > 0:
            for x in range(min(max(here - window + 1 - first_key, 0), own)):
                for g in range(group):
                    scores[i * group + g, x] = hidden
        for j in range(num_rows):
            if i < num_causal:
                visible = j <= i
            elif j < num_causal:
                visible = True
            else:
                t = j - num_causal
                visible = ((ancestor_bits[start + i, t // 32] >> (t % 32)) & 1) == 1
            if window > 0 and here - position_ids[start + j] >= window:
                visible = False
            if not visible:
                for g in range(group):
                    scores[i * group + g, own + j] = hidden


@compiled_float
@typing.no_type_check
def _highest(scores, r, n, lanes):
    """max(scores[r, :n]), 16 lanes at a time (n is a multiple): one running maximum would wait for itself."""
    for lane in range(16):
        lanes[lane] = np.float32(-np.inf)
    for x in range(0, n, 16):
        for lane in range(16):
            score = scores[r, x + lane]
            if score > lanes[lane]:
                lanes[lane] = score
    high = np.float32(-np.inf)
    for lane in range(16):
        high = max(high, lanes[lane])
    return high


@compiled_float
@typing.no_type_check
def _exp2_row(scores, r, n, high, exponents, powers):
    """scores[r, :n] = 2 ** (scores - high); returns their sum. `powers` views `exponents` as float32.

    2**x = 2**floor(x) * 2**(x - floor(x)): the first from its bits, the second a polynomial. Unlike a call of exp, both
    loops run as vector code.
    """
    for x in range(n):
        y = scores[r, x] - high
        z = y
        if y < _LOWEST:
            z = _LOWEST
        whole = np.floor(z)
        f = z - whole
        exponents[x] = np.int32((whole + np.float32(127)) * np.float32(8388608))
        p = (((((_C6 * f + _C5) * f + _C4) * f + _C3) * f + _C2) * f + _C1) * f + _C0
        if y < _LOWEST:
            p = np.float32(0)
        scores[r, x] = p
    total = np.float32(0)
    for x in range(n):
        scores[r, x] *= powers[x]
        total += scores[r, x]
    return total


@compiled_float
@typing.no_type_check
def _weigh(weights, packed, v_pages, table, page_size, h, first_key, num_keys, dim, block, sums):
    """sums[r] = sum over keys of weights[r, x] * value x; weights past the last key are zero up to the block's end."""
    for r in range(packed):
        for d in range(dim):
            sums[r, d] = np.float32(0)
    for x in range(0, num_keys, _BLOCK):
        _load_block(v_pages, table, page_size, h, first_key + x, min(_BLOCK, num_keys - x), dim, block)
        for r in range(packed):
            w0, w1, w2, w3 = weights[r, x], weights[r, x + 1], weights[r, x + 2], weights[r, x + 3]
            w4, w5, w6, w7 = weights[r, x + 4], weights[r, x + 5], weights[r, x + 6], weights[r, x + 7]
            for d in range(dim):
                sums[r, d] += (
                    w0 * block[0, d]
                    + w1 * block[1, d]
                    + w2 * block[2, d]
                    + w3 * block[3, d]
                    + w4 * block[4, d]
                    + w5 * block[5, d]
                    + w6 * block[6, d]
                    + w7 * block[7, d]
                )

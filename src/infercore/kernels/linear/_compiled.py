"""Products of a few rows with a weight matrix in float32, and how several threads share one.

The weights are read once, in order, at what memory gives; rows wait in the caches. Up to 8 rows take one output at a
time, a single stream of memory, and ask for what comes 8 kB later. More rows take tiles of 4 rows x 4 outputs, so that
each number loaded serves four times, and ask for the next four outputs' weights while they work: without that, memory
rests while the tile is computed.

Threads share a product through one array of int64, the board. Its first number is the ticket, product << 32 | next
chunk: whoever raises it by compare-and-swap may compute that chunk. A helper that is late, or that the operating system
has put aside, takes no chunk, and nobody waits for it.
"""

import typing

import numpy as np

from infercore._jit import (
    atomic_add,
    atomic_load,
    atomic_store,
    compare_and_swap,
    compiled,
    compiled_float,
    floats_at,
    prefetch,
)

_AHEAD = 8192  # bytes; 4 and 16 kB were as fast or slower (docs/log/hf.md)
RING = 4  # descriptions of products: a helper may still look at an old one while the next is written
_LINE = 8  # int64 a cache line: what different threads write lies in different lines
_ASLEEP, _FIRST = _LINE, 2 * _LINE
_STRIDE = 3 * _LINE
_DONE = 2 * _LINE  # chunks computed, within a description
BOARD_SIZE = _FIRST + RING * _STRIDE
_MASK = (1 << 32) - 1


@compiled_float
@typing.no_type_check
def multiply(x, weight, bias, out, first, last):
    """out[:, first:last] = x @ weight[first:last].T + bias; `bias` of length 0: none."""
    num_rows, width = x.shape
    if num_rows == 1:
        _stream_of_1(x, weight, out, first, last)
    elif num_rows == 2:
        _stream_of_2(x, weight, out, first, last)
    elif num_rows <= 4:
        _stream_of_4(x, weight, out, first, last)
    elif num_rows <= 6:
        _stream_of_6(x, weight, out, first, last)
    elif num_rows <= 8:
        _stream_of_8(x, weight, out, first, last)
    else:
        n = first
        base = weight.ctypes.data
        num_lines = 4 * width * 4 // 64
        lines_per_tile = num_lines * 4 // num_rows + 1
        while n + 4 <= last:
            line = 0
            ahead = base + (n + 4) * width * 4
            r = 0
            while r < num_rows:
                end = min(num_lines, line + lines_per_tile)
                while line < end:
                    prefetch(ahead + 64 * line)
                    line += 1
                if r + 4 <= num_rows:
                    _tile_of_4(x, weight, out, r, n, width)
                    r += 4
                elif r + 2 <= num_rows:
                    _tile_of_2(x, weight, out, r, n, width)
                    r += 2
                else:
                    _tile_of_1(x, weight, out, r, n, width)
                    r += 1
            n += 4
        while n < last:
            for r in range(num_rows):
                total = np.float32(0)
                for k in range(width):
                    total += x[r, k] * weight[n, k]
                out[r, n] = total
            n += 1
    if len(bias) > 0:
        for r in range(num_rows):
            for n in range(first, last):
                out[r, n] += bias[n]


@compiled_float
@typing.no_type_check
def _ask_ahead(weight, n):
    """Prefetch as many bytes as output n has, `_AHEAD` after it; past the end that is harmless."""
    width = weight.shape[1]
    start = weight.ctypes.data + n * width * 4 + _AHEAD
    for line in range(width // 16):
        prefetch(start + 64 * line)


@compiled_float
@typing.no_type_check
def _stream_of_1(x, weight, out, first, last):
    width = weight.shape[1]
    for n in range(first, last):
        _ask_ahead(weight, n)
        a = np.float32(0)
        for k in range(width):
            a += x[0, k] * weight[n, k]
        out[0, n] = a


@compiled_float
@typing.no_type_check
def _stream_of_2(x, weight, out, first, last):
    width = weight.shape[1]
    for n in range(first, last):
        _ask_ahead(weight, n)
        a = np.float32(0)
        b = a
        for k in range(width):
            w = weight[n, k]
            a += x[0, k] * w
            b += x[1, k] * w
        out[0, n], out[1, n] = a, b


@compiled_float
@typing.no_type_check
def _stream_of_4(x, weight, out, first, last):
    """3 or 4 rows: a row that is not there is the last one once more."""
    width, end = weight.shape[1], x.shape[0] - 1
    r1, r2, r3 = 1, min(2, end), min(3, end)
    for n in range(first, last):
        _ask_ahead(weight, n)
        a = np.float32(0)
        b, c, d = a, a, a
        for k in range(width):
            w = weight[n, k]
            a += x[0, k] * w
            b += x[r1, k] * w
            c += x[r2, k] * w
            d += x[r3, k] * w
        out[0, n], out[r1, n], out[r2, n], out[r3, n] = a, b, c, d


@compiled_float
@typing.no_type_check
def _stream_of_6(x, weight, out, first, last):
    """5 or 6 rows."""
    width, end = weight.shape[1], x.shape[0] - 1
    r1, r2, r3, r4, r5 = 1, 2, 3, min(4, end), min(5, end)
    for n in range(first, last):
        _ask_ahead(weight, n)
        a = np.float32(0)
        b, c, d, e, f = a, a, a, a, a
        for k in range(width):
            w = weight[n, k]
            a += x[0, k] * w
            b += x[r1, k] * w
            c += x[r2, k] * w
            d += x[r3, k] * w
            e += x[r4, k] * w
            f += x[r5, k] * w
        out[0, n], out[r1, n], out[r2, n], out[r3, n], out[r4, n], out[r5, n] = a, b, c, d, e, f


@compiled_float
@typing.no_type_check
def _stream_of_8(x, weight, out, first, last):
    """7 or 8 rows."""
    width, end = weight.shape[1], x.shape[0] - 1
    r1, r2, r3, r4, r5, r6, r7 = 1, 2, 3, 4, 5, min(6, end), min(7, end)
    for n in range(first, last):
        _ask_ahead(weight, n)
        a = np.float32(0)
        b, c, d, e, f, g, h = a, a, a, a, a, a, a
        for k in range(width):
            w = weight[n, k]
            a += x[0, k] * w
            b += x[r1, k] * w
            c += x[r2, k] * w
            d += x[r3, k] * w
            e += x[r4, k] * w
            f += x[r5, k] * w
            g += x[r6, k] * w
            h += x[r7, k] * w
        out[0, n], out[r1, n], out[r2, n], out[r3, n] = a, b, c, d
        out[r4, n], out[r5, n], out[r6, n], out[r7, n] = e, f, g, h


@compiled_float
@typing.no_type_check
def _tile_of_4(x, weight, out, r, n, width):
    a0 = np.float32(0)
    a1, a2, a3, b0, b1, b2, b3 = a0, a0, a0, a0, a0, a0, a0
    c0, c1, c2, c3, d0, d1, d2, d3 = a0, a0, a0, a0, a0, a0, a0, a0
    for k in range(width):
        w0, w1, w2, w3 = weight[n, k], weight[n + 1, k], weight[n + 2, k], weight[n + 3, k]
        x0, x1, x2, x3 = x[r, k], x[r + 1, k], x[r + 2, k], x[r + 3, k]
        a0 += x0 * w0
        a1 += x0 * w1
        a2 += x0 * w2
        a3 += x0 * w3
        b0 += x1 * w0
        b1 += x1 * w1
        b2 += x1 * w2
        b3 += x1 * w3
        c0 += x2 * w0
        c1 += x2 * w1
        c2 += x2 * w2
        c3 += x2 * w3
        d0 += x3 * w0
        d1 += x3 * w1
        d2 += x3 * w2
        d3 += x3 * w3
    out[r, n], out[r, n + 1], out[r, n + 2], out[r, n + 3] = a0, a1, a2, a3
    out[r + 1, n], out[r + 1, n + 1], out[r + 1, n + 2], out[r + 1, n + 3] = b0, b1, b2, b3
    out[r + 2, n], out[r + 2, n + 1], out[r + 2, n + 2], out[r + 2, n + 3] = c0, c1, c2, c3
    out[r + 3, n], out[r + 3, n + 1], out[r + 3, n + 2], out[r + 3, n + 3] = d0, d1, d2, d3


@compiled_float
@typing.no_type_check
def _tile_of_2(x, weight, out, r, n, width):
    a0 = np.float32(0)
    a1, a2, a3, b0, b1, b2, b3 = a0, a0, a0, a0, a0, a0, a0
    for k in range(width):
        w0, w1, w2, w3 = weight[n, k], weight[n + 1, k], weight[n + 2, k], weight[n + 3, k]
        x0, x1 = x[r, k], x[r + 1, k]
        a0 += x0 * w0
        a1 += x0 * w1
        a2 += x0 * w2
        a3 += x0 * w3
        b0 += x1 * w0
        b1 += x1 * w1
        b2 += x1 * w2
        b3 += x1 * w3
    out[r, n], out[r, n + 1], out[r, n + 2], out[r, n + 3] = a0, a1, a2, a3
    out[r + 1, n], out[r + 1, n + 1], out[r + 1, n + 2], out[r + 1, n + 3] = b0, b1, b2, b3


@compiled_float
@typing.no_type_check
def _tile_of_1(x, weight, out, r, n, width):
    a0 = np.float32(0)
    a1, a2, a3 = a0, a0, a0
    for k in range(width):
        x0 = x[r, k]
        a0 += x0 * weight[n, k]
        a1 += x0 * weight[n + 1, k]
        a2 += x0 * weight[n + 2, k]
        a3 += x0 * weight[n + 3, k]
    out[r, n], out[r, n + 1], out[r, n + 2], out[r, n + 3] = a0, a1, a2, a3


@compiled
@typing.no_type_check
def share(board, x, weight, bias, out, num_rows, width, num_outputs, chunk):
    """Put a product up on the board, compute what no helper takes, and return when all of it is there.

    The numbers `x`, `weight`, `bias` (0: none) and `out` are addresses; one thread at a time may call this.
    """
    start = board.ctypes.data
    product = (atomic_load(start) >> 32) + 1
    num_chunks = (num_outputs + chunk - 1) // chunk
    at = _FIRST + product % RING * _STRIDE
    board[at], board[at + 1], board[at + 2], board[at + 3] = x, weight, bias, out
    board[at + 4], board[at + 5], board[at + 6], board[at + 7] = num_rows, width, num_outputs, chunk
    board[at + 8] = num_chunks
    atomic_store(start + 8 * (at + _DONE), 0)
    atomic_store(start, product << 32)
    while True:
        ticket = atomic_load(start)
        if ticket & _MASK >= num_chunks:
            break
        if compare_and_swap(start, ticket, ticket + 1):
            _compute(board, at, ticket & _MASK)
    while atomic_load(start + 8 * (at + _DONE)) < num_chunks:
        pass


@compiled
@typing.no_type_check
def serve(board):
    """Compute chunks of whatever is on the board until `send_to_sleep`; returns how many."""
    start = board.ctypes.data
    count = 0
    while True:
        ticket = atomic_load(start)
        at = _FIRST + (ticket >> 32) % RING * _STRIDE
        if ticket & _MASK < board[at + 8]:
            if compare_and_swap(start, ticket, ticket + 1):
                _compute(board, at, ticket & _MASK)
                count += 1
        elif atomic_load(start + 8 * _ASLEEP) != 0:
            return count


@compiled
@typing.no_type_check
def send_to_sleep(board, asleep):
    """1: helpers stop serving once nothing is left to do; 0: they may serve."""
    atomic_store(board.ctypes.data + 8 * _ASLEEP, asleep)


@compiled
@typing.no_type_check
def _compute(board, at, index):
    num_rows, width, num_outputs, chunk = board[at + 4], board[at + 5], board[at + 6], board[at + 7]
    x, weight = floats_at(board[at], num_rows, width), floats_at(board[at + 1], num_outputs, width)
    out = floats_at(board[at + 3], num_rows, num_outputs)
    bias = floats_at(board[at + 2], 1, num_outputs if board[at + 2] != 0 else 0)[0]
    first = index * chunk
    multiply(x, weight, bias, out, first, min(first + chunk, num_outputs))
    atomic_add(board.ctypes.data + 8 * (at + _DONE), 1)

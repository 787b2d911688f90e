"""`expand_frontier` on the GPU: blocks of columns give their best, then one program a request puts them together."""

import typing

import torch
import triton
import triton.language as tl
from torch import Tensor

_SMALL_VOCAB = 16_384


@triton.jit(do_not_specialize=["vocab", "num_blocks"])
@typing.no_type_check
def _best_of_blocks_kernel(
    logits_ptr,  # [rows, vocab]
    values_ptr,  # float32 [rows, num_blocks, BRANCHING]
    columns_ptr,  # int32, likewise
    sums_ptr,  # float32 [2, rows, num_blocks]: the highest logit, and the sum of exp(logit - highest)
    vocab,
    num_blocks,
    BRANCHING: tl.constexpr,
    BLOCK: tl.constexpr,
):
    row, block = tl.program_id(0), tl.program_id(1)
    offset = tl.arange(0, BLOCK)
    column = block * BLOCK + offset
    x = tl.load(logits_ptr + row.to(tl.int64) * vocab + column, mask=column < vocab, other=float("-inf")).to(tl.float32)
    highest = tl.max(x, 0)
    base = tl.where(highest == float("-inf"), 0.0, highest)
    at = row * num_blocks + block
    tl.store(sums_ptr + at, highest)
    tl.store(sums_ptr + tl.num_programs(0) * num_blocks + at, tl.sum(tl.exp(x - base), 0))
    for child in tl.static_range(BRANCHING):
        value, best = tl.max(x, 0, return_indices=True)
        tl.store(values_ptr + at * BRANCHING + child, value)
        tl.store(columns_ptr + at * BRANCHING + child, tl.minimum(block * BLOCK + best, vocab - 1))
        x = tl.where(offset == best, float("-inf"), x)


@triton.jit(do_not_specialize=["num_blocks"])
@typing.no_type_check
def _join_blocks_kernel(
    values_ptr,
    columns_ptr,
    sums_ptr,
    node_scores_ptr,  # float32 [batch, NODES]
    id_offsets_ptr,  # int64 [vocab]
    token_ids_ptr,  # int64 [batch, NODES, BRANCHING]
    scores_ptr,  # float32, likewise
    frontier_ptr,  # int64 [batch, WIDTH]
    num_blocks,
    NODES: tl.constexpr,
    BRANCHING: tl.constexpr,
    WIDTH: tl.constexpr,
    HAS_OFFSETS: tl.constexpr,
    NODES_PAD: tl.constexpr,
    BLOCKS_PAD: tl.constexpr,
    CANDIDATES_PAD: tl.constexpr,
    CHILDREN_PAD: tl.constexpr,
):
    batch = tl.program_id(0)
    node = tl.arange(0, NODES_PAD)
    is_node = node < NODES
    row = batch * NODES + node
    block = tl.arange(0, BLOCKS_PAD)
    inside = is_node[:, None] & (block < num_blocks)[None, :]
    at = row[:, None] * num_blocks + block[None, :]
    highest = tl.load(sums_ptr + at, mask=inside, other=float("-inf"))
    total = tl.load(sums_ptr + tl.num_programs(0) * NODES * num_blocks + at, mask=inside, other=0.0)
    top = tl.max(highest, 1)
    top = tl.where(top == float("-inf"), 0.0, top)
    total = tl.sum(total * tl.exp(highest - top[:, None]), 1)
    norm = top + tl.log(tl.where(is_node, total, 1.0))
    base = tl.load(node_scores_ptr + row, mask=is_node, other=0.0) - norm

    candidate = tl.arange(0, CANDIDATES_PAD)
    inside = is_node[:, None] & (candidate < num_blocks * BRANCHING)[None, :]
    at = row[:, None] * (num_blocks * BRANCHING) + candidate[None, :]
    value = tl.load(values_ptr + at, mask=inside, other=float("-inf"))
    column = tl.load(columns_ptr + at, mask=inside, other=0)
    child = tl.arange(0, CHILDREN_PAD)
    scores = tl.full((NODES_PAD, CHILDREN_PAD), float("-inf"), tl.float32)
    columns = tl.zeros((NODES_PAD, CHILDREN_PAD), tl.int32)
    for i in tl.static_range(BRANCHING):
        best, place = tl.max(value, 1, return_indices=True)
        is_best = candidate[None, :] == place[:, None]
        its_column = tl.sum(tl.where(is_best, column, 0), 1)
        is_child = (child == i)[None, :]
        scores = tl.where(is_child, (best + base)[:, None], scores)
        columns = tl.where(is_child, its_column[:, None], columns)
        value = tl.where(is_best, float("-inf"), value)
    inside = is_node[:, None] & (child < BRANCHING)[None, :]
    scores = tl.where(inside, scores, float("-inf"))
    token_ids = columns.to(tl.int64)
    if HAS_OFFSETS:
        token_ids += tl.load(id_offsets_ptr + columns, mask=inside, other=0)
    at = row[:, None] * BRANCHING + child[None, :]
    tl.store(token_ids_ptr + at, token_ids, mask=inside)
    tl.store(scores_ptr + at, scores, mask=inside)
    for i in tl.static_range(WIDTH):
        best, its_child = tl.max(scores, 1, return_indices=True)
        _, its_node = tl.max(best, 0, return_indices=True)
        its_node = tl.minimum(its_node, NODES - 1)  # whatever NaN does to the order, nothing lies outside
        which = tl.minimum(tl.sum(tl.where(node == its_node, its_child, 0), 0), BRANCHING - 1)
        tl.store(frontier_ptr + batch * WIDTH + i, (its_node * BRANCHING + which).to(tl.int64))
        scores = tl.where((node == its_node)[:, None] & (child == which)[None, :], float("-inf"), scores)


def expand_frontier(
    logits: Tensor, node_scores: Tensor, branching: int, width: int, id_offsets: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Launch; arguments have been checked."""
    batch, nodes, vocab = logits.shape
    logits, node_scores = logits.contiguous(), node_scores.contiguous()
    block = 1024 if vocab <= _SMALL_VOCAB else 4096
    num_blocks = triton.cdiv(vocab, block)
    rows = batch * nodes
    values = node_scores.new_empty(rows, num_blocks, branching)
    columns = torch.empty_like(values, dtype=torch.int32)
    sums = node_scores.new_empty(2, rows, num_blocks)
    token_ids = logits.new_empty((batch, nodes, branching), dtype=torch.int64)
    scores = node_scores.new_empty(batch, nodes, branching)
    frontier = logits.new_empty((batch, width), dtype=torch.int64)
    with torch.cuda.device_of(logits):
        _best_of_blocks_kernel[(rows, num_blocks)](
            logits, values, columns, sums, vocab, num_blocks,
            BRANCHING=branching, BLOCK=block, num_warps=block // 1024,
        )  # fmt: skip
        _join_blocks_kernel[(batch,)](
            values, columns, sums, node_scores, token_ids if id_offsets is None else id_offsets,
            token_ids, scores, frontier, num_blocks,
            NODES=nodes, BRANCHING=branching, WIDTH=width, HAS_OFFSETS=id_offsets is not None,
            NODES_PAD=triton.next_power_of_2(nodes), BLOCKS_PAD=triton.next_power_of_2(num_blocks),
            CANDIDATES_PAD=triton.next_power_of_2(num_blocks * branching),
            CHILDREN_PAD=triton.next_power_of_2(branching), num_warps=4,
        )  # fmt: skip
    return token_ids, scores, frontier

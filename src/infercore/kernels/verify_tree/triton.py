"""`verify_tree` on the GPU: one program per tree; each step down looks at all of its rows at once."""

import typing

import torch
import triton
import triton.language as tl
from torch import Tensor


@triton.jit(do_not_specialize=["max_depth"])
@typing.no_type_check
def _verify_tree_kernel(
    token_ids_ptr,  # [rows] int64
    parents_ptr,  # [rows] int32
    target_token_ids_ptr,  # [rows] int64
    tree_starts_ptr,  # [trees + 1] int32
    num_accepted_ptr,  # [trees] int32
    paths_ptr,  # [trees, max_depth] int32, -1 throughout
    next_token_ids_ptr,  # [trees] int64
    max_depth,
    BLOCK: tl.constexpr,
):
    tree = tl.program_id(0)
    start = tl.load(tree_starts_ptr + tree)
    num_rows = tl.load(tree_starts_ptr + tree + 1) - start
    if num_rows > 0:
        row = tl.full([], 0, tl.int32)
        depth = tl.full([], 0, tl.int32)
        running = depth < max_depth
        while running:
            target = tl.load(target_token_ids_ptr + start + row)
            child = tl.full([], 2147483647, tl.int32)
            for first in range(0, num_rows, BLOCK):
                r = first + tl.arange(0, BLOCK)
                inside = (r > 0) & (r < num_rows)
                parent = tl.load(parents_ptr + start + r, mask=inside, other=-1)
                token = tl.load(token_ids_ptr + start + r, mask=inside, other=-1)
                hit = inside & (parent == row) & (token == target)
                child = tl.minimum(child, tl.min(tl.where(hit, r, 2147483647), 0))
            found = child < num_rows
            if found:
                tl.store(paths_ptr + tree.to(tl.int64) * max_depth + depth, child - 1)
                row = child
                depth += 1
            running = found & (depth < max_depth)
        tl.store(num_accepted_ptr + tree, depth)
        tl.store(next_token_ids_ptr + tree, tl.load(target_token_ids_ptr + start + row))


def verify_tree(
    token_ids: Tensor,
    parents: Tensor,
    target_token_ids: Tensor,
    tree_starts: Tensor,
    num_accepted: Tensor,
    paths: Tensor,
    next_token_ids: Tensor,
) -> None:
    """Launch; arguments have been checked."""
    with torch.cuda.device_of(token_ids):
        _verify_tree_kernel[(len(num_accepted),)](
            token_ids.contiguous(),
            parents.contiguous(),
            target_token_ids.contiguous(),
            tree_starts.contiguous(),
            num_accepted,
            paths,
            next_token_ids,
            paths.shape[1],
            BLOCK=128,
            num_warps=4,
        )

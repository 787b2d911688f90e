"""`verify_tree`: follow the target's tokens down the draft trees of a batch, on the device, without a host sync.

Use it where choosing tokens stays on the GPU: greedy targets, or tokens sampled once per row (drafts that were chosen
and not drawn are verified exactly by following samples). Files: `reference.py`, `triton.py`.

    kept = verify_tree(token_ids, parents, target_token_ids, tree_starts, max_depth=8)
    kept.num_accepted, kept.paths, kept.next_token_ids
"""

from dataclasses import dataclass

import torch
from jaxtyping import Int32, Int64
from torch import Tensor

from infercore.kernels.impl import Impl, choose_impl
from infercore.kernels.verify_tree.reference import verify_tree as _reference

__all__ = ["AcceptedPaths", "verify_tree"]


@dataclass(frozen=True, eq=False)
class AcceptedPaths:
    """Per tree the accepted nodes and the token after them, on the device."""

    num_accepted: Int32[Tensor, " trees"]
    paths: Int32[Tensor, "trees max_depth"]
    """Accepted nodes from the root's child down, as rows of their tree less one (the node numbers of a `TokenTree`);
    -1 past the end."""
    next_token_ids: Int64[Tensor, " trees"]


def verify_tree(
    token_ids: Int64[Tensor, " rows"],
    parents: Int32[Tensor, " rows"],
    target_token_ids: Int64[Tensor, " rows"],
    tree_starts: Int32[Tensor, " starts"],
    *,
    max_depth: int,
    impl: Impl = "auto",
) -> AcceptedPaths:
    """Accept the path of each tree whose tokens are those that the target gave.

    Rows `tree_starts[s]` to `tree_starts[s + 1]` are tree s: its root first (the pending token), then its nodes.

    Args:
        token_ids: of each row; the root's is not looked at.
        parents: row of the parent inside its tree, 0 for the root's children; the root's own is -1. A parent comes
            before its children. Of siblings with the same token the first counts.
        target_token_ids: what the target gives after each row.
        max_depth: accept at most so many nodes of a tree.
    Raises: ValueError for shapes, dtypes or devices that do not fit. What the tensors hold is not checked.
    Cost: each row is read once per accepted node; no host sync on a GPU.
    """
    rows = token_ids.shape
    for name, tensor, dtype in (
        ("token_ids", token_ids, torch.int64),
        ("parents", parents, torch.int32),
        ("target_token_ids", target_token_ids, torch.int64),
    ):
        if tensor.ndim != 1 or tensor.shape != rows or tensor.dtype != dtype or tensor.device != token_ids.device:
            raise ValueError(
                f"{name} is {tensor.dtype} {list(tensor.shape)} on {tensor.device}, expected {dtype} {list(rows)} on "
                f"{token_ids.device}"
            )
    if tree_starts.ndim != 1 or len(tree_starts) < 1 or tree_starts.dtype != torch.int32:
        raise ValueError(f"tree_starts is {tree_starts.dtype} {list(tree_starts.shape)}, expected int32 [trees + 1]")
    if max_depth < 0:
        raise ValueError(f"max_depth is {max_depth}, expected at least 0")
    num_trees = len(tree_starts) - 1
    device = token_ids.device
    kept = AcceptedPaths(
        torch.zeros(num_trees, dtype=torch.int32, device=device),
        torch.full((num_trees, max_depth), -1, dtype=torch.int32, device=device),
        torch.zeros(num_trees, dtype=torch.int64, device=device),
    )
    if num_trees == 0:
        return kept
    run = _reference
    if choose_impl(impl, token_ids, cpu="reference") == "triton":
        from infercore.kernels.verify_tree.triton import verify_tree as run
    run(token_ids, parents, target_token_ids, tree_starts, kept.num_accepted, kept.paths, kept.next_token_ids)
    return kept

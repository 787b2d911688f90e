"""The specification of `verify_tree` in plain torch: one tree after the other, one node after the other."""

from itertools import pairwise

from jaxtyping import Int32, Int64
from torch import Tensor


def verify_tree(
    token_ids: Int64[Tensor, " rows"],
    parents: Int32[Tensor, " rows"],
    target_token_ids: Int64[Tensor, " rows"],
    tree_starts: Int32[Tensor, " starts"],
    num_accepted: Int32[Tensor, " trees"],
    paths: Int32[Tensor, "trees max_depth"],
    next_token_ids: Int64[Tensor, " trees"],
) -> None:
    """Fill the last three tensors."""
    starts = tree_starts.tolist()
    for tree, (start, stop) in enumerate(pairwise(starts)):
        tokens = token_ids[start:stop].tolist()
        above = parents[start:stop].tolist()
        targets = target_token_ids[start:stop].tolist()
        row = 0
        path: list[int] = []
        while len(path) < paths.shape[1]:
            hits = [r for r in range(1, stop - start) if above[r] == row and tokens[r] == targets[row]]
            if not hits:
                break
            row = hits[0]
            path.append(row - 1)
        num_accepted[tree] = len(path)
        for depth, node in enumerate(path):
            paths[tree, depth] = node
        if targets:
            next_token_ids[tree] = targets[row]

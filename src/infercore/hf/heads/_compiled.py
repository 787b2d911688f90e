"""Compiled loops of draft heads. Each also runs as plain Python."""

from typing import no_type_check

import numpy as np

from infercore._jit import compiled


@no_type_check
@compiled
def best_of_candidates(drafted, above, first_of_depth, max_nodes):
    """The tree of one request's `max_nodes` likeliest candidates, the earlier one where two are equal.

    drafted: int32, as `Expansion` reads it: the candidates' tokens, the bits of their float32 chances, and of each
    entry its rank among the candidates of its depth. above: which entry is each candidate's parent, -1: the root.
    first_of_depth: the candidate that each entry's rank counts from.
    Returns token ids, parents and chances. A candidate's chance is never above its parent's, so that one is there.
    """
    num_candidates = above.shape[0]
    chances = drafted[num_candidates : 2 * num_candidates].view(np.float32)
    count = min(max_nodes, num_candidates)
    node_of = np.full(num_candidates, -1, np.int32)
    order = np.argsort(-chances, kind="mergesort")  # stable: a parent comes before a child of the same chance
    for rank in range(count):
        node_of[order[rank]] = 0
    token_ids, parents = np.empty(count, np.int32), np.empty(count, np.int32)
    kept = np.empty(count, np.float32)
    node = 0
    for candidate in range(num_candidates):
        if node_of[candidate] < 0:
            continue
        entry = above[candidate]
        parents[node] = node_of[drafted[2 * num_candidates + entry] + first_of_depth[entry]] if entry >= 0 else -1
        token_ids[node] = drafted[candidate]
        kept[node] = chances[candidate]
        node_of[candidate] = node
        node += 1
    return token_ids, parents, kept

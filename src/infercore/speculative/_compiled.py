"""Compiled loops of this part: integers and arrays in, integers and arrays out. Each also runs as plain Python.

A tree of n nodes is two int32 arrays, `token_ids` and `parents`; a parent comes before its children, -1 is the root.
"""

from typing import no_type_check

import numpy as np

from infercore._jit import compiled


@no_type_check
@compiled
def check_parents(parents):
    """Index of the first node whose parent does not come before it, -1 if there is none."""
    for node in range(parents.shape[0]):
        if parents[node] < -1 or parents[node] >= node:
            return node
    return -1


@no_type_check
@compiled
def tree_depths(parents):
    """Depth per node, int32; the root's children have depth 1."""
    depths = np.empty(parents.shape[0], np.int32)
    for node in range(parents.shape[0]):
        parent = parents[node]
        depths[node] = 1 if parent < 0 else depths[parent] + 1
    return depths


@no_type_check
@compiled
def tree_ancestor_bits(parents, num_words):
    """int32 [n, num_words]: bit j of row i is set iff node j is i or an ancestor of i."""
    num_nodes = parents.shape[0]
    bits = np.zeros((num_nodes, num_words), np.uint32)
    for node in range(num_nodes):
        parent = parents[node]
        if parent >= 0:
            for word in range(num_words):
                bits[node, word] = bits[parent, word]
        bits[node, node >> 5] |= np.uint32(1 << (node & 31))
    return bits.view(np.int32)


@no_type_check
@compiled
def kept_parents(parents, keep):
    """Parents renumbered for the kept nodes; entry -2 marks a kept node whose parent is dropped."""
    num_nodes = parents.shape[0]
    new_index = np.empty(num_nodes, np.int32)
    out = np.empty(num_nodes, np.int32)
    num_kept = 0
    for node in range(num_nodes):
        if keep[node]:
            parent = parents[node]
            if parent < 0:
                out[num_kept] = -1
            elif keep[parent]:
                out[num_kept] = new_index[parent]
            else:
                out[num_kept] = -2
            new_index[node] = num_kept
            num_kept += 1
    return out[:num_kept]


@no_type_check
@compiled
def walk_greedy(token_ids, parents, target_token_ids):
    """The path that `target_token_ids` (root's entry first) takes; one pass, because children follow their parents."""
    path = np.empty(token_ids.shape[0], np.int32)
    length = 0
    current = -1
    for node in range(token_ids.shape[0]):
        if parents[node] == current and token_ids[node] == target_token_ids[current + 1]:
            path[length] = node
            length += 1
            current = node
    return path[:length]


@no_type_check
@compiled
def insert_chain(chain, max_nodes, token_ids, parents, num_nodes):
    """Merge a chain of tokens from the root into the tree in `token_ids`/`parents`; the new number of nodes."""
    current = -1
    for position in range(chain.shape[0]):
        child = -1
        for node in range(current + 1, num_nodes):
            if parents[node] == current and token_ids[node] == chain[position]:
                child = node
                break
        if child < 0:
            if num_nodes == max_nodes:
                break
            child = num_nodes
            token_ids[child] = chain[position]
            parents[child] = current
            num_nodes += 1
        current = child
    return num_nodes


@no_type_check
@compiled
def ngram_tree(context, min_ngram, max_ngram, max_matches, max_depth, max_nodes, token_ids, parents, scores):
    """Fill a tree with what followed earlier occurrences of the last tokens: longest match first, then latest.

    `scores` gets, per node, matched length / (matched length + 1) to the power of its depth. Returns the number of
    nodes.
    """
    length = context.shape[0]
    ends = np.empty(max_matches, np.int64)
    lengths = np.empty(max_matches, np.int64)
    num_matches = 0
    for end in range(length - 2, -1, -1):
        if context[end] != context[length - 1]:
            continue
        matched = 1
        while matched < max_ngram and matched <= end and context[end - matched] == context[length - 1 - matched]:
            matched += 1
        if matched < min_ngram:
            continue
        rank = num_matches
        while rank > 0 and lengths[rank - 1] < matched:
            rank -= 1
        if rank == max_matches:
            continue
        last = min(num_matches, max_matches - 1)
        for later in range(last, rank, -1):
            ends[later] = ends[later - 1]
            lengths[later] = lengths[later - 1]
        ends[rank] = end
        lengths[rank] = matched
        num_matches = min(num_matches + 1, max_matches)
        if num_matches == max_matches and lengths[max_matches - 1] == max_ngram:
            break
    num_nodes = 0
    for match in range(num_matches):
        before = num_nodes
        stop = min(length, ends[match] + 1 + max_depth)
        num_nodes = insert_chain(context[ends[match] + 1 : stop], max_nodes, token_ids, parents, num_nodes)
        step = np.float32(lengths[match]) / np.float32(lengths[match] + 1)
        for node in range(before, num_nodes):
            parent = parents[node]
            scores[node] = step * (np.float32(1.0) if parent < 0 else scores[parent])
        if num_nodes == max_nodes:
            break
    return num_nodes


@no_type_check
@compiled
def learn_followers(followers, rank_trust, last, token_ids, rate):
    """Move each seen follower to the front of its token's row, and `rank_trust` towards the ranks that hit."""
    num_ranks = followers.shape[1]
    for position in range(token_ids.shape[0]):
        token = token_ids[position]
        if 0 <= last < followers.shape[0]:
            rank = 0
            while rank < num_ranks and followers[last, rank] != token:
                rank += 1
            if followers[last, 0] >= 0:
                for other in range(num_ranks):
                    rank_trust[other] += rate * ((1.0 if other == rank else 0.0) - rank_trust[other])
            for lower in range(min(rank, num_ranks - 1), 0, -1):
                followers[last, lower] = followers[last, lower - 1]
            followers[last, 0] = token
        last = token


@no_type_check
@compiled
def grow_followers(followers, rank_trust, last, max_depth, token_ids, parents, scores):
    """Best-first tree of table rows: rank r below any node has `rank_trust[r]`. Returns the number of nodes.

    Each row of the tree offers one candidate at a time, its next rank, so that the open set has one entry per node.
    """
    max_nodes = token_ids.shape[0]
    num_ranks = followers.shape[1]
    next_rank = np.zeros(max_nodes + 1, np.int32)
    depths = np.zeros(max_nodes + 1, np.int32)
    num_nodes = 0
    while num_nodes < max_nodes:
        best = -1
        best_score = -1.0
        for row in range(num_nodes + 1):
            token = last if row == 0 else token_ids[row - 1]
            rank = next_rank[row]
            if rank >= num_ranks or depths[row] >= max_depth or token < 0 or token >= followers.shape[0]:
                continue
            if followers[token, rank] < 0:
                continue
            score = rank_trust[rank] * (1.0 if row == 0 else scores[row - 1])
            if score > best_score:
                best_score = score
                best = row
        if best < 0:
            break
        token = last if best == 0 else token_ids[best - 1]
        token_ids[num_nodes] = followers[token, next_rank[best]]
        parents[num_nodes] = best - 1
        scores[num_nodes] = best_score
        next_rank[best] += 1
        num_nodes += 1
        depths[num_nodes] = depths[best] + 1
    return num_nodes


@no_type_check
@compiled
def merge(token_ids, parents, scores, sources, first_nodes, merged_ids, merged_parents, merged_scores, merged_sources):
    """Merge trees laid out one after another (tree t from `first_nodes[t]`; parents counted inside each tree) by path.

    A node that several propose keeps the highest score and its source. Returns the number of merged nodes.
    """
    index = np.empty(token_ids.shape[0], np.int32)
    num_nodes = 0
    for tree in range(first_nodes.shape[0] - 1):
        start = first_nodes[tree]
        for node in range(start, first_nodes[tree + 1]):
            parent = -1 if parents[node] < 0 else index[start + parents[node]]
            found = -1
            for other in range(parent + 1, num_nodes):
                if merged_parents[other] == parent and merged_ids[other] == token_ids[node]:
                    found = other
                    break
            if found < 0:
                found = num_nodes
                num_nodes += 1
                merged_ids[found] = token_ids[node]
                merged_parents[found] = parent
                merged_scores[found] = scores[node]
                merged_sources[found] = sources[node]
            elif scores[node] > merged_scores[found]:
                merged_scores[found] = scores[node]
                merged_sources[found] = sources[node]
            index[node] = found
    return num_nodes


@no_type_check
@compiled
def best_nodes(scores, max_nodes):
    """Mask of the `max_nodes` highest scores, the earlier node where they are equal; closed under ancestors."""
    keep = np.zeros(scores.shape[0], np.bool_)
    order = np.argsort(-scores, kind="mergesort")  # stable: a parent comes before a child of the same score
    for rank in range(min(max_nodes, scores.shape[0])):
        keep[order[rank]] = True
    return keep

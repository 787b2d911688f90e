"""Compiled loops of this part: integers and arrays in, integers and arrays out. Each also runs as plain Python.

A tree of n nodes is two int32 arrays, `token_ids` and `parents`; a parent comes before its children, -1 is the root.
`nodes`, int32 [3, capacity], has room for several: token ids, parents within their tree, bits of float32 scores.

Between two drafts the model's forward has emptied the caches, so that what a call costs is above all what it touches:
one array in place of three, one call in place of ten.
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
def kept_nodes(token_ids, parents, scores, sources, keep):
    """Token ids, parents, scores and sources of the kept nodes, and whether each one's parent is kept as well."""
    num_nodes = parents.shape[0]
    num_kept = 0
    for node in range(num_nodes):
        num_kept += keep[node]
    new_index = np.empty(num_nodes, np.int32)
    kept_ids, kept_parents = np.empty(num_kept, np.int32), np.empty(num_kept, np.int32)
    kept_scores, kept_sources = np.empty(num_kept, np.float32), np.empty(num_kept, np.int8)
    is_whole = True
    at = 0
    for node in range(num_nodes):
        if keep[node]:
            parent = parents[node]
            is_whole &= parent < 0 or keep[parent]
            kept_ids[at] = token_ids[node]
            kept_parents[at] = new_index[parent] if parent >= 0 and keep[parent] else -1
            kept_scores[at] = scores[node]
            kept_sources[at] = sources[node]
            new_index[node] = at
            at += 1
    return kept_ids, kept_parents, kept_scores, kept_sources, is_whole


@no_type_check
@compiled
def walk_greedy(token_ids, parents, target_token_ids):
    """The path that `target_token_ids` (root's entry first) takes, and the target's token after it.

    One pass, because children follow their parents.
    """
    path = np.empty(token_ids.shape[0], np.int32)
    length = 0
    current = -1
    for node in range(token_ids.shape[0]):
        if parents[node] == current and token_ids[node] == target_token_ids[current + 1]:
            path[length] = node
            length += 1
            current = node
    return path[:length], np.int64(target_token_ids[current + 1])


@no_type_check
@compiled
def num_matched(token_ids, parents, following):
    """How many of the tokens `following` stand on one path from the root down."""
    current = -1
    count = 0
    for node in range(token_ids.shape[0]):
        if count < following.shape[0] and parents[node] == current and token_ids[node] == following[count]:
            count += 1
            current = node
    return count


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
def ngram_tree(context, min_ngram, max_ngram, max_matches, max_depth, max_nodes, nodes, start):
    """Fill `nodes` from `start` on with what followed earlier occurrences of the last tokens.

    The longest match comes first, then the latest. The score of a node is matched length / (matched length + 1) to the
    power of its depth. Returns the number of nodes.
    """
    token_ids = nodes[0, start : start + max_nodes]
    parents = nodes[1, start : start + max_nodes]
    scores = nodes[2, start : start + max_nodes].view(np.float32)
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
def grow_followers(followers, rank_trust, last, max_depth, max_nodes, nodes, start):
    """Best-first tree of table rows, in `nodes` from `start` on: rank r below any node has `rank_trust[r]`.

    Returns the number of nodes.
    Each row of the tree offers one candidate at a time, its next rank, so that the open set has one entry per node.
    """
    token_ids = nodes[0, start : start + max_nodes]
    parents = nodes[1, start : start + max_nodes]
    scores = nodes[2, start : start + max_nodes].view(np.float32)
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
def remember_followers(followers, token_ids, top_token_ids):
    """followers[token] = its row of `top_token_ids`, as wide as the table; later rows win.

    Returns the first row whose token is none of the table, and leaves the table as it was; -1: all went in.
    """
    for row in range(token_ids.shape[0]):
        if not 0 <= token_ids[row] < followers.shape[0]:
            return row
    for row in range(token_ids.shape[0]):
        for rank in range(followers.shape[1]):
            followers[token_ids[row], rank] = top_token_ids[row, rank]
    return -1


@no_type_check
@compiled
def merge(nodes, ends, max_nodes):
    """Merge the trees in `nodes`, tree t up to `ends[t + 1]`, by path, and keep the `max_nodes` of the highest scores.

    A node that several propose is right unless all of them err: its score is 1 - (1 - a)(1 - b), its source the number
    of the tree that gave it the highest. That is not above its parent's, which the same trees hold, but for rounding
    and for a tree with the same path twice. Returns token ids, parents, scores and sources.
    """
    capacity = ends[ends.shape[0] - 1]
    token_ids = np.empty(capacity, np.int32)
    parents = np.empty(capacity, np.int32)
    scores = np.empty(capacity, np.float32)
    sources = np.empty(capacity, np.int8)
    index = np.empty(capacity, np.int32)
    highest_given = np.empty(capacity, np.float32)
    given = nodes[2].view(np.float32)
    num_nodes = 0
    for tree in range(ends.shape[0] - 1):
        start = ends[tree]
        for node in range(start, ends[tree + 1]):
            parent = -1 if nodes[1, node] < 0 else index[start + nodes[1, node]]
            found = -1
            for other in range(parent + 1, num_nodes):
                if parents[other] == parent and token_ids[other] == nodes[0, node]:
                    found = other
                    break
            if found < 0:
                found = num_nodes
                num_nodes += 1
                token_ids[found] = nodes[0, node]
                parents[found] = parent
                scores[found] = given[node]
                highest_given[found] = given[node]
                sources[found] = tree
            else:
                both = np.float32(1) - (np.float32(1) - scores[found]) * (np.float32(1) - given[node])
                scores[found] = both if parent < 0 else min(both, scores[parent])
                if given[node] > highest_given[found]:
                    highest_given[found] = given[node]
                    sources[found] = tree
            index[node] = found
    if num_nodes > max_nodes:
        keep = best_nodes(scores[:num_nodes], max_nodes)
        kept = 0
        for node in range(num_nodes):  # a parent comes first, and is kept where its child is
            if keep[node]:
                index[node] = kept
                token_ids[kept] = token_ids[node]
                parents[kept] = parents[node] if parents[node] < 0 else index[parents[node]]
                scores[kept] = scores[node]
                sources[kept] = sources[node]
                kept += 1
        num_nodes = kept
    return token_ids[:num_nodes], parents[:num_nodes], scores[:num_nodes], sources[:num_nodes]


@no_type_check
@compiled
def best_nodes(scores, max_nodes):
    """Mask of the `max_nodes` highest scores, the earlier node where they are equal; closed under ancestors."""
    keep = np.zeros(scores.shape[0], np.bool_)
    order = np.argsort(-scores, kind="mergesort")  # stable: a parent comes before a child of the same score
    for rank in range(min(max_nodes, scores.shape[0])):
        keep[order[rank]] = True
    return keep


_BLOCK = 512  # logits whose maximum is compared before any of them is


@no_type_check
@compiled
def top_tokens(logits, rows, out):
    """Fill out[i] with the largest entries of logits[rows[i]], largest first, the lower id where they are equal.

    -1 stands where fewer are above -inf. Returns the index of the first of `rows` that is none of `logits`, else -1.
    """
    for i in range(rows.shape[0]):
        if not 0 <= rows[i] < logits.shape[0]:
            return i
    count, width = out.shape[1], logits.shape[1]
    best = np.empty(count, np.float32)
    for i in range(rows.shape[0]):
        row = logits[rows[i]]
        for rank in range(count):
            best[rank] = np.float32(-np.inf)
            out[i, rank] = -1
        for start in range(0, width, _BLOCK):
            stop = min(width, start + _BLOCK)
            if stop - start == _BLOCK and not highest(row, start) > best[count - 1]:
                continue
            for token in range(start, stop):
                value = row[token]
                if not value > best[count - 1]:
                    continue
                rank = count - 1
                while rank > 0 and best[rank - 1] < value:
                    best[rank] = best[rank - 1]
                    out[i, rank] = out[i, rank - 1]
                    rank -= 1
                best[rank] = value
                out[i, rank] = token
    return -1


@no_type_check
@compiled
def highest(row, start):
    """max(row[start : start + _BLOCK]), eight of them at a time: one running maximum would wait for itself."""
    a, b, c, d = row[start], row[start + 1], row[start + 2], row[start + 3]
    e, f, g, h = row[start + 4], row[start + 5], row[start + 6], row[start + 7]
    for at in range(start + 8, start + _BLOCK, 8):
        a, b, c, d = max(a, row[at]), max(b, row[at + 1]), max(c, row[at + 2]), max(d, row[at + 3])
        e, f, g, h = max(e, row[at + 4]), max(f, row[at + 5]), max(g, row[at + 6]), max(h, row[at + 7])
    return max(max(max(a, b), max(c, d)), max(max(e, f), max(g, h)))

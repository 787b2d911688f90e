"""The loops of the controller. Each also runs as plain Python."""

from typing import no_type_check

from infercore._jit import compiled

NUM_DEPTHS = 4  # calibration tells depths 1, 2, 3 and deeper ones apart
NUM_BINS = 10  # of the drafter's own conditional score
MAX_CHANCE = 0.99
PRIOR = 4.0  # predicted hits that a drafter is believed for before anything is known


@no_type_check
@compiled
def cell_of(parents, scores, sources, depths, node):
    """Calibration cell (source, depth, bin) of a node, and its score given that its parent was accepted."""
    parent = parents[node]
    above = 1.0 if parent < 0 else scores[parent]
    chance = min(MAX_CHANCE, scores[node] / above) if above > 0 else 0.0
    return (
        sources[node],
        min(depths[node], NUM_DEPTHS) - 1,
        min(int(chance * NUM_BINS), NUM_BINS - 1),
        chance,
    )


@no_type_check
@compiled
def calibrated(parents, scores, sources, depths, hits, predicted, out):
    """Chance that each node and all above it are accepted: conditional scores times what their cell says of them."""
    for node in range(parents.shape[0]):
        source, depth, bucket, chance = cell_of(parents, scores, sources, depths, node)
        trust = (hits[source, depth, bucket] + PRIOR) / (predicted[source, depth, bucket] + PRIOR)
        chance = min(MAX_CHANCE, chance * trust)
        out[node] = chance if parents[node] < 0 else chance * out[parents[node]]


@no_type_check
@compiled
def learn(token_ids, parents, scores, sources, depths, gained, memory, hits, predicted):
    """Judge a proposed tree by the tokens that then came, whether or not its nodes were verified.

    Every child of a node that was reached is one trial of its cell. Returns hits and predicted hits (as calibrated
    before) among the root's children.
    """
    reached = -1
    depth = 0
    root_hits = 0.0
    root_predicted = 0.0
    while depth < gained.shape[0]:
        following = -1
        for node in range(max(0, reached), parents.shape[0]):
            if parents[node] != reached:
                continue
            source, level, bucket, chance = cell_of(parents, scores, sources, depths, node)
            trust = (hits[source, level, bucket] + PRIOR) / (predicted[source, level, bucket] + PRIOR)
            hit = 1.0 if token_ids[node] == gained[depth] else 0.0
            if reached < 0:
                root_hits += hit
                root_predicted += min(MAX_CHANCE, chance * trust)
            kept = 1 - chance / memory  # so that `predicted` never passes `memory`
            hits[source, level, bucket] = kept * hits[source, level, bucket] + hit
            predicted[source, level, bucket] = kept * predicted[source, level, bucket] + chance
            if hit > 0:
                following = node
        if following < 0:
            break
        reached = following
        depth += 1
    return root_hits, root_predicted


@no_type_check
@compiled
def count_acceptance(sources, depths, path, drafted, accepted):
    """Add a verified tree to the counts per source and depth (the last depth holds all deeper ones)."""
    deepest = drafted.shape[1] - 1
    for node in range(depths.shape[0]):
        drafted[sources[node], min(depths[node] - 1, deepest)] += 1
    for step in range(path.shape[0]):
        node = path[step]
        accepted[sources[node], min(depths[node] - 1, deepest)] += 1


@no_type_check
@compiled
def best_count(ordered, times, rate, margin):
    """How many of the nodes, likeliest first, to verify: the maximum of expected tokens - rate * time.

    `times[n]` is the time of the forward with n nodes. None, unless the gain is at least `margin` of what the plain
    step is worth. Returns the count and the gain in tokens.
    """
    best = 0
    best_gain = margin * rate * times[0]
    expected = 0.0
    for count in range(1, ordered.shape[0] + 1):
        expected += ordered[count - 1]
        gain = expected - rate * (times[count] - times[0])
        if gain > best_gain:
            best_gain = gain
            best = count
    return best, best_gain if best > 0 else 0.0

"""The loops of the controller. Each also runs as plain Python.

Between two steps of a model everything here has left the caches, so that a step's decision is few calls of few arrays.
"""

import math
from typing import no_type_check

import numpy as np

from infercore._jit import compiled

MAX_SOURCES = 16  # drafters that are told apart; those of a higher number share the last place
NUM_DEPTHS = 4  # calibration tells depths 1, 2, 3 and deeper ones apart
NUM_BINS = 10  # of the drafter's own conditional score
MAX_CHANCE = 0.99
PRIOR = 4.0  # predicted hits that a drafter is believed for before anything is known

# ----------------------------------------------------------------------------------------------- what drafts are worth


@no_type_check
@compiled
def cell_of(parents, scores, sources, depths, node):
    """Calibration cell (source, depth, bin) of a node, and its score given that its parent was accepted."""
    parent = parents[node]
    above = 1.0 if parent < 0 else scores[parent]
    chance = min(MAX_CHANCE, scores[node] / above) if above > 0 else 0.0
    return (
        min(sources[node], MAX_SOURCES - 1),
        min(depths[node], NUM_DEPTHS) - 1,
        min(int(chance * NUM_BINS), NUM_BINS - 1),
        chance,
    )


@no_type_check
@compiled
def calibrated(parents, scores, sources, hits, predicted, out):
    """Chance that each node and all above it are accepted: conditional scores times what their cell says of them.

    Returns the sum over the root's children.
    """
    depths = np.empty(parents.shape[0], np.int32)
    first = 0.0
    for node in range(parents.shape[0]):
        parent = parents[node]
        depths[node] = 1 if parent < 0 else depths[parent] + 1
        source, depth, bucket, chance = cell_of(parents, scores, sources, depths, node)
        trust = (hits[source, depth, bucket] + PRIOR) / (predicted[source, depth, bucket] + PRIOR)
        chance = min(MAX_CHANCE, chance * trust)
        if parent < 0:
            first += chance
        else:
            chance *= out[parent]
        out[node] = chance
    return first


@no_type_check
@compiled
def learn(token_ids, parents, scores, sources, gained, memory, hits, predicted):
    """Judge a proposed tree by the tokens that then came, whether or not its nodes were verified.

    Every child of a node that was reached is one trial of its cell. Returns hits and predicted hits (as calibrated
    before) among the root's children.
    """
    depths = np.empty(parents.shape[0], np.int32)
    for node in range(parents.shape[0]):
        depths[node] = 1 if parents[node] < 0 else depths[parents[node]] + 1
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
def count_acceptance(parents, sources, path, drafted, accepted):
    """Add a verified tree to the counts per source and depth (the last depth holds all deeper ones)."""
    deepest = drafted.shape[1] - 1
    depths = np.empty(parents.shape[0], np.int32)
    for node in range(parents.shape[0]):
        depths[node] = 1 if parents[node] < 0 else depths[parents[node]] + 1
        drafted[min(sources[node], MAX_SOURCES - 1), min(depths[node] - 1, deepest)] += 1
    for step in range(path.shape[0]):
        node = path[step]
        accepted[min(sources[node], MAX_SOURCES - 1), min(depths[node] - 1, deepest)] += 1


# ---------------------------------------------------------------------------------------------------- what rows cost
# A cost curve is three float64 arrays:
#     seconds [sizes]: of a forward over GRID[i] rows before both factors, NaN: not known
#     counts [sizes]: steps seen of each size
#     factors [5]: scale, steepness, then the variances of their logarithms and the covariance: scale, both, steepness

GRID = np.array([1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256, 512, 1024, 4096], np.float64)
_FORGETTING = 0.001  # per step, of what a size that is no longer run costs more than a plain step
_OWN_RATE = 0.02  # of what the two common factors leave unexplained; 1 / n where only n steps are known
_GENTLEST, _STEEPEST = 0.2, 5.0
_LARGEST = math.log(2.0)  # of one step's surprise that is believed: one outlier does not decide
# Variances of the logarithms of both factors, per step and at first, and of the noise of a step.
_DRIFT_SCALE, _DRIFT_STEEPNESS = 0.01**2, 0.02**2
FIRST_DOUBT_SCALE, FIRST_DOUBT_STEEPNESS = 0.2**2, 0.3**2
_NOISE = 0.1**2


@no_type_check
@compiled
def nearest(num_rows):
    """Index of the size in GRID whose ratio to `num_rows` is nearest to 1, the smaller one of two."""
    index = 0
    while index + 1 < GRID.shape[0] and num_rows * num_rows > GRID[index] * GRID[index + 1]:
        index += 1
    return index


@no_type_check
@compiled
def first_known(seconds):
    """Index of the smallest size that is known, -1: none."""
    for index in range(seconds.shape[0]):
        if not math.isnan(seconds[index]):
            return index
    return -1


@no_type_check
@compiled
def now(seconds, factors, index, least):
    """What the known size `index` takes now; no size is cheaper than the smallest."""
    return factors[0] * (least + factors[1] * max(0.0, seconds[index] - least))


@no_type_check
@compiled
def cost(seconds, factors, num_rows):
    """Seconds of a forward over `num_rows`, between known sizes in proportion; 1 while nothing is known."""
    below = first_known(seconds)
    if below < 0:
        return 1.0
    least = seconds[below]
    if num_rows <= GRID[below]:
        return now(seconds, factors, below, least)
    for index in range(below + 1, seconds.shape[0]):
        if math.isnan(seconds[index]):
            continue
        if num_rows < GRID[index]:
            low, high = now(seconds, factors, below, least), now(seconds, factors, index, least)
            return low + (high - low) * (num_rows - GRID[below]) / (GRID[index] - GRID[below])
        below = index
    return now(seconds, factors, below, least)


@no_type_check
@compiled
def costs(seconds, factors, num_rows, out):
    """`cost` of each of `num_rows`."""
    for index in range(num_rows.shape[0]):
        out[index] = cost(seconds, factors, num_rows[index])


@no_type_check
@compiled
def observe_cost(seconds, counts, factors, num_rows, elapsed):
    """Learn from one step: both factors, and the size's own cost."""
    index = nearest(num_rows)
    counts[index] += 1
    first = first_known(seconds)
    if first < 0:
        seconds[index] = elapsed
        return
    least = seconds[first]
    last = first
    for other in range(first, seconds.shape[0]):
        if not math.isnan(seconds[other]):
            last = other
    if index < first or index > last:
        excess = elapsed / factors[0] - least
        seconds[index] = least + (excess / factors[1] if excess > 0 else excess)
        return
    if math.isnan(seconds[index]):
        below, above = index, index
        while math.isnan(seconds[below]):
            below -= 1
        while math.isnan(seconds[above]):
            above += 1
        share = (GRID[index] - GRID[below]) / (GRID[above] - GRID[below])
        seconds[index] = seconds[below] + share * (seconds[above] - seconds[below])
    excess = factors[1] * max(0.0, seconds[index] - least)
    surprise = max(-_LARGEST, min(_LARGEST, math.log(elapsed / (factors[0] * (least + excess)))))
    surprise -= correct(factors, surprise, excess / (least + excess))
    seconds[index] *= math.exp(surprise * max(_OWN_RATE, 1 / (1 + counts[index])))
    if index == 0:
        for other in range(1, seconds.shape[0]):
            if seconds[other] > seconds[0]:  # NaN is not
                seconds[other] -= _FORGETTING * (seconds[other] - seconds[0])


@no_type_check
@compiled
def correct(factors, surprise, share):
    """Move both factors by what a step tells about them; returns how much of the surprise that explains.

    `share` of the expected time is what the size costs more than the smallest one. A Kalman filter of two variables.
    """
    scale = factors[2] + _DRIFT_SCALE
    both = factors[3]
    steepness = min(FIRST_DOUBT_STEEPNESS, factors[4] + _DRIFT_STEEPNESS)
    on_scale = scale + share * both
    on_steepness = both + share * steepness
    total = on_scale + share * on_steepness + _NOISE
    move = surprise * on_scale / total
    bend = surprise * on_steepness / total
    factors[0] *= math.exp(move)
    factors[1] = max(_GENTLEST, min(_STEEPEST, factors[1] * math.exp(bend)))
    factors[2] = scale - on_scale * on_scale / total
    factors[3] = both - on_scale * on_steepness / total
    factors[4] = steepness - on_steepness * on_steepness / total
    return move + share * bend


@no_type_check
@compiled
def let_pass(factors):
    """The doubt about both factors grows by a step's drift."""
    factors[2] = min(FIRST_DOUBT_SCALE, factors[2] + _DRIFT_SCALE)
    factors[4] = min(FIRST_DOUBT_STEEPNESS, factors[4] + _DRIFT_STEEPNESS)


# -------------------------------------------------------------------------------------------------- what is verified


@no_type_check
@compiled
def select(chances, seconds, factors, num_rows, num_turns, speed_up, margin, keep):
    """Mark in `keep` the nodes to verify in a forward of `num_rows` other rows; returns how many.

    `num_turns` of those rows gain a token each in any case; `speed_up` is what all of it has gained lately.
    """
    num_nodes = chances.shape[0]
    times = np.empty(num_nodes + 1, np.float64)
    for count in range(num_nodes + 1):
        times[count] = cost(seconds, factors, num_rows + count)
    order = np.argsort(-chances, kind="mergesort")  # stable: a parent comes before a child of the same chance
    rate = speed_up * num_turns / times[0]
    count, _ = best_count(chances[order], times, num_turns, rate, margin)
    for node in range(num_nodes):
        keep[node] = False
    for rank in range(count):
        keep[order[rank]] = True
    return count


@no_type_check
@compiled
def best_count(ordered, times, num_turns, rate, margin):
    """How many of the nodes, likeliest first, to verify: the maximum of expected tokens - price * time.

    `times[n]` is the time of the forward with n nodes, `num_turns` the tokens it gains without any. The price of time
    is `rate`, the tokens per second of the long run, or what this step reaches at its best, where that is more. None,
    unless the gain is at least `margin` of what the plain step is worth. Returns the count and the gain in tokens.
    """
    expected = np.float64(num_turns)
    price = max(rate, expected / times[0])
    for count in range(1, ordered.shape[0] + 1):
        expected += ordered[count - 1]
        price = max(price, expected / times[count])
    best = 0
    best_gain = margin * rate * times[0]
    expected = 0.0
    for count in range(1, ordered.shape[0] + 1):
        expected += ordered[count - 1]
        gain = expected - price * (times[count] - times[0])
        if gain > best_gain:
            best_gain = gain
            best = count
    return best, best_gain if best > 0 else 0.0

"""Which draft tokens to keep, so that the output is exactly what the target alone would have produced.

`verify_greedy` follows the target's own choices through the tree. `verify` samples: with the same law as sampling from
the target one token at a time, whatever was drafted.
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
from jaxtyping import Float32, Float64, Integer
from torch import Tensor

from infercore.speculative import _compiled
from infercore.speculative.tree import TokenTree
from infercore.speculative.types import Verdict
from infercore.speculative.verify_rows import verify_rows


def verify_greedy(trees: Sequence[TokenTree], target_token_ids: Sequence[Integer[np.ndarray, "_"]]) -> list[Verdict]:
    """Accept the longest path of each tree that the target's choices follow.

    Args:
        target_token_ids: per tree the target's choice after the root and after each node, `num_nodes + 1` int32 or
            int64 entries on the host, the root's first.
    Returns: one verdict per tree; its next token is the target's choice after the last accepted node.
    Raises: ValueError if the number of trees or rows does not fit.
    Cost: about 2 µs per tree.
    """
    if len(trees) != len(target_token_ids):
        raise ValueError(f"{len(target_token_ids)} arrays of target tokens for {len(trees)} trees; pass one per tree")
    verdicts = []
    for tree, targets in zip(trees, target_token_ids, strict=True):
        num_nodes = tree.token_ids.shape[0]
        if targets.shape[0] != num_nodes + 1:
            raise ValueError(
                f"{targets.shape[0]} target tokens for a tree of {num_nodes} nodes, expected {num_nodes + 1}: "
                "the root's first, then one per node"
            )
        if num_nodes == 0:
            verdicts.append(Verdict(tree.token_ids, int(targets[0])))
            continue
        path, next_token_id = _compiled.walk_greedy(tree.token_ids, tree.parents, targets)
        verdicts.append(Verdict(path, int(next_token_id)))  # numpy's where the loop runs as plain Python
    return verdicts


def verify(
    trees: Sequence[TokenTree],
    target_probs: Sequence[Float32[Tensor, "_ vocab"]] | Float32[Tensor, "rows vocab"],
    *,
    generators: torch.Generator | Sequence[torch.Generator],
) -> list[Verdict]:
    """Accept a path of each tree and one more token; what is gained is distributed as the target's own samples.

    A tree without `draft_probs`: each visited row is sampled, and the child that carries the token is followed. One
    number is drawn per gained token, so a seed gives the same output with any such draft, and with none.
    A tree with `draft_probs`: at each node its children are tried in order; child c with distribution q (its row, less
    the earlier siblings drawn from that row, renormalised) is accepted with probability min(1, p(c) / q(c)); after a
    rejection p becomes the normalised positive part of p - q. If none is accepted, the token is drawn from that p.
    This is exact only if no child was dropped for the token it carries: cut such trees before drawing, not after.

    Args:
        target_probs: per tree `[num_nodes + 1, vocab]`, or all of them packed one after another; row 0 is the
            distribution after the root, row i + 1 after node i, everything (temperature, top-p, penalties, grammar)
            applied along that node's path. Rows need not be normalised.
        generators: CPU generators, the only randomness: one per tree (then a verdict does not depend on the other
            trees), or one for all, used in order.
    Raises: ValueError if shapes do not fit, or, on the CPU, if a visited row has no mass or a tried sibling cannot
        have been drawn from its row.
    Cost: on the CPU only visited rows are read. On a device all rows are, vectorised, with one sync for the batch.
    Source: Leviathan et al. 2023 (arXiv 2211.17192), Alg. 1; Jeon et al. 2024 (arXiv 2402.14160), recursive rejection
        sampling without replacement. We differ in treating chosen nodes as drawn from a point mass.
    """
    rows = _rows_per_tree(trees, target_probs)
    per_tree = [generators] * len(trees) if isinstance(generators, torch.Generator) else list(generators)
    if len(per_tree) != len(trees):
        raise ValueError(f"{len(per_tree)} generators for {len(trees)} trees; pass one, or one per tree")
    if rows and rows[0].device.type != "cpu":
        return verify_rows(trees, rows, per_tree)
    return [
        _follow_samples(tree, probs, generator)
        if tree.draft_probs is None
        else _try_siblings(tree, tree.draft_probs, probs, generator)
        for tree, probs, generator in zip(trees, rows, per_tree, strict=True)
    ]


def acceptance(
    target: Float64[np.ndarray, "vocab"], draft: Float64[np.ndarray, "vocab"], token_id: int
) -> tuple[float, Float64[np.ndarray, "vocab"]]:
    """One round at one node: the chance to accept a token drawn from `draft`, and the target after a rejection.

    Both distributions sum to 1. Where they are equal the chance is 1 and the target stays as it is.
    """
    residual = np.maximum(target - draft, 0)
    mass = residual.sum()
    if mass <= 0:
        return 1.0, target
    return min(1.0, float(target[token_id] / draft[token_id])), residual / mass


def _rows_per_tree(trees: Sequence[TokenTree], target_probs: Sequence[Tensor] | Tensor) -> Sequence[Tensor]:
    sizes = [tree.num_nodes + 1 for tree in trees]
    if isinstance(target_probs, Tensor):
        if target_probs.shape[0] != sum(sizes):
            raise ValueError(
                f"target_probs has {target_probs.shape[0]} rows for trees of {sizes} rows, root included; "
                f"expected {sum(sizes)}"
            )
        return torch.split(target_probs, sizes)
    if [probs.shape[0] for probs in target_probs] != sizes:
        raise ValueError(
            f"target_probs has {[probs.shape[0] for probs in target_probs]} rows, expected {sizes}: "
            "per tree one for the root and one per node"
        )
    return target_probs


def _follow_samples(tree: TokenTree, probs: Tensor, generator: torch.Generator) -> Verdict:
    path: list[int] = []
    node = -1
    while True:
        token_id = _sample(probs[node + 1].numpy(), float(torch.rand((), generator=generator, dtype=torch.float64)))
        child = _child_with(tree, node, token_id)
        if child < 0:
            return Verdict(np.asarray(path, np.int32), token_id)
        path.append(child)
        node = child


def _try_siblings(tree: TokenTree, draft_probs: Tensor, probs: Tensor, generator: torch.Generator) -> Verdict:
    num_nodes = tree.num_nodes
    uniforms = torch.rand(2 * num_nodes + 1, generator=generator, dtype=torch.float64).numpy()
    path: list[int] = []
    node = -1
    while True:
        target = probs[node + 1].numpy().astype(np.float64)
        target /= target.sum()
        accepted = -1
        drawn: list[int] = []
        for child in tree.children(node).tolist():
            token_id = int(tree.token_ids[child])
            draft = draft_probs[child].numpy().astype(np.float64)
            if draft[token_id] < 1:  # drawn, not chosen
                draft[drawn] = 0
                drawn.append(token_id)
            if draft[token_id] <= 0:
                raise ValueError(
                    f"node {child} carries token {token_id}, which its draft_probs row, less the earlier siblings, "
                    "gives no mass; draw siblings without replacement, or give chosen nodes a point mass"
                )
            draft /= draft.sum()
            chance, residual = acceptance(target, draft, token_id)
            if uniforms[child] < chance:
                accepted = child
                break
            target = residual
        if accepted < 0:
            return Verdict(np.asarray(path, np.int32), _sample(target, float(uniforms[num_nodes + node + 1])))
        path.append(accepted)
        node = accepted


def _child_with(tree: TokenTree, node: int, token_id: int) -> int:
    hits = np.flatnonzero((tree.parents == node) & (tree.token_ids == token_id))
    return int(hits[0]) if hits.size else -1


def _sample(weights: npt.NDArray[np.floating], uniform: float) -> int:
    """Inverse of the cumulative sum at `uniform` in [0, 1); never a token of weight 0."""
    cumulative = np.cumsum(weights, dtype=np.float64)
    total = cumulative[-1]
    if not 0 < total < np.inf:
        raise ValueError(f"a row of target_probs sums to {total}; at least one token must be allowed")
    return int(np.searchsorted(cumulative, uniform * total, side="right"))

"""`expand_frontier`: the likeliest children of a draft tree's open nodes, and the likeliest of those to go on from.

Use it where a draft model grows a tree depth by depth: it takes the place of a log softmax, two `topk` and what joins
them, which cost more than the draft model's own layer does. Files: `reference.py`, `triton.py`.

    token_ids, scores, frontier = expand_frontier(logits, node_scores, branching=6, width=6)
"""

from typing import NamedTuple

from jaxtyping import Float, Float32, Int64
from torch import Tensor

from infercore.kernels.expand_frontier.reference import expand_frontier as _reference
from infercore.kernels.impl import Impl, choose_impl

__all__ = ["MAX_CHILDREN", "Expanded", "expand_frontier"]

MAX_CHILDREN = 16  # of a node, and most nodes that go on
_MAX_NODES = 16


class Expanded(NamedTuple):
    """Children of open nodes.

    Args:
        token_ids: int64 `[batch, nodes, branching]`, the likeliest first.
        scores: float32 `[batch, nodes, branching]`, the node's score plus the child's log chance.
        frontier: int64 `[batch, width]`, the children of the highest scores, highest first: node * branching + child.
    """

    token_ids: Int64[Tensor, "batch nodes branching"]
    scores: Float32[Tensor, "batch nodes branching"]
    frontier: Int64[Tensor, "batch width"]


def expand_frontier(
    logits: Float[Tensor, "batch nodes vocab"],
    node_scores: Float32[Tensor, "_ _"],
    *,
    branching: int,
    width: int,
    id_offsets: Int64[Tensor, "_"] | None = None,
    impl: Impl = "auto",
) -> Expanded:
    """Children of each node by its logits, and the `width` best of all children of a request.

    Args:
        node_scores: `[batch, nodes]`. branching: children a node; width: how many of a request's children go on.
        id_offsets: `[vocab]`, added to a child's column to give its token id (`d2t` of EAGLE-3); None: it is the id.
    Raises: ValueError for shapes or sizes that do not fit, or where `impl="triton"` cannot run.
    Cost: two launches on a GPU, which read the logits once. Of equal logits the lower column comes first there.
    Source: Li et al. 2024, EAGLE-2 (arXiv 2406.16858), section 4.1, the expansion phase.
    """
    if logits.ndim != 3 or node_scores.shape != logits.shape[:2]:
        raise ValueError(
            f"logits {tuple(logits.shape)}, node_scores {tuple(node_scores.shape)}; expected [batch, nodes, vocab] and "
            "[batch, nodes]"
        )
    nodes, vocab = logits.shape[1:]
    if not (1 <= branching <= min(vocab, MAX_CHILDREN) and 1 <= width <= min(nodes * branching, MAX_CHILDREN)):
        raise ValueError(
            f"branching is {branching}, width {width}: expected 1 to {min(vocab, MAX_CHILDREN)} children of a node, "
            f"and 1 to {min(nodes * branching, MAX_CHILDREN)} of all to go on"
        )
    if id_offsets is not None and id_offsets.shape != (vocab,):
        raise ValueError(f"id_offsets {tuple(id_offsets.shape)}, expected ({vocab},), one a column")
    chosen = choose_impl(impl, logits, cpu="reference")
    if chosen == "reference" or (impl == "auto" and nodes > _MAX_NODES):
        return Expanded(*_reference(logits, node_scores, branching, width, id_offsets))
    if nodes > _MAX_NODES:
        raise ValueError(f'impl="triton" takes at most {_MAX_NODES} nodes a request, got {nodes}; use impl="auto"')
    from infercore.kernels.expand_frontier.triton import expand_frontier as on_gpu

    return Expanded(*on_gpu(logits, node_scores.float(), branching, width, id_offsets))

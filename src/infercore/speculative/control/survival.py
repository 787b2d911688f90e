"""`Survival`: how likely draft tokens are accepted, learnt from what became of earlier ones."""

import numpy as np
import numpy.typing as npt
from jaxtyping import Float32, Int32

from infercore.speculative.control import _compiled
from infercore.speculative.control.acceptance import Acceptance
from infercore.speculative.tree import TokenTree

_MEMORY = 100.0  # predicted hits that a cell remembers


class Survival:
    """Calibrates drafters' scores per drafter, depth and score, and counts acceptance per drafter and depth.

    A proposed tree is judged by the tokens that the target then produced, so nodes that were never verified teach as
    much as others: a drafter can prove itself again at no cost while it is switched off.
    """

    def __init__(self) -> None:
        shape = (_compiled.MAX_SOURCES, _compiled.NUM_DEPTHS, _compiled.NUM_BINS)
        self._hits = np.zeros(shape)
        self._predicted = np.zeros(shape)
        self._acceptance = Acceptance()

    def chances(self, tree: TokenTree) -> Float32[np.ndarray, "nodes"]:
        """Chance that each node is accepted together with all above it; never above its parent's."""
        out = np.empty(tree.num_nodes, np.float32)
        self.chances_into(tree, out)
        return out

    def chances_into(self, tree: TokenTree, out: Float32[np.ndarray, "nodes"]) -> float:
        """Write `chances` to `out`; returns the chance that any of the root's children is right."""
        scores, sources = _columns(tree)
        first = _compiled.calibrated(tree.parents, scores, sources, self._hits, self._predicted, out)
        return float(first)

    def learn(self, tree: TokenTree, gained: Int32[np.ndarray, "gained"]) -> tuple[float, float]:
        """Judge a proposal by the tokens that came after it.

        Returns hits, and hits predicted, among the root's children.
        """
        scores, sources = _columns(tree)
        hits, predicted = _compiled.learn(
            tree.token_ids, tree.parents, scores, sources, gained, _MEMORY, self._hits, self._predicted
        )
        return hits, predicted

    def count(self, tree: TokenTree, path: Int32[np.ndarray, "accepted"]) -> None:
        """Add a tree that was verified to the acceptance counts."""
        self._acceptance.count(tree, path)

    def acceptance(self) -> dict[int, list[tuple[int, int]]]:
        """Per drafter and depth: see `Acceptance.table`."""
        return self._acceptance.table()


def _columns(tree: TokenTree) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int8]]:
    scores = tree.scores if tree.scores is not None else (0.5**tree.depths).astype(np.float32)
    return scores, tree.sources if tree.sources is not None else np.zeros(len(scores), np.int8)

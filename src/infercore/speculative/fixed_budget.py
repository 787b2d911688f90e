"""`FixedBudget`: the controller that always says the same."""

from collections.abc import Sequence

from infercore.speculative.tree import TokenTree
from infercore.speculative.types import Verdict


class FixedBudget:
    """Every request drafts up to `max_nodes` in every step; 0 turns speculation off."""

    def __init__(self, max_nodes: int) -> None:
        if max_nodes < 0:
            raise ValueError(f"max_nodes is {max_nodes}; expected 0 (no speculation) or more")
        self._max_nodes = max_nodes

    def budget(self, request_ids: Sequence[int], *, num_other_rows: int = 0) -> list[int]:
        return [self._max_nodes] * len(request_ids)

    def watch(self, request_ids: Sequence[int], *, num_other_rows: int = 0) -> list[int]:
        return [0] * len(request_ids)

    def select(
        self, request_ids: Sequence[int], trees: Sequence[TokenTree], *, num_other_rows: int = 0
    ) -> list[TokenTree]:
        return list(trees)

    def update(
        self,
        request_ids: Sequence[int],
        trees: Sequence[TokenTree],
        verdicts: Sequence[Verdict],
        *,
        step_time_s: float,
        num_other_rows: int = 0,
    ) -> None:
        """Nothing to learn."""

    def close(self, request_id: int) -> None:
        """Nothing to let go."""

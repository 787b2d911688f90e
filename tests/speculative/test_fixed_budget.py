"""FixedBudget says the same every time."""

import pytest

from infercore.speculative import FixedBudget, TokenTree


def test_the_budget_does_not_change() -> None:
    controller = FixedBudget(5)
    tree = TokenTree.chain([1, 2])
    assert controller.budget([3, 4]) == [5, 5]
    controller.update([3, 4], [tree, tree], [], step_time_s=1.0)
    assert controller.budget([3], num_other_rows=100) == [5]
    assert controller.select([3], [tree])[0] is tree
    assert controller.watch([3, 4], num_other_rows=7) == [0, 0]


def test_a_negative_budget_is_refused() -> None:
    with pytest.raises(ValueError, match="expected 0"):
        FixedBudget(-1)

"""top_tokens finds what a sort finds."""

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given

from infercore.speculative import top_tokens


@given(
    seed=st.integers(0, 99),
    width=st.sampled_from([3, 511, 512, 1500]),
    count=st.integers(1, 3),
    masked=st.floats(0, 1),
    levels=st.sampled_from([2, 1000]),
)
def test_largest_first_the_lower_id_of_equals(seed: int, width: int, count: int, masked: float, levels: int) -> None:
    rng = np.random.default_rng(seed)
    logits = rng.integers(0, levels, (4, width)).astype(np.float32)
    logits[rng.random(logits.shape) < masked] = -np.inf
    rows = rng.integers(0, 4, 3)
    expected = np.argsort(-logits[rows], axis=1, kind="stable")[:, :count].astype(np.int32)
    expected[np.take_along_axis(logits[rows], expected, 1) == -np.inf] = -1
    assert top_tokens(logits, rows, count).tolist() == expected.tolist()


def test_wrong_rows_and_counts_are_refused() -> None:
    logits = np.zeros((2, 5), np.float32)
    with pytest.raises(ValueError, match="count is 6"):
        top_tokens(logits, np.array([0]), 6)
    for row in (2, -1):
        with pytest.raises(ValueError, match=f"row {row} is asked for; expected 0 to 1"):
            top_tokens(logits, np.array([row]), 1)

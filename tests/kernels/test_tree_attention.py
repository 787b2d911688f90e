"""`tree_attention`: the reference against brute force, the CPU path against the reference, and the door's errors."""

import pytest
import torch

from infercore.kernels import tree_attention

RAGGED = [(37, 1, 0), (0, 5, 0), (16, 0, 0), (50, 3, 9), (15, 1, 33), (0, 1, 4)]
FEATURES = {
    "plain": {},
    "window": {"sliding_window": 7},
    "softcap": {"softcap": 2.0},
    "sinks": {"with_sinks": True},
    "one head": {"heads": 1, "kv_heads": 1},
    "mha": {"heads": 3, "kv_heads": 3},
    "other v_dim": {"v_dim": 24},
    "page 1": {"page_size": 1},
    "page 32": {"page_size": 32},
    "contiguous": {"contiguous": True},
    "padding": {"num_padding": 3},
    "all": {"sliding_window": 9, "softcap": 3.0, "with_sinks": True, "heads": 6, "v_dim": 8, "num_padding": 1},
}
IMPLS = ["reference", "auto"]


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("features", FEATURES.values(), ids=FEATURES.keys())
def test_equals_brute_force_on_ragged_rows_in_a_poisoned_pool(random_problem, brute_force, features, impl):
    problem = random_problem(RAGGED, **features)
    expected = brute_force(problem)
    for dtype, atol in ((torch.float64, 1e-12), (torch.float32, 2e-6)):
        case = problem.to(dtype)
        out = tree_attention(*case.args, **case.rows, **case.options, impl=impl)
        assert out.dtype == dtype
        torch.testing.assert_close(out.double(), expected, atol=atol, rtol=0)

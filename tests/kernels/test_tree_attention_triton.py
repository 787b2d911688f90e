"""The Triton kernels of `tree_attention` under Triton's interpreter, against brute force and against each other."""

import importlib

import pytest
import torch
from attention_problems import FEATURES, TOLERANCE

from infercore.kernels import tree_attention

kernels = importlib.import_module("infercore.kernels.tree_attention.triton")
Config = importlib.import_module("infercore.kernels.tree_attention.config").Config
RAGGED = [(70, 1, 0), (0, 5, 0), (16, 0, 0), (40, 3, 9), (15, 1, 33), (0, 10, 0)]


@pytest.fixture(autouse=True)
def _small_device(monkeypatch):
    """Four multiprocessors: splits stay few, so that the interpreter has few programs to run."""
    monkeypatch.setattr(kernels, "device_limits", lambda device: ("any", 4, 232448, False))


def run(case, **options):
    return tree_attention(*case.args, **case.rows, **case.options, impl="triton", **options)


@pytest.mark.parametrize("features", FEATURES.values(), ids=FEATURES.keys())
def test_equals_brute_force_on_ragged_rows_in_a_poisoned_pool(random_problem, brute_force, features):
    case = random_problem(RAGGED, **features)
    torch.testing.assert_close(run(case).double(), brute_force(case), atol=TOLERANCE[torch.float32], rtol=0)


@pytest.mark.parametrize(("dtype", "times"), [(torch.float16, 2), (torch.bfloat16, 4)])
def test_half_precision_stays_within_twice_the_error_of_the_same_dtype(random_problem, brute_force, dtype, times):
    """The interpreter cuts bfloat16 off instead of rounding it, which doubles the error: hence 4 times."""
    case = random_problem([(70, 1, 0), (40, 3, 9)], k_dim=80, v_dim=96).to(dtype)
    truth = brute_force(case)
    reference = tree_attention(*case.args, **case.rows, **case.options, impl="cpu")  # rounds the weights as well
    allowed = times * (reference.double() - truth).abs().max()
    assert (run(case).double() - truth).abs().max() <= allowed


@pytest.mark.parametrize(("target", "block_m"), [(0, 16), (1, 32), (3, 16), (7, 32), (20, 16)])
def test_the_number_of_splits_does_not_matter(random_problem, brute_force, target, block_m):
    case = random_problem([(150, 1, 2), (3, 2, 0), (30, 1, 12)], num_padding=2, with_sinks=True, sliding_window=60)
    prepared = importlib.import_module("infercore.kernels.tree_attention.rows").prepare(**case.rows, page_size=16)
    out = torch.full((20, 4, 16), torch.nan)
    config = Config(block_m, 16, 1, 4, 1)
    kernels.tree_attention(*case.args, prepared, out, **case.options, config=config, target=target)
    torch.testing.assert_close(out.double(), brute_force(case), atol=TOLERANCE[torch.float32], rtol=0)


def test_lengths_at_and_around_a_block_of_keys(random_problem, brute_force):
    for total in (1, 2, 31, 32, 33, 64, 65, 129):
        case = random_problem([(total - 1, 1, 0), (max(total - 4, 0), 1, 3)], heads=2, kv_heads=1)
        torch.testing.assert_close(run(case).double(), brute_force(case), atol=TOLERANCE[torch.float32], rtol=0)


def test_trees_of_many_words_chains_and_stars(random_problem, brute_force):
    for shape in ("chain", "star", "random"):
        case = random_problem([(20, 1, 40), (5, 2, 3)], shape=shape, heads=2, kv_heads=1, sliding_window=24)
        torch.testing.assert_close(run(case).double(), brute_force(case), atol=TOLERANCE[torch.float32], rtol=0)


@pytest.mark.parametrize("impl", ["triton", "cpu", "reference"])
def test_batch_invariant_rows_do_not_depend_on_their_batch_mates_bit_for_bit(random_problem, impl, monkeypatch):
    monkeypatch.setattr(kernels, "INVARIANT_SPLIT_KEYS", 64)
    lengths = [(150, 1, 5), (70, 1, 0), (7, 9, 0)]
    alone = random_problem(lengths, heads=2, kv_heads=1)
    together = tree_attention(*alone.args, **alone.rows, **alone.options, impl=impl, batch_invariant=True)
    for s in range(3):
        rows = dict(alone.rows)
        first, last = rows["row_starts"][s : s + 2].tolist()
        rows |= {
            "position_ids": rows["position_ids"][first:last],
            "row_starts": torch.tensor([0, last - first], dtype=torch.int32),
            "context_lens": rows["context_lens"][s : s + 1],
            "num_causal_rows": rows["num_causal_rows"][s : s + 1],
            "block_table": rows["block_table"][s : s + 1],
            "ancestor_bits": rows["ancestor_bits"][first:last],
        }
        query, k_pages, v_pages = alone.args
        one = tree_attention(
            query[first:last], k_pages, v_pages, **rows, **alone.options, impl=impl, batch_invariant=True
        )
        assert torch.equal(one, together[first:last])


def test_batch_invariant_equals_brute_force(random_problem, brute_force, monkeypatch):
    monkeypatch.setattr(kernels, "INVARIANT_SPLIT_KEYS", 64)
    case = random_problem([(200, 1, 3), (5, 3, 0)], num_padding=1, sliding_window=100, heads=2, kv_heads=1)
    out = run(case, batch_invariant=True)
    torch.testing.assert_close(out.double(), brute_force(case), atol=TOLERANCE[torch.float32], rtol=0)


def test_planted_faults_show(random_problem):
    case = random_problem([(40, 2, 6)], sliding_window=20)
    right = run(case)
    bits = case.rows["ancestor_bits"].clone()
    bits[7] ^= 1
    for wrong in ({"ancestor_bits": bits}, {"position_ids": case.rows["position_ids"] + 1}):
        out = tree_attention(*case.args, **{**case.rows, **wrong}, **case.options, impl="triton")
        assert (out - right).abs().max() > 1e-3


def test_no_rows(random_problem):
    case = random_problem([(5, 0, 0)])
    assert run(case).shape == (0, 4, 16)
    assert torch.equal(run(random_problem([], num_padding=3)), torch.zeros(3, 4, 16))

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


@pytest.mark.parametrize(("target", "block_m"), [(0, 16), (1, 32), (3, 16), (7, 32), (20, 16), (64, 16)])
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


@pytest.mark.parametrize(("programs", "tiles", "target", "of_single_rows"), [
    (8, 1, 8, 8), (16, 1, 16, 17), (33, 1, 32, 33), (49, 1, 49, 49), (16, 5, 16, 16), (16, 15, 15, 15),
    (16, 16, 16, 16), (16, 40, 40, 40), (16, 64, 0, 0),
])  # fmt: skip
def test_keys_are_cut_for_as_many_programs_as_the_device_holds_at_once(programs, tiles, target, of_single_rows):
    """Near a power of two splits per tile, below; a program per tile once there are tiles enough; then no splits."""
    assert kernels._programs_to_share_among(programs, tiles, is_decode=False) == target
    assert kernels._programs_to_share_among(programs, tiles, is_decode=True) == of_single_rows


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


def shared_beginnings(random_problem, lengths, groups, **features):
    """A problem in which the sequences of each group (start, stop, shared tokens) begin with the first one's pages."""
    case = random_problem(lengths, **features)
    table = case.rows["block_table"]
    for start, stop, shared in groups:
        table[start:stop, : shared // 16] = table[start, : shared // 16]
    starts = [g[0] for g in groups] + [len(lengths)]
    case.rows["group_starts"] = torch.tensor(starts, dtype=torch.int32)
    case.rows["shared_lens"] = torch.tensor([g[2] for g in groups], dtype=torch.int32)
    return case


@pytest.mark.parametrize("target", [0, 1, 5, 12])
@pytest.mark.parametrize("features", [{}, {"with_sinks": True, "softcap": 3.0, "num_padding": 2}], ids=["plain", "all"])
def test_a_cascade_gives_what_each_sequence_alone_gives(random_problem, brute_force, features, target):
    lengths = [(170, 1, 2), (140, 2, 0), (0, 3, 0), (300, 1, 0), (260, 0, 4), (290, 1, 0)]
    groups = [(0, 2, 128), (2, 3, 0), (3, 6, 256)]
    case = shared_beginnings(random_problem, lengths, groups, heads=2, kv_heads=1, **features)
    rows, options = case.rows, case.options
    prepared = importlib.import_module("infercore.kernels.tree_attention.rows").prepare(**rows, page_size=16)
    out = torch.full_like(case.args[0], torch.nan)
    config = Config(16, 32, 1, 4, 1)
    kernels.tree_attention(*case.args, prepared, out, **options, config=config, target=target)
    torch.testing.assert_close(out.double(), brute_force(case), atol=TOLERANCE[torch.float32], rtol=0)


def test_a_cascade_reads_shared_keys_through_the_first_sequence_of_the_group(random_problem):
    """Pages behind the first sequence's table row are the ones that count: a planted difference shows."""
    case = shared_beginnings(random_problem, [(150, 1, 0), (150, 1, 0)], [(0, 2, 128)], heads=2, kv_heads=1)
    prepare = importlib.import_module("infercore.kernels.tree_attention.rows").prepare

    def attend():
        out = torch.empty_like(case.args[0])
        rows = prepare(**case.rows, page_size=16)
        return kernels.tree_attention(*case.args, rows, out, **case.options, config=Config(16, 32, 1, 4, 1), target=4)

    right = attend()
    case.rows["block_table"][1, 2] = case.rows["block_table"][1, 8]
    assert torch.equal(attend(), right)
    case.rows["block_table"][0, 2] = case.rows["block_table"][0, 8]
    assert (attend() - right).abs().amax((1, 2)).min() > 1e-3


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

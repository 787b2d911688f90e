"""`tree_attention`: every CPU path against brute force in float64, what must not matter, and the door's errors."""

import os
import subprocess
import sys

import pytest
import torch
from attention_problems import FEATURES, TOLERANCE

from infercore.kernels import prepare, tree_attention
from infercore.kernels.tree_attention import cpu_shared

RAGGED = [(37, 1, 0), (0, 5, 0), (16, 0, 0), (50, 3, 9), (15, 1, 33), (0, 1, 4), (3, 20, 0), (0, 18, 0)]


@pytest.mark.parametrize("impl", ["reference", "cpu"])
@pytest.mark.parametrize("features", FEATURES.values(), ids=FEATURES.keys())
def test_equals_brute_force_on_ragged_rows_in_a_poisoned_pool(random_problem, brute_force, features, impl):
    problem = random_problem(RAGGED, **features)
    expected = brute_force(problem)
    for dtype in (torch.float64, torch.float32):
        case = problem.to(dtype)
        out = tree_attention(*case.args, **case.rows, **case.options, impl=impl)
        assert out.dtype == dtype
        torch.testing.assert_close(out.double(), expected, atol=TOLERANCE[dtype], rtol=0)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("features", [{}, FEATURES["all"]], ids=["plain", "all"])
def test_half_precision_on_the_cpu_stays_within_its_rounding(random_problem, brute_force, features, dtype):
    case = random_problem(RAGGED, **features).to(dtype)
    out = tree_attention(*case.args, **case.rows, **case.options)
    torch.testing.assert_close(out.double(), brute_force(case), atol=TOLERANCE[dtype], rtol=0)


def test_long_contexts_cross_every_block_boundary(random_problem):
    for total in (7, 8, 9, 63, 64, 65, 127, 128, 129, 700):
        case = random_problem([(total - 1, 1, 0), (total - 4, 1, 3)], heads=6, k_dim=64)
        ours = tree_attention(*case.args, **case.rows, **case.options, impl="cpu")
        theirs = tree_attention(*case.args, **case.rows, **case.options, impl="reference")
        torch.testing.assert_close(ours, theirs, atol=2e-6, rtol=0)


def test_scores_far_apart_neither_overflow_nor_underflow(random_problem):
    case = random_problem([(40, 1, 2)])
    options = {**case.options, "scaling": 300.0}
    ours = tree_attention(*case.args, **case.rows, **options, impl="cpu")
    theirs = tree_attention(*case.args, **case.rows, **options, impl="reference")
    assert torch.isfinite(ours).all()
    torch.testing.assert_close(ours, theirs, atol=2e-4, rtol=0)  # scores near 1000: a rounding of theirs is 6e-5


def test_prepared_rows_serve_many_layers_and_out_is_written_in_place(random_problem):
    case = random_problem(RAGGED, num_padding=2)
    prepared = prepare(**case.rows, page_size=16)
    expected = tree_attention(*case.args, **case.rows, **case.options)
    for _ in range(2):
        out = torch.full_like(expected, torch.nan)
        returned = tree_attention(*case.args, **case.rows, **case.options, prepared=prepared, out=out)
        assert returned is out
        assert torch.equal(out, expected)


def share_pages(case, groups):
    """The sequences of each group (first, last + 1, tokens) begin with the first one's pages."""
    table = case.rows["block_table"]
    for first, last, num_tokens in groups:
        table[first:last, : num_tokens // 16] = table[first, : num_tokens // 16]
    return case


SHARING = [(170, 1, 2), (140, 2, 0), (0, 3, 0), (300, 1, 0), (260, 0, 4), (290, 70, 0), (265, 20, 3), (16, 1, 0)]


@pytest.mark.parametrize("contiguous", [True, False])
def test_keys_that_sequences_share_are_met_once_with_the_same_result(
    random_problem, brute_force, monkeypatch, contiguous
):
    monkeypatch.setattr(cpu_shared, "_MIN_WORK", 1)
    monkeypatch.setattr(cpu_shared, "_MAX_SCORES", 5000)  # several products a group
    problem = random_problem(SHARING, heads=6, k_dim=32, v_dim=24, contiguous=contiguous)
    case = share_pages(problem, [(0, 2, 128), (3, 7, 256)])
    prepared = prepare(**case.rows, page_size=16)
    cascade = prepared.on_cpu.cascade
    assert [len(group.rows) for group in cascade.groups] in ([5, 28], [28, 5])  # the one of 70 rows goes alone
    assert cascade.first_keys.tolist() == [128, 128, 0, 256, 256, 0, 256, 0]
    expected = brute_force(case)
    out = torch.full((len(case.args[0]), 6, 24), torch.nan)
    tree_attention(*case.args, **case.rows, **case.options, prepared=prepared, out=out)
    torch.testing.assert_close(out.double(), expected, atol=TOLERANCE[torch.float32], rtol=0)
    alone = tree_attention(*case.args, **case.rows, **case.options, batch_invariant=True)
    torch.testing.assert_close(alone.double(), expected, atol=TOLERANCE[torch.float32], rtol=0)
    for options in ({"sliding_window": 200}, {"softcap": 3.0}, {"sinks": torch.randn(6)}):
        ours = tree_attention(*case.args, **case.rows, **{**case.options, **options})
        theirs = tree_attention(*case.args, **case.rows, **{**case.options, **options}, impl="reference")
        torch.testing.assert_close(ours, theirs, atol=TOLERANCE[torch.float32], rtol=0)


def test_invariance_to_the_batch_is_kept_where_keys_are_shared(random_problem):
    case = share_pages(random_problem([(1000, 4, 0)] * 3, heads=6, k_dim=32), [(0, 3, 992)])
    together = tree_attention(*case.args, **case.rows, **case.options, batch_invariant=True)
    rows = {
        "position_ids": case.rows["position_ids"][:4],
        "row_starts": case.rows["row_starts"][:2],
        "context_lens": case.rows["context_lens"][:1],
        "num_causal_rows": case.rows["num_causal_rows"][:1],
        "block_table": case.rows["block_table"][:1],
        "ancestor_bits": None if case.rows["ancestor_bits"] is None else case.rows["ancestor_bits"][:4],
    }
    query, k_pages, v_pages = case.args
    alone = tree_attention(query[:4], k_pages, v_pages, **rows, **case.options, batch_invariant=True)
    assert torch.equal(together[:4], alone)
    assert len(prepare(**case.rows, page_size=16).on_cpu.cascade.groups) == 1  # and without it they are met once


def test_strided_queries_give_the_same(random_problem):
    case = random_problem(RAGGED)
    query, k_pages, v_pages = case.args
    strided = query.transpose(0, 1).contiguous().transpose(0, 1)
    expected = tree_attention(*case.args, **case.rows, **case.options)
    assert torch.equal(tree_attention(strided, k_pages, v_pages, **case.rows, **case.options), expected)


@pytest.mark.parametrize("impl", ["reference", "cpu"])
def test_planted_faults_show(random_problem, impl):
    """The comparisons above would notice a wrong page, a wrong position or one flipped ancestor bit."""
    case = random_problem([(40, 2, 6)], sliding_window=20)
    right = tree_attention(*case.args, **case.rows, **case.options, impl=impl)
    bits = case.rows["ancestor_bits"].clone()
    bits[7] ^= 1
    table = case.rows["block_table"].clone()
    table[0, 0], table[0, 1] = table[0, 1].item(), table[0, 0].item()
    for wrong in ({"ancestor_bits": bits}, {"block_table": table}, {"position_ids": case.rows["position_ids"] + 1}):
        out = tree_attention(*case.args, **{**case.rows, **wrong}, **case.options, impl=impl)
        assert (out - right).abs().max() > 1e-3


def test_no_rows_and_no_sequences(random_problem):
    case = random_problem([(5, 0, 0)])
    assert tree_attention(*case.args, **case.rows, **case.options).shape == (0, 4, 16)
    case = random_problem([], num_padding=3)
    assert torch.equal(tree_attention(*case.args, **case.rows, **case.options), torch.zeros(3, 4, 16))


WRONG = {
    "heads": (lambda p: {"query": p.args[0][:, :3]}, "not a multiple of the pool's 2 KV heads"),
    "dtype": (lambda p: {"query": p.args[0].half()}, "use one dtype"),
    "k_dim": (lambda p: {"query": p.args[0][..., :8]}, "k_pages holds 16"),
    "v_pages": (lambda p: {"v_pages": p.args[2][1:]}, "must equal k_pages"),
    "rows": (lambda p: {"query": p.args[0][1:]}, "position_ids has"),
    "window": (lambda p: {"sliding_window": 0}, "pass None for no window"),
    "softcap": (lambda p: {"softcap": -1.0}, "pass None for no cap"),
    "sinks": (lambda p: {"sinks": torch.zeros(3)}, "expected \\[4\\]"),
    "out": (lambda p: {"out": torch.zeros(1, 4, 16)}, "out is"),
    "impl": (lambda p: {"impl": "cuda"}, 'expected "auto"'),
    "int64 lens": (lambda p: {"context_lens": p.rows["context_lens"].long()}, "context_lens is torch.int64"),
    "row_starts": (lambda p: {"row_starts": p.rows["row_starts"][1:]}, "row_starts is"),
    "backwards": (lambda p: {"row_starts": p.rows["row_starts"].flip(0)}, "never to decrease"),
    "too many": (lambda p: {"row_starts": p.rows["row_starts"] * 2}, "but there are 15 rows"),
    "negative": (lambda p: {"context_lens": -p.rows["context_lens"] - 1}, "no negative"),
    "causal": (lambda p: {"num_causal_rows": p.rows["num_causal_rows"] + 20}, "to the sequence's rows"),
    "no bits": (lambda p: {"ancestor_bits": None}, "has 0 words"),
    "short table": (lambda p: {"block_table": p.rows["block_table"][:, :1]}, "needs 4 pages"),
    "holes": (lambda p: {"block_table": p.rows["block_table"] * 0 - 1}, "has -1 where"),
    "foreign page": (lambda p: {"block_table": p.rows["block_table"] + 90}, "but the pool has"),
}


def test_misuse_is_refused_with_what_to_do(tmp_path):
    """In a process without the annotation checks, which would answer first."""
    script = tmp_path / "misuse.py"
    folder = os.path.dirname(__file__)
    script.write_text(
        f"import sys, re\nsys.path.insert(0, {folder!r})\n"
        "from attention_problems import random_problem\nfrom test_tree_attention import WRONG\n"
        "from infercore.kernels import tree_attention\n"
        "for name, (change, message) in WRONG.items():\n"
        "    case = random_problem([(37, 1, 0), (50, 3, 9), (0, 2, 0)])\n"
        "    arguments = dict(zip(('query', 'k_pages', 'v_pages'), case.args), **case.rows, **case.options)\n"
        "    arguments.update(change(case))\n"
        "    try:\n        tree_attention(**arguments)\n"
        "    except ValueError as error:\n        assert re.search(message, str(error)), (name, str(error))\n"
        "    else:\n        raise SystemExit(f'{name} was accepted')\n"
    )
    subprocess.run([sys.executable, str(script)], check=True)


def test_the_loops_run_as_plain_python_too(tmp_path):
    folder = os.path.dirname(__file__)
    script = tmp_path / "plain.py"
    script.write_text(
        f"import sys, importlib\nsys.path.insert(0, {folder!r})\nimport torch\n"
        "from attention_problems import brute_force, random_problem\nfrom infercore.kernels import tree_attention\n"
        "cpu = importlib.import_module('infercore.kernels.tree_attention.cpu')\n"
        "features = dict(sliding_window=9, softcap=3.0, with_sinks=True, v_dim=8, page_size=4)\n"
        "case = random_problem([(12, 1, 4), (0, 3, 0)], **features)\n"
        "for loops in (False, True):\n"  # without numba the door takes torch; the loops themselves still agree
        "    assert cpu.is_compiled() is loops\n"
        "    out = tree_attention(*case.args, **case.rows, **case.options)\n"
        "    torch.testing.assert_close(out.double(), brute_force(case), atol=2e-6, rtol=0)\n"
        "    cpu.is_compiled = lambda: True\n"
    )
    subprocess.run([sys.executable, str(script)], check=True, env={**os.environ, "NUMBA_DISABLE_JIT": "1"})

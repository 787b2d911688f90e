"""The Triton kernels on a real GPU: against brute force, bit for bit where that is promised, and inside CUDA graphs.

TRITON_INTERPRET=0 pytest -m gpu tests/kernels        # on a machine with a GPU; skips elsewhere
"""

import pytest
import torch
from attention_problems import FEATURES, TOLERANCE

from infercore.kernels import (
    apply_token_bitmask_,
    expand_frontier,
    linear_group,
    move_kv,
    prepare,
    tree_attention,
    verify_tree,
    write_kv,
)

pytestmark = pytest.mark.gpu
RAGGED = [(70, 1, 0), (0, 5, 0), (16, 0, 0), (40, 3, 9), (15, 1, 33), (0, 10, 0), (300, 1, 3)]


def on_gpu(tensors):
    return {name: t.cuda() if isinstance(t, torch.Tensor) else t for name, t in tensors.items()}


def attend(case, **options):
    return tree_attention(*(a.cuda() for a in case.args), **on_gpu(case.rows), **on_gpu(case.options), **options)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("features", FEATURES.values(), ids=FEATURES.keys())
def test_within_twice_the_error_of_the_reference_in_the_same_dtype(random_problem, brute_force, features, dtype):
    case = random_problem(RAGGED, **features).to(dtype)
    truth = brute_force(case)
    reference = tree_attention(*case.args, **case.rows, **case.options, impl="reference")
    allowed = max(2 * (reference.double() - truth).abs().max().item(), TOLERANCE[torch.float32])
    for batch_invariant in (False, True):
        got = attend(case, batch_invariant=batch_invariant).double().cpu()
        assert (got - truth).abs().max() <= allowed


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
def test_batch_invariant_rows_are_the_same_bits_alone_and_in_a_batch(random_problem, dtype):
    lengths = [(1500, 1, 5), (2100, 1, 0), (700, 40, 0)]
    case = random_problem(lengths, k_dim=64).to(dtype)
    together = attend(case, batch_invariant=True)
    starts = case.rows["row_starts"].tolist()
    for s in range(3):
        rows = slice(starts[s], starts[s + 1])
        one = {
            "position_ids": case.rows["position_ids"][rows],
            "row_starts": torch.tensor([0, rows.stop - rows.start], dtype=torch.int32),
            "context_lens": case.rows["context_lens"][s : s + 1],
            "num_causal_rows": case.rows["num_causal_rows"][s : s + 1],
            "block_table": case.rows["block_table"][s : s + 1],
            "ancestor_bits": case.rows["ancestor_bits"][rows],
        }
        query, k_pages, v_pages = (a.cuda() for a in case.args)
        options = on_gpu(case.options)
        alone = tree_attention(query[rows], k_pages, v_pages, **on_gpu(one), **options, batch_invariant=True)
        assert torch.equal(alone, together[rows])


def test_a_captured_graph_plans_for_the_lengths_that_it_finds_at_each_replay(random_problem, brute_force):
    """Captured with short sequences, replayed with long ones in the same buffers."""
    long = random_problem([(400, 1, 3), (90, 1, 0), (0, 6, 0)], k_dim=64)
    query, k_pages, v_pages = (a.cuda() for a in long.args)
    rows = on_gpu(long.rows)
    right = {name: rows[name].clone() for name in ("context_lens", "position_ids")}
    rows["context_lens"].zero_()
    out = torch.empty_like(query)

    def step():
        prepared = prepare(**rows, page_size=16)
        for _ in range(2):  # two layers, one plan
            tree_attention(query, k_pages, v_pages, **rows, **on_gpu(long.options), prepared=prepared, out=out)

    step()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step()
    rows["context_lens"].copy_(right["context_lens"])
    out.fill_(torch.nan)
    graph.replay()
    torch.testing.assert_close(out.double().cpu(), brute_force(long), atol=TOLERANCE[torch.float32], rtol=0)


def test_rows_prepared_before_a_capture_are_planned_again_inside_it(random_problem, brute_force):
    case = random_problem([(200, 1, 2), (30, 1, 0)])
    tensors, rows, options = [a.cuda() for a in case.args], on_gpu(case.rows), on_gpu(case.options)
    right = rows["context_lens"].clone()
    prepared = prepare(**rows, page_size=16)
    out = torch.empty_like(tensors[0])
    tree_attention(*tensors, **rows, **options, prepared=prepared, out=out)
    torch.cuda.synchronize()
    rows["context_lens"].zero_()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        tree_attention(*tensors, **rows, **options, prepared=prepared, out=out)
    rows["context_lens"].copy_(right)
    graph.replay()
    torch.testing.assert_close(out.double().cpu(), brute_force(case), atol=TOLERANCE[torch.float32], rtol=0)


def test_a_cascade_gives_what_each_sequence_alone_gives(random_problem, brute_force):
    case = random_problem([(700, 1, 2), (640, 2, 0), (0, 3, 0), (900, 1, 0), (860, 0, 4)], k_dim=64)
    table = case.rows["block_table"]
    table[1, :40], table[4, :48] = table[0, :40].clone(), table[3, :48].clone()
    truth = brute_force(case)
    groups = {"group_starts": [0, 2, 3, 5], "shared_lens": [640, 0, 768]}
    more = {name: torch.tensor(x, dtype=torch.int32, device="cuda") for name, x in groups.items()}
    prepared = prepare(**on_gpu(case.rows), page_size=16, **more)
    torch.testing.assert_close(
        attend(case, prepared=prepared).double().cpu(), truth, atol=TOLERANCE[torch.float32], rtol=0
    )


def test_kv_is_written_and_moved_bit_for_bit():
    k, v = (torch.randn(5, 3, dim).cuda().bfloat16() for dim in (48, 80))
    slots = torch.tensor([7, -1, 130, 64, 5]).cuda()
    pools = [[torch.full((10, 16, 3, dim), torch.nan).cuda().bfloat16() for dim in (48, 80)] for _ in range(2)]
    for impl, (k_pages, v_pages) in zip(("triton", "reference"), pools, strict=True):
        write_kv(k, v, k_pages, v_pages, slots, impl=impl)
        move_kv(k_pages, v_pages, torch.tensor([7, 130]).cuda(), torch.tensor([130, 9]).cuda(), impl=impl)
    for ours, theirs in zip(*pools, strict=True):
        assert torch.equal(ours.view(torch.int16), theirs.view(torch.int16))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("num_rows", [1, 7, 16, 32, 64])
def test_grouped_products_equal_float64(num_rows, dtype):
    x = torch.randn(num_rows, 1088, device="cuda").to(dtype)
    weights = [torch.randn(n, 1088, device="cuda").to(dtype) for n in (1024, 130, 7)]
    for count in (1, 2, 3):
        for y, w in zip(linear_group(x, weights[:count], impl="triton"), weights, strict=False):
            truth = x.double() @ w.double().T
            error = (y.double() - truth).abs().max()
            assert error <= TOLERANCE[dtype] * truth.abs().max()


def test_bans_and_accepted_paths_equal_the_reference():
    logits = torch.randn(3, 49_153, device="cuda")
    bitmask = torch.randint(-(2**31), 2**31 - 1, (3, 1537), dtype=torch.int32, device="cuda")
    ours, theirs = (apply_token_bitmask_(logits.clone(), bitmask, impl=impl) for impl in ("triton", "reference"))
    assert torch.equal(ours, theirs)
    generator = torch.Generator().manual_seed(0)
    tokens, targets = (torch.randint(0, 3, (40,), generator=generator) for _ in range(2))
    parents = torch.tensor([-1, *[int(torch.randint(0, i, (), generator=generator)) for i in range(1, 40)]])
    arguments = [tokens, parents.int(), targets, torch.tensor([0, 40], dtype=torch.int32)]
    kept = verify_tree(*(a.cuda() for a in arguments), max_depth=8, impl="triton")
    expected = verify_tree(*arguments, max_depth=8, impl="reference")
    assert kept.num_accepted.tolist() == expected.num_accepted.tolist()
    assert kept.paths.tolist() == expected.paths.tolist()
    assert kept.next_token_ids.tolist() == expected.next_token_ids.tolist()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(("batch", "nodes", "vocab"), [(1, 1, 10_240), (3, 6, 10_240), (2, 4, 128_256)])
def test_a_draft_grows_as_in_float64(batch, nodes, vocab, dtype):
    generator = torch.Generator().manual_seed(vocab + nodes)
    logits = torch.stack([torch.randperm(vocab, generator=generator) for _ in range(batch * nodes)])
    logits = (logits.view(batch, nodes, vocab).double() / vocab * 200).to(dtype)
    scores = -torch.rand(batch, nodes, generator=generator)
    offsets = torch.randperm(vocab, generator=generator)
    got = expand_frontier(logits.cuda(), scores.cuda(), branching=6, width=5, id_offsets=offsets.cuda())
    truth = scores.double()[..., None] + logits.double().log_softmax(-1)
    best = truth.topk(6)
    torch.testing.assert_close(got.scores.double().cpu(), best.values, atol=1e-4, rtol=0)
    columns = got.token_ids.cpu() - offsets[best.indices]
    if dtype is torch.float32:  # bfloat16 has equal ones
        assert torch.equal(columns, best.indices)
        assert torch.equal(got.frontier.cpu(), best.values.flatten(1).topk(5).indices)
    lost = expand_frontier(torch.full_like(logits, float("nan")).cuda(), scores.cuda(), branching=6, width=5)
    assert int(lost.token_ids.min()) >= 0
    assert int(lost.token_ids.max()) < vocab
    assert 0 <= int(lost.frontier.min()) <= int(lost.frontier.max()) < 6 * nodes

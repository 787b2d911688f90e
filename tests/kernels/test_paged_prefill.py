"""`paged_prefill`: ragged chunks against PyTorch's attention on each sequence alone, and against brute force."""

import pytest
import torch
from attention_problems import FEATURES, TOLERANCE

from infercore.kernels import paged_prefill

CHUNKS = [(37, 20, 0), (0, 33, 0), (16, 0, 0), (50, 1, 0), (64, 48, 0)]


def call(case, **options):
    names = ("row_starts", "context_lens", "block_table")
    return paged_prefill(*case.args, **{n: case.rows[n] for n in names}, **case.options, **options)


@pytest.mark.parametrize("impl", ["auto", "reference", "triton"])
@pytest.mark.parametrize("name", ["plain", "window", "all"])
def test_equals_brute_force_on_ragged_chunks(random_problem, brute_force, name, impl):
    case = random_problem(CHUNKS, **FEATURES[name])
    expected = brute_force(case)
    out = call(case.to(torch.float32), impl=impl)
    torch.testing.assert_close(out.double(), expected, atol=TOLERANCE[torch.float32], rtol=0)


def test_a_chunk_equals_the_causal_attention_of_torch_over_its_whole_text(random_problem):
    case = random_problem(CHUNKS).to(torch.float32)
    query, k_pages, v_pages = case.args
    out = call(case)
    page_size, starts = k_pages.shape[1], case.rows["row_starts"].tolist()
    for s, (context, num_rows, _) in enumerate(CHUNKS):
        if num_rows == 0:
            continue
        index = torch.arange(context + num_rows)
        slots = case.rows["block_table"][s, index // page_size].long() * page_size + index % page_size
        k, v = (p.flatten(0, 1)[slots].transpose(0, 1) for p in (k_pages, v_pages))
        q = query[starts[s] : starts[s + 1]].transpose(0, 1)
        mask = torch.ones(num_rows, context + num_rows, dtype=torch.bool).tril(context)
        theirs = torch.nn.functional.scaled_dot_product_attention(
            q, k, v, attn_mask=mask, scale=case.options["scaling"], enable_gqa=True
        )
        torch.testing.assert_close(out[starts[s] : starts[s + 1]], theirs.transpose(0, 1), atol=2e-6, rtol=0)


def test_it_checks_what_tree_attention_checks(random_problem):
    case = random_problem(CHUNKS).to(torch.float32)
    case.options["scaling"] = -1.0
    with pytest.raises(ValueError, match="expected a positive number such as"):
        call(case)
    case.options["scaling"] = 1.0
    case.rows["block_table"] = case.rows["block_table"][:, :1]
    with pytest.raises(ValueError, match="block_table has 1 columns"):
        call(case)

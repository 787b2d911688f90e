"""Ways to compute tree attention: ours, PyTorch's, FlashInfer's, SGLang's.

Each takes a problem, checks that it can run, and returns a function of the layer, or raises ImportError.
"""

import importlib
import sys
import types
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from infercore.kernels import tree_attention
from kernel_problems import DIM, HEADS, KV_HEADS, PAGE_SIZE, Problem

Contestant = Callable[[Problem], Callable[[int], Tensor]]


def ours(problem: Problem, *, batch_invariant: bool = False) -> Callable[[int], Tensor]:
    out = torch.empty_like(problem.query)

    def run(layer: int) -> Tensor:
        if layer == 0:  # as an engine: described once a step, used in every layer
            run.prepared = problem.prepare()  # type: ignore[attr-defined]
        return tree_attention(
            problem.query,
            *problem.pools[layer],
            **problem.rows,
            scaling=DIM**-0.5,
            prepared=run.prepared,  # type: ignore[attr-defined]
            out=out,
            batch_invariant=batch_invariant,
        )

    return run


def ours_invariant(problem: Problem) -> Callable[[int], Tensor]:
    return ours(problem, batch_invariant=True)


def sdpa(problem: Problem) -> Callable[[int], Tensor]:
    """PyTorch's attention with a mask, keys gathered and repeated beforehand: the gather is not timed."""
    dense = [problem.dense(layer) for layer in range(problem.few_layers)]
    query = problem.query.view(problem.shape.batch, -1, HEADS, DIM).transpose(1, 2)
    repeated = [
        (k.repeat_interleave(HEADS // KV_HEADS, 1), v.repeat_interleave(HEADS // KV_HEADS, 1), m[:, None])
        for k, v, m in dense
    ]

    def run(layer: int) -> Tensor:
        k, v, mask = repeated[layer % len(repeated)]
        return F.scaled_dot_product_attention(query, k, v, attn_mask=mask).transpose(1, 2).flatten(0, 1)

    return run


def flex(problem: Problem) -> Callable[[int], Tensor]:
    """PyTorch's flex_attention, compiled, on gathered keys; grouped heads are its own."""
    if problem.device.type != "cuda" or (problem.shape.batch, problem.shape.context_len) != (8, 8192):
        raise ImportError("timed on CUDA at 8 x 8192 only: it compiles for every shape")
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention

    dense = [problem.dense(layer) for layer in range(problem.few_layers)]
    query = problem.query.view(problem.shape.batch, -1, HEADS, DIM).transpose(1, 2)
    mask = dense[0][2]
    block_mask = create_block_mask(
        lambda b, h, q, k: mask[b, q, k], problem.shape.batch, None, query.shape[2], mask.shape[2], device="cuda"
    )
    compiled = torch.compile(flex_attention)

    def run(layer: int) -> Tensor:
        k, v, _ = dense[layer % len(dense)]
        return compiled(query, k, v, block_mask=block_mask, enable_gqa=True).transpose(1, 2).flatten(0, 1)

    return run


def flashinfer(problem: Problem) -> Callable[[int], Tensor]:
    """FlashInfer's paged prefill with a custom mask; its plan is made beforehand and not timed."""
    fi, starts, indices, last = _flashinfer_pages(problem)
    lengths = [c + problem.shape.num_rows for c in problem.context_lens]
    mask = problem.dense(0)[2]
    wrapper = fi.BatchPrefillWithPagedKVCacheWrapper(
        torch.empty(256 << 20, dtype=torch.uint8, device=problem.device), "NHD", use_cuda_graph=False
    )
    wrapper.plan(
        problem.rows["row_starts"], starts, indices, last, HEADS, KV_HEADS, DIM, PAGE_SIZE,
        custom_mask=torch.cat([mask[s, :, :length].flatten() for s, length in enumerate(lengths)]),
        q_data_type=problem.query.dtype,
    )  # fmt: skip
    return lambda layer: wrapper.run(problem.query, problem.pools[layer])


def flashinfer_decode(problem: Problem) -> Callable[[int], Tensor]:
    """FlashInfer's decode kernel on tensor cores, for single rows."""
    if problem.shape.num_rows > 1:
        raise ImportError("single rows only")
    fi, starts, indices, last = _flashinfer_pages(problem)
    wrapper = fi.BatchDecodeWithPagedKVCacheWrapper(
        torch.empty(256 << 20, dtype=torch.uint8, device=problem.device), "NHD", use_tensor_cores=True
    )
    wrapper.plan(starts, indices, last, HEADS, KV_HEADS, DIM, PAGE_SIZE, q_data_type=problem.query.dtype)
    return lambda layer: wrapper.run(problem.query, problem.pools[layer])


def _flashinfer_pages(problem: Problem) -> tuple[types.ModuleType, Tensor, Tensor, Tensor]:
    if problem.device.type != "cuda":
        raise ImportError("timed on CUDA only")
    fi = importlib.import_module("flashinfer")
    lengths = torch.tensor([c + problem.shape.num_rows for c in problem.context_lens], dtype=torch.int32)
    pages = (lengths + PAGE_SIZE - 1) // PAGE_SIZE
    starts = torch.cat([torch.zeros(1, dtype=torch.int32), pages.cumsum(0).int()]).to(problem.device)
    table = problem.rows["block_table"]
    indices = torch.cat([table[s, : int(pages[s])] for s in range(problem.shape.batch)])
    return fi, starts, indices, (lengths - (pages - 1) * PAGE_SIZE).int().to(problem.device)


def sglang(problem: Problem) -> Callable[[int], Tensor]:
    """SGLang's Triton extend kernel with a tree mask: prefix by slot indices, the rows' own K and V beside it.

    Taken from a folder on the path that holds `sglang/kernels/ops/attention/` of its wheel (0.5.23); what that file
    asks of the rest of SGLang is answered by stubs.
    """
    if problem.device.type != "cuda":
        raise ImportError("timed on CUDA only")
    extend_attention_fwd = _sglang_kernel()
    n = problem.shape.num_rows
    device, table = problem.device, problem.rows["block_table"]
    slots = [
        table[s, torch.arange(c + n, device=device) // PAGE_SIZE].long() * PAGE_SIZE
        + torch.arange(c + n, device=device) % PAGE_SIZE
        for s, c in enumerate(problem.context_lens)
    ]
    contexts = torch.tensor([0, *problem.context_lens], device=device).cumsum(0)
    prefix = torch.cat([x[:c] for x, c in zip(slots, problem.context_lens, strict=True)])
    own = torch.cat([x[c:] for x, c in zip(slots, problem.context_lens, strict=True)])
    mask = problem.dense(0)[2]
    masks = [mask[s, :, : c + n].flatten() for s, c in enumerate(problem.context_lens)]
    mask_starts = torch.tensor([0, *[len(m) for m in masks]], device=device).cumsum(0)
    new = [[pages.flatten(0, 1)[own].contiguous() for pages in pool] for pool in problem.pools]
    out, row_starts, all_masks = torch.empty_like(problem.query), problem.rows["row_starts"].long(), torch.cat(masks)

    def run(layer: int) -> Tensor:
        k_pages, v_pages = problem.pools[layer]
        extend_attention_fwd(
            problem.query, *new[layer], out, k_pages.flatten(0, 1), v_pages.flatten(0, 1),
            row_starts, contexts, prefix, all_masks, False, mask_starts, n, 1.0, 1.0,
            sm_scale=DIM**-0.5,
        )  # fmt: skip
        return out

    return run


def _sglang_kernel() -> Callable[..., None]:
    if "sglang" not in sys.modules:
        folder = next(
            (Path(p) / "sglang" for p in sys.path if (Path(p) / "sglang/kernels/ops/attention").is_dir()), None
        )
        if folder is None:
            raise ImportError("no folder with sglang/kernels/ops/attention is on the path")

        class Answers(types.ModuleType):
            def __getattr__(self, name: str) -> object:
                if name.startswith("__"):
                    raise AttributeError(name)
                if name == "envs":
                    return Answers("envs")
                if name.startswith("SGLANG_"):
                    return types.SimpleNamespace(get=lambda: False)
                return lambda *args, **kwargs: name == "is_cuda"

        for name in ("sglang", "sglang.kernels", "sglang.kernels.ops", "sglang.kernels.ops.attention"):
            module = sys.modules[name] = types.ModuleType(name)
            module.__path__ = [str(folder.joinpath(*name.split(".")[1:]))]
        for name in ("sglang.srt", "sglang.srt.environ", "sglang.srt.utils"):
            sys.modules[name] = Answers(name)
    module = importlib.import_module("sglang.kernels.ops.attention.extend_attention")
    return module.extend_attention_fwd  # type: ignore[no-any-return]


CONTESTANTS: dict[str, Contestant] = {
    "infercore": ours,
    "infercore, batch_invariant": ours_invariant,
    "SDPA + mask": sdpa,
    "flex_attention": flex,
    "FlashInfer custom mask": flashinfer,
    "FlashInfer decode": flashinfer_decode,
    "SGLang Triton extend": sglang,
}

"""Finds the best configs of `tree_attention` for the GPU at hand and adds them to `configs.json`.

    python -m infercore.kernels.tree_attention.tune            # prints; --save writes; ten to twenty minutes

Every line of the table is timed on decode, tree or prefill shapes with 8 KV heads of size 128, four query heads each,
in bfloat16, as a CUDA graph over pools larger than the second-level cache; the geometric mean over its shapes decides.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict
from itertools import product
from statistics import geometric_mean
from typing import Any

import torch

from infercore.kernels.tree_attention.config import TABLE_FILE, Config, device_limits

_GROUP, _KV_HEADS, _DIM, _PAGE_SIZE = 4, 8, 128, 16
SHAPES: tuple[tuple[int | None, float | None, tuple[tuple[int, int, int], ...]], ...] = (
    # packed rows and load up to, as in the table; then batch, context and rows per sequence to time
    (16, 0.25, ((1, 8192, 1),)),
    (16, 1.5, ((8, 8192, 1), (16, 4096, 1))),
    (16, None, ((32, 8192, 1),)),
    (64, None, ((1, 1024, 16), (1, 8192, 16), (8, 8192, 16), (32, 2048, 16))),
    (None, None, ((1, 8192, 64), (8, 8192, 32), (8, 8192, 64), (4, 2048, 512))),
)


def candidates(packed_rows: int | None) -> Iterator[Config]:
    """Configs worth timing for a line of the table."""
    for block_m, block_n, stages, warps, waves in product((16, 32, 64, 128), (32, 64), (2, 3, 4), (4, 8), (1, 2, 3)):
        rows_fit = block_m >= 64 if packed_rows is None else packed_rows // 8 <= block_m <= max(16, packed_rows)
        if rows_fit and (warps == 8) == (block_m == 128) and (waves == 1 or block_m <= 64):
            yield Config(block_m, block_n, stages, warps, waves)


def fastest(configs: Iterable[Config], time_us: Callable[[Config], float]) -> tuple[Config, float]:
    """The config with the smallest time; one that cannot run (too much shared memory) counts as infinitely slow.

    Raises: RuntimeError if none can run.
    """
    best: tuple[Config, float] | None = None
    for config in configs:
        try:
            time = time_us(config)
        except Exception as error:  # Triton has several classes for "does not fit this GPU"
            print(f"  {config}: {type(error).__name__}")
            continue
        if best is None or time < best[1]:
            best = (config, time)
    if best is None:
        raise RuntimeError("no candidate runs on this GPU; see the errors above")
    return best


def with_device(known: dict[str, object], device_name: str, rows: list[dict[str, object]]) -> str:
    """The text of `configs.json` with a device's lines added or replaced."""
    lines = ["{"]
    merged = {**known, device_name: rows}
    for i, (name, entries) in enumerate(merged.items()):
        assert isinstance(entries, list)
        lines.append(f"  {json.dumps(name)}: [")
        lines += [f"    {json.dumps(e)}{',' if j + 1 < len(entries) else ''}" for j, e in enumerate(entries)]
        lines.append(f"  ]{',' if i + 1 < len(merged) else ''}")
    return "\n".join([*lines, "}"]) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--save", action="store_true", help=f"write {TABLE_FILE.name}")
    arguments = parser.parse_args()
    if not torch.cuda.is_available():
        parser.error("there is no CUDA device; run this on the GPU that is to be added")
    name = device_limits(torch.device("cuda", torch.cuda.current_device()))[0]
    rows: list[dict[str, object]] = []
    for limit, load, shapes in SHAPES:
        timers = [_timer(*shape) for shape in shapes]
        config, time_us = fastest(candidates(limit), lambda c, timers=timers: geometric_mean(t(c) for t in timers))  # type: ignore[misc]
        print(f"{name}, batch x context, rows {shapes}: mean {time_us:.1f} us with {config}", flush=True)
        rows.append({"packed_rows": limit, "load": load, **asdict(config)})
    text = with_device(json.loads(TABLE_FILE.read_text(encoding="utf-8")), name, rows)
    print(text)
    if arguments.save:
        TABLE_FILE.write_text(text, encoding="utf-8")


def _timer(batch: int, context_len: int, num_rows: int) -> Callable[[Config], float]:
    """Times one config on one shape, in microseconds per call."""
    from triton.testing import do_bench_cudagraph

    from infercore.kernels.tree_attention.rows import prepare
    from infercore.kernels.tree_attention.triton import tree_attention

    device = torch.device("cuda")
    pages_each = -(-(context_len + num_rows) // _PAGE_SIZE)
    num_pages = batch * pages_each + 1
    layers = max(8, 400_000_000 // (num_pages * _PAGE_SIZE * _KV_HEADS * _DIM * 4))
    pools = [
        [torch.randn(num_pages, _PAGE_SIZE, _KV_HEADS, _DIM, device=device, dtype=torch.bfloat16) for _ in range(2)]
        for _ in range(layers)
    ]
    total = batch * num_rows
    query = torch.randn(total, _KV_HEADS * _GROUP, _DIM, device=device, dtype=torch.bfloat16)
    position = torch.arange(num_rows, device=device) + context_len
    step: dict[str, Any] = dict(  # noqa: C408
        position_ids=position.repeat(batch),
        row_starts=torch.arange(0, total + 1, num_rows, device=device, dtype=torch.int32),
        context_lens=torch.full((batch,), context_len, device=device, dtype=torch.int32),
        num_causal_rows=torch.full((batch,), num_rows, device=device, dtype=torch.int32),
        block_table=(torch.randperm(num_pages - 1, device=device) + 1).int().view(batch, pages_each),
        ancestor_bits=None,
        page_size=_PAGE_SIZE,
    )
    out = torch.empty_like(query)

    def time_us(config: Config) -> float:
        def all_layers() -> None:
            rows = prepare(**step)  # in the graph, as in an engine: planned once for all layers
            for k_pages, v_pages in pools:
                tree_attention(
                    query, k_pages, v_pages, rows, out,
                    scaling=_DIM**-0.5, sliding_window=None, softcap=None, sinks=None, config=config,
                )  # fmt: skip

        return float(do_bench_cudagraph(all_layers, rep=20)) * 1000 / layers

    return time_us


if __name__ == "__main__":
    main()

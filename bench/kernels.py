"""How near does `tree_attention` come to reading every key and value once, and how near do others?

    python bench/kernels.py [--save] [--quick]      # needs a CUDA GPU; peers are used where they can be imported
    python bench/kernels.py --check                 # tiny shapes on the CPU: that all contestants agree, nothing timed

Outputs are compared first. Then all contestants are timed in turn, round by round, each as a CUDA graph over as many
layers' pools as exceed the second-level cache, so that neither launches nor the cache help. Bytes of the floor: keys
and values of every sequence once. The bandwidth is measured in the same run; figures are bursts of some milliseconds.
"""

import argparse
import statistics
import subprocess
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from infercore.kernels import prepare, tree_attention

HEADS, KV_HEADS, DIM, PAGE_SIZE = 32, 8, 128, 16
RESULTS = Path(__file__).parent / "results" / "kernels"


@dataclass(frozen=True)
class Shape:
    batch: int
    context_len: int
    num_rows: int
    tree: str = "random"  # chain, star, eagle or random
    ragged: bool = False  # longest context 4 times the mean

    def __str__(self) -> str:
        tail = "" if self.num_rows == 1 else f" {self.tree}"
        return f"{self.batch} x {self.context_len}, {self.num_rows}{tail}{' ragged' if self.ragged else ''}"

    def context_lens(self) -> list[int]:
        if not self.ragged:
            return [self.context_len] * self.batch
        short = max(1, (self.context_len * self.batch - 4 * self.context_len) // max(1, self.batch - 1))
        return [4 * self.context_len, *[short] * (self.batch - 1)]


ANCHORS = [
    Shape(1, 1024, 16), Shape(1, 8192, 1), Shape(1, 8192, 16), Shape(1, 8192, 64), Shape(1, 32768, 16),
    Shape(1, 32768, 64), Shape(8, 8192, 1), Shape(8, 8192, 16), Shape(8, 8192, 32), Shape(8, 8192, 64),
    Shape(32, 2048, 16), Shape(32, 8192, 1), Shape(32, 8192, 16), Shape(32, 8192, 64),
]  # fmt: skip
FURTHER = [
    Shape(16, 4096, 1, ragged=True), Shape(16, 4096, 16, ragged=True), Shape(8, 8192, 16, "chain"),
    Shape(8, 8192, 16, "star"), Shape(8, 8192, 60, "eagle"), Shape(8, 8192, 128, "eagle"),
]  # fmt: skip
CHECK = [Shape(2, 40, 1), Shape(3, 33, 5, "eagle"), Shape(5, 24, 7, "star", ragged=True), Shape(1, 0, 4, "chain")]


class Problem:
    """One shape on a device: shuffled pages, several layers of pools, and the plain mask for peers that need one."""

    def __init__(self, shape: Shape, device: torch.device, *, layers: int, dtype: torch.dtype) -> None:
        generator = torch.Generator().manual_seed(0)
        self.shape, self.device = shape, device
        self.context_lens, n = shape.context_lens(), shape.num_rows
        pages = [-(-(c + n) // PAGE_SIZE) for c in self.context_lens]
        order = torch.randperm(sum(pages), generator=generator) + 1
        table = torch.full((shape.batch, max(pages)), -1, dtype=torch.int32)
        for row, ids in zip(table, order.split(pages), strict=True):
            row[: len(ids)] = ids.int()
        parents = tree_parents(shape.tree, n)
        self.among = torch.zeros(n, n, dtype=torch.bool)  # which tree rows a tree row sees
        for i, parent in enumerate(parents):
            if parent >= 0:
                self.among[i] = self.among[parent]
            self.among[i, i] = True
        depth = self.among.sum(1) - 1
        words = torch.zeros(n, -(-n // 32), dtype=torch.int64)
        for j in range(n):
            words[:, j // 32] |= self.among[:, j].long() << (j % 32)
        bits = torch.where(words >= 2**31, words - 2**32, words).int()
        total = shape.batch * n
        tensors = {
            "position_ids": torch.cat([depth + c for c in self.context_lens]),
            "row_starts": torch.arange(0, total + 1, n, dtype=torch.int32),
            "context_lens": torch.tensor(self.context_lens, dtype=torch.int32),
            "num_causal_rows": torch.zeros(shape.batch, dtype=torch.int32),
            "block_table": table,
            "ancestor_bits": bits.repeat(shape.batch, 1),
        }
        self.rows: dict[str, Any] = {name: t.to(device) for name, t in tensors.items()}
        self.prepared = prepare(**self.rows, page_size=PAGE_SIZE)
        pool = (sum(pages) + 1, PAGE_SIZE, KV_HEADS, DIM)
        self.pools = [
            (torch.randn(pool, device=device, dtype=dtype), torch.randn(pool, device=device, dtype=dtype))
            for _ in range(layers)
        ]
        self.query = torch.randn(total, HEADS, DIM, device=device, dtype=dtype)
        self.num_bytes = sum(c + n for c in self.context_lens) * KV_HEADS * DIM * 2 * self.query.element_size()

    def dense(self, layer: int) -> tuple[Tensor, Tensor, Tensor]:
        """Keys and values of every sequence, padded to the longest `[batch, kv_heads, keys, dim]`, and the mask."""
        n = self.shape.num_rows
        longest = max(self.context_lens) + n
        keys = [self.pools[layer][i].new_zeros(self.shape.batch, KV_HEADS, longest, DIM) for i in (0, 1)]
        mask = torch.zeros(self.shape.batch, n, longest, dtype=torch.bool, device=self.device)
        for s, context_len in enumerate(self.context_lens):
            index = torch.arange(context_len + n, device=self.device)
            slots = self.rows["block_table"][s, index // PAGE_SIZE].long() * PAGE_SIZE + index % PAGE_SIZE
            for dense, pages in zip(keys, self.pools[layer], strict=True):
                dense[s, :, : context_len + n] = pages.flatten(0, 1)[slots].transpose(0, 1)
            mask[s, :, :context_len] = True
            mask[s, :, context_len : context_len + n] = self.among.to(self.device)
        return keys[0], keys[1], mask


def tree_parents(kind: str, n: int) -> list[int]:
    """Parents of n nodes, -1 at the root. "eagle": a trunk whose nodes branch less and less, as EAGLE's trees do."""
    if kind == "chain":
        return [i - 1 for i in range(n)]
    if kind == "star":
        return [-1] * n
    if kind == "eagle":
        return [-1 if i < 10 else (i - 10) // 3 for i in range(n)]
    generator = torch.Generator().manual_seed(1)
    return [-1 if i == 0 else int(torch.randint(-1, i, (), generator=generator)) for i in range(n)]


# --- contestants: each takes a problem and returns a function of the layer, or raises ImportError ---------------------

Contestant = Callable[[Problem], Callable[[int], Tensor]]


def ours(problem: Problem, *, batch_invariant: bool = False) -> Callable[[int], Tensor]:
    out = torch.empty_like(problem.query)
    return lambda layer: tree_attention(
        problem.query,
        *problem.pools[layer],
        **problem.rows,
        scaling=DIM**-0.5,
        prepared=problem.prepared,
        out=out,
        batch_invariant=batch_invariant,
    )


def ours_invariant(problem: Problem) -> Callable[[int], Tensor]:
    return ours(problem, batch_invariant=True)


def sdpa(problem: Problem) -> Callable[[int], Tensor]:
    """PyTorch's attention with a mask, keys gathered and repeated beforehand: the gather is not timed."""
    dense = [problem.dense(layer) for layer in range(len(problem.pools))]
    query = problem.query.view(problem.shape.batch, -1, HEADS, DIM).transpose(1, 2)
    repeated = [
        (k.repeat_interleave(HEADS // KV_HEADS, 1), v.repeat_interleave(HEADS // KV_HEADS, 1), m[:, None])
        for k, v, m in dense
    ]

    def run(layer: int) -> Tensor:
        k, v, mask = repeated[layer]
        return F.scaled_dot_product_attention(query, k, v, attn_mask=mask).transpose(1, 2).flatten(0, 1)

    return run


def flex(problem: Problem) -> Callable[[int], Tensor]:
    """PyTorch's flex_attention, compiled, on gathered keys; grouped heads are its own."""
    if problem.device.type != "cuda":
        raise ImportError("timed on CUDA only")
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention

    dense = [problem.dense(layer) for layer in range(len(problem.pools))]
    query = problem.query.view(problem.shape.batch, -1, HEADS, DIM).transpose(1, 2)
    mask = dense[0][2]
    block_mask = create_block_mask(
        lambda b, h, q, k: mask[b, q, k], problem.shape.batch, None, query.shape[2], mask.shape[2], device="cuda"
    )
    compiled = torch.compile(flex_attention)

    def run(layer: int) -> Tensor:
        k, v, _ = dense[layer]
        return compiled(query, k, v, block_mask=block_mask, enable_gqa=True).transpose(1, 2).flatten(0, 1)

    return run


def flashinfer(problem: Problem) -> Callable[[int], Tensor]:
    """FlashInfer's paged prefill with a custom mask (its decode kernel has none, so single rows use the same)."""
    if problem.device.type != "cuda":
        raise ImportError("timed on CUDA only")
    import flashinfer as fi

    n, batch = problem.shape.num_rows, problem.shape.batch
    lengths = torch.tensor([c + n for c in problem.context_lens], dtype=torch.int32)
    pages = (lengths + PAGE_SIZE - 1) // PAGE_SIZE
    starts = torch.cat([torch.zeros(1, dtype=torch.int32), pages.cumsum(0).int()]).to(problem.device)
    table = problem.rows["block_table"]
    indices = torch.cat([table[s, : int(pages[s])] for s in range(batch)])
    last = (lengths - (pages - 1) * PAGE_SIZE).to(problem.device)
    masks = [problem.dense(0)[2][s, :, : int(lengths[s])].flatten() for s in range(batch)]
    wrapper = fi.BatchPrefillWithPagedKVCacheWrapper(
        torch.empty(256 << 20, dtype=torch.uint8, device=problem.device), "NHD", use_cuda_graph=False
    )
    wrapper.plan(
        problem.rows["row_starts"], starts, indices, last, HEADS, KV_HEADS, DIM, PAGE_SIZE,
        custom_mask=torch.cat(masks), q_data_type=problem.query.dtype,
    )  # fmt: skip
    return lambda layer: wrapper.run(problem.query, problem.pools[layer])


CONTESTANTS: dict[str, Contestant] = {
    "infercore": ours,
    "infercore, batch_invariant": ours_invariant,
    "SDPA + mask": sdpa,
    "flex_attention": flex,
    "FlashInfer custom mask": flashinfer,
}


# --- measuring -------------------------------------------------------------------------------------------------------


@dataclass
class Row:
    shape: Shape
    floor_us: float
    times_us: dict[str, list[float]] = field(default_factory=dict)
    missing: dict[str, str] = field(default_factory=dict)


def agreeing(problem: Problem, row: Row) -> dict[str, Callable[[int], Tensor]]:
    """The contestants that run here, after checking their first layer against the reference."""
    expected = tree_attention(
        problem.query, *problem.pools[0], **problem.rows, scaling=DIM**-0.5, impl="reference"
    ).float()
    running = {}
    for name, make in CONTESTANTS.items():
        try:
            run = make(problem)
            error = (run(0).float().view_as(expected) - expected).norm() / expected.norm()
        except (ImportError, NotImplementedError, torch.cuda.OutOfMemoryError) as why:
            row.missing[name] = f"{type(why).__name__}: {why}"[:60]
            continue
        if not error < 0.02:
            raise AssertionError(f"{name} differs from the reference by {error:.3f} on {problem.shape}")
        running[name] = run
    return running


def capture(run: Callable[[int], Tensor], layers: int) -> torch.cuda.CUDAGraph:
    side = torch.cuda.Stream()
    with torch.cuda.stream(side):
        for layer in range(layers):
            run(layer)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for layer in range(layers):
            run(layer)
    return graph


def time_us(graph: torch.cuda.CUDAGraph, layers: int, repeats: int) -> float:
    start, stop = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    for _ in range(repeats):
        graph.replay()
    stop.record()
    stop.synchronize()
    return start.elapsed_time(stop) * 1000 / (layers * repeats)


def bandwidth() -> float:
    """Bytes per second of a large read, the best of several."""
    data = torch.randn(1 << 28, device="cuda")
    graph = torch.cuda.CUDAGraph()
    data.sum()
    torch.cuda.synchronize()
    with torch.cuda.graph(graph):
        data.sum()
    return max(data.numel() * 4 / (time_us(graph, 1, 5) * 1e-6) for _ in range(10))


def measure(shape: Shape, bytes_per_s: float, rounds: int) -> Row:
    device = torch.device("cuda")
    each = sum(c + shape.num_rows for c in shape.context_lens()) * KV_HEADS * DIM * 4
    layers = int(min(100, max(2, -(-400_000_000 // each))))
    problem = Problem(shape, device, layers=layers, dtype=torch.bfloat16)
    row = Row(shape, problem.num_bytes / bytes_per_s * 1e6)
    graphs = {}
    for name, run in agreeing(problem, row).items():
        try:
            graphs[name] = capture(run, layers)
        except RuntimeError as why:  # a peer that cannot be captured
            row.missing[name] = str(why).splitlines()[0][:60]
    for _ in range(rounds):
        for name, graph in graphs.items():
            repeats = max(1, int(3000 / (layers * max(row.floor_us, 5))))
            row.times_us.setdefault(name, []).append(time_us(graph, layers, repeats))
    return row


def report(rows: list[Row]) -> str:
    lines = [
        "| batch x context, rows | contestant | us (p20-p80) | floor us | % of floor |",
        "| --- | --- | --- | --- | --- |",
    ]
    for row in rows:
        for name in CONTESTANTS:
            if times := sorted(row.times_us.get(name, [])):
                low, high = times[len(times) // 5], times[-1 - len(times) // 5]
                middle = statistics.median(times)
                share = 100 * row.floor_us / middle
                lines.append(
                    f"| {row.shape} | {name} | {middle:.1f} ({low:.1f}-{high:.1f}) | {row.floor_us:.1f} | {share:.0f} |"
                )
            else:
                lines.append(f"| {row.shape} | {name} | {row.missing.get(name, 'not run')} | | |")
    return "\n".join(lines)


def plot(rows: list[Row], bytes_per_s: float, path: Path) -> None:
    """A roofline: achieved arithmetic over arithmetic intensity, one point per shape and contestant."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(8, 5))
    for name in CONTESTANTS:
        points = []
        for row in rows:
            if name in row.times_us:
                keys = sum(c + row.shape.num_rows for c in row.shape.context_lens())
                flops = 4 * keys * row.shape.num_rows * HEADS * DIM
                seconds = statistics.median(row.times_us[name]) * 1e-6
                points.append((flops / (row.floor_us * 1e-6 * bytes_per_s), flops / seconds / 1e12))
        if points:
            axes.scatter(*zip(*points, strict=True), label=name, s=16)
    intensities = [1, 1000]
    axes.plot(intensities, [i * bytes_per_s / 1e12 for i in intensities], color="grey", label="measured bandwidth")
    axes.set(xscale="log", yscale="log", xlabel="FLOP per byte of K and V", ylabel="TFLOP/s")
    axes.legend(fontsize=7)
    figure.savefig(path, dpi=150, bbox_inches="tight")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--save", action="store_true", help="write bench/results/kernels.md and .png")
    parser.add_argument("--quick", action="store_true", help="the anchors' shapes only, three rounds")
    parser.add_argument("--check", action="store_true", help="compare outputs on tiny shapes on the CPU")
    options = parser.parse_args()
    if options.check:
        for shape in CHECK:
            row = Row(shape, 0.0)
            running = agreeing(Problem(shape, torch.device("cpu"), layers=1, dtype=torch.float32), row)
            print(f"{shape}: {', '.join(running)} agree")
        return
    if not torch.cuda.is_available():
        parser.error("there is no CUDA device; --check compares outputs without one")
    bytes_per_s = bandwidth()
    rows = [
        measure(s, bytes_per_s, 3 if options.quick else 9) for s in (ANCHORS if options.quick else ANCHORS + FURTHER)
    ]
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=True).stdout
    import triton

    header = (
        f"{torch.cuda.get_device_name()} | torch {torch.__version__} | triton {triton.__version__} | commit "
        f"{commit.strip()} | bf16, {HEADS} query heads, {KV_HEADS} KV heads of size {DIM}, page size {PAGE_SIZE} | "
        f"read bandwidth measured: {bytes_per_s / 1e12:.2f} TB/s"
    )
    text = f"# tree_attention beside its peers\n\n{header}\n\n{report(rows)}\n"
    print(text)
    if options.save:
        RESULTS.parent.mkdir(exist_ok=True)
        RESULTS.with_suffix(".md").write_text(text)
        plot(rows, bytes_per_s, RESULTS.with_suffix(".png"))


if __name__ == "__main__":
    main()

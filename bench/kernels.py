"""How near does `tree_attention` come to reading every key and value once, and how near do others?

    python bench/kernels.py [--save] [--quick]      # needs a CUDA GPU; peers are used where they can be imported
    python bench/kernels.py --check                 # tiny shapes on the CPU: that all contestants agree, nothing timed

Outputs are compared first. Then all contestants are timed in turn, round by round, each as a CUDA graph over the pools
of a model's layers (up to 32 layers and 12 GB, at least 400 MB), so that neither launches nor the cache help. Ours
plans inside the graph, once for all layers. Every timing is a burst (40 ms of rest, 1.5 ms of warm-up, 3 ms measured):
after some 30 ms of load the power cap takes 10 to 15% of the clock. Floor: keys and values once at 3.11 TB/s; the
bandwidth measured in the same run stands in the header. FlashInfer and SGLang plan outside what is timed.
"""

import argparse
import gc
import statistics
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from infercore.kernels import PreparedRows, prepare, tree_attention
from kernel_peers import CONTESTANTS
from kernel_problems import ANCHORS, CHECK, DIM, FURTHER, HEADS, KV_HEADS, PAGE_SIZE, TARGETS, Prefill, Problem, Shape

RESULTS = Path(__file__).parent / "results" / "kernels"
FLOOR_BYTES_PER_S = 3.11e12
POOL_BYTES = 12_000_000_000
RAGGED = [(0, n) for n in (4096, 2048, 1024, 512, 256, 256)]


@dataclass
class Row:
    shape: Shape
    floor_us: float
    times_us: dict[str, list[float]] = field(default_factory=dict)
    errors: dict[str, float] = field(default_factory=dict)
    missing: dict[str, str] = field(default_factory=dict)


def agreeing(problem: Problem, row: Row) -> dict[str, Callable[[int], Tensor]]:
    """The contestants that run here, after checking their first layer against the reference in float64."""
    inputs = [t.double() for t in (problem.query, *problem.pools[0])]
    expected = tree_attention(*inputs, **problem.rows, scaling=DIM**-0.5, impl="reference")
    del inputs
    running = {}
    for name, make in CONTESTANTS.items():
        try:
            run = make(problem)
            error = (run(0).double().view_as(expected) - expected).norm() / expected.norm()
        except Exception as why:
            if name.startswith("infercore"):
                raise
            row.missing[name] = f"{type(why).__name__}: {why}".splitlines()[0][:80]  # a peer that does not run here
            continue
        if not error < 0.01:
            raise AssertionError(f"{name} differs from float64 by {error:.3f} on {problem.shape}")
        row.errors[name] = float(error)
        running[name] = run
    return running


def capture(run: Callable[[int], object], layers: int) -> torch.cuda.CUDAGraph:
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


def burst_us(graph: torch.cuda.CUDAGraph, layers: int, guess_us: float) -> float:
    """Microseconds per layer of a few milliseconds of replays on a rested card."""
    start, stop = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    repeats = max(1, int(3000 / (layers * guess_us)))
    torch.cuda.synchronize()
    time.sleep(0.04)
    for _ in range(max(1, repeats // 2)):
        graph.replay()
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
    return max(data.numel() * 4 / (burst_us(graph, 1, 400) * 1e-6) for _ in range(10))


def measure(shape: Shape, rounds: int) -> Row:
    each = sum(c + shape.num_rows for c in shape.context_lens()) * KV_HEADS * DIM * 4
    layers = int(min(100, max(-(-400_000_000 // each), min(32, POOL_BYTES // each), 2)))
    problem = Problem(shape, torch.device("cuda"), layers=layers, dtype=torch.bfloat16)
    row = Row(shape, problem.num_bytes / FLOOR_BYTES_PER_S * 1e6)
    graphs: dict[str, tuple[torch.cuda.CUDAGraph, int]] = {}
    for name, run in agreeing(problem, row).items():
        count = layers if name.startswith("infercore") else min(layers, problem.few_layers)
        try:
            graphs[name] = capture(run, count), count
        except RuntimeError as why:  # a peer that cannot be captured
            row.missing[name] = str(why).splitlines()[0][:60]
    guesses = {name: burst_us(graph, count, 100 * row.floor_us + 10) for name, (graph, count) in graphs.items()}
    for _ in range(rounds):
        for name, (graph, count) in graphs.items():
            row.times_us.setdefault(name, []).append(burst_us(graph, count, guesses[name]))
    return row


def report(rows: list[Row]) -> str:
    lines = [
        "| batch x context, rows | contestant | us (p20-p80) | floor us | % of floor | target | error |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for row in rows:
        key = (row.shape.batch, row.shape.context_len, row.shape.num_rows)
        target = TARGETS.get(key) if row.shape in ANCHORS else None
        for name in CONTESTANTS:
            if times := sorted(row.times_us.get(name, [])):
                low, high = times[len(times) // 5], times[-1 - len(times) // 5]
                middle = statistics.median(times)
                share = 100 * row.floor_us / middle
                goal = ""
                if name == "infercore" and target is not None:
                    met = middle <= target if target < 20 else share >= target - 0.05
                    goal = f"{target}{' us' if target < 20 else '%'}: {'met' if met else 'missed'}"
                lines.append(
                    f"| {row.shape} | {name} | {middle:.1f} ({low:.1f}-{high:.1f}) | {row.floor_us:.1f} | "
                    f"{share:.1f} | {goal} | {row.errors[name]:.1e} |"
                )
            elif not row.missing.get(name, "").endswith("single rows only"):
                lines.append(f"| {row.shape} | {name} | {row.missing.get(name, 'not run')} | | | | |")
    return "\n".join(lines)


def prefill_report(rounds: int) -> str:
    """Ragged causal chunks in pages beside PyTorch's flash attention on the same work, contiguous."""
    lines = ["| chunks (context + new) | contestant | us (p20-p80) | TFLOP/s |", "| --- | --- | --- | --- |"]
    for chunks in (
        [(0, 8192)],
        [(0, 2048)] * 4,
        RAGGED,
        [(4096, 512)] * 4,
    ):
        work = Prefill(chunks, torch.device("cuda"))
        out = torch.empty_like(work.query)

        def ours(_: int, work: Prefill = work, out: Tensor = out) -> object:
            prepared = prepare(**work.rows, page_size=PAGE_SIZE)
            return tree_attention(work.query, *work.pools, **work.rows, scaling=DIM**-0.5, prepared=prepared, out=out)

        runs = {"infercore": ours}
        if len(set(chunks)) == 1 and chunks[0][0] == 0:
            runs["flash SDPA"] = flash(work, len(chunks), out)
        graphs = {name: capture(run, 1) for name, run in runs.items()}
        times: dict[str, list[float]] = {name: [] for name in runs}
        for _ in range(rounds):
            for name, graph in graphs.items():
                times[name].append(burst_us(graph, 1, 1000))
        title = f"{len(chunks)} x ({chunks[0][0]} + {chunks[0][1]})" if len(set(chunks)) == 1 else "ragged to 4096"
        for name, taken in times.items():
            taken.sort()
            us = statistics.median(taken)
            lines.append(
                f"| {title} | {name} | {us:.0f} ({taken[len(taken) // 5]:.0f}-{taken[-1 - len(taken) // 5]:.0f}) | "
                f"{work.flops / us / 1e6:.0f} |"
            )
    return "\n".join(lines)


def flash(work: Prefill, batch: int, expected: Tensor) -> Callable[[int], object]:
    """Flash attention of PyTorch on the keys of `work`, gathered beforehand; checked to agree with ours."""
    table, length = work.rows["block_table"], len(work.query) // batch
    index = torch.arange(length, device=table.device)
    slots = table[:, index // PAGE_SIZE].long() * PAGE_SIZE + index % PAGE_SIZE
    k, v = (pages.flatten(0, 1)[slots].transpose(1, 2).contiguous() for pages in work.pools)
    query = work.query.view(batch, length, HEADS, DIM).transpose(1, 2).contiguous()

    def run(_: int) -> Tensor:
        with sdpa_kernel(SDPBackend.FLASH_ATTENTION):
            return F.scaled_dot_product_attention(query, k, v, is_causal=True, enable_gqa=True)

    ours = tree_attention(work.query, *work.pools, **work.rows, scaling=DIM**-0.5)
    theirs = run(0).transpose(1, 2).reshape_as(ours)
    assert (ours - theirs).float().norm() / theirs.float().norm() < 0.01
    return run


def cascade_report(rounds: int) -> str:
    """32 sequences that begin with the same 8192 tokens: read once for all, or once for each."""
    lines = [
        "| 32 sequences, 8192 shared + 256 own, rows | us | without groups, us | ratio |",
        "| --- | --- | --- | --- |",
    ]
    for n in (1, 16):
        problem = Problem(Shape(32, 8448, n), torch.device("cuda"), layers=8, dtype=torch.bfloat16)
        problem.rows["block_table"][:, : 8192 // PAGE_SIZE] = problem.rows["block_table"][0, : 8192 // PAGE_SIZE]
        groups = {
            "group_starts": torch.tensor([0, 32], dtype=torch.int32, device="cuda"),
            "shared_lens": torch.tensor([8192], dtype=torch.int32, device="cuda"),
        }
        outs, times = {}, {}
        for name, more in {"cascade": groups, "plain": {}}.items():
            out = outs[name] = torch.empty_like(problem.query)
            state: dict[str, PreparedRows] = {}

            def run(
                layer: int,
                problem: Problem = problem,
                more: dict[str, Tensor] = more,
                out: Tensor = out,
                state: dict[str, PreparedRows] = state,
            ) -> None:
                if layer == 0:
                    state["rows"] = prepare(**problem.rows, page_size=PAGE_SIZE, **more)
                pools, rows = problem.pools[layer], problem.rows
                tree_attention(problem.query, *pools, **rows, scaling=DIM**-0.5, prepared=state["rows"], out=out)

            times[name] = capture(run, 8)
        assert (outs["cascade"] - outs["plain"]).float().norm() / outs["plain"].float().norm() < 0.01
        taken = {
            name: statistics.median(burst_us(graph, 8, 100) for _ in range(rounds)) for name, graph in times.items()
        }
        lines.append(
            f"| {n} | {taken['cascade']:.1f} | {taken['plain']:.1f} | {taken['plain'] / taken['cascade']:.1f} |"
        )
    return "\n".join(lines)


def plot(rows: list[Row], path: Path) -> None:
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
                points.append((flops / (row.floor_us * 1e-6 * FLOOR_BYTES_PER_S), flops / seconds / 1e12))
        if points:
            axes.scatter(*zip(*points, strict=True), label=name, s=16)
    ridge = 790e12 / FLOOR_BYTES_PER_S
    axes.plot([3, ridge, 1000], [3 * FLOOR_BYTES_PER_S / 1e12, 790, 790], color="grey", label="3.11 TB/s, 790 TFLOP/s")
    axes.set(xscale="log", yscale="log", xlabel="FLOP per byte of K and V", ylabel="TFLOP/s")
    axes.legend(fontsize=7)
    figure.tight_layout()
    figure.savefig(path, dpi=130)


def clocks() -> str:
    query = ["nvidia-smi", "--query-gpu=clocks.sm,clocks.mem,power.draw,driver_version", "--format=csv,noheader"]
    return subprocess.run(query, capture_output=True, text=True, check=False).stdout.strip()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--save", nargs="?", const=str(RESULTS), help="write STEM.md and STEM.png")
    parser.add_argument("--commit", help="named in the header where the tree has no git history")
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
    import triton

    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False).stdout
    bytes_per_s, before = bandwidth(), clocks()
    rounds = 3 if options.quick else 5
    rows: list[Row] = []

    def text() -> str:
        header = [
            torch.cuda.get_device_name(),
            f"torch {torch.__version__}",
            f"triton {triton.__version__}",
            peer_versions(),
            f"commit {options.commit or commit.strip()}",
            f"bf16, {HEADS} query heads, {KV_HEADS} KV heads of size {DIM}, page size {PAGE_SIZE}, shuffled pages",
            f"read bandwidth measured: {bytes_per_s / 1e12:.2f} TB/s",
            f"{rounds} rounds, bursts",
            f"SM clock, memory clock, power, driver before: {before}; after: {clocks()}",
        ]
        return f"# tree_attention beside its peers\n\n{' | '.join(header)}\n\n{report(rows)}\n"

    for shape in ANCHORS if options.quick else ANCHORS + FURTHER:
        rows.append(measure(shape, rounds))
        gc.collect()
        torch.cuda.empty_cache()  # the next shape's pools get memory of their own, not pieces of these
        print(report(rows[-1:]), flush=True)
        if options.save:
            Path(options.save).with_suffix(".md").write_text(text())
    more = ""
    for title, make in {"Prefill": prefill_report, "Shared prefixes": cascade_report}.items():
        more += f"\n## {title}\n\n{make(rounds)}\n"
        print(more, flush=True)
    if options.save:
        Path(options.save).with_suffix(".md").write_text(text() + more)
        plot(rows, Path(options.save).with_suffix(".png"))


def peer_versions() -> str:
    from importlib.metadata import PackageNotFoundError, version

    def known(package: str) -> str:
        try:
            return f"{package} {version(package)}"
        except PackageNotFoundError:
            return f"{package} not installed"

    return known("flashinfer-python") + ", sglang's extend kernel from its wheel 0.5.23 where a row shows it"


if __name__ == "__main__":
    main()

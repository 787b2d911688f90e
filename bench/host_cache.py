"""What does a second cache tier bring and cost: a prefix computed anew, copied back from the host, on the device?

    python bench/host_cache.py [--save FILE] [--layers 32]            # an 8B-shaped Llama of random weights, on a GPU
    python bench/host_cache.py --device cpu [--save FILE]             # SmolLM2's shape in float32, on a CPU

Time to the first token behind a prefix, alone and beside requests that decode; the speed of the copies, and how much of
them is hidden behind the others' steps; what evicting to the host costs a decoding step and a prefill in a full pool.
What comes back is checked: its first token is that of the prefix on the device, and its pages are the same bytes.
"""

import argparse
import statistics
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers

from infercore.hf import Engine

PAGE = 16


def make_model(device: str, layers: int) -> Any:
    if device == "cuda":
        from engine import make_model as make

        return make(layers)
    config = transformers.LlamaConfig(
        vocab_size=49_152, hidden_size=576, intermediate_size=1536, num_hidden_layers=layers, num_attention_heads=9,
        num_key_value_heads=3, max_position_embeddings=8192, eos_token_id=None, bos_token_id=None, pad_token_id=0,
    )  # fmt: skip
    torch.manual_seed(0)
    return transformers.LlamaForCausalLM(config).eval()


def tokens(count: int, seed: int) -> list[int]:
    return np.random.default_rng(seed).integers(10, 40_000, count).tolist()


def sync() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def seconds(work: Callable[[], Any]) -> float:
    sync()
    start = time.perf_counter()
    work()
    sync()
    return time.perf_counter() - start


class Bench:
    def __init__(self, args: argparse.Namespace) -> None:
        self.args = args
        self.model = make_model(args.device, args.layers)
        self.rows = args.batch * (args.prompt + args.new + PAGE) // PAGE
        self.num_pages = max(2 * args.prefix // PAGE, self.rows) + args.prefix // PAGE + 64
        self.made = 0

    def engine(self, *, with_host: bool) -> Engine:
        num_bytes = self.args.host_gb * 2**30 if with_host else None
        engine = Engine(
            self.model, num_pages=self.num_pages, max_running=self.args.batch + 1, host_cache_bytes=num_bytes,
            fuse_layers=self.args.fuse,
        )  # fmt: skip
        engine.generate([tokens(self.args.prompt, 1)] * 2, max_new_tokens=4)
        return engine

    def prefix(self) -> list[int]:
        self.made += 1
        return tokens(self.args.prefix + 3, 1000 + self.made)

    def fill(self, engine: Engine) -> None:
        """Leave no page free: cached prefixes, four pages each, of which nothing was computed."""
        while engine.cache.counts().free >= 4:
            self.made += 1
            sequence = engine.cache.open()
            sequence.append(4 * PAGE)
            sequence.commit(tokens(4 * PAGE, 1_000_000 + self.made))
            sequence.close()

    def decoding(self, engine: Engine) -> list[Any]:
        """`batch` requests that have begun to decode."""
        requests = [
            engine.request(tokens(self.args.prompt, 500 + i), max_new_tokens=self.args.new)
            for i in range(self.args.batch)
        ]
        handles = [engine.submit(request)[0] for request in requests]
        while any(not handle.token_ids for handle in handles):
            engine.step()
        for _ in range(4):
            engine.step()
        return handles

    # ------------------------------------------------------------------------------------------------ first tokens

    def alone(self, engine: Engine) -> dict[str, list[float]]:
        times: dict[str, list[float]] = {"computed": [], "from the host": [], "on the device": []}
        for r in range(self.args.rounds + 1):
            prompt = self.prefix()
            outs = {}
            for name in times:
                if name == "from the host":
                    engine.cache.evict(engine.cache.counts().cached)
                before = engine.stats.num_host_tokens
                outs[name] = []
                spent = seconds(lambda p=prompt, o=outs[name]: o.extend(engine.generate(p, max_new_tokens=1)))
                came = engine.stats.num_host_tokens - before
                assert came == (self.args.prefix // PAGE * PAGE if name == "from the host" else 0), (name, came)
                if r:
                    times[name].append(spent)
            assert outs["from the host"][0].token_ids == outs["on the device"][0].token_ids
        return times

    def beside_others(self, engine: Engine) -> dict[str, list[float]]:
        """First tokens while others decode."""
        times: dict[str, list[float]] = {"computed": [], "from the host": [], "on the device": []}
        for r in range(self.args.rounds + 1):
            prompt = self.prefix()
            for name in times:
                if name == "from the host":
                    engine.cache.evict(engine.cache.counts().cached)
                handles = self.decoding(engine)
                sync()
                start = time.perf_counter()
                (handle,) = engine.submit(engine.request(prompt, max_new_tokens=1))
                while not handle.is_done:
                    engine.step()
                if r:
                    times[name].append(time.perf_counter() - start)
                for other in handles:
                    other.cancel()
                engine.step()
        return times

    def hidden(self, engine: Engine) -> tuple[float, float, float]:
        """Decoding steps, in seconds, alone and while pages come back all the time; GB/s that came back meanwhile."""
        tier, prompt = engine.cache.host, self.prefix()
        assert tier is not None
        engine.generate(prompt, max_new_tokens=1)
        plain, busy, speed = [], [], []
        num_steps = (self.args.new - 24) // 2
        for r in range(3):
            engine.cache.evict(engine.cache.counts().cached)
            handles = self.decoding(engine)
            alone = seconds(lambda: [engine.step() for _ in range(num_steps)]) / num_steps
            num_pages, arrival = 0, None

            def steps() -> None:
                nonlocal num_pages, arrival
                for _ in range(num_steps):
                    if arrival is not None and arrival.is_ready:
                        num_pages += arrival.finish() // PAGE
                        arrival.sequence.close()
                        engine.cache.evict(arrival.num_tokens // PAGE)  # the host has them: nothing is copied
                        arrival = None
                    if arrival is None:
                        arrival = tier.fetch(engine.cache.open(prompt), prompt)
                        assert arrival is not None
                    engine.step()

            beside = seconds(steps)
            assert arrival is not None
            num_pages += arrival.finish() // PAGE  # `seconds` waited for it
            arrival.sequence.close()
            for handle in handles:
                handle.cancel()
            engine.step()
            if r:
                plain.append(alone)
                busy.append(beside / num_steps)
                speed.append(num_pages * tier.store.slot_bytes / beside / 1e9)
        return statistics.mean(plain), statistics.mean(busy), statistics.mean(speed)

    # ------------------------------------------------------------------------------------------------------ copies

    def copies(self, engine: Engine) -> dict[str, float]:
        """GB/s of a prefix's pages out and back, nothing else running; and that the bytes are the same."""
        tier = engine.cache.host
        assert tier is not None
        num_bytes = self.args.prefix // PAGE * tier.store.slot_bytes
        out, back = [], []
        for _ in range(self.args.rounds + 1):
            prompt = self.prefix()
            engine.cache.clear()
            engine.generate(prompt, max_new_tokens=1)
            match = engine.cache.match(prompt)
            before = [t[torch.from_numpy(match.page_ids.astype(np.int64)).to(t.device)].clone() for t in layers(engine)]
            out.append(seconds(lambda: engine.cache.evict(engine.cache.counts().cached)))
            sequence = engine.cache.open(prompt)

            def bring_back(sequence: Any = sequence, prompt: list[int] = prompt) -> None:
                arrival = tier.fetch(sequence, prompt)
                assert arrival is not None
                arrival.finish()

            back.append(seconds(bring_back))
            at = torch.from_numpy(sequence.page_ids.astype(np.int64))
            for now, old in zip(layers(engine), before, strict=True):
                assert torch.equal(now[at.to(now.device)], old[: len(at)])
            sequence.close()
        del out[0], back[0]
        return {name: num_bytes / statistics.median(t) / 1e9 for name, t in (("out", out), ("back", back))}

    # ---------------------------------------------------------------------------------------------------- evicting

    def evicting(self, engine: Engine) -> tuple[float, float, float]:
        """Of a full pool: mean and 99th percentile of a decoding step, and a cold prefill, in seconds."""
        steps: list[float] = []
        prefill: list[float] = []
        for r in range(3):
            self.fill(engine)
            handles = self.decoding(engine)
            self.fill(engine)
            sync()
            some = [seconds_of_step(engine) for _ in range(self.args.new - 24)]
            for handle in handles:
                handle.cancel()
            engine.step()
            self.fill(engine)
            spent = seconds(lambda: engine.generate(self.prefix(), max_new_tokens=1))
            if r:
                steps += some
                prefill.append(spent)
        return statistics.mean(steps), float(np.percentile(steps, 99)), statistics.median(prefill)


def layers(engine: Engine) -> list[torch.Tensor]:
    return [t for pair in engine.pool.layers.values() for t in pair]


def seconds_of_step(engine: Engine) -> float:
    """On the host's clock: steps follow each other without gaps, so that on a GPU this is the device's time."""
    start = time.perf_counter()
    engine.step()
    return time.perf_counter() - start


def ms(values: list[float] | float) -> str:
    if isinstance(values, float):
        return f"{values * 1e3:.2f}"
    low, high = np.percentile(values, [20, 80]) * 1e3
    return f"{statistics.median(values) * 1e3:.1f} ({low:.1f}-{high:.1f})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--save", metavar="FILE", type=Path)
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--layers", type=int, help="32 on a GPU, 30 on a CPU")
    parser.add_argument("--prefix", type=int, help="tokens; 4096 on a GPU, 512 on a CPU")
    parser.add_argument("--prompt", type=int, default=512, help="tokens of the requests that decode")
    parser.add_argument("--new", type=int, default=144)
    parser.add_argument("--batch", type=int, help="requests that decode; 32 on a GPU, 2 on a CPU")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--host-gb", type=int, help="host memory; 16 on a GPU, 1 on a CPU")
    parser.add_argument("--fuse", action="store_true", help="Engine(fuse_layers=True)")
    parser.add_argument("--commit", help="named in the header, where there is no git")
    args = parser.parse_args()
    on_gpu = args.device == "cuda"
    for name, gpu, cpu in (("layers", 32, 30), ("prefix", 4096, 512), ("batch", 32, 2), ("host_gb", 16, 1)):
        if getattr(args, name) is None:
            setattr(args, name, gpu if on_gpu else cpu)
    bench = Bench(args)
    commit = (
        args.commit
        or subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False).stdout
    )
    device = torch.cuda.get_device_name() if on_gpu else "CPU"
    lines = [
        "# A second cache tier in host memory", "",
        f"{device} | torch {torch.__version__} | transformers {transformers.__version__} | commit {commit.strip()} | "
        f"Llama of {'the 8B' if on_gpu else 'SmolLM2-135M'} shape, {args.layers} layers, random weights, "
        f"{bench.model.dtype} | prefix {args.prefix} tokens, {args.batch} requests of {args.prompt} tokens beside | "
        f"median of {args.rounds} (20th to 80th percentile), warm | fused layers {'on' if args.fuse else 'off'}", "",
    ]  # fmt: skip

    def show(*new: str) -> None:
        lines.extend(new)
        print(*new, sep="\n", flush=True)
        if args.save:
            args.save.write_text("\n".join(lines) + "\n")

    show(*lines[2:3])
    del lines[-1]
    engine = bench.engine(with_host=True)
    assert engine.cache.host is not None, "no host memory; see the warning above"
    page_bytes = engine.cache.host.store.slot_bytes
    size_mb = args.prefix // PAGE * page_bytes / 2**20
    show("", f"Time to the first token behind {args.prefix} tokens ({size_mb:.0f} MiB of K/V), ms:", "")
    show("| | computed | from the host | on the device | host over device | computed over host |", "|" + " --- |" * 6)
    alone = bench.alone(engine)
    medians = [statistics.median(t) for t in alone.values()]
    ratios = f"{medians[1] / medians[2]:.2f} | {medians[0] / medians[1]:.1f}"
    show(f"| alone | {' | '.join(ms(t) for t in alone.values())} | {ratios} |")
    beside = bench.beside_others(engine)
    medians = [statistics.median(t) for t in beside.values()]
    ratios = f"{medians[1] / medians[2]:.2f} | {medians[0] / medians[1]:.1f}"
    show(f"| beside {args.batch} that decode | {' | '.join(ms(t) for t in beside.values())} | {ratios} |")
    speed = bench.copies(engine)
    copy_s = args.prefix // PAGE * page_bytes / speed["back"] / 1e9
    plain, busy, flow = bench.hidden(engine)
    show(
        "", f"Copies of {args.prefix // PAGE} pages, each {page_bytes / 1024:.0f} KiB over all layers, nothing else "
        f"running: out {speed['out']:.1f} GB/s, back {speed['back']:.1f} GB/s; the prefix comes back in "
        f"{copy_s * 1e3:.1f} ms. While {args.batch} requests decode and pages come back all the time: {flow:.1f} GB/s, "
        f"and a step takes {busy * 1e3:.2f} ms instead of {plain * 1e3:.2f}: "
        f"{100 * max(0.0, 1 - (busy - plain) / busy):.0f}% of the copies' time is hidden behind the forward.",
    )  # fmt: skip
    rows = {}
    report = engine.report()
    for with_host in (False, True):
        del engine
        engine = bench.engine(with_host=with_host)
        rows[with_host] = bench.evicting(engine)
    show("", f"Evicting in a full pool, batch {args.batch}, ms:", "")
    show("| evicted pages | decoding step, mean | its 99th percentile | first token, cold |", "|" + " --- |" * 4)
    for with_host, name in ((False, "are forgotten"), (True, "go to the host")):
        show(f"| {name} | {' | '.join(ms(value) for value in rows[with_host])} |")
    cost = [100 * (a / b - 1) for a, b in zip(rows[True], rows[False], strict=True)]
    show(f"| cost | {' | '.join(f'{c:+.1f}%' for c in cost)} |")
    print(report, engine.report(), sep="\n")


if __name__ == "__main__":
    main()

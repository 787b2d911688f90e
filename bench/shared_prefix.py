"""What does it bring to read a prefix once for all sequences of a batch that share it, and from when on does it pay?

    python bench/shared_prefix.py [--save FILE] [--layers 32] [--fuse]        # needs a CUDA GPU
    python bench/shared_prefix.py --device cpu --layers 2                     # does it run? (the order of a batch only)

An 8B-shaped Llama of random bf16 weights decodes greedily, 32 requests in families that begin with the same tokens and
go on with 64 of their own. The same engine takes steps with groups and without, in turn. Groups are forced here, up to
the seven that a step holds; the last column says what the engine would have done (`hf/prefix_groups.py`).
"""

import argparse
import statistics
import subprocess
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers

from infercore.hf import Engine
from infercore.hf.plan import MAX_INTERVALS
from infercore.hf.prefix_groups import PrefixGrouping, grouping_for

PAGE = 16
OWN = 64


def make_model(device: str, layers: int) -> Any:
    if device == "cuda":
        from engine import make_model as make

        model = make(layers)
    else:
        config = transformers.LlamaConfig(
            vocab_size=49_152, hidden_size=576, intermediate_size=1536, num_hidden_layers=layers, num_attention_heads=9,
            num_key_value_heads=3, eos_token_id=None, bos_token_id=None, pad_token_id=0,
        )  # fmt: skip
        model = transformers.LlamaForCausalLM(config).eval()
    model.config.max_position_embeddings = 32_768
    return model


def tokens(count: int, seed: int) -> list[int]:
    return np.random.default_rng(seed).integers(10, 40_000, count).tolist()


class Steps:
    """Requests that decode, and the time of their steps with a grouping or without."""

    def __init__(self, engine: Engine, num_families: int, size: int, shared: int, new: int) -> None:
        self.engine = engine
        engine.cache.clear()
        stems = [tokens(shared, 7 * i + shared) for i in range(num_families)]
        for stem in stems:
            engine.generate(stem, max_new_tokens=1)
        prompts = [stem + tokens(OWN, 1000 * i + j) for i, stem in enumerate(stems) for j in range(size)]
        self.handles = [engine.submit(engine.request(prompt, max_new_tokens=new))[0] for prompt in prompts]
        while any(not handle.token_ids for handle in self.handles):
            engine.step()

    def ms(self, grouping: PrefixGrouping | None, count: int) -> float:
        """Milliseconds a step."""
        engine = self.engine
        engine._stepper.grouping = grouping
        for _ in range(4):  # captures what is missing; a step under way was started with the other setting
            engine.step()
        sync()
        start = time.perf_counter()
        for _ in range(count):
            engine.step()
        sync()
        return (time.perf_counter() - start) / count * 1e3

    def close(self) -> None:
        for handle in self.handles:
            handle.cancel()
        self.engine.step()


def sync() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def agreeing(engine: Engine, shared: int, new: int) -> str:
    """Of greedy outputs of a family of 8 with groups and without: how many tokens come before the first difference."""
    outs = []
    for grouping in (None, forced(engine)):
        engine.cache.clear()
        engine._stepper.grouping = None
        stem = tokens(shared, 3)
        engine.generate(stem, max_new_tokens=1)
        engine._stepper.grouping = grouping
        outs.append(engine.generate([stem + tokens(OWN, 50 + j) for j in range(8)], max_new_tokens=new))
    same = 0
    for one, other in zip(*outs, strict=True):
        differs = np.array(one.token_ids) != np.array(other.token_ids)
        same += int(np.argmax(differs)) if differs.any() else new
    return f"{same} of {8 * new}"


def forced(engine: Engine) -> PrefixGrouping:
    return PrefixGrouping(PAGE, min_shared_tokens=1, min_saved_tokens=1, min_share=0.0, min_members=2)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--save", metavar="FILE", type=Path)
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--layers", type=int, default=32)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--shared", type=int, nargs="+", default=[512, 1024, 2048, 4096, 8192])
    parser.add_argument("--sizes", type=int, nargs="+", default=[32, 8, 4, 2], help="sequences of a family")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=24)
    parser.add_argument("--fuse", action="store_true", help="Engine(fuse_layers=True)")
    parser.add_argument("--commit", help="named in the header, where there is no git")
    args = parser.parse_args()
    model = make_model(args.device, args.layers)
    on_gpu = args.device == "cuda"
    new = 2 * args.rounds * (args.steps + 4) + 16
    most = max(args.shared)
    pages = max(args.batch // min(args.sizes) * most, 2 * most) // PAGE + args.batch * ((OWN + new) // PAGE + 2) + 64
    engine = Engine(model, num_pages=pages, page_size=PAGE, max_running=args.batch, fuse_layers=args.fuse)
    commit = (
        args.commit
        or subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False).stdout
    )
    lines = [
        "# A shared prefix read once", "",
        f"{torch.cuda.get_device_name() if on_gpu else 'CPU'} | torch {torch.__version__} | transformers "
        f"{transformers.__version__} | commit {commit.strip()} | Llama of {'the 8B' if on_gpu else 'SmolLM2'} shape, "
        f"{args.layers} layers, {model.dtype} | {args.batch} requests in families, {OWN} tokens each of their own | "
        f"median of {args.rounds} rounds of {args.steps} steps | fused layers {'on' if args.fuse else 'off'}", "",
        "| families x sequences | shared tokens | tokens/s, each by itself | in groups | ratio | ms a step | in groups "
        "| MiB a layer not read | the engine forms groups |",
        "|" + " --- |" * 9,
    ]  # fmt: skip
    print(*lines, sep="\n", flush=True)
    rule = grouping_for(engine.bytes_per_token, engine._model.num_layers, PAGE)
    per_layer = engine.bytes_per_token / engine._model.num_layers
    for size in args.sizes:
        for shared in args.shared:
            steps = Steps(engine, args.batch // size, size, shared, new)
            times: dict[bool, list[float]] = {False: [], True: []}
            for _ in range(args.rounds):
                for in_groups in times:
                    times[in_groups].append(steps.ms(forced(engine) if in_groups else None, args.steps))
            before = rule.num_grouped_steps
            engine._stepper.grouping = rule
            engine.step()
            engine.step()
            forms = "yes" if rule.num_grouped_steps > before else "no"
            steps.close()
            alone, grouped = (statistics.median(times[in_groups]) for in_groups in (False, True))
            num_groups = min(args.batch // size, MAX_INTERVALS - 1)  # further families are read by each sequence
            saved = num_groups * (size - 1) * shared * per_layer / 2**20
            lines.append(
                f"| {args.batch // size} x {size} | {shared} | {args.batch / alone * 1e3:.0f} | "
                f"{args.batch / grouped * 1e3:.0f} | {alone / grouped:.2f} | {alone:.2f} | {grouped:.2f} | "
                f"{saved:.0f} | {forms} |"
            )
            print(lines[-1], flush=True)
            if args.save:
                args.save.write_text("\n".join(lines) + "\n")
    shared = min(4096, most)
    count = min(64, new)
    lines += ["", f"Greedy tokens of 8 sequences behind {shared} tokens before the first that differs between the two: "
              f"{agreeing(engine, shared, count)} (sums in another order round otherwise)."]  # fmt: skip
    print(lines[-1], engine.report(), sep="\n", flush=True)
    if args.save:
        args.save.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()

"""How many rows a prefill step should have on a GPU: small ones run by CUDA graphs, large ones launch kernel by kernel.

    python bench/prefill.py [--save FILE] [--only 135M]        # needs a CUDA GPU

Llamas of random bf16 weights in three shapes. Milliseconds until the first token of one prompt, and of 16 prompts of
700 tokens at once until all have theirs, with `Engine(max_rows=)` in every step, and as the engine decides by itself;
beside them Hugging Face's generate for one new token. Nothing is cached; medians of five, taken in turn.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers

from engine import machine
from infercore.hf import Engine

SHAPES = {
    "135M": {"vocab_size": 49_152, "hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30,
             "num_attention_heads": 9, "num_key_value_heads": 3},
    "1.2B": {"vocab_size": 128_256, "hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16,
             "num_attention_heads": 32, "num_key_value_heads": 8},
    "8B": {"vocab_size": 128_256, "hidden_size": 4096, "intermediate_size": 14_336, "num_hidden_layers": 32,
           "num_attention_heads": 32, "num_key_value_heads": 8},
}  # fmt: skip
ROWS = (256, 2048, 16_384)
LENGTHS = (100, 300, 700, 1500, 3000)
BATCH, BATCH_LENGTH = 16, 700


def make_model(shape: dict[str, int]) -> Any:
    config = transformers.LlamaConfig(
        **shape, max_position_embeddings=8192, eos_token_id=None, bos_token_id=None, pad_token_id=0
    )
    torch.manual_seed(0)
    torch.set_default_dtype(torch.bfloat16)
    try:
        with torch.device("cuda"):
            return transformers.LlamaForCausalLM(config).eval()
    finally:
        torch.set_default_dtype(torch.float32)


def prompts(count: int, length: int, seed: int) -> list[list[int]]:
    return np.random.default_rng(seed).integers(10, 40_000, (count, length)).tolist()


def first_tokens(engine: Engine, some: list[list[int]]) -> None:
    engine.cache.clear()
    engine.generate(some, max_new_tokens=1)


def generate(model: Any, some: list[list[int]]) -> None:
    ids = torch.tensor(some, device="cuda")
    with torch.inference_mode():
        model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=1, do_sample=False)


def milliseconds(runs: dict[str, Callable[[list[list[int]]], None]], count: int, length: int) -> dict[str, float]:
    taken: dict[str, list[float]] = {name: [] for name in runs}
    for round_ in range(6):
        for name, run in runs.items():
            some = prompts(count, length, 100 * length + round_)
            torch.cuda.synchronize()
            start = time.perf_counter()
            run(some)
            torch.cuda.synchronize()
            if round_:  # the first one compiles and captures
                taken[name].append(1e3 * (time.perf_counter() - start))
    return {name: statistics.median(times) for name, times in taken.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--save", type=Path, help="write the table there as well")
    parser.add_argument("--only", choices=SHAPES, action="append", help="of the shapes")
    parser.add_argument("--commit", help="named in the header, where there is no git")
    arguments = parser.parse_args()
    lines = [
        f"{machine(arguments.commit)} | Llamas of random bf16 weights, layers not fused | ms until the first token, "
        "nothing cached, median of 5 in turn",
        "",
        "| shape | prompts x tokens | "
        + " | ".join(f"{rows} rows" for rows in ROWS)
        + " | as it decides | HF generate |",
        "| --- " * (4 + len(ROWS)) + "|",
    ]
    for name in arguments.only or SHAPES:
        model = make_model(SHAPES[name])
        runs: dict[str, Callable[[list[list[int]]], None]] = {}
        for rows in (*ROWS, None):
            engine = Engine(model, num_pages=1024, max_rows=rows, max_running=BATCH)
            if rows is not None:
                engine._stepper.prefill_by_graphs = 0  # always that many
            runs[str(rows)] = lambda some, engine=engine: first_tokens(engine, some)
        runs["HF generate"] = lambda some, model=model: generate(model, some)
        for count, length in [*((1, length) for length in LENGTHS), (BATCH, BATCH_LENGTH)]:
            taken = milliseconds(runs, count, length)
            lines.append(f"| {name} | {count} x {length} | " + " | ".join(f"{ms:.1f}" for ms in taken.values()) + " |")
            print(lines[-1], flush=True)
        del model, runs, engine
        torch.cuda.empty_cache()
    print("\n".join(lines))
    if arguments.save:
        arguments.save.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()

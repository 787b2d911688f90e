"""What does jump-forward cost or save, one request at a time and in batches?

    python -m bench.constrained_jump --save

SmolLM2-135M-Instruct fills the first schemas of the MaskBench sample, greedy, once with jump-forward and once without
in turns, round after round, in batches of several sizes. The prompts' K/V is there before the clock starts, so what is
timed is decoding: masks, forced tokens, forwards. Grammars are bound anew for each turn, masks and all (`new`), or kept
from a turn before (`kept`). The ratio is off / on: above 1, jump-forward saves time. A round gives one ratio of all
schemas; the median over the rounds, and its spread, stand in the table.
"""

import argparse
import datetime
import json
import os
import statistics
import subprocess
import time
from pathlib import Path
from typing import Any

import torch
from bench.constrained import maskbench

from infercore.constrained import json_schema
from infercore.demo.fetch import smollm2_path
from infercore.errors import GrammarError
from infercore.hf import Engine


def run(
    engine: Engine, prompts: list[str], grammars: list[Any], batch: int, limit: int, jump: bool
) -> dict[str, float | list[tuple[int, ...]]]:
    """All prompts in groups of `batch`: seconds, forwards, rows, forced tokens, output."""
    forwards, rows = engine.stats.num_forwards, engine.stats.num_rows
    forced, outputs = 0, []
    start = time.perf_counter()
    for first in range(0, len(prompts), batch):
        handles = []
        for prompt, grammar in zip(prompts[first : first + batch], grammars[first : first + batch], strict=True):
            request = engine.request(prompt, max_new_tokens=limit, grammar=grammar, jump_forward=jump)
            handles += engine.submit(request)
        while engine.num_unfinished:
            engine.step()
        for handle in handles:
            assert handle.completion is not None
            if handle.completion.error is not None:
                raise handle.completion.error
            forced += handle.completion.stats.num_forced_tokens
            outputs.append(tuple(handle.completion.token_ids))
    return {
        "seconds": time.perf_counter() - start,
        "forwards": engine.stats.num_forwards - forwards,
        "rows": engine.stats.num_rows - rows,
        "forced": forced,
        "outputs": outputs,
    }


def main() -> None:
    """Print the table, and save it where asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--schemas", type=int, default=16)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--batches", default="1,4,16")
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--save", action="store_true")
    arguments = parser.parse_args()
    from transformers import AutoModelForCausalLM, AutoTokenizer

    path = smollm2_path()
    assert path is not None, "run `infercore demo` once: it fetches SmolLM2"
    torch.set_num_threads(2)
    tokenizer = AutoTokenizer.from_pretrained(path)
    engine = Engine(AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval(), tokenizer)
    schemas: list[Any] = []
    for file in maskbench(4 * arguments.schemas, arguments.seed):
        try:
            json_schema(file["schema"]).bind(engine.vocabulary)
        except GrammarError:
            continue
        schemas.append(file["schema"])
    schemas = schemas[: arguments.schemas]
    prompts = [
        tokenizer.apply_chat_template(
            [{"role": "user", "content": f"Give an example document for this JSON schema: {json.dumps(schema)[:300]}"}],
            add_generation_prompt=True, tokenize=False,
        )
        for schema in schemas
    ]  # fmt: skip
    specs = [json_schema(schema) for schema in schemas]
    kept = [spec.bind(engine.vocabulary) for spec in specs]
    for jump in (True, False):  # loads code, computes the prompts, fills the kept grammars
        run(engine, prompts, kept, 16, arguments.tokens, jump)
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False).stdout
    lines = [
        f"SmolLM2-135M-Instruct, fp32, 2 threads, greedy, {len(schemas)} MaskBench schemas (seed {arguments.seed}), "
        f"{arguments.tokens} tokens each at most | {datetime.date.today()} | commit {commit.strip()} | "
        f"load {os.getloadavg()[0]:.1f}",
        "",
        "| side by side | grammars | tokens on, off | forced | forwards on, off | rows on, off | ms a token on, off "
        "| off / on (least to most of the rounds) | off / on per token | same output |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for batch in (int(n) for n in arguments.batches.split(",")):
        for state in ("new", "kept"):
            turns: list[dict[bool, dict[str, Any]]] = []
            for number in range(arguments.rounds):
                turn = {}
                for jump in (True, False) if number % 2 else (False, True):
                    fresh = kept if state == "kept" else [spec.bind(engine.vocabulary) for spec in specs]
                    turn[jump] = run(engine, prompts, fresh, batch, arguments.tokens, jump)
                turns.append(turn)
            tokens = {jump: sum(map(len, turns[0][jump]["outputs"])) for jump in (True, False)}
            ratios = [turn[False]["seconds"] / turn[True]["seconds"] for turn in turns]
            per_token = [r * tokens[True] / tokens[False] for r in ratios]
            ms = {j: 1e3 * statistics.median(t[j]["seconds"] for t in turns) / tokens[j] for j in (True, False)}
            same = sum(a == b for a, b in zip(turns[0][True]["outputs"], turns[0][False]["outputs"], strict=True))
            on, off = turns[0][True], turns[0][False]
            lines.append(
                f"| {batch} | {state} | {tokens[True]}, {tokens[False]} | {on['forced']} | {on['forwards']}, "
                f"{off['forwards']} | {on['rows']}, {off['rows']} | {ms[True]:.2f}, {ms[False]:.2f} | "
                f"{statistics.median(ratios):.3f} ({min(ratios):.3f} to {max(ratios):.3f}) | "
                f"{statistics.median(per_token):.3f} | {same} of {len(schemas)} |"
            )
            print(lines[-1], flush=True)
    print("\n".join(lines))
    if arguments.save:
        (Path(__file__).parent / "results" / "constrained-jump.md").write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()

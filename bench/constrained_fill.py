"""Do threads fill the masks of a batch faster, and what do the masks of a draft tree cost in one call?

    python -m bench.constrained_fill --tiktoken tokenizer.model --save

A batch of sequences, each with a MaskBench schema of its own, or one of forty practical regexes, goes along texts that
it accepts, `fill_batch` at every step: on this thread alone, and with a pool. `new`: each grammar is bound anew, so
many states are met for the first time; `kept`: once more along the same way. The tree: the states of 32 consecutive
tokens of an instance in one call of `fill_bitmask`, beside a call for each.
"""

import argparse
import datetime
import json
import os
import statistics
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from bench.constrained import maskbench
from bench.constrained_regex import REGEXES
from bench.grammar_engines import load_smollm2, load_tiktoken

from infercore.constrained import Grammar, Vocabulary, allocate_bitmask, fill_batch, json_schema, regex
from infercore.errors import GrammarError


def accepted(vocabulary: Vocabulary, encode: Any, batch: int, steps: int) -> list[tuple[Any, list[int]]]:
    """Schemas, each with the tokens of an instance that it accepts, `steps` of them at least."""
    found: list[tuple[Any, list[int]]] = []
    for file in maskbench(1000, 0):
        for test in file["tests"]:
            token_ids = encode(json.dumps(test["data"], ensure_ascii=False))
            if test["valid"] and len(token_ids) >= steps and len(found) < batch:
                try:
                    grammar = json_schema(file["schema"]).bind(vocabulary)
                except GrammarError:
                    break
                if states_along(grammar, token_ids[:steps])[-1] >= 0:
                    found.append((file["schema"], token_ids[:steps]))
                break
    return found


def states_along(grammar: Grammar, token_ids: list[int]) -> list[int]:
    states = [grammar.start]
    for token_id in token_ids:
        states.append(grammar.advance(states[-1], token_id))
    return states


def walk(
    grammars: list[Grammar], ways: list[list[int]], bitmask: Any, steps: int, pool: ThreadPoolExecutor | None
) -> float:
    """Seconds that all calls of `fill_batch` took."""
    states = [grammar.start for grammar in grammars]
    seconds = 0.0
    for step in range(steps):
        begin = time.perf_counter()
        fill_batch(grammars, states, bitmask, pool=pool)
        seconds += time.perf_counter() - begin
        states = [
            g.advance(state, way[step]) if step < len(way) else state
            for g, state, way in zip(grammars, states, ways, strict=True)
        ]
    return seconds


def main() -> None:
    """Print the table, and save it where asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tiktoken", type=Path, help="Llama-3 tokenizer.model (PyPI: llama-models); else SmolLM2's")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--steps", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--save", action="store_true")
    arguments = parser.parse_args()
    token_bytes, eos, encode = load_tiktoken(arguments.tiktoken) if arguments.tiktoken else load_smollm2()
    vocabulary = Vocabulary(token_bytes, eos_token_ids=[eos], encode=encode)
    sample = accepted(vocabulary, encode, arguments.batch, arguments.steps)
    texts = [max(right, key=len) for _, right, _ in REGEXES]
    batches = {
        "schemas": ([json_schema(schema) for schema, _ in sample], [way for _, way in sample]),
        "regexes": ([regex(pattern) for pattern, _, _ in REGEXES], [encode(text)[: arguments.steps] for text in texts]),
    }
    threads = os.cpu_count() or 1
    times: dict[tuple[str, str, bool], list[float]] = {}
    with ThreadPoolExecutor(threads) as pool:
        for number in range(arguments.rounds + 1):
            for on_threads in (True, False) if number % 2 else (False, True):
                for kind, (specs, ways) in batches.items():
                    grammars = [spec.bind(vocabulary) for spec in specs]
                    bitmask = allocate_bitmask(len(specs), vocabulary.vocab_size)
                    for state in ("new", "kept"):
                        seconds = walk(grammars, ways, bitmask, arguments.steps, pool if on_threads else None)
                        if number:
                            times.setdefault((kind, state, on_threads), []).append(1e3 * seconds / arguments.steps)
    tree: dict[str, list[float]] = {"one call": [], "a call each": []}
    grammar = json_schema(sample[0][0]).bind(vocabulary)
    states = states_along(grammar, sample[0][1])[:32]
    rows = allocate_bitmask(len(states), vocabulary.vocab_size)
    grammar.fill_bitmask(states, rows)
    for _ in range(200):
        begin = time.perf_counter()
        grammar.fill_bitmask(states, rows)
        middle = time.perf_counter()
        for row, state in enumerate(states):
            grammar.fill_bitmask([state], rows[row : row + 1])
        tree["one call"].append(1e6 * (middle - begin))
        tree["a call each"].append(1e6 * (time.perf_counter() - middle))
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False).stdout
    lines = [
        f"{len(sample)} sequences with MaskBench schemas, {len(REGEXES)} with regexes, {arguments.steps} steps, "
        f"vocabulary of {len(token_bytes)} tokens | {datetime.date.today()} | commit {commit.strip()} | "
        f"load {os.getloadavg()[0]:.1f} | {threads} cores, {arguments.rounds} rounds",
        "",
        "| `fill_batch`, ms a step: median (p20-p80) | this thread alone | a pool of "
        f"{threads} threads | alone / pool |",
        "| --- | --- | --- | --- |",
    ]
    for kind in batches:
        for state in ("new", "kept"):
            alone, pooled = times[kind, state, False], times[kind, state, True]
            cells = [
                f"{statistics.median(each):.3f} ({np.percentile(each, 20):.3f}-{np.percentile(each, 80):.3f})"
                for each in (alone, pooled)
            ]
            ratio = statistics.median(alone) / statistics.median(pooled)
            lines.append(f"| {kind}, {state} | {' | '.join(cells)} | {ratio:.2f} |")
    lines += [
        "",
        "| 32 kept masks of a tree, µs: median | one call | a call each |",
        "| --- | --- | --- |",
        "| `fill_bitmask` | " + " | ".join(f"{statistics.median(each):.1f}" for each in tree.values()) + " |",
    ]
    print("\n".join(lines))
    if arguments.save:
        (Path(__file__).parent / "results" / "constrained-fill.md").write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()

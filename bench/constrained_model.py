"""Does SmolLM2 under a schema always give whole, valid JSON, and what does jump-forward save?

    python -m bench.constrained_model --schemas 200 --tokens 32,256 --save

Every schema of the sample is asked for with each length limit, jump-forward on and off in turns, batch 1, greedy, from
empty caches, the grammar bound anew. A document is judged by `jsonschema`. Where the shortest document known takes more
tokens than the limit, none can fit; those are counted apart. Schemas that the engine refuses are left out.
"""

import argparse
import json
import time
from pathlib import Path
from typing import Any

import jsonschema
import torch
from bench.constrained import maskbench

from infercore.constrained import json_schema
from infercore.demo.fetch import smollm2_path
from infercore.errors import GrammarError
from infercore.hf import Engine


def is_valid(schema: Any, text: str) -> bool:
    """Whether `text` is JSON that `jsonschema` finds valid."""
    try:
        value = json.loads(text)
    except ValueError:
        return False
    return bool(
        jsonschema.validators.validator_for(schema, default=jsonschema.Draft202012Validator)(schema).is_valid(value)
    )


def main() -> None:
    """Print the table, and save it where asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--schemas", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--tokens", default="32,256")
    parser.add_argument("--seconds", type=float, default=450.0, help="stop taking schemas after so long")
    parser.add_argument("--save", action="store_true")
    arguments = parser.parse_args()
    from transformers import AutoModelForCausalLM, AutoTokenizer

    path = smollm2_path()
    assert path is not None, "run `infercore demo` once: it fetches SmolLM2"
    torch.set_num_threads(2)
    model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(path)
    engine = Engine(model, tokenizer)
    limits = [int(n) for n in arguments.tokens.split(",")]
    counts = {
        (n, jump): dict.fromkeys(("valid", "invalid", "fits not", "tokens", "forced", "forwards"), 0)
        for n in limits
        for jump in (True, False)
    }
    seconds = dict.fromkeys(counts, 0.0)
    equal = dict.fromkeys(limits, 0)
    num_schemas = num_refused = 0
    failures: list[str] = []
    begin = time.perf_counter()
    for index, file in enumerate(maskbench(4 * arguments.schemas, arguments.seed)):
        if num_schemas == arguments.schemas or time.perf_counter() - begin > arguments.seconds:
            break
        schema = file["schema"]
        try:
            grammar = json_schema(schema).bind(engine.vocabulary)
            least = grammar.min_tokens(grammar.start)
        except GrammarError:
            num_refused += 1
            continue
        num_schemas += 1
        text = tokenizer.apply_chat_template(
            [{"role": "user", "content": f"Give an example document for this JSON schema: {json.dumps(schema)[:600]}"}],
            add_generation_prompt=True, tokenize=False,
        )  # fmt: skip
        for limit in limits:
            outputs = []
            for turn in range(2):
                jump = (turn + index) % 2 == 0
                engine.invalidate()
                fresh = json_schema(schema).bind(engine.vocabulary)
                start = time.perf_counter()
                (done,) = engine.generate(text, max_new_tokens=limit, grammar=fresh, jump_forward=jump)
                seconds[limit, jump] += time.perf_counter() - start
                row = counts[limit, jump]
                outputs.append(list(done.token_ids))
                row["tokens"] += len(done.token_ids)
                row["forced"] += done.stats.num_forced_tokens
                row["forwards"] += done.stats.num_forwards
                if least > limit:
                    row["fits not"] += 1
                elif is_valid(schema, done.text):
                    row["valid"] += 1
                else:
                    row["invalid"] += 1
                    failures.append(f"file {index}, {limit} tokens, jump {jump}: {done.text[:200]!r} {done.notes}")
            equal[limit] += outputs[0] == outputs[1]
    lines = [
        f"SmolLM2-135M-Instruct, fp32, 2 threads, greedy, batch 1: {num_schemas} MaskBench schemas (seed "
        f"{arguments.seed}), {num_refused} more refused",
        "",
        "| max_new_tokens | jump-forward | valid | invalid | no document fits | tokens | forced | forwards | s "
        "| off / on | same output |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for limit in limits:
        for jump in (True, False):
            row = counts[limit, jump]
            lines.append(
                f"| {limit} | {'on' if jump else 'off'} | {row['valid']} | {row['invalid']} | {row['fits not']} | "
                f"{row['tokens']} | {row['forced']} | {row['forwards']} | {seconds[limit, jump]:.1f} | "
                f"{seconds[limit, False] / max(seconds[limit, True], 1e-9):.2f} | {equal[limit]} of {num_schemas} |"
            )
    print("\n".join([*lines, "", *failures]))
    if arguments.save:
        (Path(__file__).parent / "results" / "constrained-model.md").write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()

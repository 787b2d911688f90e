"""Does SmolLM2 under a schema always give whole, valid JSON, and what does jump-forward save?

    python -m bench.constrained_model --schemas 200 --tokens 32,256 --records runs.jsonl --seconds 300 --save

It takes an hour or more; with `--records` it can be run in parts.

Every schema of the sample is asked for with each length limit, jump-forward on and off in turns, greedy, from empty
caches, the grammar bound anew; `--batch` of them side by side. A document is judged by `jsonschema`. Where the shortest
document known takes more tokens than the limit, none can fit; those are counted apart. Schemas that the engine refuses
are left out.
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


def run_group(
    engine: Engine, tokenizer: Any, schemas: dict[int, Any], limits: list[int], jumps: tuple[bool, ...]
) -> dict[int, dict[str, Any]]:
    """What came out for each schema, in one batch, by limit and by jump-forward. Time is shared out evenly."""
    texts = {
        index: tokenizer.apply_chat_template(
            [{"role": "user", "content": f"Give an example document for this JSON schema: {json.dumps(schema)[:600]}"}],
            add_generation_prompt=True, tokenize=False,
        )
        for index, schema in schemas.items()
    }  # fmt: skip
    records: dict[int, dict[str, Any]] = {index: {"batch": len(schemas), "runs": []} for index in schemas}
    for limit in limits:
        for jump in jumps:
            engine.invalidate()
            fresh = {index: json_schema(schema).bind(engine.vocabulary) for index, schema in schemas.items()}
            forwards = engine.stats.num_forwards
            start, cpu = time.perf_counter(), time.process_time()
            handles = {}
            for index, grammar in fresh.items():
                request = engine.request(texts[index], max_new_tokens=limit, grammar=grammar, jump_forward=jump)
                (handles[index],) = engine.submit(request)
            while not all(handle.is_done for handle in handles.values()):
                engine.step()
            seconds, cpu = time.perf_counter() - start, time.process_time() - cpu
            for index, handle in handles.items():
                done = handle.completion
                assert done is not None
                if done.error is not None:
                    raise done.error
                grammar = fresh[index]
                records[index]["least"] = grammar.min_tokens(grammar.start)
                records[index]["runs"].append(
                    {
                        "limit": limit,
                        "jump": jump,
                        "seconds": seconds / len(handles),
                        "cpu_seconds": cpu / len(handles),
                        "valid": is_valid(schemas[index], done.text),
                        "token_ids": list(done.token_ids),
                        "text": done.text,
                        "forced": done.stats.num_forced_tokens,
                        "row_forwards": done.stats.num_forwards,
                        "forwards": (engine.stats.num_forwards - forwards) / len(handles),
                        "notes": [str(note) for note in done.notes],
                    }
                )
    return records


def table(
    records: dict[int, dict[str, Any]], limits: list[int], arguments: argparse.Namespace
) -> tuple[list[str], list[str]]:
    """Lines of the table, and a line for each failure."""
    taken = {index: record for index, record in records.items() if "runs" in record}
    sizes = " or ".join(str(size) for size in sorted({record["batch"] for record in taken.values()}))
    lines = [
        f"SmolLM2-135M-Instruct, fp32, 2 threads, greedy, {sizes} side by side: {len(taken)} MaskBench schemas "
        f"(seed {arguments.seed}), "
        f"{len(records) - len(taken)} more refused",
        "",
        "| max_new_tokens | jump-forward | valid | invalid | no document known fits | tokens | forced | forwards | s "
        "| CPU s | off / on: s, CPU s | same output |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    failures = []
    for limit in limits:
        runs = {
            jump: {
                i: r for i, record in taken.items() for r in record["runs"] if (r["limit"], r["jump"]) == (limit, jump)
            }
            for jump in (True, False)
        }
        both = runs[True].keys() & runs[False].keys()
        equal = sum(runs[True][i]["token_ids"] == runs[False][i]["token_ids"] for i in both)
        for jump in (jump for jump in (True, False) if runs[jump]):
            own = runs[jump]
            fits = {i: run for i, run in own.items() if taken[i]["least"] <= limit or run["valid"]}
            invalid = {i: run for i, run in fits.items() if not run["valid"]}
            failures += [
                f"file {i}, {limit} tokens, jump {jump}: {run['text'][:200]!r} {run['notes']}"
                for i, run in invalid.items()
            ]
            total = {
                key: sum(run[key] for run in own.values()) for key in ("forced", "forwards", "seconds", "cpu_seconds")
            }
            ratios = [
                sum(runs[False][i][key] for i in both) / max(sum(runs[True][i][key] for i in both), 1e-9)
                for key in ("seconds", "cpu_seconds")
            ]
            lines.append(
                f"| {limit} | {'on' if jump else 'off'} | {len(fits) - len(invalid)} | {len(invalid)} | "
                f"{len(own) - len(fits)} | {sum(len(run['token_ids']) for run in own.values())} | {total['forced']} | "
                f"{total['forwards']:.0f} | {total['seconds']:.1f} | {total['cpu_seconds']:.1f} | "
                f"{ratios[0]:.2f}, {ratios[1]:.2f} | {equal} of {len(both)} |"
            )
    return lines, failures


def main() -> None:
    """Print the table, and save it where asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--schemas", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--batch", type=int, default=1, help="schemas that run side by side")
    parser.add_argument("--tokens", default="32,256")
    parser.add_argument("--seconds", type=float, default=450.0, help="stop taking schemas after so long")
    parser.add_argument("--records", type=Path, help="file of what was run: a later call goes on behind its last line")
    parser.add_argument("--jump", default="on,off", help="on, off, or both: jump-forward in turns")
    parser.add_argument("--save", action="store_true")
    arguments = parser.parse_args()
    limits = [int(n) for n in arguments.tokens.split(",")]
    jumps = tuple(word == "on" for word in arguments.jump.split(","))
    records: dict[int, dict[str, Any]] = {}
    if arguments.records is not None and arguments.records.exists():
        records = {line["index"]: line for line in map(json.loads, arguments.records.read_text().splitlines())}

    def finished() -> bool:
        return sum("runs" in record for record in records.values()) >= arguments.schemas

    if not finished():
        from transformers import AutoModelForCausalLM, AutoTokenizer

        path = smollm2_path()
        assert path is not None, "run `infercore demo` once: it fetches SmolLM2"
        torch.set_num_threads(2)
        model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval()
        tokenizer = AutoTokenizer.from_pretrained(path)
        engine = Engine(model, tokenizer)
        run_group(engine, tokenizer, {0: {"type": "integer"}}, [4], (True, False))  # loads code
        begin = time.perf_counter()
        files = maskbench(4 * arguments.schemas, arguments.seed)
        index = 0
        while not finished() and time.perf_counter() - begin < arguments.seconds:
            group: dict[int, Any] = {}
            while len(group) < arguments.batch and not finished() and index < len(files):
                schema = files[index]["schema"]
                if index not in records:
                    try:
                        json_schema(schema).bind(engine.vocabulary)
                        group[index] = schema
                    except GrammarError as error:
                        records[index] = {"index": index, "refused": str(error)[:200]}
                index += 1
            num_taken = sum("runs" in record for record in records.values())
            group = dict(list(group.items())[: arguments.schemas - num_taken])
            if not group:
                break
            turns = jumps if len(records) // arguments.batch % 2 == 0 else jumps[::-1]
            done = run_group(engine, tokenizer, group, limits, turns)
            records |= {i: {"index": i, **record} for i, record in done.items()}
            if arguments.records is not None:
                arguments.records.write_text("".join(json.dumps(record) + "\n" for record in records.values()))
    lines, failures = table(records, limits, arguments)
    print("\n".join([*lines, "", *failures]))
    if arguments.save:
        name = "constrained-model.md" if arguments.batch == 1 else "constrained-model-batched.md"
        (Path(__file__).parent / "results" / name).write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()

"""How many tests of the JSON-Schema-Test-Suite (draft 2020-12) does each grammar engine get right?

    python -m bench.constrained_suite --tiktoken tokenizer.model --save

The optional tests are left out. An instance goes through an engine as its canonical tokens, each mask computed. A
schema that an engine refuses counts all its tests as not right. `format` is an annotation in the suite; ours enforces
it.
"""

import argparse
import datetime
import json
import os
import subprocess
import time
from pathlib import Path
from typing import Any

from bench.constrained import DATA
from bench.grammar_engines import ENGINES, load_smollm2, load_tiktoken


def verdict(session: Any, token_ids: list[int]) -> bool:
    """Whether an engine takes a document."""
    session.restart()
    for token_id in token_ids:
        session.fill()
        if not session.allows(token_id) or not session.accept(token_id):
            return False
    session.fill()
    return bool(session.may_end())


def main() -> None:
    """Print the table, and save it where asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tiktoken", type=Path, help="Llama-3 tokenizer.model (PyPI: llama-models); else SmolLM2's")
    parser.add_argument("--engines", default=",".join(ENGINES))
    parser.add_argument("--slow-seconds", type=float, default=100.0, help="time in all for engines that compile slowly")
    parser.add_argument("--save", action="store_true")
    arguments = parser.parse_args()
    token_bytes, eos, encode = load_tiktoken(arguments.tiktoken) if arguments.tiktoken else load_smollm2()
    paths = sorted((DATA / "json_schema_test_suite" / "draft2020-12").glob("*.json"))
    groups = [group for path in paths for group in json.loads(path.read_text())]
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False).stdout
    lines = [
        f"JSON-Schema-Test-Suite, draft 2020-12, {sum(len(g['tests']) for g in groups)} tests, vocabulary of "
        f"{len(token_bytes)} tokens | {datetime.date.today()} | commit {commit.strip()} | "
        f"load {os.getloadavg()[0]:.1f}",
        "",
        "| engine | tests | right | wrongly accepted | wrongly refused | schema refused | s |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for name in arguments.engines.split(","):
        try:
            engine = ENGINES[name](token_bytes, eos, encode)
        except ImportError as error:
            lines.append(f"| {name} | not installed ({error}) | | | | | |")
            continue
        tests = right = under = over = refused = 0
        begin = time.perf_counter()
        for group in groups:
            if engine.slow and time.perf_counter() - begin > arguments.slow_seconds:
                break
            tests += len(group["tests"])
            try:
                session = engine.compile(group["schema"])
            except Exception:
                refused += len(group["tests"])
                continue
            for test in group["tests"]:
                try:
                    taken = verdict(session, encode(json.dumps(test["data"], ensure_ascii=False)))
                except Exception:
                    refused += 1
                    continue
                right += taken == test["valid"]
                under += taken and not test["valid"]
                over += test["valid"] and not taken
        lines.append(
            f"| {name} {engine.version} | {tests} | {right} | {under} | {over} | {refused} "
            f"| {time.perf_counter() - begin:.0f} |"
        )
    print("\n".join(lines))
    if arguments.save:
        (Path(__file__).parent / "results" / "constrained-suite.md").write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()

"""How long from the start of a process to the first mask of a grammar, with and without compiled code kept from before?

    python -m bench.constrained_cold --save

A fresh process imports `infercore.constrained`, builds a vocabulary of 49k made-up tokens, binds a schema and fills a
mask; the last column is a whole document after that, masks included. First with an empty folder for compiled code, as
plain Python while a process of its own compiles; then with what that left there; and with torch imported as well.
"""

import argparse
import datetime
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

CHILD = """
import json, random, sys, time
import numpy as np
start = time.perf_counter()
from infercore.constrained import Vocabulary, json_schema
from infercore.constrained.loops import loops
if "torch" in sys.argv:
    import torch
imported = time.perf_counter()
random.seed(0)
letters = b"etaoinshrdlu ,.:0123456789{}[]" + b'"'
words = {bytes(random.choices(letters, k=random.randint(2, 9))) for _ in range(50_000)}
tokens = [None, *(bytes([i]) for i in range(256)), *sorted(words)]
vocabulary = Vocabulary(tokens, eos_token_ids=[0])
schema = {
    "type": "object",
    "properties": {"name": {"type": "string", "maxLength": 20}, "age": {"type": "integer"}, "ok": {"type": "boolean"}},
    "required": ["name"],
}
bitmask = np.zeros((1, vocabulary.num_words), np.int32)
grammar = json_schema(schema).bind(vocabulary)
grammar.fill_bitmask([grammar.start], bitmask)
first = time.perf_counter()
state = grammar.start
for byte in b'{"name": "Ada", "age": 36, "ok": true}':
    grammar.fill_bitmask([state], bitmask)
    state = grammar.advance(state, byte + 1)
assert grammar.is_accepting(state)
waited = loops.is_waiting
times = [imported - start, first - start, time.perf_counter() - start]
while loops.is_waiting:
    time.sleep(0.1)
    grammar.machine.start(grammar.machine.node())
print(json.dumps([*times, time.perf_counter() - start if waited else 0.0]))
"""


def main() -> None:
    """Print the table, and save it where asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--save", action="store_true")
    arguments = parser.parse_args()
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False).stdout
    lines = [
        f"49k made-up tokens | {datetime.date.today()} | commit {commit.strip()} | load {os.getloadavg()[0]:.1f}",
        "",
        "| compiled code | imported s | first mask s | whole document s | machine code after s |",
        "| --- | --- | --- | --- | --- |",
    ]
    with tempfile.TemporaryDirectory() as folder:
        for what in ("none", "kept", "kept", "kept, torch"):
            run = subprocess.run(
                [sys.executable, "-c", CHILD, *what.split(", ")[1:]],
                capture_output=True,
                text=True,
                check=True,
                env={**os.environ, "NUMBA_CACHE_DIR": folder},
            )
            lines.append(f"| {what} | " + " | ".join(f"{seconds:.2f}" for seconds in json.loads(run.stdout)) + " |")
    print("\n".join(lines))
    if arguments.save:
        (Path(__file__).parent / "results" / "constrained-cold.md").write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()

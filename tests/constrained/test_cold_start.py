"""With nothing compiled, grammars work at once, say so, and go over to machine code by themselves."""

import json
import os
import subprocess
import sys
import time

import numpy as np
import pytest

from infercore import _jit
from infercore.constrained import Vocabulary, _compiled, json_schema, regex
from infercore.constrained.loops import _ENTRIES, loops

WORDS = [None, *(bytes([i]) for i in range(256)), b'{"', b'": "', b'"a"', b"12", b"true", b", ", "é".encode(), b'"b"']
TEXT = {"type": "string", "pattern": "^(b+ ?){1,9}$", "maxLength": 9}
CASES = [
    (
        json_schema({"properties": {"a": TEXT, "n": {"type": "integer"}, "u": {"uniqueItems": True}}}),
        b'{"a": "bb b", "n": 12, "u": ["a", "b"], "other": [true]}',
    ),
    (regex(r"(?:[a-z]{2,3} ){1,4}\w+"), b"ab cde x1"),
]
WAIT = "import pathlib, sys, time\nwhile not pathlib.Path(sys.argv[1]).exists():\n    time.sleep(0.05)"


def masks(grammar, text):
    """Every state along `text`, its mask and what it forces."""
    found = []
    mask = np.zeros((1, grammar.vocabulary.num_words), np.int32)
    state = grammar.start
    for byte in text:
        grammar.fill_bitmask([state], mask)
        found.append((state, mask.tolist(), grammar.forced_tokens(state).tolist()))
        state = grammar.advance(state, byte + 1)
    return [*found, grammar.is_accepting(state)]


def grammars():
    vocabulary = Vocabulary(WORDS, eos_token_ids=[0], encode=lambda text: [byte + 1 for byte in text.encode()])
    return [spec.bind(vocabulary) for spec, _ in CASES]


@pytest.fixture
def cold(tmp_path, monkeypatch):
    """Loops that run as plain Python until the file that this gives is there."""
    done = tmp_path / "done"
    kept = {name: getattr(loops, name) for name in _ENTRIES}
    monkeypatch.setattr(loops, "_command", [sys.executable, "-c", WAIT, str(done)])
    loops.run_plain()
    yield done
    done.touch()
    if loops._process is not None:
        loops._process.wait()
        loops._process = None
    for name, function in kept.items():
        setattr(loops, name, function)
    _jit.report_waiting("grammars", "")


@pytest.mark.skipif(not _jit.is_compiled(), reason="without numba all runs as plain Python")
def test_plain_python_stands_in_and_hands_over_within_a_grammar(cold):
    begun = grammars()
    half = [masks(grammar, text[: len(text) // 2]) for grammar, (_, text) in zip(begun, CASES, strict=True)]
    assert loops.is_waiting
    assert "plain Python" in _jit.status()
    cold.touch()
    deadline = time.monotonic() + 60
    while loops.is_waiting:
        begun[0].machine.start(begun[0].machine.node())
        assert time.monotonic() < deadline
    assert "plain Python" not in _jit.status()
    assert all(getattr(loops, name) is getattr(_compiled, name) for name in _ENTRIES)
    whole = [masks(grammar, text) for grammar, (_, text) in zip(begun, CASES, strict=True)]
    compiled = [masks(grammar, text) for grammar, (_, text) in zip(grammars(), CASES, strict=True)]
    for first, later, reference in zip(half, whole, compiled, strict=True):
        assert first[:-1] == later[: len(first) - 1]  # states are known again
        assert [mask[1:] for mask in later[:-1]] == [mask[1:] for mask in reference[:-1]]
        assert later[-1] is reference[-1] is True


@pytest.mark.skipif(not _jit.is_compiled(), reason="without numba all runs as plain Python")
def test_where_compiling_fails_a_warning_says_so(monkeypatch, cold):
    monkeypatch.setattr(loops, "_command", [sys.executable, "-c", "raise SystemExit(3)"])

    def until_compiled():
        while loops.walk_trie is not _compiled.walk_trie:
            grammars()

    with pytest.warns(RuntimeWarning, match="code 3"):
        until_compiled()


PROGRAM = """
import json, sys
from infercore.constrained import _compiled
from infercore.constrained.loops import loops
print(json.dumps([loops.walk_trie is _compiled.walk_trie, "torch" in sys.modules]))
"""


@pytest.mark.skipif(not _jit.is_compiled(), reason="without numba all runs as plain Python")
@pytest.mark.parametrize(("policy", "compiled"), [("", False), ("wait", True)])
def test_what_is_not_compiled_is_found_out_at_import(policy, compiled, tmp_path):
    result = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        env={**os.environ, "NUMBA_CACHE_DIR": str(tmp_path), "INFERCORE_COLD_START": policy},
        capture_output=True,
        text=True,
        check=True,
    )
    assert json.loads(result.stdout) == [compiled, False]  # and nothing has loaded torch

"""The compiled loops are plain Python too, and give the same."""

import inspect
import os
import subprocess
import sys

from infercore.constrained import _compiled

PROGRAM = """
from tests.constrained.vocab import *
from infercore.constrained import json_schema, regex
from infercore import _jit
assert not _jit.is_compiled()
text, number = {"type": "string", "maxLength": 3}, {"type": "number", "minimum": 0}
schema = {"type": "object", "properties": {"a": text, "b": number}}
for spec in (json_schema(schema), regex("(ab|a)*日?")):
    grammar = spec.bind(VOCABULARY)
    for state in walk(grammar, lambda ids: ids[len(ids) // 3], 8):
        assert allowed(grammar, state) == allowed_one_by_one(grammar, state)
print("same")
"""


def test_plain_python_gives_the_same_masks():
    result = subprocess.run(
        [sys.executable, "-W", "error::RuntimeWarning", "-c", PROGRAM],
        env={**os.environ, "NUMBA_DISABLE_JIT": "1"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert result.stdout.strip() == "same", result.stderr


def test_every_compiled_function_is_left_alone_by_type_checkers():
    own = [f for f in vars(_compiled).values() if getattr(f, "__module__", "") == _compiled.__name__]
    assert len(own) > 20
    for function in own:
        source = inspect.getsource(getattr(function, "py_func", function))
        assert source.startswith(("@no_type_check\n@compiled\n", "@no_type_check\n@compiled_in_place\n"))

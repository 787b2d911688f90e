"""`infercore warmup` reaches the loops that requests use, and needs nothing but our dependencies."""

import os
import subprocess
import sys

PROGRAM = """
import inspect, sys
from infercore import warmup

reached = set()
def watch(frame, event, argument):
    if event == "call" and frame.f_code.co_filename.endswith("_compiled.py"):
        reached.add((frame.f_globals["__name__"], frame.f_code.co_name))

warmup._engine = lambda: None  # its loops are those of the other steps and of attention, which stays in torch here
said = []
sys.setprofile(watch)
warmup.compile_all(lambda what, fraction: said.append((what, fraction)))
sys.setprofile(None)
assert [what for what, _ in said][:3] == ["compiling: prefix cache", "compiling: grammars", "compiling: drafters"], said
assert said[-1] == ("compiled", 1.0), said
loops = {
    (name, loop)
    for name, module in sys.modules.items()
    if name.startswith("infercore.") and name.endswith("_compiled") and ".control." not in name
    for loop, function in vars(module).items()
    if inspect.isfunction(function) and function.__module__ == name
}
print(len(loops & reached) / len(loops))
print(*sorted(loops - reached), sep="\\n")
"""


def test_it_reaches_nearly_every_loop() -> None:
    run = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "NUMBA_DISABLE_JIT": "1"},  # as plain Python, so that calls can be watched
    )
    assert run.returncode == 0, run.stderr
    share, _, missing = run.stdout.partition("\n")
    assert float(share) > 0.8, missing

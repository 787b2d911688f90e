"""Every Triton kernel compiles for sm_80, sm_90 and sm_100, in a fresh process on a machine without a GPU."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).with_name("compile_only.py")


def compile_for(capability: int, *names: str) -> str:
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    command = [sys.executable, str(SCRIPT), str(capability), *names]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


@pytest.mark.parametrize("capability", [80, 90, 100])
def test_the_kernels_that_every_step_runs_compile(capability):
    compile_for(
        capability, "write_kv", "move_kv", "pack_pages", "token_bitmask", "verify_tree", "plan", "decode", "tree",
        "linear_group",
    )  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("capability", [80, 90, 100])
def test_every_variant_compiles(capability):
    names = ("prefill", "everything, head size 80 and 96", "head size 256, float32", "batch_invariant")
    compile_for(capability, *names)

"""Makes `attention_problems` importable, and its two functions fixtures."""

import sys
from collections.abc import Callable
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from attention_problems import Problem, brute_force, random_problem
from torch import Tensor


@pytest.fixture(name="random_problem")
def _random_problem() -> Callable[..., Problem]:
    return random_problem


@pytest.fixture(name="brute_force")
def _brute_force() -> Callable[[Problem], Tensor]:
    return brute_force

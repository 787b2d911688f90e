"""Settings that must stand before anything is imported."""

import os
from pathlib import Path

import pytest

# Triton reads this when it decorates a kernel, so it has to be set before the first import of a kernel module.
os.environ.setdefault("TRITON_INTERPRET", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("INFERCORE_COLD_START", "wait")  # loops are compiled, not run as plain Python meanwhile
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
# Two processes that save different signatures of one function at once leave an index that points to the wrong one, so
# workers of pytest-xdist, and the processes that their tests start, keep compiled loops apart.
if worker := os.environ.get("PYTEST_XDIST_WORKER"):
    os.environ["NUMBA_CACHE_DIR"] = str(Path(__file__).parents[1] / ".pytest_cache" / "numba" / worker)

from hypothesis import HealthCheck, settings

settings.register_profile("ci", derandomize=True, deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile("dev", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("ci" if os.environ.get("CI") else "dev")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests marked `gpu` need a CUDA device, and kernels that are compiled and not interpreted."""
    marked = [item for item in items if item.get_closest_marker("gpu")]
    if not marked:
        return
    import torch

    if not torch.cuda.is_available() or os.environ["TRITON_INTERPRET"] == "1":
        for item in marked:
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device, and TRITON_INTERPRET=0"))


@pytest.fixture(autouse=True)
def _fixed_seed() -> None:
    """Every test starts from the same random state; tests that want other draws make their own generator."""
    import numpy as np
    import torch

    torch.manual_seed(0)
    np.random.seed(0)  # noqa: NPY002 - for libraries that still draw from the global state

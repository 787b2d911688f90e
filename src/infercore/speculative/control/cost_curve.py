"""`CostCurve`: how long a forward takes, by its number of rows."""

import hashlib
import json
import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
from jaxtyping import Float64

_GRID = np.array([1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256, 512, 1024, 4096], np.float64)
_LEARNING_RATE = 0.1
_FORGETTING = 0.001  # per step, of what a size that is no longer run costs more than a plain step


class CostCurve:
    """Seconds of a forward over 1 to 4096 rows: measured ahead, or learnt from the steps that are run anyway.

    Only ratios matter to decisions. A size that was never seen is believed to cost what the nearest smaller one does,
    so that it will be tried; what is known of sizes that are no longer run fades slowly, so that they are tried again.
    """

    def __init__(self) -> None:
        self._seconds = np.full(len(_GRID), np.nan)
        self._scale = 1.0

    @classmethod
    def measure(
        cls,
        run: Callable[[int], object],
        *,
        rows: Sequence[int] = (1, 2, 4, 8, 16, 32, 64),
        repeats: int = 5,
    ) -> "CostCurve":
        """Time `run(num_rows)`, a forward that has ended when it returns, in turns; the median of `repeats` each."""
        times: dict[int, list[float]] = {num_rows: [] for num_rows in rows}
        for repeat in range(repeats + 1):
            for num_rows in rows:
                start = time.perf_counter()
                run(num_rows)
                if repeat:  # the first round warms up
                    times[num_rows].append(time.perf_counter() - start)
        curve = cls()
        for num_rows in rows:
            curve._seconds[_nearest(num_rows)] = float(np.median(times[num_rows]))
        return curve

    def seconds(self, num_rows: npt.NDArray[np.integer] | int) -> Float64[np.ndarray, "..."]:
        """Expected time per entry of `num_rows`; 1 everywhere while nothing is known."""
        known = np.flatnonzero(~np.isnan(self._seconds))
        if not known.size:
            return np.ones(np.shape(num_rows))
        return np.asarray(np.interp(np.asarray(num_rows), _GRID[known], self._seconds[known]) * self._scale)

    def knows(self, num_rows: int) -> bool:
        """Whether forwards of about this size were measured."""
        return not np.isnan(self._seconds[_nearest(num_rows)])

    def observe(self, num_rows: int, seconds: float) -> None:
        """Learn from one step: the size's own cost, and a common scale (longer contexts slow every size)."""
        index = _nearest(num_rows)
        if np.isnan(self._seconds[index]):
            self._seconds[index] = seconds / self._scale
            return
        ratio = min(2.0, max(0.5, seconds / (self._seconds[index] * self._scale)))  # one outlier does not decide
        self._scale *= ratio ** (_LEARNING_RATE / 2)
        self._seconds[index] *= ratio ** (_LEARNING_RATE / 2)
        plain = self._seconds[0]
        if index == 0:
            excess = self._seconds[1:] - plain
            self._seconds[1:] -= np.where(excess > 0, _FORGETTING * excess, 0)  # NaN stays NaN

    def table(self) -> dict[int, float]:
        """Known sizes and their seconds."""
        known = np.flatnonzero(~np.isnan(self._seconds))
        return {int(_GRID[i]): float(self._seconds[i] * self._scale) for i in known}

    # ------------------------------------------------------------------------------------------------------------ kept

    def save(self, key: str, *, folder: Path | None = None) -> Path:
        """Keep the curve in the user's cache under `key`, which names device, model, dtype and threads."""
        path = _path(key, folder)
        path.parent.mkdir(parents=True, exist_ok=True)
        scratch = path.with_suffix(f".{os.getpid()}")
        scratch.write_text(json.dumps({"key": key, "seconds": self.table()}))
        scratch.replace(path)
        return path

    @classmethod
    def load(cls, key: str, *, folder: Path | None = None) -> "CostCurve | None":
        """The curve saved under `key`; None where there is none, or it cannot be read."""
        try:
            stored = json.loads(_path(key, folder).read_text())
            table = {int(rows): float(seconds) for rows, seconds in stored["seconds"].items()}
        except (OSError, ValueError, KeyError, AttributeError):
            return None
        if stored["key"] != key or not all(0 < seconds < 3600 for seconds in table.values()):
            return None
        curve = cls()
        for rows, seconds in table.items():
            curve._seconds[_nearest(rows)] = seconds
        return curve


def _nearest(num_rows: int) -> int:
    return int(np.abs(np.log2(_GRID / num_rows)).argmin())


def _path(key: str, folder: Path | None) -> Path:
    home = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache"))
    name = hashlib.sha256(key.encode()).hexdigest()[:24]
    return (folder or home / "infercore" / "cost_curves") / f"{name}.json"

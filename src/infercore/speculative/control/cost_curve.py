"""`CostCurve`: how long a forward takes, by its number of rows."""

import hashlib
import json
import math
import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
from jaxtyping import Float64

_GRID = np.array([1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256, 512, 1024, 4096], np.float64)
_FORGETTING = 0.001  # per step, of what a size that is no longer run costs more than a plain step
_OWN_RATE = 0.02  # of what the two common factors leave unexplained; 1 / n where only n steps are known
_GENTLEST, _STEEPEST = 0.2, 5.0
_TRUSTED = 5.0  # steps that a size kept in a file counts for
_LARGEST = math.log(2.0)  # of one step's surprise that is believed: one outlier does not decide
# Variances of the logarithms of both factors, per step and at first, and of the noise of a step.
_DRIFT = (0.01**2, 0.02**2)
_FIRST_DOUBT = (0.2**2, 0.3**2)
_NOISE = 0.1**2


class CostCurve:
    """Seconds of a forward over 1 to 4096 rows: measured ahead, or learnt from the steps that are run anyway.

    Only ratios matter to decisions. Two factors follow the steps quickly, by a Kalman filter over their logarithms: one
    on all of the curve (a busy machine), one on what sizes cost more than the smallest (attention over a longer context
    costs by the row). Each size has a slow correction of its own. A size beyond those that were seen is believed to
    cost what the nearest smaller one does, so that it will be tried; what is known of sizes that are no longer run
    fades slowly, so that they are tried again.
    """

    def __init__(self) -> None:
        self._seconds = np.full(len(_GRID), np.nan)
        self._counts = np.zeros(len(_GRID))
        self._scale = 1.0
        self._steepness = 1.0
        self._doubt = [_FIRST_DOUBT[0], 0.0, _FIRST_DOUBT[1]]  # variances and covariance: scale, both, steepness

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
            curve._counts[_nearest(num_rows)] = repeats
        return curve

    def seconds(self, num_rows: npt.NDArray[np.integer] | int) -> Float64[np.ndarray, "..."]:
        """Expected time per entry of `num_rows`; 1 everywhere while nothing is known."""
        known = np.flatnonzero(~np.isnan(self._seconds))
        if not known.size:
            return np.ones(np.shape(num_rows))
        return np.asarray(np.interp(np.asarray(num_rows), _GRID[known], self._now(self._seconds[known])))

    def knows(self, num_rows: int) -> bool:
        """Whether forwards of about this size were measured."""
        return not np.isnan(self._seconds[_nearest(num_rows)])

    def observe(self, num_rows: int, seconds: float) -> None:
        """Learn from one step: the common factors, and the size's own cost."""
        index = _nearest(num_rows)
        known = np.flatnonzero(~np.isnan(self._seconds))
        self._counts[index] += 1
        if not known.size:
            self._seconds[index] = seconds
            return
        if not known[0] <= index <= known[-1]:
            self._seconds[index] = self._before(seconds, self._seconds[known[0]])
            return
        if np.isnan(self._seconds[index]):
            self._seconds[index] = np.interp(_GRID[index], _GRID[known], self._seconds[known])
        least = float(self._seconds[known[0]])
        excess = self._steepness * max(0.0, float(self._seconds[index]) - least)
        expected = self._scale * (least + excess)
        surprise = max(-_LARGEST, min(_LARGEST, math.log(seconds / expected)))
        surprise -= self._correct(surprise, excess / (least + excess))
        self._seconds[index] *= math.exp(surprise * max(_OWN_RATE, 1 / (1 + self._counts[index])))
        if index == 0:
            excesses = self._seconds[1:] - self._seconds[0]
            self._seconds[1:] -= np.where(excesses > 0, _FORGETTING * excesses, 0)  # NaN stays NaN

    def _correct(self, surprise: float, share: float) -> float:
        """Move both factors by what a step tells about them; returns how much of the surprise that explains.

        `share` of the expected time is what the size costs more than the smallest one.
        """
        scale, both, steepness = self._doubt
        scale, steepness = scale + _DRIFT[0], min(_FIRST_DOUBT[1], steepness + _DRIFT[1])
        on_scale, on_steepness = scale + share * both, both + share * steepness
        total = on_scale + share * on_steepness + _NOISE
        move, bend = surprise * on_scale / total, surprise * on_steepness / total
        self._scale *= math.exp(move)
        self._steepness = max(_GENTLEST, min(_STEEPEST, self._steepness * math.exp(bend)))
        self._doubt = [
            scale - on_scale * on_scale / total,
            both - on_scale * on_steepness / total,
            steepness - on_steepness * on_steepness / total,
        ]
        return move + share * bend

    def _now(self, seconds: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        excess = np.maximum(seconds - seconds[0], 0)  # no size is cheaper than the smallest
        now: npt.NDArray[np.float64] = self._scale * (seconds[0] + self._steepness * excess)
        return now

    def _before(self, seconds: float, least: float) -> float:
        """What must be stored for a size that takes `seconds` now."""
        excess = seconds / self._scale - least
        return least + (excess / self._steepness if excess > 0 else excess)

    def table(self) -> dict[int, float]:
        """Known sizes and their seconds."""
        known = np.flatnonzero(~np.isnan(self._seconds))
        return {int(_GRID[i]): float(t) for i, t in zip(known, self._now(self._seconds[known]), strict=True)}

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
            curve._counts[_nearest(rows)] = _TRUSTED
        return curve


def _nearest(num_rows: int) -> int:
    return int(np.abs(np.log2(_GRID / num_rows)).argmin())


def _path(key: str, folder: Path | None) -> Path:
    home = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache"))
    name = hashlib.sha256(key.encode()).hexdigest()[:24]
    return (folder or home / "infercore" / "cost_curves") / f"{name}.json"

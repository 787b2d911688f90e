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
from jaxtyping import Bool, Float32, Float64

from infercore.speculative.control import _compiled

_TRUSTED = 5.0  # steps that a size kept in a file counts for


class CostCurve:
    """Seconds of a forward over 1 to 4096 rows: measured ahead, or learnt from the steps that are run anyway.

    Only ratios matter to decisions. Two factors follow the steps quickly, by a Kalman filter over their logarithms: one
    on all of the curve (a busy machine), one on what sizes cost more than the smallest (attention over a longer context
    costs by the row). Each size has a slow correction of its own. A size beyond those that were seen is believed to
    cost what the nearest smaller one does, so that it will be tried; what is known of sizes that are no longer run
    fades slowly, so that they are tried again.
    """

    def __init__(self) -> None:
        self._seconds = np.full(len(_compiled.GRID), np.nan)
        self._counts = np.zeros(len(_compiled.GRID))
        self._factors = np.array([1.0, 1.0, _compiled.FIRST_DOUBT_SCALE, 0.0, _compiled.FIRST_DOUBT_STEEPNESS])

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
            curve._seconds[_compiled.nearest(num_rows)] = float(np.median(times[num_rows]))
            curve._counts[_compiled.nearest(num_rows)] = repeats
        return curve

    def seconds(self, num_rows: npt.NDArray[np.integer] | int) -> Float64[np.ndarray, "..."]:
        """Expected time per entry of `num_rows`; 1 everywhere while nothing is known."""
        rows = np.asarray(num_rows, np.int64)
        out = np.empty(rows.shape)
        _compiled.costs(self._seconds, self._factors, rows.reshape(-1), out.reshape(-1))
        return out

    def step(self, num_rows: int) -> float:
        """Expected time of a forward over `num_rows`, as a float."""
        return float(_compiled.cost(self._seconds, self._factors, num_rows))

    def knows(self, num_rows: int) -> bool:
        """Whether forwards of about this size were measured."""
        return not math.isnan(self._seconds[_compiled.nearest(num_rows)])

    def observe(self, num_rows: int, seconds: float) -> None:
        """Learn from one step: the common factors, and the size's own cost."""
        _compiled.observe_cost(self._seconds, self._counts, self._factors, num_rows, seconds)

    def let_pass(self) -> None:
        """A step went by that tells nothing of the curve: the next one that does is believed more."""
        _compiled.let_pass(self._factors)

    def select(
        self,
        chances: Float32[np.ndarray, "nodes"],
        *,
        num_rows: int,
        num_turns: int,
        speed_up: float,
        margin: float,
    ) -> tuple[int, Bool[np.ndarray, "nodes"]]:
        """Which nodes to verify in a forward of `num_rows` other rows: their number, and a mask of them.

        Args:
            chances: that each node is accepted, never above its parent's.
            num_turns: rows that gain a token each without any draft.
            speed_up: tokens per second of the long run, in those of plain steps.
            margin: share of a plain step's tokens that must be gained.
        """
        keep = np.empty(len(chances), np.bool_)
        count = _compiled.select(
            chances, self._seconds, self._factors, num_rows, num_turns, speed_up, margin, keep
        )  # fmt: skip
        return int(count), keep

    def table(self) -> dict[int, float]:
        """Known sizes and their seconds."""
        sizes = _compiled.GRID[~np.isnan(self._seconds)].astype(np.int64)
        return dict(zip(sizes.tolist(), self.seconds(sizes).tolist(), strict=True))

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
            curve._seconds[_compiled.nearest(rows)] = seconds
            curve._counts[_compiled.nearest(rows)] = _TRUSTED
        return curve


def _path(key: str, folder: Path | None) -> Path:
    home = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache"))
    name = hashlib.sha256(key.encode()).hexdigest()[:24]
    return (folder or home / "infercore" / "cost_curves") / f"{name}.json"

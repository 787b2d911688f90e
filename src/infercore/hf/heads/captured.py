"""`Captured`: a function of a few numbers as a CUDA graph, with the copies of what goes in and what comes out.

`CapturedByShape` holds one for each shape that was met, as long as the head's cache stays where it is.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from infercore.hf.heads.kv import HeadKV


class Captured:
    """`run` as a CUDA graph with its copies from and to the host, in memory that stays where it is.

    Args:
        run: of int64 `[batch, columns]` on `device`; what it gives is copied to the host. It is called once ahead, with
            an entry (column 3) of slot 0, which is nobody's, per row.
        numbers: `[batch, columns]`, as many as there will be.
    """

    def __init__(self, run: Callable[[Tensor], Tensor], numbers: npt.NDArray[np.int64], device: torch.device) -> None:
        self._numbers = torch.from_numpy(np.zeros_like(numbers)).pin_memory()
        self._host = self._numbers.numpy()
        self._host[:, 3] = 1
        given = self._numbers.to(device)
        with torch.cuda.device(device):
            self._out = run(given).cpu().pin_memory()  # compiles kernels outside of the capture
            torch.cuda.synchronize()
            self._graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(self._graph):
                self._out.copy_(run(given.copy_(self._numbers, non_blocking=True)), non_blocking=True)
        self._given = given  # kept: the graph writes there
        self._on_host: npt.NDArray[Any] = self._out.numpy()
        self._is_done = torch.cuda.Event()  # type: ignore[no-untyped-call]
        self._is_running = False

    def start(self, numbers: npt.NDArray[np.int64]) -> None:
        """Run it on `numbers`; what came out before was read, or is wanted by nobody."""
        if self._is_running:
            self._is_done.synchronize()  # the run before has taken its numbers
        self._host[:] = numbers
        self._graph.replay()
        self._is_done.record()
        self._is_running = True

    def read(self) -> npt.NDArray[Any]:
        """Waits for the run. What it gives is overwritten by the next one."""
        if self._is_running:
            self._is_done.synchronize()
            self._is_running = False
        return self._on_host


class CapturedByShape:
    """Graphs of one function, by the shape of its numbers and the length of the cache that attention runs over.

    They are void when the cache's memory moves.

    Args: run: of numbers as `Captured` takes them, and that length.
    """

    def __init__(self, run: Callable[..., Tensor], kv: HeadKV, device: torch.device) -> None:
        self._run, self._kv, self._device = run, kv, device
        self._graphs: dict[tuple[int, int, int], Captured] = {}
        self._generation = kv.generation

    def __len__(self) -> int:
        return len(self._graphs)

    def of(self, num_rows: int, num_columns: int, length: int) -> Captured:
        """The one for numbers `[num_rows, num_columns]`, captured now if it is not there."""
        if self._generation != self._kv.generation:
            self._graphs.clear()
            self._generation = self._kv.generation
        key = num_rows, num_columns, length
        graph = self._graphs.get(key)
        if graph is None:
            numbers = np.zeros((num_rows, num_columns), np.int64)
            graph = self._graphs[key] = Captured(partial(self._run, length=length), numbers, self._device)
        return graph


def fitting(sizes: tuple[int, ...], count: int) -> int:
    """The smallest of `sizes` that holds `count`, or `count` itself."""
    return next((size for size in sizes if size >= count), count)

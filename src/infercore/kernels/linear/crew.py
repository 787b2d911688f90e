"""`Crew`: threads that help with products while they are awake, and cost nothing while they are not.

torch's own threads meet at a barrier after each product: two hundred times in the forward of a small model, and where
another process holds one of the cores, each time for a tick of the scheduler. These helpers take what they can and are
not waited for.
"""

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np

from infercore.kernels.linear._compiled import BOARD_SIZE, send_to_sleep, serve, share


class Crew:
    """`num_helpers` daemon threads around one board; started at the first `awake` that wants them."""

    def __init__(self) -> None:
        self._board = np.zeros(BOARD_SIZE + 8, np.int64)
        first = -self._board.ctypes.data // 8 % 8  # whole cache lines
        self._board = self._board[first : first + BOARD_SIZE]
        self._wake: list[threading.Semaphore] = []
        self._num_awake = 0
        self._lock = threading.Lock()
        self._turn = threading.Lock()
        send_to_sleep(self._board, 1)

    @contextmanager
    def awake(self, num_threads: int) -> Iterator[None]:
        """`num_threads - 1` helpers serve inside the block; they take a core each, products or not."""
        with self._lock:
            while len(self._wake) < num_threads - 1:
                self._wake.append(threading.Semaphore(0))
                threading.Thread(
                    target=self._help, args=(self._wake[-1],), name=f"infercore-linear-{len(self._wake)}", daemon=True
                ).start()
            self._num_awake += 1
            if num_threads > 1:
                send_to_sleep(self._board, 0)
                for semaphore in self._wake[: num_threads - 1]:
                    semaphore.release()
        try:
            yield
        finally:
            with self._lock:
                self._num_awake -= 1
                if self._num_awake == 0:
                    send_to_sleep(self._board, 1)

    def multiply(
        self, x: int, weight: int, bias: int, out: int, num_rows: int, width: int, num_outputs: int, chunk: int
    ) -> None:
        """As `_compiled.share`; callers on several threads take turns."""
        with self._turn:
            share(self._board, x, weight, bias, out, num_rows, width, num_outputs, chunk)

    def _help(self, wake: threading.Semaphore) -> None:
        while True:
            wake.acquire()
            serve(self._board)


crew = Crew()
"""One for the process: what limits it is the machine's cores."""

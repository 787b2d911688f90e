"""`FeatureRing`: the features of the last few forwards, kept until a draft takes them in or the ring comes round."""

import torch
from torch import Tensor

NUM_ROWS = 2048
MOST_ROWS = 256  # of one forward


class FeatureRing:
    """Rows of features in memory that stays where it is, which captured drafts read.

    A forward writes its features where the next one writes over them. They are copied here when the forward has just
    been launched, so that the copy is queued while the host waits for it anyway; which rows stay is known later, and
    then only their numbers are noted. Numbers count all rows that ever passed; the last `NUM_ROWS` of them are here.

    Cost: of EAGLE-3 for a target of width 4096 in half precision 50 MB.
    """

    def __init__(self, columns: int, dtype: torch.dtype, device: torch.device, num_rows: int) -> None:
        self.rows = torch.zeros(num_rows, columns, dtype=dtype, device=device)
        self._end = 0  # number of the next row

    def room(self, count: int) -> int:
        """The first number that will still be here once `count` more rows have passed."""
        return self._start(count) + count - len(self.rows)

    def put(self, features: Tensor) -> int:
        """Copy the features of a forward, no more than `MOST_ROWS`; no wait. Returns the number of the first row."""
        count = len(features)
        first = self._start(count)
        place = first % len(self.rows)
        self.rows[place : place + count].copy_(features, non_blocking=True)
        self._end = first + count
        return first

    def _start(self, count: int) -> int:
        """Number of the first of `count` rows: they stand one behind the other, not around the end."""
        left = len(self.rows) - self._end % len(self.rows)
        return self._end if count <= left else self._end + left

"""What `engine.submit` returns: a request that can be watched, waited for and cancelled."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from infercore.hf.request import Completion
from infercore.hf.state import RequestState


class RequestHandle:
    """A submitted request. It moves on when the engine steps; nothing runs behind the caller's back."""

    def __init__(self, state: RequestState, cancel: Callable[[RequestState], None]) -> None:
        self._state = state
        self._cancel = cancel
        self.completion: Completion | None = None
        """The result once the request is done, else None."""

    @property
    def request_id(self) -> int:
        return self._state.request_id

    @property
    def is_done(self) -> bool:
        return self.completion is not None

    @property
    def token_ids(self) -> list[int]:
        """The output so far."""
        return self._state.output_ids.tolist()  # type: ignore[no-any-return]

    @property
    def output_ids(self) -> npt.NDArray[np.int32]:
        """The output so far, as a view that the next step may invalidate."""
        return self._state.output_ids

    def cancel(self) -> None:
        """End the request now; its pages go back at once. Cancelling a finished request does nothing."""
        if not self.is_done:
            self._cancel(self._state)

"""`DrawnTokens`: tokens drawn on the device, with numbers that the host drew from each request's own generator."""

from collections.abc import Sequence as Seq

import numpy as np
import numpy.typing as npt
import torch
from jaxtyping import Float
from torch import Tensor

from infercore.hf.choices import Choices
from infercore.hf.choose import Turn
from infercore.sampling import probabilities_without_wait


class DrawnTokens:
    """Puts draws in the place of best tokens, for rows of requests with a temperature.

    A draw takes the number that drawing on the host would take, and gives the same token: a seed's output depends on
    neither. The state of the generator before it is kept until the token has been read, so that a draw which never was
    is taken back (`RequestState.undraw`).
    """

    def __init__(self, choices: Choices) -> None:
        self._choices = choices
        on_gpu = choices.tokens.device.type == "cuda"
        size = len(choices)
        self._numbers = torch.zeros(2 * size, dtype=torch.float64, pin_memory=on_gpu)  # rows (as int64), then draws
        self._on_host: npt.NDArray[np.float64] = self._numbers.numpy()
        self._is_right = torch.ones(size, dtype=torch.bool, pin_memory=on_gpu)
        self._rows: dict[int, int] = {}  # of the last launch, those that may not be right: their place among the flags

    def launch(self, turns: Seq[Turn], logits: Float[Tensor, "rows vocab"]) -> None:
        """Draw for those turns that want it, behind the choice of the best tokens; no wait, and nothing is copied back.

        What the last launch drew has been read. None of these turns has a draft.
        """
        members = [turn for turn in turns if turn.samples and not turn.state.request.sampling.is_greedy]
        self._rows = {}
        if not members:
            return
        count = len(members)
        rows = [turn.first_row + turn.num_known for turn in members]
        self._on_host[:count].view(np.int64)[:] = rows
        self._on_host[count : 2 * count] = [turn.state.draw() for turn in members]
        numbers = self._numbers[: 2 * count].to(logits.device, non_blocking=True)
        at, uniform = numbers[:count].view(torch.int64), numbers[count:]
        params = [turn.state.request.sampling for turn in members]
        probs, is_right = probabilities_without_wait(logits.index_select(0, at), params)
        exact = probs.double()
        cumulative = (exact / exact.sum(-1, keepdim=True)).cumsum(-1)  # as `speculative.verify` does it on a device
        target = (uniform * cumulative[:, -1])[:, None]
        ids = torch.searchsorted(cumulative, target, right=True)[:, 0].clamp_(max=logits.shape[1] - 1)
        tokens = self._choices.tokens
        tokens.index_copy_(0, at.to(tokens.device), ids.to(tokens.device))
        if is_right is not None:
            self._is_right[:count].copy_(is_right, non_blocking=True)
            self._rows = {row: place for place, row in enumerate(rows)}

    def is_right(self, row: int) -> bool:
        """Whether the draw of `row` counts, once the choices have been read; else it has to be made on the host."""
        place = self._rows.get(row)
        return place is None or bool(self._is_right[place])

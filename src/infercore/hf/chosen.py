"""`ChosenTokens`: the tokens of a step, chosen or drawn on the device and read when the host needs them.

Until then the device goes on: the next step's rows may begin with these tokens (`Rows.source`), and its forward runs
while the host reads them, advances grammars and fills the masks of the next choice.
"""

from collections.abc import Sequence as Seq

import numpy as np
import numpy.typing as npt
import torch
from jaxtyping import Float
from torch import Tensor

from infercore.hf.choices import Choices
from infercore.hf.choose import Turn, bad_row_error
from infercore.hf.drawn import DrawnTokens
from infercore.kernels import apply_token_bitmask_
from infercore.speculative import Verdict, verify_greedy


class ChosenTokens:
    """Choices of steps in which no request has penalties, processors, or rows to be kept; with grammars or without.

    Greedy ones may have drafts, draws may not. One step's choice is read before the next one is launched.

    Args:
        choices: where they stand on the device, for the next step's forward.
    """

    def __init__(self, choices: Choices) -> None:
        self.choices = choices
        self._on_gpu = choices.tokens.device.type == "cuda"
        self._drawn = DrawnTokens(choices)
        self._bitmask: Tensor | None = None
        self._top: Tensor | None = None
        self._top_on_host = np.empty(0, np.int64)
        self._num_rows = self._num_top = 0
        self._top_is_read = torch.cuda.Event() if self._on_gpu else None  # type: ignore[no-untyped-call]

    def serves(self, turns: Seq[Turn], num_rows: int) -> bool:
        """Whether all these requests want nothing but a choice for each of their rows, and these are few enough."""
        if num_rows > len(self.choices) or len({turn.first_row for turn in turns}) < len(turns):
            return False  # copies of a prompt share a row, and each may have a grammar of its own
        for turn in turns:
            request = turn.state.request
            if request.keeps_rows or (turn.samples and not turn.is_plain):
                return False
            if turn.samples and not request.sampling.is_greedy and (turn.tree.num_nodes or turn.state.draws_on_host):
                return False
        return True

    def launch(
        self, turns: Seq[Turn], logits: Float[Tensor, "rows vocab"], *, is_chosen: bool = False, num_top: int = 0
    ) -> None:
        """Choose from all rows, under the grammars' masks, which are written into `logits`; no wait.

        Args:
            is_chosen: the best of the rows as they are stand among the choices already.
            num_top: how many of each row's likeliest tokens `top_tokens` will be asked for.
        """
        self._num_rows, self._num_top = logits.shape[0], num_top
        if any(turn.samples and turn.state.grammar is not None for turn in turns):
            apply_token_bitmask_(logits, self._masks(turns, logits))
            is_chosen = False
        if not is_chosen:
            self.choices.choose(logits)
        self._drawn.launch(turns, logits)
        self.choices.fetch(self._num_rows, logits.dtype)
        if num_top:
            top = logits.topk(num_top).indices  # all of them at once, while the host has nothing to do
            size = self._num_rows * num_top
            if self._top is None or len(self._top) < size:
                self._top = torch.empty(len(self.choices) * num_top, dtype=torch.int64, pin_memory=self._on_gpu)
                self._top_on_host = self._top.numpy()
            self._top[:size].copy_(top.view(-1), non_blocking=True)
            if self._top_is_read is not None:
                self._top_is_read.record()

    def top_tokens(self, rows: npt.NDArray[np.int64], count: int) -> npt.NDArray[np.int64]:
        """The likeliest tokens of some rows of the last choice, `[len(rows), count]`, likeliest first."""
        assert count <= self._num_top
        if self._top_is_read is not None:
            self._top_is_read.synchronize()
        table = self._top_on_host[: self._num_rows * self._num_top].reshape(self._num_rows, self._num_top)
        top = table[rows]
        return top if count == self._num_top else top[:, :count]

    def read(self, turns: Seq[Turn]) -> list[Verdict | Exception | None]:
        """What `launch` chose for these turns, once it is there: as `choose` gives it.

        A draw that the device could not make is missing (None); its request draws on the host from now on.
        """
        ids, is_bad = self.choices.read()
        outcomes: list[Verdict | Exception | None] = [None] * len(turns)
        members, targets = [], []
        for i, turn in enumerate(turns):
            if not turn.samples:
                continue
            first = turn.first_row + turn.num_known
            stop = first + 1 + turn.tree.num_nodes
            if is_bad is not None and is_bad[first:stop].any():
                outcomes[i] = bad_row_error()
            elif not self._drawn.is_right(first):
                turn.state.draws_on_host = True
            else:
                members.append(i)
                targets.append(ids[first:stop])
        verdicts = verify_greedy([turns[i].tree for i in members], targets)
        for i, verdict in zip(members, verdicts, strict=True):
            outcomes[i] = verdict
        return outcomes

    def _masks(self, turns: Seq[Turn], logits: Tensor) -> Tensor:
        """One row of bits for each of `logits`, on its device; the host's copy is pinned and left alone until then."""
        num_rows, words = logits.shape[0], (logits.shape[1] + 31) // 32
        if self._bitmask is None or self._bitmask.shape[1] != words:
            shape = (len(self.choices), words)
            self._bitmask = torch.full(shape, -1, dtype=torch.int32, pin_memory=self._on_gpu)
        masks = self._bitmask[:num_rows]  # the last choice was read, so its masks were
        masks.fill_(-1)
        for turn in turns:
            if turn.samples and turn.state.grammar is not None:
                turn.state.grammar.fill(turn.tree, masks[turn.first_row + turn.num_known :][: 1 + turn.tree.num_nodes])
        return masks.to(logits.device, non_blocking=True)

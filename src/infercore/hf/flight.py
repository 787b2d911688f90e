"""`Flight`: a step whose forward was started and whose tokens were not read yet."""

from collections.abc import Sequence as Seq
from dataclasses import dataclass

from torch import Tensor

from infercore.hf.choose import Turn
from infercore.hf.plan import Rows
from infercore.hf.scheduler import Share
from infercore.speculative import TokenTree, Verdict


@dataclass(slots=True)
class Flight:
    """A step between its start and its end.

    Args:
        work: what each request does in it.
        turns: where its logits lie.
        logits: on the device; those of a graph are overwritten by the step after it.
        num_rows: of the forward.
        by_graph: there are logits of all rows, and the best of each stands among the choices.
        started_at: on the host's clock, before anything was done for it.
        on_device: its tokens are chosen by `ChosenTokens`.
        is_committed: its rows are part of their sequences already, because the next step's were started behind them.
        outcomes: where they were read at once.
    """

    work: list[tuple[Share, Rows]]
    turns: list[Turn]
    logits: Tensor
    num_rows: int
    by_graph: bool
    started_at: float
    on_device: bool = False
    is_committed: bool = False
    outcomes: list[Verdict | Exception | None] | None = None

    def forget_finished(self) -> None:
        """Leave out whoever ended, or was cancelled, since the start: those rows were in vain."""
        if all(_goes_on(share) for share, _ in self.work):
            return
        self.work = [(share, rows) for share, rows in self.work if _goes_on(share)]
        kept = {id(state) for share, _ in self.work for state in (share.state, *share.state.followers)}
        self.turns = [turn for turn in self.turns if id(turn.state) in kept]

    def learn_tokens(self) -> bool:
        """Of a step that was started before its tokens were read: they are known now; whether anyone still needs it.

        A request that got more tokens than the one, forced by its grammar, samples nothing from this step's row.
        """
        for share, rows in self.work:
            state, count = share.state, share.num_causal
            if not _goes_on(share):
                continue
            assert state.sequence is not None
            computed = state.sequence.num_tokens
            rows.token_ids = state.tokens[computed : computed + count]
            share.samples = share.samples and computed + count == state.num_tokens
        self.turns = turns_of(self.work, all_rows=self.by_graph)
        self.forget_finished()
        return bool(self.work)


def _goes_on(share: Share) -> bool:
    return share.state.sequence is not None and not share.state.is_done


def turns_of(work: Seq[tuple[Share, Rows]], *, all_rows: bool) -> list[Turn]:
    """Where each request's logits lie; copies of a prompt look at the rows of the one that computed it.

    Args:
        all_rows: there are logits of all rows, wanted or not.
    """
    turns: list[Turn] = []
    first = 0
    for share, rows in work:
        state, tree, num_causal = share.state, rows.tree, len(rows.token_ids)
        start = first + rows.first_logits_row if all_rows else first
        num_known = num_causal - rows.first_logits_row
        if share.samples:
            num_known -= 1
        turns.append(Turn(state, start, num_known, share.samples, tree, rows))
        if share.samples and state.followers:
            turns.extend(Turn(f, start + num_known, 0, True, TokenTree.empty()) for f in state.followers)
        first = start + num_causal - rows.first_logits_row + tree.num_nodes
    return turns

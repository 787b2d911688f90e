"""`Writer`: text that a model writes itself, questions included, many rows in lockstep.

An instruct model is given only what stands before a user's message; it writes the message, then, behind what stands
between a message and its answer, the answer. Every row writes one conversation after another, at its own place of the
paged cache: no row waits for another, and nothing is padded. All of a step happens on the device, so that on a GPU it
is one CUDA graph.
"""

import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from infercore.hf.heads.train.corpus import ANSWER, GIVEN, QUESTION, Document
from infercore.hf.packed_model import PackedModel
from infercore.hf.plan import plan_of
from infercore.radix import KVPool

_PAGE_SIZE = 16
_STEPS_AT_ONCE = 64
_TOP_K = 64
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Turns:
    """Token ids around what the model writes.

    Args:
        opening: before a user's message. Not empty.
        message_end: the token that ends a message; None: there are no messages, the text begins behind `opening`.
        between: what stands between that token and the answer.
        answer_ends: tokens that end an answer.
    """

    opening: list[int]
    message_end: int | None
    between: list[int]
    answer_ends: list[int]

    @classmethod
    def of(cls, tokenizer: Any, model: Any) -> "Turns":
        """Those of the tokenizer's chat template; for a tokenizer without one just its first token."""
        ends = model.generation_config.eos_token_id
        answer_ends = [ends] if isinstance(ends, int) else list(ends or [])
        if tokenizer.chat_template is None:
            first = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.eos_token_id
            if first is None:
                raise ValueError("the tokenizer has neither a chat template nor a first token; nothing to begin with")
            return cls([first], None, [], answer_ends)
        marker = "\u241e"
        messages = [{"role": "user", "content": marker}]
        text = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
        before, found, after = text.partition(marker)
        if not found:
            raise ValueError("the chat template does not show a user's message; give a model with another template")
        opening, behind = (tokenizer(part, add_special_tokens=False).input_ids for part in (before, after))
        return cls(opening, behind[0], behind[1:], answer_ends)


class Writer:
    """Writes documents without end.

    Args:
        model: checked and switched to paged attention.
        batch: rows that write at once; each costs `max_tokens` tokens of K/V.
        max_tokens: longest document; what is longer is cut there.
        temperature: of messages, and of answers in the rows that do not answer greedily.
        greedy_share: of the rows whose answers are the likeliest tokens, as greedy decoding gives them.
        top_p: nucleus of what is drawn, among the 64 likeliest tokens.
        cuda_graphs: one graph a step; None: on a GPU.
    """

    def __init__(
        self,
        model: PackedModel,
        turns: Turns,
        *,
        batch: int,
        max_tokens: int,
        temperature: float = 1.0,
        greedy_share: float = 0.5,
        top_p: float = 0.95,
        cuda_graphs: bool | None = None,
    ) -> None:
        if not turns.opening or max_tokens < len(turns.opening) + len(turns.between) + 2:
            raise ValueError(
                f"max_tokens is {max_tokens}, but what is given takes {len(turns.opening) + len(turns.between)} "
                "tokens, and the opening must not be empty"
            )
        self._model, self._batch, self._max_tokens = model, batch, max_tokens
        self._temperature, self._top_p = temperature, top_p
        device = model.device
        self._captures = device.type == "cuda" if cuda_graphs is None else cuda_graphs
        pages = -(-max_tokens // _PAGE_SIZE)
        self._pool = KVPool(1 + batch * pages, _PAGE_SIZE)
        rows = torch.arange(batch, device=device)
        self._table = (1 + rows[:, None] * pages + torch.arange(pages, device=device)).int()
        self._first_slot = (1 + rows * pages) * _PAGE_SIZE
        self._starts = torch.arange(batch + 1, device=device, dtype=torch.int32)
        self._ones = torch.ones(batch, device=device, dtype=torch.int32)
        longest = max(len(turns.opening), len(turns.between), 1)
        scripts = [turns.opening, turns.between]
        self._scripts = torch.tensor([s + [0] * (longest - len(s)) for s in scripts], device=device)
        self._script_lengths = torch.tensor([len(s) for s in scripts], device=device)
        self._message_end = -1 if turns.message_end is None else turns.message_end
        self._has_messages = turns.message_end is not None
        self._answer_ends = torch.tensor(turns.answer_ends or [-1], device=device)
        self._is_greedy = rows < round(greedy_share * batch)
        self._kinds = torch.tensor([QUESTION if self._has_messages else ANSWER, ANSWER], device=device)
        # what a step works on: the token to be run, its position and kind, and how far the row's script is
        self._token = self._scripts[0, :1].repeat(batch)
        self._position = torch.zeros(batch, dtype=torch.int64, device=device)
        self._kind = torch.full((batch,), GIVEN, dtype=torch.int64, device=device)
        self._script = torch.zeros(batch, dtype=torch.int64, device=device)
        self._place = torch.ones(batch, dtype=torch.int64, device=device)
        self._step_number = torch.zeros(1, dtype=torch.int64, device=device)
        self._record = torch.zeros(_STEPS_AT_ONCE, 3, batch, dtype=torch.int32, device=device)
        self._replay: Callable[[], None] | None = None

    def documents(self) -> Iterator[Document]:
        """What is written, as it is finished; draws from torch's default generator."""
        open_rows: list[list[npt.NDArray[np.int32]]] = [[] for _ in range(self._batch)]
        with torch.no_grad():
            while True:
                self._step_number.zero_()
                for _ in range(_STEPS_AT_ONCE):
                    self._run_step()
                record = self._record.cpu().numpy().copy()  # written over while parts of it are kept
                for row, parts in enumerate(open_rows):
                    yield from _split(parts, record[:, :, row])

    def _run_step(self) -> None:
        if self._replay is not None:
            self._replay()
            return
        self._step()
        if self._captures:
            self._captures = False
            self._replay = self._captured()

    def _step(self) -> None:
        """Run the tokens, keep them, and put the next ones in their place."""
        now = torch.stack([self._token, self._position, self._kind]).int()
        self._record.index_copy_(0, self._step_number, now[None])
        tensors: dict[str, Tensor | None] = {
            "token_ids": self._token,
            "position_ids": self._position,
            "slot_mapping": self._first_slot + self._position,
            "row_starts": self._starts,
            "context_lens": self._position.int(),
            "num_causal_rows": self._ones,
            "block_table": self._table,
            "ancestor_bits": None,
        }
        logits = self._model.forward(plan_of(tensors, None, self._pool))
        drawn = self._draw(logits.float())
        given = self._place < self._script_lengths[self._script]
        at = self._place.clamp_max(self._scripts.shape[1] - 1)
        token = torch.where(given, self._scripts[self._script, at], drawn)
        kind = torch.where(given, GIVEN, self._kinds[self._script])
        place, script = self._place + 1, self._script
        written = self._kind != GIVEN
        if self._has_messages:  # the message's last token was run: the answer's script follows
            ends = written & (self._script == 0) & (self._token == self._message_end)
            has_between = self._script_lengths[1] > 0
            token = torch.where(ends & has_between, self._scripts[1, 0], token)
            kind = torch.where(ends, torch.where(has_between, GIVEN, ANSWER), kind)
            script = torch.where(ends, 1, script)
            place = torch.where(ends, 1, place)
        is_answer = written & (self._kind == ANSWER)
        over = is_answer & (self._token[:, None] == self._answer_ends).any(-1)
        over |= self._position >= self._max_tokens - 1
        self._token.copy_(torch.where(over, self._scripts[0, 0], token))
        self._kind.copy_(torch.where(over, GIVEN, kind))
        self._script.copy_(torch.where(over, 0, script))
        self._place.copy_(torch.where(over, 1, place))
        self._position.copy_(torch.where(over, 0, self._position + 1))
        self._step_number += 1

    def _draw(self, logits: Tensor) -> Tensor:
        best = logits.topk(min(_TOP_K, logits.shape[1]))
        probs = torch.softmax(best.values / self._temperature, -1)
        probs = probs * (probs.cumsum(-1) - probs < self._top_p)
        noise = -torch.log(torch.rand_like(probs).clamp_min(1e-20))
        rank = (probs / noise).argmax(-1)
        answers = (self._script == 1) if self._has_messages else torch.ones_like(self._is_greedy)
        rank = torch.where(self._is_greedy & answers, 0, rank)
        return best.indices.gather(1, rank[:, None])[:, 0]

    def _captured(self) -> Callable[[], None]:
        """The step as a CUDA graph, or, where it cannot be captured, as it is, with a warning."""
        try:
            torch.cuda.synchronize()
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):
                self._step()
            return graph.replay
        except torch.cuda.OutOfMemoryError:
            raise
        except Exception as error:  # whatever the model does that a capture forbids
            _log.warning("text is written without CUDA graphs: %s: %s", type(error).__name__, error)
            return self._step


def _split(parts: list[npt.NDArray[np.int32]], record: npt.NDArray[np.int32]) -> Iterator[Document]:
    """Documents that ended within `record` (`[steps, 3]` of one row); what is open stays in `parts`."""
    last = 0
    for begin in np.flatnonzero(record[:, 1] == 0).tolist():
        if begin > last:
            parts.append(record[last:begin])
        if parts:
            whole = np.concatenate(parts)
            yield Document(whole[:, 0].copy(), whole[:, 2].astype(np.int8))
        parts.clear()
        last = begin
    parts.append(record[last:])

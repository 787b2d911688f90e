"""`SuffixDrafter`: trees of what followed the current context before."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
from jaxtyping import Int32
from torch import Tensor

from infercore.speculative.suffix import _compiled
from infercore.speculative.suffix.automaton import SuffixAutomaton
from infercore.speculative.tree import TokenTree
from infercore.speculative.types import DraftRequest
from infercore.typing import TokenIds, as_token_ids

_SEPARATOR = np.array([-1], np.int32)
_LEARNING_RATE = 0.02  # of the trust in a level, per token that it had a say in
_MAX_CONTEXT = 64  # tokens re-read when a cursor into the shared text starts again

# Chance that the next token is among the followers of a context, by matched length, after all longer contexts failed;
# row 0 for the request's own text, row 1 for the shared one. Fitted on greedy traces: see docs/log/speculative.md.
_TRUST = np.array(
    [
        [0.0, 0.33, 0.48, 0.63, 0.70, 0.76, 0.79, 0.80, 0.82, 0.83, 0.86, 0.86, 0.88, 0.90, 0.92, 0.96],
        [0.0, 0.18, 0.24, 0.35, 0.45, 0.60, 0.65, 0.70, 0.75, 0.80, 0.80, 0.80, 0.80, 0.80, 0.80, 0.80],
    ],
    np.float32,
)


class SuffixDrafter:
    """Reads on from every earlier occurrence of the longest suffix, in the request's own text and in a shared one.

    Best where text repeats or quotes: editing, extraction, code, summaries, chat with history. Needs no model.

    Args:
        corpus: texts to quote from, for all requests.
        learn_outputs: add what each finished request generated to the shared text. Outputs stay exact, but how fast
            they come then depends on what others asked before.
        max_shared_tokens: size of the shared text; when it is full, its older half is forgotten.
        max_depth: longest path of a tree.
    Cost: per step about 10 µs for 32 nodes, and 0.3 µs per new token; 113 bytes per token of text.
    Source: Hu et al. 2024 (SAM Decoding, arXiv 2411.10666) and Oliaro et al. 2024 (SuffixDecoding, arXiv 2411.04975).
        We differ: candidates of all context lengths compete in one best-first tree, by fitted probabilities.
    """

    def __init__(
        self,
        corpus: Iterable[TokenIds] = (),
        *,
        learn_outputs: bool = True,
        max_shared_tokens: int = 1 << 18,
        max_depth: int = 16,
    ) -> None:
        if max_depth < 1:
            raise ValueError(f"max_depth is {max_depth}; expected at least 1")
        if max_shared_tokens < 0:
            raise ValueError(f"max_shared_tokens is {max_shared_tokens}; expected 0 (no shared text) or more")
        self._learn_outputs = learn_outputs
        self._max_shared_tokens = max_shared_tokens
        self._max_depth = max_depth
        self._trust = np.repeat(_TRUST[:, :, None], 4, 2)
        self._texts: list[npt.NDArray[np.int32]] = []
        self._shared = SuffixAutomaton()
        self._generation = 0
        self._own: dict[int, _Own] = {}
        for text in corpus:
            self._share(as_token_ids(text, name="corpus"))

    def propose(self, requests: Sequence[DraftRequest]) -> list[TokenTree]:
        return [self._tree(request) for request in requests]

    def grow(self, request: DraftRequest, nodes: Int32[np.ndarray, "3 capacity"], start: int) -> int:
        if request.max_nodes <= 0:
            return 0
        own = self._synchronised(request)
        recent = _NOTHING
        if own.generation != self._generation:
            own.forget_shared(self._generation)
            recent = np.ascontiguousarray(request.token_ids[-_MAX_CONTEXT:], np.int32)
        num_nodes = _compiled.grow(
            own.automaton.handle,
            self._shared.handle,
            self._trust,
            self._max_depth,
            recent,
            request.max_nodes,
            nodes,
            start,
        )
        return int(num_nodes)

    def commit(
        self, request_id: int, accepted_token_ids: Int32[np.ndarray, "n"], features: Tensor | None = None
    ) -> None:
        if (own := self._own.get(request_id)) is not None:
            self._append(own, accepted_token_ids)

    def close(self, request_id: int) -> None:
        own = self._own.pop(request_id, None)
        if own is not None and self._learn_outputs:
            self._share(np.concatenate([*own.outputs, _NOTHING]))

    @property
    def size_bytes(self) -> int:
        """Host memory of all automata."""
        return self._shared.size_bytes + sum(own.automaton.size_bytes for own in self._own.values())

    def _tree(self, request: DraftRequest) -> TokenTree:
        nodes = np.empty((3, max(0, request.max_nodes)), np.int32)
        return TokenTree.from_columns(nodes, self.grow(request, nodes, 0))

    def _synchronised(self, request: DraftRequest) -> "_Own":
        """The state of the request, having read exactly the text that the request carries."""
        length = len(request.token_ids)
        own = self._own.get(request.request_id)
        if (
            own is None
            or own.num_tokens > length
            or (own.num_tokens > 0 and own.last_token_id != request.token_ids[own.num_tokens - 1])
        ):  # new, or a text that was taken back
            own = self._own[request.request_id] = _Own(SuffixAutomaton(length + 256))
            prompt = np.ascontiguousarray(request.token_ids, np.int32)
            own.automaton.extend(prompt)
            own.num_tokens = length
            own.last_token_id = int(prompt[-1]) if length else -1
        elif own.num_tokens < length:
            self._append(own, np.array(request.token_ids[own.num_tokens :], np.int32))
        return own

    def _append(self, own: "_Own", token_ids: npt.NDArray[np.int32]) -> None:
        if not len(token_ids):
            return
        automaton = own.automaton
        if own.generation != self._generation:
            own.forget_shared(own.generation)
        own.num_tokens += len(token_ids)
        automaton.reserve(own.num_tokens)
        _compiled.read(automaton.handle, self._shared.handle, self._trust, _LEARNING_RATE, token_ids)
        own.last_token_id = int(token_ids[-1])
        own.outputs.append(token_ids)

    def _share(self, text: npt.NDArray[np.int32]) -> None:
        text = text[-max(0, self._max_shared_tokens - 1) :] if self._max_shared_tokens else _NOTHING
        if not len(text):
            return
        self._texts.append(text)
        if self._shared.num_tokens + len(text) + 1 > self._max_shared_tokens:
            self._forget_older_half()
        else:
            self._shared.extend(_SEPARATOR)
            self._shared.extend(text)

    def _forget_older_half(self) -> None:
        kept: list[npt.NDArray[np.int32]] = []
        room = self._max_shared_tokens // 2
        while self._texts and (not kept or len(self._texts[-1]) < room):
            kept.insert(0, self._texts.pop())
            room -= len(kept[0]) + 1
        self._texts = kept
        self._shared = SuffixAutomaton()
        self._generation += 1
        for text in kept:
            self._shared.extend(_SEPARATOR)
            self._shared.extend(text)


@dataclass(slots=True)
class _Own:
    """What is kept per request."""

    automaton: SuffixAutomaton
    """Keeps the longest suffix of the request's text in the shared one as well, valid in `generation`."""
    num_tokens: int = 0
    last_token_id: int = -1
    outputs: list[npt.NDArray[np.int32]] = field(default_factory=list)
    generation: int = -1

    def forget_shared(self, generation: int) -> None:
        """The end of the request's text in the shared one is the empty context again."""
        self.automaton.header[4:] = 0
        self.generation = generation


_NOTHING = np.empty(0, np.int32)

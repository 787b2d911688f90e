"""`ModelForward`: any Hugging Face causal LM as a drafter's model, with its own KV."""

from collections.abc import Sequence as Seq
from typing import Any

import numpy as np
import torch
from jaxtyping import Integer
from torch import Tensor

from infercore.errors import OutOfPages, RequestError
from infercore.hf.graphs import step_graphs
from infercore.hf.packed_model import PackedModel
from infercore.hf.plan import Rows, build_plan, count_rows
from infercore.hf.pool_size import default_num_pages
from infercore.radix import KVPool, PrefixCache, Sequence
from infercore.speculative import TokenTree

_NO_TREE = TokenTree.empty()
_MAX_SEQS = 32  # in a forward by CUDA graphs


class ModelForward:
    """What `speculative.DraftModelDrafter` calls: `ForwardFn` over a small model of the target's vocabulary.

        drafter = DraftModelDrafter(ModelForward(small_model))
        engine.generate(prompts, drafter=drafter)

    A request keeps the K/V of its text from call to call: what a step accepted is computed once, and where a text turns
    out to differ from what was computed, the K/V from there on is dropped. Rows of draft nodes are given back before
    `forward` returns. Requests share prefixes of their prompts, as in the engine. When pages run out, requests that are
    not in the call lose their K/V and compute it again later.

    Args:
        model: a decoder-only causal LM of transformers; it may be the target itself.
        num_pages: size of the KV pool, as for `Engine`.
        max_rows: rows of a forward; longer texts take several. None: 512 on a CPU, 2048 on a GPU.
        vocab_size: columns of the logits to use, where the model pads its vocabulary further than the target does.
    Raises: UnsupportedModel as `Engine` does.
    """

    def __init__(
        self,
        model: Any,
        *,
        num_pages: int | None = None,
        page_size: int = 16,
        max_rows: int | None = None,
        vocab_size: int | None = None,
    ) -> None:
        self._model = PackedModel(model)
        if vocab_size is not None and not 0 < vocab_size <= self._model.vocab_size:
            raise ValueError(
                f"vocab_size is {vocab_size}, but the model has logits for {self._model.vocab_size} tokens"
            )
        self.vocab_size = vocab_size or self._model.vocab_size
        pages = num_pages or default_num_pages(self._model.bytes_per_token * page_size, page_size, self._model.device)
        self._pool = KVPool(pages, page_size)
        self.cache = PrefixCache(pages, page_size, store=self._pool)
        self._max_rows = max_rows or (2048 if self._model.device.type == "cuda" else 512)
        self._sequences: dict[int, Sequence] = {}
        most = self._model.max_positions or pages * page_size
        self._graphs = step_graphs(
            self._model, self._pool, None, fuse_layers=False, max_seqs=_MAX_SEQS, max_tokens=most
        )

    def forward(
        self, request_ids: Seq[int], texts: Seq[Integer[np.ndarray, "_"]], trees: Seq[TokenTree]
    ) -> list[Tensor]:
        """Logits `[1 + num_nodes, vocab_size]` per request: after its whole text, and after each node below its end.

        Raises: RequestError if a text is empty or longer than the pool; its requests' K/V is dropped then.
        """
        if self._model.has_changed():
            self.invalidate()
        if any(len(text) == 0 for text in texts):
            raise RequestError("a text is empty, expected at least the token to continue from")
        texts = [np.ascontiguousarray(text, np.int32) for text in texts]
        try:
            for request_id, text in zip(request_ids, texts, strict=True):
                self._match(request_id, text)
            while any(len(t) - self._sequences[i].num_tokens > 1 for i, t in zip(request_ids, texts, strict=True)):
                self._prefill(request_ids, texts)
            return self._run(request_ids, [text[-1:] for text in texts], trees)
        except BaseException:
            for request_id in request_ids:
                self._drop(request_id, insert=False)
            raise

    def close(self, request_id: int) -> None:
        """Let the request's K/V go; whole pages of it stay cached until others need them."""
        self._drop(request_id, insert=True)

    def invalidate(self) -> None:
        """Forget all K/V, for changes of weights that cannot be seen."""
        for request_id in list(self._sequences):
            self._drop(request_id, insert=False)
        self.cache.clear()
        if self._graphs is not None:
            self._graphs.clear()

    def _match(self, request_id: int, text: np.ndarray) -> None:
        """Keep of the K/V what `text` begins with, but for its last token: that one is computed for its logits."""
        sequence = self._sequences.get(request_id)
        if sequence is None:
            self._sequences[request_id] = self.cache.open(text[:-1])
            return
        length = min(sequence.num_tokens, len(text) - 1)
        differs = sequence.token_ids[:length] != text[:length]
        common = int(differs.argmax()) if differs.any() else length
        sequence.rollback(sequence.num_tokens - common)

    def _prefill(self, request_ids: Seq[int], texts: Seq[np.ndarray]) -> None:
        """One forward over parts of texts that are not computed, all but their last tokens."""
        left = self._max_rows
        ids, chains = [], []
        for request_id, text in zip(request_ids, texts, strict=True):
            computed = self._sequences[request_id].num_tokens
            chain = text[computed : min(len(text) - 1, computed + left)]
            if len(chain):
                ids.append(request_id)
                chains.append(chain)
                left -= len(chain)
        self._run(ids, chains, [_NO_TREE] * len(ids), wants_logits=False, present=set(request_ids))

    def _run(
        self,
        request_ids: Seq[int],
        chains: Seq[np.ndarray],
        trees: Seq[TokenTree],
        *,
        wants_logits: bool = True,
        present: set[int] | None = None,
    ) -> list[Tensor]:
        rows = []
        for request_id, chain, tree in zip(request_ids, chains, trees, strict=True):
            sequence = self._sequences[request_id]
            slots = self._slots(sequence, len(chain) + tree.num_nodes, present or set(request_ids))
            first = len(chain) - 1 if wants_logits else len(chain)
            rows.append(Rows(sequence, chain, tree, slots, first))
        logits: Tensor | None = None
        with torch.no_grad(), self._model.faster(count_rows(rows)):
            if self._graphs is not None and wants_logits:
                logits = self._graphs.forward(rows)
            if logits is None:
                logits = self._model.forward(build_plan(rows, self._pool, self._model.device))
            else:
                logits = logits.clone()  # the next forward writes over it
        for each in rows:
            each.sequence.commit(each.token_ids)
        if not wants_logits:
            for each in rows:
                each.sequence.insert()  # other requests may begin alike
            return []
        return list(torch.split(logits[:, : self.vocab_size], [1 + tree.num_nodes for tree in trees]))

    def _slots(self, sequence: Sequence, count: int, present: set[int]) -> np.ndarray:
        while True:
            try:
                return sequence.append(count)
            except OutOfPages as error:
                other = next((i for i in self._sequences if i not in present), None)
                if other is None:
                    raise RequestError(
                        f"the draft model's pool of {self.cache.counts().total} pages cannot hold the texts of "
                        f"{len(present)} requests; build ModelForward with more num_pages"
                    ) from error
                self._drop(other, insert=True)

    def _drop(self, request_id: int, *, insert: bool) -> None:
        sequence = self._sequences.pop(request_id, None)
        if sequence is not None:
            sequence.commit([])
            sequence.close(insert=insert)

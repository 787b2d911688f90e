"""Hugging Face `generate` at its best: batched with padding, with a cache that is reused, with prompt lookup.

All functions decode greedily, take lists of token ids and return the new ids of each prompt, end token included.
"""

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import DynamicCache, LogitsProcessor

from infercore.hf import cache_argument

TokenIds = list[int]


@dataclass(slots=True)
class Kept:
    """A cache of batch size 1 that a user holds on to, and the tokens whose K/V it has."""

    token_ids: TokenIds
    cache: Any

    @classmethod
    def of(cls, model: Any, token_ids: TokenIds) -> "Kept":
        """Computed in one forward."""
        cache = DynamicCache(config=model.config)
        with torch.no_grad():
            model(
                input_ids=torch.tensor([token_ids], device=model.device),
                logits_to_keep=1,
                **cache_argument(model, cache),
            )
        return cls(token_ids, cache)

    def copy(self) -> "Kept":
        return Kept(self.token_ids, copy.deepcopy(self.cache))

    def repeated(self, batch_size: int) -> Any:
        """A copy of the cache with `batch_size` rows."""
        rows = copy.deepcopy(self.cache)
        rows.batch_repeat_interleave(batch_size)
        return rows

    def cut_to_prefix_of(self, prompt: TokenIds) -> int:
        """Drop in place what `prompt` does not begin with; returns how many tokens stay."""
        length = len(common_prefix([[*self.token_ids, -1], prompt]))
        if length < len(self.token_ids):
            self.cache.crop(length - len(self.token_ids))  # a negative number: how many to remove
            self.token_ids = self.token_ids[:length]
        return length


class OnRow(LogitsProcessor):  # type: ignore[misc]
    """Applies a processor to one row of a batch."""

    def __init__(self, row: int, processor: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]) -> None:
        self._row = row
        self._processor = processor

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        row = slice(self._row, self._row + 1)
        scores = scores.clone()
        scores[row] = self._processor(input_ids[row], scores[row])
        return scores


def generate(
    model: Any,
    prompt: TokenIds,
    max_new_tokens: int,
    *,
    cache: Any = None,
    prompt_lookup: int | None = None,
    logits_processor: Any = None,
) -> TokenIds:
    """Continue one prompt. `cache` holds the K/V of a prefix of it and grows by the rest."""
    ids = torch.tensor([prompt], device=model.device)
    options: dict[str, Any] = {} if cache is None else cache_argument(model, cache)
    if prompt_lookup is not None:
        options["prompt_lookup_num_tokens"] = prompt_lookup
    if logits_processor is not None:
        options["logits_processor"] = [logits_processor]
    output = model.generate(
        input_ids=ids,
        attention_mask=torch.ones_like(ids),
        max_new_tokens=max_new_tokens,
        do_sample=False,
        **options,
    )
    return _new_tokens(output[0, len(prompt) :].tolist(), end_token_ids(model))


def generate_batch(
    model: Any,
    prompts: Sequence[TokenIds],
    max_new_tokens: int,
    *,
    prefix: "Kept | None" = None,
    logits_processor: Any = None,
) -> list[TokenIds]:
    """Continue several prompts in one batch, padded on the left.

    `prefix` holds the K/V of tokens with which all prompts begin: it is copied and repeated, and the padding goes
    between it and the rest of each prompt.
    """
    length = len(prefix.token_ids) if prefix is not None else 0
    longest = max(len(prompt) for prompt in prompts)
    pad_id = model.generation_config.pad_token_id
    ids, mask = [], []
    for prompt in prompts:
        padding = longest - len(prompt)
        ids.append([*prompt[:length], *[pad_id] * padding, *prompt[length:]])
        mask.append([*[1] * length, *[0] * padding, *[1] * (len(prompt) - length)])
    options: dict[str, Any] = {}
    if prefix is not None:
        options |= cache_argument(model, prefix.repeated(len(prompts)))
    if logits_processor is not None:
        options["logits_processor"] = [logits_processor]
    output = model.generate(
        input_ids=torch.tensor(ids, device=model.device),
        attention_mask=torch.tensor(mask, device=model.device),
        max_new_tokens=max_new_tokens,
        do_sample=False,
        **options,
    )
    return [_new_tokens(row, end_token_ids(model)) for row in output[:, longest:].tolist()]


def common_prefix(prompts: Sequence[TokenIds]) -> TokenIds:
    """The tokens that all prompts begin with, short of the last token of the shortest."""
    length = 0
    limit = min(len(prompt) for prompt in prompts) - 1
    while length < limit and all(prompt[length] == prompts[0][length] for prompt in prompts):
        length += 1
    return prompts[0][:length]


def end_token_ids(model: Any) -> set[int]:
    """The tokens that end an output of `model`."""
    ids = model.generation_config.eos_token_id
    return set() if ids is None else {ids} if isinstance(ids, int) else set(ids)


def _new_tokens(row: TokenIds, end_ids: set[int]) -> TokenIds:
    """`row` up to its first end token; what follows is padding."""
    for i, token_id in enumerate(row):
        if token_id in end_ids:
            return row[: i + 1]
    return row

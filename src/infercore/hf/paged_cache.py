"""`PagedCache`: the engine's pool and prefix cache behind plain `model.generate(cache=...)`.

It gathers K/V out of the pages at every layer, so it is correct with any attention and slower than the engine. Use it
where the engine cannot be used but a prefix is worth reusing: beams, or a generation loop of one's own.
"""

from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor
from transformers.cache_utils import Cache, CacheLayerMixin

from infercore.radix import KVPool, PrefixCache, Sequence
from infercore.typing import TokenIds, as_token_ids


class PagedCache(Cache):  # type: ignore[misc]
    """A transformers cache whose tokens live in pages; rows of the batch start with the same cached prefix.

        with PagedCache(engine.cache, engine.pool, model.config, prompt_ids) as past:
            out = model.generate(input_ids, cache=past)                    # computes only what is not cached
            past.keep(out[0])                                              # later requests find it

    Before transformers 5.24 the argument is `past_key_values`; `**cache_argument(model, past)` is right for all.

    Args:
        prefix_cache, pool: of an engine, or one's own pair.
        config: the model's configuration.
        prompt_ids: the prompt that all rows share; what is cached of it, but for its last token, is reused.
        batch_size: rows of the batch, after `num_beams` or `num_return_sequences` expanded it.

    `close`, or leaving the `with`, gives all pages back. Raises OutOfPages where the pool is too small.
    """

    def __init__(
        self,
        prefix_cache: PrefixCache,
        pool: KVPool,
        config: Any,
        prompt_ids: TokenIds,
        *,
        batch_size: int = 1,
    ) -> None:
        self._prefix_cache = prefix_cache
        self._pool = pool
        self._prompt = as_token_ids(prompt_ids, name="prompt_ids")
        self._rows = [_Row(prefix_cache, self._prompt) for _ in range(batch_size)]
        num_layers = config.get_text_config().num_hidden_layers
        super().__init__(layers=[_PagedLayer(self, i) for i in range(num_layers)])

    def keep(self, token_ids: TokenIds, *, row: int = 0) -> int:
        """Publish a row's computed tokens for later prompts: `token_ids` is prompt and output of that row.

        Returns: tokens newly cached, whole pages only.
        Raises: ValueError if they do not begin with the prompt.
        """
        ids = as_token_ids(token_ids)
        if not np.array_equal(ids[: len(self._prompt)], self._prompt):
            raise ValueError(
                "token_ids does not begin with the prompt this cache was opened with; pass prompt and output"
            )
        return self._rows[row].keep(ids)

    def close(self) -> None:
        """Give all pages back. Calling it again does nothing."""
        for row in self._rows:
            row.sequence.close(insert=False)
        self._rows = []

    def __enter__(self) -> "PagedCache":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    @property
    def length(self) -> int:
        """Tokens whose K/V is known, prefix included."""
        return self._rows[0].length if self._rows else 0

    def grow(self, num_rows: int, num_tokens: int) -> None:
        """Reserve room for `num_tokens` more in each row; a batch that grew since the start copies the first row."""
        if len(self._rows) == 1 and num_rows > 1:
            self.repeat(num_rows)
        if len(self._rows) != num_rows:
            raise ValueError(
                f"the batch has {num_rows} rows, but this cache {len(self._rows)}; set batch_size={num_rows}"
            )
        for row in self._rows:
            row.grow(num_tokens)

    def slots(self, start: int, stop: int) -> Int64[Tensor, "rows tokens"]:
        """Where tokens `start` to `stop` of every row lie."""
        return torch.from_numpy(np.stack([row.slots[start:stop] for row in self._rows]))

    def shrink(self, num_tokens: int) -> None:
        """Forget the last tokens of every row."""
        for row in self._rows:
            row.length -= num_tokens

    def select(self, indices: list[int]) -> None:
        """Row i becomes what row `indices[i]` was; tokens beyond the shared prefix are copied."""
        if len(indices) > len(self._rows):
            self._rows += [
                _Row(self._prefix_cache, self._prompt, like=self._rows[0]) for _ in indices[len(self._rows) :]
            ]
        start, stop = self._rows[0].num_shared, self.length
        sources = np.concatenate([self._rows[i].slots[start:stop] for i in indices])
        targets = np.concatenate([row.slots[start:stop] for row in self._rows[: len(indices)]])
        self._pool.move_slots(sources, targets)
        for row in self._rows[len(indices) :]:
            row.sequence.close(insert=False)
        del self._rows[len(indices) :]

    def repeat(self, repeats: int) -> None:
        """Every row `repeats` times, side by side."""
        self.select([i for i in range(len(self._rows)) for _ in range(repeats)])


class _Row:
    """One sequence of the batch: a shared prefix, then tokens of its own that stay uncommitted until `keep`."""

    def __init__(self, cache: PrefixCache, prompt: Any, like: "_Row | None" = None) -> None:
        self.sequence: Sequence = cache.open(prompt[:-1] if like is None else prompt[: like.num_shared])
        self.num_shared: int = self.sequence.num_tokens
        self.slots = self.sequence.slots(0, self.num_shared)
        self.length = self.num_shared
        if like is not None:
            self.grow(like.length - self.length)

    def grow(self, num_tokens: int) -> None:
        missing = self.length + num_tokens - len(self.slots)
        if missing > 0:
            self.slots = np.concatenate([self.slots, self.sequence.append(missing)])
        self.length += num_tokens

    def keep(self, token_ids: Any) -> int:
        num_new = min(self.length, len(token_ids)) - self.sequence.num_tokens
        if num_new <= 0:
            return 0
        start = self.sequence.num_tokens
        self.sequence.commit(token_ids[start : start + num_new])
        self.num_shared = start + num_new
        self.slots = self.slots[: self.num_shared]
        self.length = self.num_shared
        return self.sequence.insert()


class _PagedLayer(CacheLayerMixin):  # type: ignore[misc]
    """One layer; the first one to be asked in a forward moves all of them."""

    is_compileable = False
    is_sliding = False
    is_croppable = True

    def __init__(self, owner: PagedCache, layer_idx: int) -> None:
        super().__init__()
        self._owner = owner
        self._layer_idx = layer_idx
        self._length = owner.length
        self.is_initialized = True

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Nothing to do: pages are claimed at the first write."""

    def update(
        self,
        key_states: Float[Tensor, "batch heads tokens k_dim"],
        value_states: Float[Tensor, "batch heads tokens v_dim"],
        *args: Any,
        **kwargs: Any,
    ) -> tuple[Tensor, Tensor]:
        """Write the new tokens' K/V into the pool; return all of the batch, gathered."""
        batch, _, num_tokens, _ = key_states.shape
        owner = self._owner
        if owner.length == self._length:
            owner.grow(batch, num_tokens)
        start, self._length = self._length, owner.length
        keys, values = (t.transpose(1, 2).flatten(0, 1) for t in (key_states, value_states))
        k_pages, v_pages = owner._pool.layer(self._layer_idx, keys, values)
        k_slots, v_slots = k_pages.flatten(0, 1), v_pages.flatten(0, 1)
        new = owner.slots(start, self._length).flatten().to(keys.device)
        k_slots[new], v_slots[new] = keys, values
        every = owner.slots(0, self._length).to(keys.device)
        return k_slots[every].transpose(1, 2), v_slots[every].transpose(1, 2)

    def get_seq_length(self) -> int:
        """Tokens whose K/V this layer knows."""
        return self._length

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Keys after the next update, and the position of the first."""
        return self._length + (query_length if isinstance(query_length, int) else len(query_length)), 0

    def get_max_length(self) -> int:
        """No limit but the pool's."""
        return -1

    get_max_cache_shape = get_max_length  # its name before transformers 5.3

    def reset(self) -> None:
        """Back to the cached prefix."""
        self.crop(self._owner._rows[0].num_shared - self._length)

    def crop(self, num_tokens: int) -> None:
        """Forget the last tokens: -n of them, or, as before transformers 5.20, all beyond the first n."""
        remove = -num_tokens if num_tokens <= 0 else max(0, self._length - num_tokens)
        if self._owner.length == self._length:
            self._owner.shrink(remove)
        self._length -= remove

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Rows change places, as beam search asks."""
        if self._layer_idx == 0:
            self._owner.select(beam_idx.tolist())

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Every row several times."""
        if self._layer_idx == 0:
            self._owner.repeat(repeats)

    def batch_select_indices(self, indices: Tensor) -> None:
        """Keep some rows."""
        if self._layer_idx == 0:
            self._owner.select(indices.reshape(-1).tolist())

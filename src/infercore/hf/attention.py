"""The attention function that transformers calls in every layer, registered under the name "infercore".

With a plan among the forward's keyword arguments it writes the step's K/V into the pool and attends through the block
table. Without one it is the model's ordinary attention, so that a model served by the engine still works elsewhere.
"""

from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from infercore.errors import UnsupportedModel
from infercore.hf.plan import Plan
from infercore.kernels import tree_attention, write_kv

NAME = "infercore"


def register() -> None:
    """Make `model.set_attn_implementation("infercore")` possible; calling it again changes nothing."""
    AttentionInterface.register(NAME, packed_attention)
    AttentionMaskInterface.register(NAME, sdpa_mask)


@torch.compiler.disable  # type: ignore[untyped-decorator]  # plans are no tensors: compiled layers are cut here
def packed_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    softcap: float | None = None,
    sliding_window: int | None = None,
    s_aux: Tensor | None = None,
    infercore: Plan | None = None,
    **kwargs: Any,
) -> tuple[Tensor, Tensor | None]:
    """One layer's attention, in the shape that transformers' attention interface fixes.

    Args:
        query: `[1, num_heads, rows, k_dim]`; key and value `[1, num_kv_heads, rows, dim]`, positions applied.
        s_aux: one sink logit a head (GPT-OSS).
        infercore: the plan of this step, or None for ordinary attention.
    Returns: `[1, rows, num_heads, v_dim]` and None (weights are never formed).
    Raises: UnsupportedModel if the layer asks for something the packed forward does not do.
    """
    if infercore is None:
        return _ordinary_attention(
            module, query, key, value, attention_mask, scaling, dropout, softcap, s_aux, sliding_window, kwargs
        )
    if query.shape[0] != 1:
        raise UnsupportedModel(f"{type(module).__name__} split the packed batch of 1 into {query.shape[0]} rows")
    for name in ("position_bias", "head_mask"):
        if kwargs.get(name) is not None:
            raise UnsupportedModel(f"{type(module).__name__} passes {name}, which paged attention does not apply")
    layer_idx = module.layer_idx
    infercore.observed.append((layer_idx, sliding_window))  # type: ignore[arg-type]
    q, k, v = (t[0].transpose(0, 1) for t in (query, key, value))
    k_pages, v_pages = infercore.pool.layer(layer_idx, k, v)  # type: ignore[arg-type]
    write_kv(k, v, k_pages, v_pages, infercore.slot_mapping)
    out = tree_attention(
        q,
        k_pages,
        v_pages,
        position_ids=infercore.position_ids,
        row_starts=infercore.row_starts,
        context_lens=infercore.context_lens,
        num_causal_rows=infercore.num_causal_rows,
        block_table=infercore.block_table,
        ancestor_bits=infercore.ancestor_bits,
        scaling=q.shape[-1] ** -0.5 if scaling is None else scaling,
        sliding_window=sliding_window,
        softcap=softcap,
        sinks=s_aux,
        prepared=infercore.prepared,
    )
    return out[None], None


def _ordinary_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None,
    dropout: float,
    softcap: float | None,
    sinks: Tensor | None,
    sliding_window: int | None,
    kwargs: dict[str, Any],
) -> tuple[Tensor, Tensor | None]:
    if softcap is None and sinks is None:
        return sdpa_attention_forward(  # type: ignore[no-any-return]
            module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **kwargs
        )
    groups = query.shape[1] // key.shape[1]
    scores = query @ key.repeat_interleave(groups, 1).transpose(2, 3)
    scores = scores * (query.shape[-1] ** -0.5 if scaling is None else scaling)
    if softcap is not None:
        scores = softcap * torch.tanh(scores / softcap)
    if attention_mask is None:
        q_pos = torch.arange(key.shape[2] - query.shape[2], key.shape[2], device=query.device)[:, None]
        distance = q_pos - torch.arange(key.shape[2], device=query.device)
        attention_mask = (distance >= 0) & (distance < (sliding_window or key.shape[2] + 1))
    if attention_mask.dtype == torch.bool:
        scores = scores.masked_fill(~attention_mask, torch.finfo(scores.dtype).min)
    else:
        scores = scores + attention_mask
    if sinks is not None:
        column = sinks.reshape(1, -1, 1, 1).expand(scores.shape[0], -1, scores.shape[2], 1).to(scores.dtype)
        weights = torch.cat([scores, column], -1).softmax(-1, dtype=torch.float32)[..., :-1].to(query.dtype)
    else:
        weights = scores.softmax(-1, dtype=torch.float32).to(query.dtype)
    weights = nn.functional.dropout(weights, p=dropout, training=module.training)
    return (weights @ value.repeat_interleave(groups, 1)).transpose(1, 2).contiguous(), None

"""`EagleHead`: one decoder layer (or a few) that continues the target's own features; EAGLE-1, 2 and 3.

Entry i is the feature of the token at position i next to the embedding of the token after it; its output is an estimate
of the next feature, from which the distribution of the token after that follows. Entries of drafted tokens take the
output of their parent's entry in place of a feature. What attends to what, and where keys and values are kept, is left
to the caller: `forward` takes an `Attend`.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Any, TypeAlias

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn
from transformers import LlamaConfig
from transformers.activations import ACT2FN
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from infercore.errors import CheckpointError
from infercore.hf.heads.checkpoint import load_exactly
from infercore.hf.heads.config import HeadConfig

Attend: TypeAlias = Callable[[int, Tensor, Tensor, Tensor], Tensor]
"""`attend(layer, q [..., rows, heads, dim], k [..., rows, kv_heads, dim], v) -> [..., rows, heads, dim]`; positions are
applied, scores are to be scaled by dim ** -0.5."""


class EagleHead(nn.Module):
    """The head's weights and arithmetic, without any cache.

    Args:
        is_eagle3: features of several layers, projected by `fc`; the first layer takes them beside the embeddings. Else
            (EAGLE-1 and 2) `fc` joins the embedding and the target's last hidden state, and the target's own head gives
            the logits.
        fc_bias, attention_bias, qk_norm, input_norm: which weights there are; EAGLE-3 always has `input_layernorm`.
        embedding: `[vocab_size, hidden_size]`, the target's unless the checkpoint brings its own.
        target_head: `[vocab_size, hidden_size]`, for heads without `lm_head`; None: the head has one.
    """

    d2t: Tensor
    inv_freq: Tensor

    def __init__(
        self,
        config: HeadConfig,
        *,
        is_eagle3: bool,
        embedding: Tensor,
        target_head: Tensor | None = None,
        num_features: int = 3,
        fc_bias: bool = False,
        attention_bias: bool = False,
        output_bias: bool = False,
        qk_norm: bool = False,
        input_norm: bool = False,
    ) -> None:
        super().__init__()
        self.config = config
        self.is_eagle3 = is_eagle3
        self.num_features = num_features if is_eagle3 else 1
        self._outside = (embedding, target_head)  # a tuple: these belong to the target, and are no part of the state
        hidden, wide = config.hidden_size, config.target_hidden_size
        norm = _norm_of(config)
        if is_eagle3:
            self.fc = nn.Linear(num_features * wide, hidden, bias=fc_bias)
            self.input_norm = norm(num_features * wide) if config.norm_before_fc else None
            self.fc_norm = nn.ModuleList(norm(wide) for _ in range(num_features)) if config.fc_norm else None
            self.norm = norm(hidden)
        else:
            self.fc = nn.Linear(hidden + wide, hidden, bias=fc_bias)
        options = {"attention_bias": attention_bias, "output_bias": output_bias, "qk_norm": qk_norm}
        self.layers = nn.ModuleList(
            _Layer(
                config,
                width=2 * hidden if is_eagle3 and index == 0 else hidden,
                input_norm=is_eagle3 or index > 0 or input_norm,
                **options,
            )
            for index in range(config.num_layers)
        )
        if target_head is None:
            self.lm_head = nn.Linear(hidden, config.draft_vocab_size, bias=False)
        inv_freq, self._rope_scale = _rotary(config)
        self.register_buffer("inv_freq", inv_freq, persistent=False)
        self.register_buffer("d2t", torch.zeros(config.draft_vocab_size, dtype=torch.int64), persistent=False)

    @property
    def embedding(self) -> Tensor:
        return self._outside[0]

    @property
    def feature_size(self) -> int:
        """Columns of what the target gives for one token."""
        return self.num_features * self.config.target_hidden_size

    def project(self, features: Float[Tensor, "*rows features"]) -> Float[Tensor, "*rows hidden"]:
        """The target's features as the head takes them in."""
        if not self.is_eagle3:
            return features
        if self.input_norm is not None:
            features = self.input_norm(features)
        if self.fc_norm is not None:
            parts = features.chunk(self.num_features, -1)
            features = torch.cat([norm(part) for norm, part in zip(self.fc_norm, parts, strict=True)], -1)
        projected: Tensor = self.fc(features)
        return projected

    def forward(
        self,
        token_ids: Int64[Tensor, "*rows"],
        hidden: Float[Tensor, "*rows hidden"],
        position_ids: Int64[Tensor, "*rows"],
        attend: Attend,
    ) -> Float[Tensor, "*rows hidden"]:
        """Outputs of entries: each a token and what stands before it, a projected feature or the output of its parent.

        The outputs go into `logits`, and into entries of the tokens drafted from them.
        """
        embeds = nn.functional.embedding(token_ids, self.embedding).to(hidden.dtype)
        cos, sin = self._rotations(position_ids, hidden.dtype)
        if not self.is_eagle3:
            hidden = self.fc(torch.cat([embeds, hidden], -1))
        for index, layer in enumerate(self.layers):
            beside = embeds if self.is_eagle3 and index == 0 else None
            hidden = layer(index, hidden, beside, cos, sin, attend)
        return self.norm(hidden) if self.is_eagle3 and self.config.norm_output else hidden

    def logits(self, output: Float[Tensor, "*rows hidden"]) -> Float[Tensor, "*rows draft_vocab"]:
        """Over the draft vocabulary."""
        if self.is_eagle3 and not self.config.norm_output:
            output = self.norm(output)
        head = self._outside[1]
        logits: Tensor = nn.functional.linear(output, head) if head is not None else self.lm_head(output)
        return logits

    def target_ids(self, draft_ids: Int64[Tensor, "*rows"]) -> Int64[Tensor, "*rows"]:
        """Token ids of the target for ids of the draft vocabulary."""
        return draft_ids + self.d2t[draft_ids]

    def _rotations(self, position_ids: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Cosine and sine `[*rows, 1, head_dim]`; the first half of the sine with the sign that `_rotate` wants."""
        angles = (position_ids[..., None].float() * self.inv_freq)[..., None, :]
        cos, sin = angles.cos(), angles.sin()
        if self._rope_scale != 1:
            cos, sin = cos * self._rope_scale, sin * self._rope_scale
        return cos.to(dtype), sin.to(dtype)


class _Layer(nn.Module):
    def __init__(self, config: HeadConfig, *, width: int, input_norm: bool, **options: bool) -> None:
        super().__init__()
        norm = _norm_of(config)
        self._norm_before_residual = config.norm_before_residual
        self.self_attn = _Attention(config, width, **options)
        self.mlp = _Mlp(config)
        self.input_layernorm = norm(config.hidden_size) if input_norm else None
        self.hidden_norm = norm(config.hidden_size) if width > config.hidden_size else None
        self.post_attention_layernorm = norm(config.hidden_size)

    def forward(
        self, index: int, hidden: Tensor, beside: Tensor | None, cos: Tensor, sin: Tensor, attend: Attend
    ) -> Tensor:
        residual = hidden
        if beside is not None and self.hidden_norm is not None and self.input_layernorm is not None:
            normed = self.hidden_norm(hidden)
            if self._norm_before_residual:
                residual = normed
            hidden = torch.cat([self.input_layernorm(beside), normed], -1)
        elif self.input_layernorm is not None:
            hidden = self.input_layernorm(hidden)
        hidden = residual + self.self_attn(index, hidden, cos, sin, attend)
        out: Tensor = hidden + self.mlp(self.post_attention_layernorm(hidden))
        return out


class _Attention(nn.Module):
    def __init__(
        self, config: HeadConfig, width: int, *, attention_bias: bool, output_bias: bool, qk_norm: bool
    ) -> None:
        super().__init__()
        self._dim = config.head_dim
        heads, kv_heads = config.num_heads * self._dim, config.num_kv_heads * self._dim
        self.q_proj = nn.Linear(width, heads, bias=attention_bias)
        self.k_proj = nn.Linear(width, kv_heads, bias=attention_bias)
        self.v_proj = nn.Linear(width, kv_heads, bias=attention_bias)
        self.o_proj = nn.Linear(heads, config.hidden_size, bias=output_bias)
        self.q_norm = _Norm(self._dim, config.rms_norm_eps) if qk_norm else None
        self.k_norm = _Norm(self._dim, config.rms_norm_eps) if qk_norm else None

    def forward(self, index: int, hidden: Tensor, cos: Tensor, sin: Tensor, attend: Attend) -> Tensor:
        q, k, v = (proj(hidden).unflatten(-1, (-1, self._dim)) for proj in (self.q_proj, self.k_proj, self.v_proj))
        if self.q_norm is not None and self.k_norm is not None:
            q, k = self.q_norm(q), self.k_norm(k)
        both = _rotate(torch.cat([q, k], -2), cos, sin)
        q, k = torch.split(both, [q.shape[-2], k.shape[-2]], -2)
        out: Tensor = self.o_proj(attend(index, q, k, v).flatten(-2))
        return out


class _Norm(nn.Module):
    """Root mean square norm in the dtype of what comes in, also where the weight is wider, as in training."""

    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self._eps = eps

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.rms_norm(x, self.weight.shape, self.weight.to(x.dtype), self._eps)


class _Mlp(nn.Module):
    def __init__(self, config: HeadConfig) -> None:
        super().__init__()
        if config.hidden_act not in ACT2FN:
            raise CheckpointError(f"hidden_act is {config.hidden_act!r}; expected one that transformers knows")
        self.gate_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.up_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.down_proj = nn.Linear(config.intermediate_size, config.hidden_size, bias=False)
        self._act = ACT2FN[config.hidden_act]

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.down_proj(self._act(self.gate_proj(x)) * self.up_proj(x))
        return out


def head_for(
    config: HeadConfig,
    tensors: dict[str, Tensor],
    *,
    embedding: Tensor | None,
    target_head: Tensor | None,
) -> EagleHead:
    """The head that `tensors`, of one dtype and named as in `checkpoint.py`, belong to, with them in it.

    Args:
        embedding, target_head: the target's, for heads that do not bring their own.
    Raises: CheckpointError naming what is missing, foreign or of another shape, or a vocabulary that does not fit.
    """
    tensors = dict(tensors)
    q_proj, fc = tensors.get("layers.0.self_attn.q_proj.weight"), tensors.get("fc.weight")
    if q_proj is None or fc is None:
        names = ", ".join(sorted(tensors)[:6])
        raise CheckpointError(
            f"no EAGLE head: it holds {names}, ...; expected fc.weight and midlayer.* or layers.0.* (or the names of "
            "speculators)"
        )
    is_eagle3 = q_proj.shape[1] == 2 * config.hidden_size
    num_features = fc.shape[1] // config.target_hidden_size
    d2t, t2d = tensors.pop("d2t", None), tensors.pop("t2d", None)
    own_embedding = tensors.pop("embed_tokens.weight", None)
    if own_embedding is not None:
        embedding = own_embedding
    if embedding is None or embedding.shape != (config.vocab_size, config.hidden_size):
        found = "none" if embedding is None else f"{tuple(embedding.shape)}"
        raise CheckpointError(
            f"embeddings of shape {found} for a head of vocabulary {config.vocab_size} and width {config.hidden_size}; "
            "is it the head of another target?"
        )
    if not is_eagle3:
        tensors.pop("lm_head.weight", None)  # a copy of the target's, where it is there at all
        config = replace(config, draft_vocab_size=config.vocab_size)
    elif "lm_head.weight" in tensors:
        target_head = None
    if target_head is not None and target_head.shape != (config.draft_vocab_size, config.hidden_size):
        raise CheckpointError(
            f"no lm_head.weight, and the target's own of shape {tuple(target_head.shape)} does not fit a draft "
            f"vocabulary of {config.draft_vocab_size} and width {config.hidden_size}"
        )
    if not is_eagle3 and target_head is None:
        raise CheckpointError("an EAGLE-1 head needs the target's output embeddings, which the target does not have")
    head = EagleHead(
        config,
        is_eagle3=is_eagle3,
        embedding=embedding,
        target_head=target_head,
        num_features=num_features,
        fc_bias="fc.bias" in tensors,
        attention_bias="layers.0.self_attn.q_proj.bias" in tensors,
        output_bias="layers.0.self_attn.o_proj.bias" in tensors,
        qk_norm="layers.0.self_attn.q_norm.weight" in tensors,
        input_norm="layers.0.input_layernorm.weight" in tensors,
    )
    head = head.to(fc.dtype)
    head.inv_freq = _rotary(config)[0]  # stays in float32
    load_exactly(head, tensors, "an EAGLE-3 head" if is_eagle3 else "an EAGLE-1 head")
    head.d2t.copy_(_checked_d2t(config, d2t, t2d))
    return head.eval().requires_grad_(False)


def _checked_d2t(config: HeadConfig, d2t: Tensor | None, t2d: Tensor | None) -> Tensor:
    draft, vocab = config.draft_vocab_size, config.vocab_size
    if d2t is None:
        if draft != vocab:
            raise CheckpointError(
                f"no d2t, but the draft vocabulary is {draft} of {vocab} tokens; expected d2t, target id - draft id"
            )
        return torch.zeros(draft, dtype=torch.int64)
    if d2t.shape != (draft,):
        raise CheckpointError(f"d2t has shape {tuple(d2t.shape)}, expected ({draft},)")
    ids = d2t.long() + torch.arange(draft)
    num_different = len(set(ids.tolist()))
    if int(ids.min()) < 0 or int(ids.max()) >= vocab or num_different != draft:
        raise CheckpointError(
            f"d2t leads to ids from {int(ids.min())} to {int(ids.max())}, {num_different} different ones; expected "
            f"{draft} different ones from 0 to {vocab - 1}: it holds offsets, target id - draft id"
        )
    if t2d is not None and (t2d.shape != (vocab,) or not torch.equal(t2d.bool().nonzero()[:, 0], ids.sort().values)):
        raise CheckpointError("t2d and d2t name different tokens; expected t2d true exactly at the ids of d2t")
    return d2t.long()


def _norm_of(config: HeadConfig) -> Callable[[int], nn.Module]:
    return lambda size: _Norm(size, config.rms_norm_eps)


def _rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    half = x.shape[-1] // 2
    return torch.addcmul(x * cos, torch.cat([x[..., half:], x[..., :half]], -1), sin)


def _rotary(config: HeadConfig) -> tuple[Tensor, float]:
    """Frequencies `[head_dim]`, those of the first half negative, and the factor on cosine and sine."""
    options: dict[str, Any] = dict(config.rope)
    scaling = options.get("rope_parameters") or options.get("rope_scaling") or {}
    kind = scaling.get("rope_type", scaling.get("type", "default"))
    if kind in ("dynamic", "longrope") or options.get("partial_rotary_factor", 1.0) != 1.0:
        raise CheckpointError(f"rotary embeddings of type {kind!r} that change with the text's length are not read")
    llama = LlamaConfig(
        hidden_size=config.hidden_size,
        num_attention_heads=config.num_heads,
        head_dim=config.head_dim,
        max_position_embeddings=config.max_position_embeddings,
        **options,
    )
    rotary = LlamaRotaryEmbedding(llama)
    inv_freq: Tensor = rotary.inv_freq.float()
    if inv_freq.shape != (config.head_dim // 2,):
        raise CheckpointError(f"rotary embeddings over {2 * len(inv_freq)} of {config.head_dim} columns are not read")
    return torch.cat([-inv_freq, inv_freq]), float(rotary.attention_scaling)

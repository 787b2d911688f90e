"""What a head is taught with one batch: its own outputs in place of features, several steps deep (training-time test).

In step 0 every entry has a true feature; in step k it has the output of step k - 1 at the same place, the token k
places on, and sees the true entries up to its place and its own k earlier ones: exactly what a draft of depth k + 1
sees. Each step is asked for the target's distribution over the draft vocabulary.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from infercore.hf.features import Features
from infercore.hf.heads.eagle import EagleHead
from infercore.hf.heads.train.corpus import Batch

_DECAY = 0.8


@dataclass(frozen=True, slots=True)
class Truth:
    """What the target says of a batch.

    Args:
        features: `[documents, tokens, columns]`. probs: `[documents, tokens, draft_vocab]`, of the token behind each.
        best: `[documents, tokens]`, its likeliest token of all; -1 where the draft vocabulary lacks it.
        weights: `[documents, tokens]`, what predicting the token behind this one counts.
        token_ids: as in the batch.
    """

    features: Tensor
    probs: Tensor
    best: Tensor
    weights: Tensor
    token_ids: Tensor


@dataclass(frozen=True, slots=True)
class Outcome:
    """Of one batch: the loss to go down, and per step how much weight was right of how much; likewise in a row."""

    loss: Tensor
    right: Tensor
    right_in_a_row: Tensor
    weight: Tensor


class Teacher:
    """The target, asked for features and distributions.

    Args:
        target: a transformers model, in evaluation mode.
        layers: where features come from. draft_ids: the draft vocabulary, ascending.
    """

    def __init__(self, target: Any, layers: tuple[int, ...], draft_ids: Tensor) -> None:
        self._target = target
        self._features = Features(target, layers)
        self._device = next(target.parameters()).device
        self._draft_ids = draft_ids.to(self._device)
        self._place = torch.full((target.config.get_text_config().vocab_size,), -1, device=self._device)
        self._place[self._draft_ids] = torch.arange(len(draft_ids), device=self._device)

    @torch.no_grad()
    def truth(self, batch: Batch) -> Truth:
        """One forward of the target."""
        token_ids = batch.token_ids.to(self._device)
        logits = self._target(input_ids=token_ids, use_cache=False).logits
        features = self._features.rows(token_ids.numel()).view(*token_ids.shape, -1)
        best = self._place[logits.argmax(-1)]
        probs = torch.softmax(logits[..., self._draft_ids].float(), -1)
        weights = nn.functional.pad(batch.weights[:, 1:], (0, 1)).to(self._device)
        return Truth(features, probs, best, weights, token_ids)


def lesson(head: EagleHead, truth: Truth, num_steps: int) -> Outcome:
    """Loss and accuracy of `num_steps` steps.

    The loss is the cross entropy with the target's distribution, which differs from the Kullback-Leibler divergence by
    a constant; step k counts 0.8 ** k. As in the authors' training, places where the target's likeliest token is not in
    the draft vocabulary count for accuracy only.
    """
    attention = StepwiseAttention()
    documents, tokens = truth.token_ids.shape
    positions = torch.arange(tokens, device=truth.token_ids.device).expand(documents, -1)
    kind = truth.token_ids.device.type
    dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else torch.float32
    hidden = head.project(truth.features.to(dtype))
    in_a_row = torch.ones_like(truth.weights, dtype=torch.bool)
    loss = hidden.new_zeros((), dtype=torch.float32)
    right, row, weight = [], [], []
    for step in range(num_steps):
        shift = step + 1  # an entry's token is one behind its feature, and one more each step; so is what it predicts
        ids = nn.functional.pad(truth.token_ids[:, shift:], (0, min(shift, tokens)))[:, :tokens]
        attention.step = step
        hidden = head(ids, hidden, positions + step, attention)
        length = max(tokens - shift, 0)
        logits = head.logits(hidden[:, :length]).float()
        best, weights = truth.best[:, shift:], truth.weights[:, shift:]
        losses = -(truth.probs[:, shift:] * logits.log_softmax(-1)).sum(-1)
        counted = weights * (best >= 0)
        loss = loss + _DECAY**step * (losses * counted).sum() / counted.sum().clamp_min(1e-6)
        hits = logits.argmax(-1) == best
        in_a_row = in_a_row[:, :length] & hits
        right.append((hits * weights).sum())
        row.append((in_a_row * weights).sum())
        weight.append(weights.sum())
    return Outcome(loss, torch.stack(right).detach(), torch.stack(row).detach(), torch.stack(weight).detach())


class StepwiseAttention:
    """An `Attend` over whole documents that keeps the keys and values of earlier steps."""

    def __init__(self) -> None:
        self.step = 0
        self._kept: dict[int, list[tuple[Tensor, Tensor]]] = {}

    def __call__(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        groups = q.shape[2] // k.shape[2]
        q, k, v = (t.transpose(1, 2) for t in (q, k.repeat_interleave(groups, 2), v.repeat_interleave(groups, 2)))
        if self.step == 0:
            self._kept[layer] = [(k, v)]
            return nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2)
        self._kept[layer].append((k, v))
        (first_k, first_v), *own = self._kept[layer]
        scale = q.shape[-1] ** -0.5
        tokens = q.shape[2]
        future = torch.ones(tokens, tokens, dtype=torch.bool, device=q.device).triu(1)
        scores = (q @ first_k.transpose(2, 3) * scale).masked_fill(future, float("-inf"))
        beside = torch.stack([(q * key).sum(-1) * scale for key, _ in own], -1)
        chances = torch.cat([scores, beside], -1).softmax(-1, dtype=torch.float32).to(q.dtype)
        out = chances[..., :tokens] @ first_v
        for index, (_, value) in enumerate(own):
            out = out + chances[..., tokens + index, None] * value
        return out.transpose(1, 2)

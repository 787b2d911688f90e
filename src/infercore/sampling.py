"""Logits to probabilities, row by row: penalties, temperature, top-k, top-p, min-p. A leaf: imports nothing of ours.

A row is one position whose next token is to be chosen: a decode step, or a node of a draft tree along its own path.
Both go through the same functions, so that speculation cannot see another distribution than plain decoding. The order
is Hugging Face's in `generate`: penalties, (the caller's processors and grammar), temperature, top-k, top-p, min-p.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from jaxtyping import Bool, Float, Float32, Int64
from torch import Tensor

_FIRST_SORT_WIDTH = 256  # top-p looks at this many best tokens before it looks at more; a full sort costs 2 ms a row


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """How a row's next token is chosen. The defaults choose the best token (greedy).

    Args:
        temperature: 0 is greedy; 1 leaves the model's distribution.
        top_k: keep the k best tokens (ties with the k-th stay); 0 keeps all.
        top_p: keep the smallest set of best tokens whose probability reaches top_p (ties with its last stay); 1 all.
        min_p: drop tokens less likely than min_p times the best one; 0 drops none.
        repetition_penalty: divides positive and multiplies negative logits of tokens in prompt or output; 1 is none
            (Keskar et al. 2019, arXiv 1909.05858, section 4.1).
        frequency_penalty: subtracted once per earlier occurrence in the output; 0 is none.
        presence_penalty: subtracted once from tokens that occur in the output; 0 is none.

    Raises: ValueError for a value outside its range.
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0

    def __post_init__(self) -> None:
        _require(
            math.isfinite(self.temperature) and self.temperature >= 0, "temperature", self.temperature, "0 or more"
        )
        _require(self.top_k >= 0 and self.top_k == int(self.top_k), "top_k", self.top_k, "a whole number, 0 for all")
        _require(0 < self.top_p <= 1, "top_p", self.top_p, "above 0 and at most 1")
        _require(0 <= self.min_p < 1, "min_p", self.min_p, "0 to below 1")
        _require(self.repetition_penalty > 0, "repetition_penalty", self.repetition_penalty, "above 0, 1 for none")
        _require(math.isfinite(self.frequency_penalty), "frequency_penalty", self.frequency_penalty, "a finite number")
        _require(math.isfinite(self.presence_penalty), "presence_penalty", self.presence_penalty, "a finite number")

    @property
    def is_greedy(self) -> bool:
        """The best token is taken; nothing is drawn."""
        return self.temperature == 0

    @property
    def has_penalties(self) -> bool:
        """The logits depend on the tokens before them."""
        return self.repetition_penalty != 1 or self.frequency_penalty != 0 or self.presence_penalty != 0


def apply_penalties_(
    logits: Float[Tensor, " vocab"], params: SamplingParams, token_ids: npt.NDArray[np.int32], num_prompt_tokens: int
) -> None:
    """Penalise, in place, the tokens of one row's own history.

    Args:
        token_ids: prompt, then output, along the path that leads to this row.
        num_prompt_tokens: how many of them are prompt; only the rest counts for frequency and presence.
    Cost: O(len(token_ids)).
    """
    if params.repetition_penalty != 1 and len(token_ids):
        seen = torch.from_numpy(np.unique(token_ids).astype(np.int64)).to(logits.device)
        values = logits[seen]
        logits[seen] = torch.where(values < 0, values * params.repetition_penalty, values / params.repetition_penalty)
    output = token_ids[num_prompt_tokens:]
    if len(output) and (params.frequency_penalty or params.presence_penalty):
        ids, counts = np.unique(output, return_counts=True)
        penalty = params.frequency_penalty * counts + params.presence_penalty
        index = torch.from_numpy(ids.astype(np.int64)).to(logits.device)
        logits[index] -= torch.from_numpy(penalty).to(logits.device, logits.dtype)


def warp(logits: Float[Tensor, "rows vocab"], params: Sequence[SamplingParams]) -> Float32[Tensor, "rows vocab"]:
    """Temperature, top-k, top-p and min-p: the scores whose softmax each row's token is drawn from.

    A greedy row stays as it is.

    Args:
        logits: penalties and masks applied; -inf for tokens that must not come. Not changed.
        params: one per row; neighbouring rows with equal params share the work.
    Raises: ValueError if the number of rows does not fit.
    Cost: O(vocab) a row, plus a sort of the best few hundred where top_p < 1.
    """
    return _warped(logits, params, wait=True)[0]


def probabilities(
    logits: Float[Tensor, "rows vocab"], params: Sequence[SamplingParams]
) -> Float32[Tensor, "rows vocab"]:
    """The distribution each row's token is drawn from; a greedy row gets all its mass on the best token.

    Arguments, errors and cost are those of `warp`.
    """
    scores = warp(logits, params)
    probs = scores.softmax(-1)
    for row, p in enumerate(params):
        if p.is_greedy:
            probs[row] = 0
            probs[row, scores[row].argmax()] = 1
    return probs


def probabilities_without_wait(
    logits: Float[Tensor, "rows vocab"], params: Sequence[SamplingParams]
) -> tuple[Float32[Tensor, "rows vocab"], Bool[Tensor, " rows"] | None]:
    """As `probabilities` of rows that are not greedy, without a look at anything on the device.

    Returns: the distributions, and which of them are right; None if all are. One is not where the tokens that hold
        `top_p` are more than the best few hundred: `probabilities` then sorts everything.
    """
    scores, is_right = _warped(logits, params, wait=False)
    return scores.softmax(-1), is_right


def draw(probs: Float32[Tensor, "rows vocab"], generators: Sequence[torch.Generator]) -> Int64[np.ndarray, " rows"]:
    """One token id a row by inverting its cumulative distribution; row i uses one number of `generators[i]`.

    Cost: O(rows * vocab) and one device sync.
    """
    uniform = torch.tensor([float(torch.rand((), generator=g, dtype=torch.float64)) for g in generators])
    cumulative = probs.double().cumsum(-1)
    target = uniform.to(cumulative.device)[:, None] * cumulative[:, -1:]
    ids = torch.searchsorted(cumulative, target, right=True)[:, 0]  # right: never a token of probability 0
    return ids.clamp_(max=probs.shape[1] - 1).cpu().numpy()


def _require(holds: bool, name: str, value: object, expected: str) -> None:
    if not holds:
        raise ValueError(f"{name} is {value}, expected {expected}")


def _warped(
    logits: Float[Tensor, "rows vocab"], params: Sequence[SamplingParams], *, wait: bool
) -> tuple[Float32[Tensor, "rows vocab"], Bool[Tensor, " rows"] | None]:
    """Scores, and which rows are right: None means all, and with `wait` they are."""
    if len(params) != logits.shape[0]:
        raise ValueError(f"logits has {logits.shape[0]} rows, but params has {len(params)}; pass one per row")
    if not len(params):
        return logits.float(), None
    runs, flags = [], []
    start = 0
    for stop in range(1, len(params) + 1):
        if stop == len(params) or params[stop] != params[start]:
            scores, is_right = _warp_run(logits[start:stop].float(), params[start], wait=wait)
            runs.append(scores)
            flags.append(is_right)
            start = stop
    if len(runs) == 1:
        return runs[0], flags[0]
    if all(flag is None for flag in flags):
        return torch.cat(runs), None
    every = [
        torch.ones(len(run), dtype=torch.bool, device=run.device) if flag is None else flag
        for run, flag in zip(runs, flags, strict=True)
    ]
    return torch.cat(runs), torch.cat(every)


def _warp_run(
    logits: Float32[Tensor, "rows vocab"], params: SamplingParams, *, wait: bool
) -> tuple[Float32[Tensor, "rows vocab"], Bool[Tensor, " rows"] | None]:
    is_right = None
    if params.is_greedy:
        return logits, None
    scaled = logits / params.temperature
    if 0 < params.top_k < scaled.shape[1]:
        kth = scaled.topk(params.top_k, dim=-1).values[:, -1:]
        scaled = torch.where(scaled < kth, -torch.inf, scaled)
    if params.top_p < 1:
        scaled, is_right = _keep_nucleus(scaled, params.top_p, params.top_k, wait=wait)
    if params.min_p > 0:
        floor = scaled.amax(-1, keepdim=True) + math.log(params.min_p)
        scaled = torch.where(scaled < floor, -torch.inf, scaled)
    return scaled, is_right


def _keep_nucleus(
    scaled: Float32[Tensor, "rows vocab"], top_p: float, top_k: int, *, wait: bool
) -> tuple[Float32[Tensor, "rows vocab"], Bool[Tensor, " rows"] | None]:
    """A token stays if the tokens above it hold less than `top_p`. Everything is sorted only where the best few hundred
    do not hold that much; without `wait` such rows are told of instead."""
    width = min(scaled.shape[1], max(top_k, _FIRST_SORT_WIDTH))
    best = scaled.topk(width, dim=-1).values
    normaliser = scaled.logsumexp(-1, keepdim=True)
    last, covered = _last_kept(best, normaliser, top_p)
    is_right = None
    if width < scaled.shape[1]:
        if not wait:
            is_right = covered
        elif not bool(covered.all()):
            last, _ = _last_kept(_sorted(scaled), normaliser, top_p)
    return torch.where(scaled < last, -torch.inf, scaled), is_right


def _last_kept(
    best: Float32[Tensor, "rows width"], normaliser: Float32[Tensor, "rows 1"], top_p: float
) -> tuple[Float32[Tensor, "rows 1"], Bool[Tensor, " rows"]]:
    """The smallest score that stays, of scores sorted downwards; and whether all that stay are among them."""
    probs = (best - normaliser).exp()
    above = probs.cumsum(-1) - probs
    last = ((above < top_p).sum(-1, keepdim=True) - 1).clamp_(min=0)
    return best.gather(1, last), above[:, -1] >= top_p


def _sorted(scaled: Float32[Tensor, "rows vocab"]) -> Float32[Tensor, "rows vocab"]:
    """Scores sorted downwards; numpy's sort is 20 times torch's on a CPU."""
    if scaled.device.type != "cpu":
        return scaled.sort(-1, descending=True).values
    return torch.from_numpy(np.sort(scaled.numpy(), axis=-1)).flip(-1)

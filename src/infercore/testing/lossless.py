"""Does a sampler draw from the model it claims to draw from? For speculative decoding of any kind, of anyone.

    from infercore.testing import TinyModel, assert_lossless

    def generate(model: TinyModel, num_tokens: int, generator: torch.Generator) -> list[int]:
        ...                                     # your sampler, asking `model.probs(token_ids)` for distributions

    assert_lossless(generate)

The vocabulary is so small that the law of a whole output is known exactly, so nothing is approximated but the counting.
"""

import itertools
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from jaxtyping import Float32, Float64
from torch import Tensor


class TinyModel:
    """A random model over a tiny vocabulary: the next token depends on the last two, through random logits.

    Args:
        top_p: nucleus that belongs to the distribution: `probs` is 0 outside it. 1: none.
        sharpness: spread of the logits; larger is more decided.
    """

    def __init__(self, vocab_size: int = 4, *, seed: int = 0, top_p: float = 1.0, sharpness: float = 1.5) -> None:
        if vocab_size < 2:
            raise ValueError(f"vocab_size is {vocab_size}; expected at least 2")
        generator = torch.Generator().manual_seed(seed)
        self.vocab_size = vocab_size
        self.top_p = top_p
        contexts = (vocab_size + 1) ** 2
        self._raw = torch.softmax(sharpness * torch.randn(contexts, vocab_size, generator=generator), -1)
        self._probs = nucleus(self._raw, top_p)

    def probs(self, token_ids: Sequence[int]) -> Float32[Tensor, "vocab"]:
        """Distribution of the token after `token_ids`: what a correct sampler draws from."""
        return self._probs[self._context(token_ids)]

    def raw_probs(self, token_ids: Sequence[int]) -> Float32[Tensor, "vocab"]:
        """The same before `top_p`."""
        return self._raw[self._context(token_ids)]

    def law(self, num_tokens: int) -> Float64[np.ndarray, "outputs"]:
        """Probability of every output of `num_tokens` tokens, in the order of `itertools.product`."""
        law = []
        for output in itertools.product(range(self.vocab_size), repeat=num_tokens):
            chance = 1.0
            for position, token_id in enumerate(output):
                chance *= float(self.probs(output[:position])[token_id])
            law.append(chance)
        return np.array(law) / sum(law)

    def _context(self, token_ids: Sequence[int]) -> int:
        last = [0, 0, *(token_id + 1 for token_id in token_ids)][-2:]
        return last[0] * (self.vocab_size + 1) + last[1]


Sampler = Callable[[TinyModel, int, torch.Generator], Sequence[int]]
"""(model, num_tokens, generator) -> exactly num_tokens token ids; the generator is the only randomness."""


@dataclass(frozen=True, slots=True)
class LosslessReport:
    """How far the counts were from the law, per model. `total_variation` of an exact sampler is about `expected_*`."""

    p_values: tuple[float, ...]
    total_variations: tuple[float, ...]
    expected_total_variations: tuple[float, ...]


def assert_lossless(
    sampler: Sampler,
    *,
    vocab_size: int = 4,
    num_tokens: int = 3,
    num_samples: int = 3000,
    num_models: int = 2,
    top_p: float = 1.0,
    significance: float = 1e-6,
    seed: int = 0,
) -> LosslessReport:
    """Compare `num_samples` outputs with the exact law of each of `num_models` random models.

    Fails on an output that the model cannot give, on a chi-square test at `significance`, and on a total variation six
    standard deviations above what counting alone explains. A correct sampler fails about once in 10**6 calls; with the
    defaults a sampler that is off by a total variation of 0.06 is caught nearly always.

    Raises: AssertionError naming the model, the statistic and the outputs that are furthest off; ValueError if the
        sampler gives another number of tokens, or one outside the vocabulary.
    Cost: `num_models * num_samples` calls of `sampler`.
    """
    p_values, distances, expected = [], [], []
    for index in range(num_models):
        model = TinyModel(vocab_size, seed=seed + index, top_p=top_p)
        law = model.law(num_tokens)
        counts = _count(sampler, model, num_tokens, num_samples, torch.Generator().manual_seed(seed + index))
        where = f"model {index} (vocab_size={vocab_size}, seed={seed + index}, top_p={top_p}), {num_samples} outputs"
        impossible = np.flatnonzero((law == 0) & (counts > 0))
        if impossible.size:
            raise AssertionError(f"{where}: {_outputs(model, num_tokens, impossible[:3])} came, but cannot come")
        p_value = chi_square_p_value(counts, law)
        distance = float(np.abs(counts / num_samples - law).sum() / 2)
        mean, deviation = _null_total_variation(law, num_samples, seed)
        if p_value < significance or distance > mean + 6 * deviation:
            furthest = np.argsort(-np.abs(counts / num_samples - law))[:3]
            raise AssertionError(
                f"{where}: chi-square p {p_value:.1e}, total variation {distance:.4f} where counting alone gives "
                f"{mean:.4f}; furthest off: "
                + ", ".join(
                    f"{output} came {counts[i] / num_samples:.4f}, law {law[i]:.4f}"
                    for i, output in zip(furthest, _outputs(model, num_tokens, furthest), strict=True)
                )
            )
        p_values.append(p_value)
        distances.append(distance)
        expected.append(mean)
    return LosslessReport(tuple(p_values), tuple(distances), tuple(expected))


def nucleus(probs: Float32[Tensor, "rows vocab"], top_p: float) -> Float32[Tensor, "rows vocab"]:
    """The smallest set of likeliest tokens whose mass reaches `top_p`, renormalised."""
    if top_p >= 1:
        return probs
    ordered, order = probs.sort(-1, descending=True)
    kept = ordered.cumsum(-1) - ordered < top_p
    cut = torch.zeros_like(probs).scatter(-1, order, torch.where(kept, ordered, 0.0))
    return cut / cut.sum(-1, keepdim=True)


def chi_square_p_value(counts: Float64[np.ndarray, "outputs"], law: Float64[np.ndarray, "outputs"]) -> float:
    """Chance of counts at least this far from `law`; outputs expected fewer than five times share one cell."""
    expected = law * counts.sum()
    rare = expected < 5
    observed = np.append(counts[~rare], counts[rare].sum())
    wanted = np.append(expected[~rare], expected[rare].sum())
    observed, wanted = observed[wanted > 0], wanted[wanted > 0]
    statistic = float(((observed - wanted) ** 2 / wanted).sum())
    freedom = len(wanted) - 1
    if freedom == 0:
        return 1.0
    half = torch.tensor([freedom / 2, statistic / 2], dtype=torch.float64)
    return float(torch.special.gammaincc(half[0], half[1]))


def _count(
    sampler: Sampler, model: TinyModel, num_tokens: int, num_samples: int, generator: torch.Generator
) -> Float64[np.ndarray, "outputs"]:
    seen: Counter[tuple[int, ...]] = Counter()
    for _ in range(num_samples):
        output = tuple(int(token_id) for token_id in sampler(model, num_tokens, generator))
        if len(output) != num_tokens or not all(0 <= token_id < model.vocab_size for token_id in output):
            raise ValueError(f"the sampler gave {output}, expected {num_tokens} ids below {model.vocab_size}")
        seen[output] += 1
    every = itertools.product(range(model.vocab_size), repeat=num_tokens)
    return np.array([seen[output] for output in every], np.float64)


def _null_total_variation(law: Float64[np.ndarray, "outputs"], num_samples: int, seed: int) -> tuple[float, float]:
    """Mean and standard deviation of the total variation of an exact sampler, by drawing from the law itself."""
    draws = np.random.default_rng(seed).multinomial(num_samples, law, size=400)
    distances = np.abs(draws / num_samples - law).sum(1) / 2
    return float(distances.mean()), float(distances.std())


def _outputs(model: TinyModel, num_tokens: int, indices: npt.NDArray[np.intp]) -> list[tuple[int, ...]]:
    every = list(itertools.product(range(model.vocab_size), repeat=num_tokens))
    return [every[index] for index in indices]

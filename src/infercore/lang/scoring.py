"""How `select` compares choices, given log probabilities of their tokens; the same for every backend that can score.

The likelihood of a choice falls with its length, so sums cannot be compared: each method answers that differently.
"""

from __future__ import annotations

from collections.abc import Sequence

from infercore.lang.types import SelectMethod, SelectResult


def decide(
    token_ids: Sequence[Sequence[int]],
    logprobs: Sequence[Sequence[float]],
    *,
    method: SelectMethod,
    unconditional: Sequence[Sequence[float]] | None = None,
) -> SelectResult:
    """The best choice; the first of equals.

    Args:
        token_ids, logprobs: of each choice after the text before it.
        unconditional: the same tokens' log probabilities with nothing before them; for that method only.
    Returns: scores by method: the mean log probability of a token ("token_length"); that mean less the unconditional
        one ("unconditional"); 1 for the choice reached by following the likelier token wherever choices part, 0 for the
        others ("greedy").
    """
    if method == "greedy":
        best = _follow(token_ids, logprobs)
        return SelectResult(best, tuple(float(i == best) for i in range(len(token_ids))))
    scores = [_mean(row) for row in logprobs]
    if method == "unconditional":
        assert unconditional is not None
        scores = [score - _mean(row) for score, row in zip(scores, unconditional, strict=True)]
    return SelectResult(max(range(len(scores)), key=lambda i: (scores[i], -i)), tuple(scores))


def _follow(token_ids: Sequence[Sequence[int]], logprobs: Sequence[Sequence[float]]) -> int:
    """Walk down the choices' common tree; a choice that ends where others go on counts by what it has."""
    left = list(range(len(token_ids)))
    depth = 0
    while len(left) > 1:
        reaching = [i for i in left if len(token_ids[i]) > depth]
        if not reaching:
            break
        best = max(reaching, key=lambda i: (logprobs[i][depth], -i))
        left = [i for i in reaching if token_ids[i][depth] == token_ids[best][depth]]
        depth += 1
    return left[0]


def _mean(row: Sequence[float]) -> float:
    return sum(row) / len(row) if row else 0.0

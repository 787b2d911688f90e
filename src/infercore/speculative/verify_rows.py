"""`verify` for probabilities on a device: every row is judged at once, and the host reads the outcome once.

The rules, and the numbers taken from each generator, are those of `verify.py`; so are the verdicts. There only visited
rows are read, which is best on a CPU; here all of them are, which costs a GPU nothing and saves a sync per node.
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
from jaxtyping import Float32
from torch import Tensor

from infercore.speculative import _compiled
from infercore.speculative.tree import TokenTree
from infercore.speculative.types import Verdict


def verify_rows(
    trees: Sequence[TokenTree],
    target_probs: Sequence[Float32[Tensor, "_ vocab"]],
    generators: Sequence[torch.Generator],
) -> list[Verdict]:
    """Verdicts of all trees, with one transfer of random numbers to the device and one of outcomes from it.

    As `verify`, which checks the arguments and calls this for tensors that are not on the CPU; rows without mass and
    impossible siblings are not looked for.
    """
    states = [generator.get_state() for generator in generators]
    uniforms = [_uniforms(tree, generator) for tree, generator in zip(trees, generators, strict=True)]
    probs = torch.cat(list(target_probs))
    drawn = torch.from_numpy(np.concatenate([uniform for _, uniform in uniforms])).to(probs.device)
    rows = probs.double()
    rows = rows / rows.sum(-1, keepdim=True)
    accepted, rows = _try_all_siblings(trees, rows, [uniform for uniform, _ in uniforms])
    cumulative = rows.cumsum(-1)
    tokens = torch.searchsorted(cumulative, (drawn * cumulative[:, -1])[:, None], right=True)[:, 0]
    outcome = torch.stack([tokens, accepted]).cpu().numpy()  # the sync
    verdicts, start = [], 0
    for tree, generator, state in zip(trees, generators, states, strict=True):
        stop = start + tree.num_nodes + 1
        if tree.draft_probs is None:
            verdict = _follow(tree, outcome[0, start:stop])
            generator.set_state(state)  # as many numbers are used up as tokens were gained
            torch.rand(verdict.accept_length, generator=generator, dtype=torch.float64)
        else:
            verdict = _climb(outcome[0, start:stop], outcome[1, start:stop])
        verdicts.append(verdict)
        start = stop
    return verdicts


def _uniforms(tree: TokenTree, generator: torch.Generator) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Numbers for the nodes (drawn trees only), and for the token drawn at each row, the root's first."""
    depths = np.concatenate([np.zeros(1, np.int32), tree.depths])
    if tree.draft_probs is None:
        by_depth = torch.rand(int(depths.max()) + 1, generator=generator, dtype=torch.float64).numpy()
        return np.zeros(tree.num_nodes), by_depth[depths]
    both = torch.rand(2 * tree.num_nodes + 1, generator=generator, dtype=torch.float64).numpy()
    return both[: tree.num_nodes], both[tree.num_nodes :]


def _try_all_siblings(
    trees: Sequence[TokenTree], rows: Tensor, uniforms: Sequence[npt.NDArray[np.float64]]
) -> tuple[Tensor, Tensor]:
    """Per row the accepted child (index in its tree, -1: none), and the distribution left after the rejections."""
    accepted = torch.full((rows.shape[0],), -1, dtype=torch.int64, device=rows.device)
    families = _families(trees, uniforms)
    if not families:
        return accepted, rows
    rows = rows.clone()
    tried: list[tuple[Tensor, Tensor, Tensor]] = []  # earlier rounds: row, token, whether it was drawn
    for tree_index, row, child, uniform in families:
        at = torch.from_numpy(row).to(rows.device)
        node = torch.from_numpy(child).to(rows.device)
        tokens = torch.cat(
            [torch.from_numpy(trees[t].token_ids[c : c + 1]) for t, c in zip(tree_index, child, strict=True)]
        )
        tokens = tokens.long().to(rows.device)
        draft = torch.stack([_probs_of(trees[t])[c] for t, c in zip(tree_index, child.tolist(), strict=True)])
        draft = draft.to(rows.device).double()
        is_drawn = draft.gather(1, tokens[:, None])[:, 0] < 1
        for other_at, other_tokens, other_drawn in tried:
            # rows of this round are a subset of those of the rounds before it
            place = (other_at[None, :] == at[:, None]).long().argmax(1)
            earlier = other_tokens[place]
            gone = is_drawn & other_drawn[place]
            draft[torch.arange(len(at), device=rows.device), earlier] *= (~gone).double()
        draft = draft / draft.sum(-1, keepdim=True)
        target = rows[at]
        residual = (target - draft).clamp_min(0)
        mass = residual.sum(-1)
        chance = (target.gather(1, tokens[:, None]) / draft.gather(1, tokens[:, None]))[:, 0]
        passes = (torch.from_numpy(uniform).to(rows.device) < chance) | (mass <= 0)
        is_open = accepted[at] < 0
        accepted[at] = torch.where(is_open & passes, node, accepted[at])
        rejected = is_open & ~passes
        rows[at] = torch.where(rejected[:, None], residual / mass.clamp_min(1e-300)[:, None], target)
        tried.append((at, tokens, is_drawn))
    return accepted, rows


def _families(
    trees: Sequence[TokenTree], uniforms: Sequence[npt.NDArray[np.float64]]
) -> list[tuple[list[int], npt.NDArray[np.int64], npt.NDArray[np.int64], npt.NDArray[np.float64]]]:
    """Round by round the j-th children of all rows: their trees, packed rows, nodes and numbers."""
    rounds: list[tuple[list[int], list[int], list[int], list[float]]] = []
    first_row = 0
    for index, tree in enumerate(trees):
        if tree.draft_probs is not None:
            seen = np.zeros(tree.num_nodes + 1, np.int64)
            for node, parent in enumerate(tree.parents.tolist()):
                rank = int(seen[parent + 1])
                seen[parent + 1] += 1
                if rank == len(rounds):
                    rounds.append(([], [], [], []))
                columns = rounds[rank]
                columns[0].append(index)
                columns[1].append(first_row + parent + 1)
                columns[2].append(node)
                columns[3].append(float(uniforms[index][node]))
        first_row += tree.num_nodes + 1
    return [(of, np.array(at), np.array(node), np.array(number)) for of, at, node, number in rounds]


def _probs_of(tree: TokenTree) -> Tensor:
    assert tree.draft_probs is not None
    return tree.draft_probs


def _follow(tree: TokenTree, tokens: npt.NDArray[np.int64]) -> Verdict:
    return Verdict(*_compiled.walk_greedy(tree.token_ids, tree.parents, tokens))


def _climb(tokens: npt.NDArray[np.int64], accepted: npt.NDArray[np.int64]) -> Verdict:
    path: list[int] = []
    row = 0
    while accepted[row] >= 0:
        path.append(int(accepted[row]))
        row = path[-1] + 1
    return Verdict(np.array(path, np.int32), int(tokens[row]))

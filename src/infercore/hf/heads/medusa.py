"""`MedusaDrafter`: heads that guess the token two, three, ... places on, each from the last hidden state alone."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int32, Int64, Integer
from torch import Tensor, nn

from infercore.errors import CheckpointError
from infercore.hf.heads.checkpoint import load_exactly, read_config, read_tensors
from infercore.hf.heads.config import MedusaConfig, parse_config
from infercore.speculative import DraftModelDrafter, DraftRequest, TokenTree

LAST_HIDDEN = (-1,)


class MedusaHeads(nn.ModuleList):
    """Head i: residual blocks `x + silu(linear(x))`, then a matrix over the vocabulary; named as by its authors."""

    def __init__(self, config: MedusaConfig, hidden_size: int, vocab_size: int) -> None:
        super().__init__(
            nn.Sequential(
                *(_Block(hidden_size) for _ in range(config.num_layers)), nn.Linear(hidden_size, vocab_size, bias=False)
            )
            for _ in range(config.num_heads)
        )

    def forward(self, hidden: Float[Tensor, " hidden"]) -> Float[Tensor, "heads vocab"]:
        """Logits of all heads."""
        return torch.stack([head(hidden) for head in self])


class _Block(nn.Module):
    def __init__(self, hidden_size: int) -> None:
        super().__init__()
        self.linear = nn.Linear(hidden_size, hidden_size)

    def forward(self, x: Tensor) -> Tensor:
        return x + nn.functional.silu(self.linear(x))


class MedusaDrafter:
    """Drafts with Medusa heads: what head i says holds for every node of depth i, whatever its path.

        drafter = MedusaDrafter.from_pretrained("path/to/heads", model)

    Trees are those of `DraftModelDrafter`: the likeliest nodes for greedy requests, drawn ones with their distributions
    for sampling ones. The heads keep no state but the last hidden state of each request.

    Args:
        heads: on the target's device and in its dtype.
        max_depth: longest path; None: as many as there are heads. branching, num_expanded: as `DraftModelDrafter`.
    Source: Cai et al. 2024 (arXiv 2401.10774). We differ: no fixed tree, and exact verification of drawn nodes in place
        of typical acceptance.
    """

    feature_layers = LAST_HIDDEN

    def __init__(
        self, heads: MedusaHeads, *, max_depth: int | None = None, branching: int = 6, num_expanded: int = 6
    ) -> None:
        depth = len(heads) if max_depth is None else max_depth
        if not 1 <= depth <= len(heads):
            raise ValueError(f"max_depth is {max_depth}, but there are {len(heads)} heads; expected 1 to {len(heads)}")
        self.heads = heads
        self._seen: dict[int, _Seen] = {}
        self._trees = DraftModelDrafter(
            _HeadByDepth(self), max_depth=depth, branching=branching, num_expanded=num_expanded
        )

    @classmethod
    def from_pretrained(cls, path: str | Path, target: Any, **options: Any) -> "MedusaDrafter":
        """The heads in folder `path`: `config.json` with `medusa_num_heads`, and safetensors.

        Args:
            target: the transformers model that they were trained for. options: as for the constructor.
        Raises: CheckpointError for a missing, damaged or foreign file, or heads of another target.
        """
        folder = Path(path)
        config = parse_config(read_config(folder))
        if not isinstance(config, MedusaConfig):
            raise CheckpointError(f"{folder} holds an EAGLE head; expected medusa_num_heads in config.json")
        parameter = next(target.parameters())
        text = target.config.get_text_config()
        tensors = read_tensors(folder, parameter.dtype)
        heads = MedusaHeads(config, text.hidden_size, text.vocab_size).to(parameter.dtype)
        load_exactly(heads, tensors, f"{config.num_heads} Medusa heads for this {type(target).__name__}")
        return cls(heads.to(parameter.device).eval().requires_grad_(False), **options)

    def propose(self, requests: Sequence[DraftRequest]) -> list[TokenTree]:
        trees = [TokenTree.empty()] * len(requests)
        known = [i for i, request in enumerate(requests) if request.max_nodes > 0 and self._is_known(request)]
        with torch.no_grad():
            proposed = self._trees.propose([requests[i] for i in known])
        for i, tree in zip(known, proposed, strict=True):
            trees[i] = tree
        return trees

    def see(
        self,
        request_ids: Sequence[int],
        first_positions: Sequence[int],
        rows: Sequence[Int64[np.ndarray, "_"]],
        features: Tensor,
        texts: Sequence[Integer[np.ndarray, "_"]],
        gained: Sequence[Integer[np.ndarray, "_"]] = (),
    ) -> None:
        """Keep each request's last hidden state."""
        for request_id, first, some in zip(request_ids, first_positions, rows, strict=True):
            self._seen[request_id] = _Seen(first + len(some), features[int(some[-1])].clone())

    def commit(
        self, request_id: int, accepted_token_ids: Int32[np.ndarray, "n"], features: Tensor | None = None
    ) -> None:
        """Nothing to keep."""

    def fork(self, request_id: int, new_request_id: int) -> None:
        if request_id in self._seen:
            self._seen[new_request_id] = self._seen[request_id]

    def close(self, request_id: int) -> None:
        self._seen.pop(request_id, None)

    def _is_known(self, request: DraftRequest) -> bool:
        seen = self._seen.get(request.request_id)
        return seen is not None and seen.end == len(request.token_ids) - 1


@dataclass(slots=True)
class _Seen:
    """The hidden state of the token before position `end`, and what the heads make of it."""

    end: int
    hidden: Tensor
    logits: Tensor | None = None


class _HeadByDepth:
    """The heads as `DraftModelDrafter` calls them."""

    def __init__(self, drafter: MedusaDrafter) -> None:
        self._drafter = drafter

    def forward(
        self, request_ids: Sequence[int], texts: Sequence[Integer[np.ndarray, "_"]], trees: Sequence[TokenTree]
    ) -> list[Tensor]:
        logits = []
        for request_id, tree in zip(request_ids, trees, strict=True):
            seen = self._drafter._seen[request_id]
            if seen.logits is None:
                seen.logits = self._drafter.heads(seen.hidden)
            depths = torch.from_numpy(np.concatenate([np.zeros(1, np.int64), tree.depths]))
            logits.append(seen.logits[depths.to(seen.logits.device)])
        return logits

    def close(self, request_id: int) -> None:
        """The drafter closes what it keeps."""

"""`EagleDrafter`: trees from a head that reads the target's hidden states."""

from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from jaxtyping import Int32, Int64, Integer
from torch import Tensor

from infercore.errors import CheckpointError
from infercore.hf.few_rows import FewRows
from infercore.hf.heads.checkpoint import read_config, read_tensors
from infercore.hf.heads.config import HeadConfig, parse_config
from infercore.hf.heads.eagle import EagleHead, head_for
from infercore.hf.heads.expand import Expansion, NewEntries, Shape
from infercore.hf.heads.intake import Intake
from infercore.hf.heads.kv import HeadKV
from infercore.hf.heads.one_depth import OneDepth
from infercore.hf.heads.pooled import Held, PooledEntries
from infercore.hf.heads.ring import MOST_ROWS, NUM_ROWS, FeatureRing
from infercore.hf.heads.seen import Seen
from infercore.radix import KVPool
from infercore.radix import Sequence as PagedText
from infercore.speculative import DraftModelDrafter, DraftRequest, TokenTree

_MAX_NEW = 32  # features that may wait: what an accepted draft brings, also one of another drafter


class EagleDrafter:
    """Drafts with an EAGLE-1, EAGLE-2 or EAGLE-3 head, which continues the target's own hidden states.

        drafter = EagleDrafter.from_pretrained("path/to/head", model)
        engine.generate(prompts, drafter=drafter)

    For a greedy request the likeliest nodes of each depth get children, and at the end the likeliest of all depths are
    kept (EAGLE-2); on a GPU that is one CUDA graph and one copy to the host. For a sampling request children are drawn,
    and the tree carries what they were drawn from, so that verification is exact (`DraftModelDrafter`'s trees).

    What the head made of a text stays with the text's pages, so that a request whose beginning is found in the engine's
    prefix cache goes on as if it had seen all of it (`pooled.py`). A beginning that was computed without this head is
    unknown: the head goes on from where features begin, and proposes nothing where they do not reach the end.

    Args:
        head: its weights, on the target's device and in its dtype.
        feature_layers: where its features come from, as `FeatureObserver.feature_layers`.
        vocab_size: columns of the target's logits.
        max_depth: longest path. branching: children of a node. num_expanded: nodes of each depth that get children.
        cuda_graphs: None: on a GPU.
        fuse_layers: put the head through torch.compile before it is captured: fewer kernels, and a first draft that
            takes longer, once a machine.
    Source: Li et al. 2024, EAGLE (arXiv 2401.15077) and EAGLE-2 (arXiv 2406.16858), section 4; Li et al. 2025, EAGLE-3
        (arXiv 2503.01840).
    """

    def __init__(
        self,
        head: EagleHead,
        *,
        feature_layers: tuple[int, ...],
        vocab_size: int,
        max_depth: int = 5,
        branching: int = 6,
        num_expanded: int = 6,
        cuda_graphs: bool | None = None,
        fuse_layers: bool = False,
    ) -> None:
        parameter = next(head.parameters())
        self.head = head
        self.feature_layers = feature_layers
        self._vocab_size = vocab_size
        self._max_new = max(_MAX_NEW, max_depth + 2)
        self._kv = HeadKV(
            head.config, parameter.dtype, parameter.device, feature_size=head.feature_size, max_new=self._max_new
        )
        self._shape = Shape(max_depth, min(branching, head.config.draft_vocab_size), min(num_expanded, branching))
        self._ring = FeatureRing(head.feature_size, parameter.dtype, parameter.device, NUM_ROWS)
        self._expansion = Expansion(
            head, self._kv, self._ring, self._shape, cuda_graphs=cuda_graphs, fuse_layers=fuse_layers
        )
        self._intake = Intake(head, self._kv, cuda_graphs=self._expansion.uses_graphs)
        self._few_rows = FewRows(head)
        self._seen: dict[int, Seen] = {}
        self._pooled = PooledEntries(self._kv)
        self._starts_early = self._expansion.uses_graphs
        self._asked: set[int] = set()  # requests whose next draft starts ahead: those of the last greedy one
        self._passed: dict[int, tuple[int, int]] = {}  # by address: numbers in the ring of what was not told of yet
        self._started: dict[int, tuple[int, int]] = {}  # those of one under way: its place there, the text's length
        self._drawn = DraftModelDrafter(
            OneDepth(self), max_depth=max_depth, branching=branching, num_expanded=num_expanded
        )

    @classmethod
    def from_pretrained(cls, path: str | Path, target: Any, **options: Any) -> "EagleDrafter":
        """The head in folder `path`: `config.json` and safetensors of the EAGLE authors, SpecForge or speculators.

        Args:
            target: the transformers model that the head was trained for; it gives embeddings, and for EAGLE-1 its
                output embeddings, where the checkpoint has none.
            options: as for the constructor.
        Raises: CheckpointError for a missing, damaged or foreign file, or the head of another target; the message says
            what was found and what was expected.
        """
        folder = Path(path)
        config = parse_config(read_config(folder))
        if not isinstance(config, HeadConfig):
            raise CheckpointError(f"{folder} holds Medusa heads; expected an EAGLE head (MedusaDrafter reads those)")
        text = target.config.get_text_config()
        if config.target_hidden_size != text.hidden_size or config.vocab_size != text.vocab_size:
            raise CheckpointError(
                f"{folder} is a head for a target of width {config.target_hidden_size} and {config.vocab_size} tokens, "
                f"but this {type(target).__name__} has width {text.hidden_size} and {text.vocab_size} tokens"
            )
        parameter = next(target.parameters())
        output = target.get_output_embeddings()
        head = head_for(
            config,
            read_tensors(folder, parameter.dtype),
            embedding=target.get_input_embeddings().weight.detach(),
            target_head=None if output is None else output.weight.detach(),
        ).to(parameter.device)
        layers = _feature_layers(config, head, text.num_hidden_layers)
        return cls(head, feature_layers=layers, vocab_size=text.vocab_size, **options)

    def propose(self, requests: Sequence[DraftRequest]) -> list[TokenTree]:
        trees = [TokenTree.empty()] * len(requests)
        ready = [i for i, request in enumerate(requests) if request.max_nodes > 0 and self._is_known(request)]
        drawn = [i for i in ready if requests[i].temperature > 0 and requests[i].generator is not None]
        chosen = [i for i in ready if i not in drawn]
        with torch.no_grad():
            for members, propose in ((drawn, self._drawn.propose), (chosen, self._choose)):
                if members:
                    proposed = propose([requests[i] for i in members])
                    for i, tree in zip(members, proposed, strict=True):
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
        """Keep the features of what was accepted; long ones go through the head at once.

        Where `gained` tells the tokens that come next, and the request drafted last time or is expected to (`expect`),
        the next draft starts.
        """
        few: list[tuple[int, int, npt.NDArray[np.int64]]] = []
        starting: dict[int, NewEntries] = {}
        self._asked -= self._started.keys()  # nobody wanted that one
        self._started = {}
        ring_first, ring_end = self._passed.pop(features.data_ptr(), (0, 0))
        in_ring = ring_end - ring_first == len(features) and ring_first >= self._ring.room(0)
        for index, (request_id, first, some, text) in enumerate(
            zip(request_ids, first_positions, rows, texts, strict=True)
        ):
            seen = self._seen.get(request_id)
            if seen is None:
                seen = self._seen[request_id] = Seen(self._kv.open(), first)
            seen.begin_at(first)
            if seen.more is None and in_ring and seen.num_new + len(some) <= self._max_new:
                seen.told += (some + ring_first).tolist()
                seen.num_new += len(some)
                if gained and request_id in self._asked:
                    entries = self._next_entries(seen, text, gained[index])
                    if entries is not None:
                        starting[request_id] = entries
            elif seen.more is None and not seen.told and seen.num_new + len(some) <= self._max_new:
                few.append((seen.slot, seen.num_new, some))
                seen.num_new += len(some)
            else:
                added = features.index_select(0, torch.from_numpy(some).to(features.device))
                seen.more = torch.cat([self._new(seen), added])
                seen.num_new, seen.told = len(seen.more), []
                self._absorb(seen, np.asarray(text), leave=1)
        if few:
            self._kv.wait(few, features)
        if starting:
            with torch.no_grad():
                self._start(starting)

    def passed(self, features: Tensor) -> None:
        """Keep the features of a forward that was just launched; as `PassingObserver.passed`."""
        if not self._starts_early or len(features) > MOST_ROWS:
            return
        oldest = self._ring.room(len(features))
        for seen in self._seen.values():
            if seen.told and seen.told[0] < oldest:
                self._kv.waiting[seen.slot, : seen.num_new] = self._new(seen)
                seen.told = []
        first = self._ring.put(features)
        self._passed[features.data_ptr()] = first, first + len(features)  # each engine's stand at their own address

    def expect(self, request_ids: Collection[int]) -> None:
        """Start the next drafts of these as soon as features come, and of no others; as `StartsAhead.expect`."""
        self._asked = set(request_ids)

    def has_started(self, request_id: int) -> bool:
        return request_id in self._started

    def commit(
        self, request_id: int, accepted_token_ids: Int32[np.ndarray, "n"], features: Tensor | None = None
    ) -> None:
        """Nothing to keep: the next request carries its text, and `see` brought the features."""

    def fork(self, request_id: int, new_request_id: int) -> None:
        """What was seen of one request holds for another as well."""
        seen = self._seen.get(request_id)
        if seen is not None:
            self.close(new_request_id)
            copy = Seen(self._kv.open(), seen.first, seen.length, seen.num_new, seen.more, list(seen.told))
            self._kv.copy(seen.slot, copy.slot)
            self._seen[new_request_id] = copy

    def close(self, request_id: int) -> None:
        self._pooled.held.pop(request_id, None)
        self._forget(request_id)

    def begin(self, request_id: int, sequence: PagedText, pool: KVPool) -> bool:
        """Take up what this head made of a reused beginning; as `PageObserver.begin`.

        Cost: nothing but bookkeeping for a text that is new, or for one this request has seen itself.
        """
        before = self._pooled.held.get(request_id)
        self._pooled.held[request_id] = Held(sequence, pool)
        if before is not None and (before.pool is not pool or before.sequence.namespace != sequence.namespace):
            self._forget(request_id)  # another adapter: features of the same text are others
        seen = self._seen.get(request_id)
        if seen is not None and seen.first < sequence.num_tokens <= seen.end:
            return False
        if sequence.num_tokens < 2:
            return False
        last = sequence.num_tokens - 1
        first = self._pooled.first_known(sequence, pool)
        if first:
            for other_id, num_tokens in self._pooled.sharers(request_id, sequence, pool):
                self._to_pool(other_id, num_tokens)
            first = self._pooled.first_known(sequence, pool)
        if first == last:
            return False
        self._forget(request_id)
        seen = self._seen[request_id] = Seen(self._kv.open(), first)
        seen.length = self._pooled.read(seen.slot, first, sequence, pool)
        return True

    def publish(self, request_id: int) -> None:
        """Copy what the head made of whole pages to where others find it; as `PageObserver.publish`."""
        held = self._pooled.held.get(request_id)
        if held is not None:
            self._to_pool(request_id, held.sequence.num_tokens // held.pool.page_size * held.pool.page_size)

    def warmup(self, *, batch: int, num_tokens: int) -> None:
        """Capture the graphs of greedy drafts ahead; as `CapturingObserver.warmup`. On a CPU there is nothing to do."""
        if not self._expansion.uses_graphs:
            return
        self._kv.reserve_slots(batch)
        with torch.no_grad():
            self._intake.warmup(num_tokens)
            self._expansion.warmup(batch, num_tokens)

    def _to_pool(self, request_id: int, num_tokens: int) -> None:
        """Entries of the first `num_tokens` tokens, as far as they are known."""
        seen = self._seen.get(request_id)
        if seen is None:
            return
        text = self._pooled.held[request_id].sequence.token_ids

        def known() -> int:
            if seen.first + seen.length + 1 < num_tokens:
                self._absorb(seen, text, leave=1)
            return seen.length

        any_first = self.head.config.num_layers == 1  # K and V of the first layer depend on their own entry alone
        self._pooled.write(request_id, seen.slot, seen.first, num_tokens, known, any_first=any_first)

    def _forget(self, request_id: int) -> None:
        seen = self._seen.pop(request_id, None)
        if seen is not None:
            self._kv.close(seen.slot)

    def _is_known(self, request: DraftRequest) -> bool:
        seen = self._seen.get(request.request_id)
        return seen is not None and seen.num_new > 0 and seen.end == len(request.token_ids) - 1

    def _choose(self, requests: Sequence[DraftRequest]) -> list[TokenTree]:
        """The likeliest nodes: one call over the batch, one copy to the host."""
        ids = [request.request_id for request in requests]
        self._asked = set(ids)
        places = [self._started.get(request.request_id, (-1, -1)) for request in requests]
        if any(length != len(request.token_ids) for (_, length), request in zip(places, requests, strict=True)):
            places = [(place, -1) for place in range(len(requests))]
            self._start({request.request_id: self._entries(request) for request in requests})
        self._started = {}
        wanted = [(place, request.max_nodes) for (place, _), request in zip(places, requests, strict=True)]
        return self._expansion.finish(wanted)

    def _start(self, entries: dict[int, NewEntries]) -> None:
        """Begin the draft of these requests; all their new entries but the last are in the cache from then on."""
        with self._few_rows.during(len(entries) * self._shape.width):
            self._expansion.start(list(entries.values()))
        for place, (request_id, each) in enumerate(entries.items()):
            seen = self._seen[request_id]
            seen.length, seen.num_new, seen.told = seen.length + len(each.next_tokens) - 1, 1, []
            self._started[request_id] = place, seen.end + 1

    def _entries(self, request: DraftRequest) -> NewEntries:
        """Of a request that is known, with features that wait in the cache's memory."""
        seen = self._seen[request.request_id]
        if seen.more is not None:
            self._absorb(seen, request.token_ids, leave=1)
        next_tokens = request.token_ids[seen.first + seen.length + 1 :]
        return NewEntries(seen.slot, seen.length, seen.first, next_tokens, seen.told)

    def _next_entries(
        self, seen: Seen, text: Integer[np.ndarray, "_"], gained: Integer[np.ndarray, "_"]
    ) -> NewEntries | None:
        """Of a text that is about to go on with `gained`; None if that does not end where features do."""
        if not len(gained) or seen.end != len(text) + len(gained) - 1:
            return None
        start = seen.first + seen.length + 1
        next_tokens = np.concatenate([text[start:], gained[max(0, start - len(text)) :]])
        return NewEntries(seen.slot, seen.length, seen.first, next_tokens, seen.told)

    def _new(self, seen: Seen) -> Tensor:
        """Features that are not in the cache yet, `[num_new, columns]`."""
        if seen.more is not None:
            return seen.more
        waiting = self._kv.waiting[seen.slot, : seen.num_waiting]
        if not seen.told:
            return waiting
        places = torch.tensor([number % len(self._ring.rows) for number in seen.told], device=waiting.device)
        return torch.cat([waiting, self._ring.rows[places]])

    def _absorb(self, seen: Seen, text: Integer[np.ndarray, "_"], *, leave: int) -> None:
        """Put new entries of one request whose next token is known into the cache, all but the last `leave`."""
        start = seen.first + seen.length
        count = min(seen.num_new - leave, len(text) - 1 - start)
        if count <= 0:
            return
        features = self._new(seen)
        with torch.no_grad():
            self._intake.run(seen.slot, seen.length, seen.first, text[start + 1 : start + 1 + count], features[:count])
        seen.length += count
        seen.num_new -= count
        seen.told = []
        if seen.num_new > self._max_new:
            seen.more = features[count:]
        else:
            self._kv.waiting[seen.slot, : seen.num_new] = features[count:].clone()
            seen.more = None


def _feature_layers(config: HeadConfig, head: EagleHead, num_layers: int) -> tuple[int, ...]:
    if not head.is_eagle3:
        return (-1,)
    layers = config.feature_layers or (2, num_layers // 2, num_layers - 3)
    if len(layers) != head.num_features or head.fc.in_features != head.feature_size:
        raise CheckpointError(
            f"fc takes {head.fc.in_features} columns, but {len(layers)} features of {config.target_hidden_size} come "
            f"from layers {layers}"
        )
    return tuple(layers)

"""`StepGraphs`: small steps as CUDA graphs, one for each bucket of shapes, so that launching kernels costs nothing.

A step of up to 256 rows launches a thousand kernels that run a few microseconds each; launched one by one they leave
the GPU idle most of the time. A graph launches them at once, on the buffers it was captured with (`step_buffers.py`).
Larger steps, which are prefill, go the ordinary way: their kernels are long.
"""

import logging
from bisect import bisect_left
from collections.abc import Callable, Iterator
from collections.abc import Sequence as Seq
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from tqdm.auto import tqdm  # type: ignore[import-untyped]

from infercore.hf.choices import Choices
from infercore.hf.fused_layers import FusedLayers
from infercore.hf.packed_model import PackedModel
from infercore.hf.plan import PrefixGroups, Rows, count_rows
from infercore.hf.prefix_groups import MIN_MEMBERS
from infercore.hf.step_buffers import Bucket, StepBuffers
from infercore.radix import KVPool

ROWS = (1, 2, 4, 8, 16, 24, 32, 48, 64, 96, 128, 192, 256)
SEQS = (1, 2, 4, 8, 16, 32, 64, 128)
LARGE_ROWS = (512, 1024, 2048)
_MAX_TABLE_TOKENS = 1 << 17  # longer sequences run without graphs

_log = logging.getLogger(__name__)
Replay = Callable[[], Tensor]
"""Runs a captured forward; returns logits of all its rows, overwritten by the next replay."""


class StepGraphs:
    """Runs steps of few rows by graphs, which are captured when a shape is first met, or ahead by `warmup`.

    What cannot be captured (dynamic rotary embeddings, experts chosen on the host, offloaded layers) raises during the
    capture, or gives other logits than the eager forward did; then no graph is used, and `reason` says why. Out of
    memory while capturing: no further graphs, and a warning.

    Args:
        model, pool: as the engine's.
        max_seqs: sequences in a step. max_tokens: of a sequence.
        fused: layers to run compiled in the graphs; None: the model's own code.
        capture: how a forward becomes a replay; tests on a CPU put plain calls in its place.
        with_groups: `warmup` captures steps whose sequences begin with the same pages as well.
    """

    def __init__(
        self,
        model: PackedModel,
        pool: KVPool,
        *,
        max_seqs: int,
        max_tokens: int,
        fused: FusedLayers | None = None,
        capture: "Callable[[Callable[[], Tensor]], Replay] | None" = None,
        with_groups: bool = False,
    ) -> None:
        self._model = model
        self._pool = pool
        self._fused = fused
        self._given_capture = capture
        self._with_groups = with_groups
        self._capture_forward = capture or _Capture(model.device)
        seqs = _smallest(SEQS, max_seqs) or SEQS[-1]
        pages = -(-min(max_tokens, pool.num_pages * pool.page_size, _MAX_TABLE_TOKENS) // pool.page_size)
        self._buffers = StepBuffers(ROWS[-1], seqs, pages, model.device)
        self._replays: dict[Bucket, Replay] = {}
        self.reason: str | None = None
        self.is_full = False
        self.num_replays = 0

    def forward(self, rows: Seq[Rows], groups: PrefixGroups | None = None) -> Tensor | None:
        """Logits of all `rows`, valid until the next call; None if no graph serves these rows.

        The best token of each row is put among the `choices`.
        """
        total = count_rows(rows)
        bucket = self._bucket(rows, total, has_groups=groups is not None)
        if bucket is None or self.reason is not None or (self.is_full and bucket not in self._replays):
            return None
        self._buffers.write(rows, bucket, groups)
        replay = self._replays.get(bucket) or self._capture(bucket)
        if replay is None:
            return None
        logits = replay()
        self.num_replays += 1
        return logits if len(logits) == total else logits[:total]

    @property
    def serves(self) -> bool:
        """Whether steps run by graphs at all."""
        return self.reason is None and not self.is_full

    @property
    def choices(self) -> Choices:
        """Of up to 256 rows; those of the next step may begin with them."""
        return self._buffers.choices

    def warmup(self, *, max_seqs: int, max_rows: int, progress: bool) -> None:
        """Capture every bucket of up to that many sequences and rows, the largest first.

        Larger steps, which no graph serves, are run once each in the sizes that choose among compiled kernels.
        """
        buckets = sorted(self._buckets(max_seqs, min(max_rows, ROWS[-1])), reverse=True)
        large = list(self._buckets(max_seqs, max_rows, LARGE_ROWS)) if max_rows > ROWS[-1] else []
        if self._with_groups:  # they are not captured, but may share beginnings all the same
            large += [replace(b, has_groups=True) for b in large if b.num_seqs >= MIN_MEMBERS]
        for bucket in tqdm(large, desc="compiling kernels", disable=not progress):
            buffers = StepBuffers(bucket.num_rows, bucket.num_seqs, self._buffers.max_pages, self._model.device)
            buffers.write([], bucket)
            self._model.forward(buffers.plan(bucket, self._pool))
        for bucket in tqdm(buckets, desc="capturing CUDA graphs", disable=not progress):
            if self.reason is not None or self.is_full:
                break
            if bucket not in self._replays:
                self._buffers.write([], bucket)
                self._capture(bucket)

    def over(self, pool: KVPool, *, max_seqs: int, max_tokens: int) -> "StepGraphs":
        """Graphs of the same kind over another pool."""
        return StepGraphs(
            self._model,
            pool,
            max_seqs=max_seqs,
            max_tokens=max_tokens,
            fused=self._fused,
            capture=self._given_capture,
            with_groups=self._with_groups,
        )

    def clear(self) -> None:
        """Drop all graphs: the weights they were captured with are gone."""
        self._replays.clear()
        self._capture_forward = self._given_capture or _Capture(self._model.device)  # its memory went with the graphs
        self.reason, self.is_full = None, False

    def describe(self) -> str:
        """One line for reports."""
        if self.reason is not None:
            return f"none: {self.reason}"
        full = ", no more for want of memory" if self.is_full else ""
        return f"{len(self._replays)} captured, {self.num_replays} steps replayed{full}"

    def _bucket(self, rows: Seq[Rows], total: int, *, has_groups: bool) -> Bucket | None:
        num_rows, num_seqs = _smallest(ROWS, total), _smallest(SEQS, len(rows))
        if num_rows is None or num_seqs is None or num_seqs > self._buffers.max_seqs:
            return None
        if max([r.sequence.num_pages for r in rows]) > self._buffers.max_pages:
            return None
        num_rows = max(num_rows, num_seqs)
        has_groups = has_groups and _may_have_groups(num_rows, num_seqs)
        return Bucket(num_rows, num_seqs, any(r.tree.num_nodes for r in rows), has_groups)

    def _buckets(self, max_seqs: int, max_rows: int, sizes: tuple[int, ...] = ROWS) -> Iterator[Bucket]:
        most_seqs, most_rows = _smallest(SEQS, max_seqs) or SEQS[-1], _smallest(sizes, max_rows) or sizes[-1]
        for num_seqs in SEQS:
            for num_rows in sizes:
                if num_seqs <= min(num_rows, most_seqs, self._buffers.max_seqs) and num_rows <= most_rows:
                    trees = [False]
                    if num_rows > num_seqs or num_seqs > 2:  # fewer sequences may share the bucket, with drafts
                        trees.append(True)
                    grouped = [False, True] if self._with_groups and _may_have_groups(num_rows, num_seqs) else [False]
                    yield from (Bucket(num_rows, num_seqs, tree, group) for tree in trees for group in grouped)

    def _capture(self, bucket: Bucket) -> Replay | None:
        """Run the bucket's forward once as it is, capture it, and compare; None where that fails."""

        def forward() -> Tensor:
            with self._fused.during() if self._fused is not None else nullcontext():
                logits = self._model.forward(self._buffers.plan(bucket, self._pool))
            self._buffers.choices.choose(logits)
            return logits

        tokens = self._buffers.choices.tokens
        chosen = tokens.clone()  # these rows may begin with some of them
        try:
            eager = forward().clone()  # compiles kernels and makes the pool's layers, outside the graph's memory
            tokens.copy_(chosen)
            replay = self._capture_forward(forward)
            if not torch.equal(replay(), eager):
                self.reason = f"a replay of {bucket} gave other logits than the eager forward"
        except torch.cuda.OutOfMemoryError:
            self.is_full = True
            torch.cuda.empty_cache()
            _log.warning("no memory for a CUDA graph of %s; steps of that shape run without", bucket)
            return None
        except Exception as error:  # whatever the model does that a capture forbids: it then runs eagerly, and says so
            self.reason = f"{type(error).__name__}: {error}".splitlines()[0]
        finally:
            tokens.copy_(chosen)
        if self.reason is not None:
            _log.warning("steps run without CUDA graphs: %s", self.reason)
            self._replays.clear()
            return None
        self._replays[bucket] = replay
        return replay


def _may_have_groups(num_rows: int, num_seqs: int) -> bool:
    """Whether steps of a bucket gain by groups: of few sequences, or many rows each, attention takes no longer."""
    return num_seqs >= MIN_MEMBERS and num_rows <= 4 * num_seqs


def _smallest(sizes: tuple[int, ...], count: int) -> int | None:
    """The smallest of ascending `sizes` that holds `count`; None if none does."""
    at = bisect_left(sizes, count)
    return sizes[at] if at < len(sizes) else None


def check_wanted(device: torch.device, wanted: bool | None) -> None:
    """Raises: ValueError where graphs are asked for on a CPU."""
    if wanted and device.type != "cuda":
        raise ValueError(f"cuda_graphs is True, but the model is on {device}; move it to a GPU, or leave it out")


def step_graphs(
    model: PackedModel, pool: KVPool, wanted: bool | None, *, fuse_layers: bool, max_seqs: int, max_tokens: int
) -> StepGraphs | None:
    """The graphs of an engine; None on a CPU, or where they are not wanted. `wanted` None: on a GPU."""
    if model.device.type != "cuda" or wanted is False:
        return None
    fused = FusedLayers.of(model.model) if fuse_layers else None
    return StepGraphs(model, pool, max_seqs=max_seqs, max_tokens=max_tokens, fused=fused, with_groups=True)


@contextmanager
def _draws_restored(device: torch.device) -> Iterator[None]:
    """Give the device's generator back as it was if a capture fails, which else leaves it refusing every draw."""
    generator = torch.cuda.default_generators[torch.cuda.current_device() if device.index is None else device.index]
    state = generator.get_state()
    try:
        yield
    except BaseException:
        fresh = torch.Generator(device)
        fresh.set_state(state)
        generator.graphsafe_set_state(fresh.graphsafe_get_state())
        raise


class _Capture:
    """Captures forwards into CUDA graphs that share one pool of memory."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._memory: Any = None  # a handle that torch gives no public type

    def __call__(self, forward: Callable[[], Tensor]) -> Replay:
        with torch.cuda.device(self._device):
            graph = torch.cuda.CUDAGraph()
            torch.cuda.synchronize()
            with _draws_restored(self._device), torch.cuda.graph(graph, pool=self._memory):
                logits = forward()
            self._memory = self._memory or graph.pool()

        def replay() -> Tensor:
            graph.replay()
            return logits

        return replay

"""What every scene works with: one model, the engine on it, and a clock that both sides are measured with."""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, TypeAlias

from infercore.demo.fetch import Progress


@dataclass(frozen=True, slots=True)
class Counts:
    """Tokens that a side did not have to compute one by one, summed over its prompts."""

    num_reused: int = 0
    num_forced: int = 0
    num_accepted: int = 0

    def __add__(self, other: "Counts") -> "Counts":
        return Counts(
            self.num_reused + other.num_reused,
            self.num_forced + other.num_forced,
            self.num_accepted + other.num_accepted,
        )

    @classmethod
    def of(cls, completions: Sequence[Any]) -> "Counts":
        """What the engine says of its completions."""
        stats = [done.stats for done in completions]
        return cls(
            sum(s.num_reused_tokens for s in stats),
            sum(s.num_forced_tokens for s in stats),
            sum(s.num_accepted_tokens for s in stats),
        )


Outputs: TypeAlias = tuple[list[list[int]], Counts]
"""New token ids of every prompt, end token included, and what they took."""


@dataclass(frozen=True, slots=True)
class Side:
    """One side of a scene: how it was called, what it said, and what that took.

    Args:
        name: "infercore", or how `generate` was called.
        outputs: the new token ids of every prompt, end token included.
        num_forwards: calls of the model.
        num_rows: tokens that went through the model, padding included.
    """

    name: str
    outputs: list[list[int]]
    seconds: float
    num_forwards: int
    num_rows: int
    counts: Counts


@dataclass(frozen=True, slots=True)
class Scene:
    """A finished scene.

    Args:
        prompts, texts: what was asked and what our side answered, in pairs, to be read by people.
        peers: Hugging Face `generate`, called in each way that a user would consider.
        remarks: what else there is to say, one line each.
    """

    name: str
    title: str
    prompts: list[str]
    texts: list[str]
    ours: Side
    peers: list[Side]
    remarks: list[str] = field(default_factory=list)

    @property
    def best_peer(self) -> Side:
        """The fastest of the other side's ways."""
        return min(self.peers, key=lambda side: side.seconds)

    @property
    def speedup(self) -> float:
        """Time of the best peer over ours; below 1 we lose."""
        return self.best_peer.seconds / self.ours.seconds

    def best_with(self, again: "Scene") -> "Scene":
        """This scene with the better time of each side, this one's or that of the same scene played again."""
        ours, *peers = [
            replace(side, seconds=min(side.seconds, other.seconds))
            for side, other in zip([self.ours, *self.peers], [again.ours, *again.peers], strict=True)
        ]
        return replace(self, ours=ours, peers=peers)

    @property
    def num_different_outputs(self) -> int:
        """Outputs that are not the best peer's, token for token."""
        return sum(ours != theirs for ours, theirs in zip(self.ours.outputs, self.best_peer.outputs, strict=True))


@dataclass(slots=True)
class Stage:
    """The model, the engine built on it, and what scenes leave for later ones.

    Args:
        attention: name of the model's own attention, which `generate` runs with.
        kept: caches that a user of `generate` would hold on to between scenes, by name.
        eagle: an EAGLE head for this model, whose drafts join those of every scene; None: none.
    """

    model: Any
    tokenizer: Any
    engine: Any
    attention: str
    progress: Progress
    kept: dict[str, Any] = field(default_factory=dict)
    eagle: Any = None

    def drafter(self, own: Any) -> Any:
        """A scene's own drafter, together with the head if there is one."""
        if self.eagle is None:
            return own
        from infercore.speculative import Union

        return Union(own, self.eagle)

    def ours(self, run: Callable[[], Outputs], *, what: str, num_expected: int) -> Side:
        """Run the engine's side of a scene."""
        return self._measured("infercore", run, f"{what}: infercore", num_expected)

    def peer(self, name: str, run: Callable[[], Outputs], *, what: str, num_expected: int) -> Side:
        """Run a side that calls Hugging Face `generate`, on the model's own attention."""
        with self._own_attention():
            return self._measured(name, run, f"{what}: {name}", num_expected)

    def _measured(self, name: str, run: Callable[[], Outputs], what: str, num_expected: int) -> Side:
        with counted_forwards(
            self.model, lambda num_forwards: self.progress(what, min(1.0, num_forwards / num_expected))
        ) as counter:
            start = time.perf_counter()
            outputs, counts = run()
            seconds = time.perf_counter() - start
        self.progress(what, 1.0)
        return Side(name, outputs, seconds, counter.num_forwards, counter.num_rows, counts)

    @contextmanager
    def _own_attention(self) -> Iterator[None]:
        packed = self.model.config._attn_implementation
        self.model.set_attn_implementation(self.attention)
        try:
            yield
        finally:
            self.model.set_attn_implementation(packed)


@dataclass(slots=True)
class ForwardCounter:
    """Forwards of a model and the rows in them."""

    num_forwards: int = 0
    num_rows: int = 0


@contextmanager
def counted_forwards(model: Any, on_forward: Callable[[int], object] | None = None) -> Iterator[ForwardCounter]:
    """Count every forward of `model` inside the block, whoever calls it."""
    counter = ForwardCounter()

    def count(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        input_ids = kwargs["input_ids"] if "input_ids" in kwargs else args[0]
        counter.num_forwards += 1
        counter.num_rows += input_ids.numel()
        if on_forward is not None:
            on_forward(counter.num_forwards)

    handle = model.register_forward_pre_hook(count, with_kwargs=True)
    try:
        yield counter
    finally:
        handle.remove()

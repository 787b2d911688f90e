"""The text of a training run: documents of tokens, kept in one file, cut into batches, apart from test questions."""

import json
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

GIVEN, QUESTION, ANSWER = 0, 1, 2
_SHARED_WORDS = 8
_WORD = re.compile(r"\w+")


@dataclass(frozen=True, slots=True, eq=False)
class Document:
    """Token ids, and for each of them whether it was given, belongs to a message or to an answer."""

    token_ids: npt.NDArray[np.int32]
    kinds: npt.NDArray[np.int8]


def save(documents: Sequence[Document], path: Path) -> None:
    """One safetensors file; it appears whole or not at all."""
    tensors = {
        "token_ids": torch.from_numpy(np.concatenate([d.token_ids for d in documents])),
        "kinds": torch.from_numpy(np.concatenate([d.kinds for d in documents])),
        "lengths": torch.tensor([len(d.token_ids) for d in documents], dtype=torch.int32),
    }
    scratch = path.with_suffix(".part")
    save_file(tensors, scratch)
    scratch.rename(path)


def load(path: Path) -> list[Document]:
    """What `save` wrote."""
    tensors = load_file(path)
    cuts = np.cumsum(tensors["lengths"].numpy())[:-1]
    pairs = zip(*(np.split(tensors[name].numpy(), cuts) for name in ("token_ids", "kinds")), strict=True)
    return [Document(ids, kinds) for ids, kinds in pairs]


def from_file(path: Path, tokenizer: Any, max_tokens: int) -> list[Document]:
    """A text file, cut into documents of `max_tokens` tokens."""
    ids = np.asarray(tokenizer(path.read_text(encoding="utf-8"), add_special_tokens=False).input_ids, np.int32)
    cut = np.split(ids, range(max_tokens, len(ids), max_tokens))
    return [Document(part, np.full(len(part), ANSWER, np.int8)) for part in cut if len(part) > 8]


class Overlap:
    """Finds documents that share eight words in a row with texts that are not to be trained on.

    Args:
        texts: for example the questions of a benchmark.
    """

    def __init__(self, texts: Iterable[str]) -> None:
        self._known = {run for text in texts for run in _runs(text)}

    @classmethod
    def with_files(cls, paths: Sequence[Path]) -> "Overlap":
        """Texts are the strings in JSON lines, whatever holds them, or the lines of other files."""
        texts: list[str] = []
        for path in paths:
            for line in path.read_text(encoding="utf-8").splitlines():
                texts += _strings(json.loads(line)) if path.suffix in (".jsonl", ".json") else [line]
        return cls(texts)

    def shares(self, text: str) -> bool:
        return any(run in self._known for run in _runs(text))


def draft_vocabulary(documents: Iterable[Document], size: int, vocab_size: int) -> Tensor:
    """The `size` token ids that are written most often, ascending; answers count in full, messages a quarter."""
    counts = np.zeros(vocab_size)
    for document in documents:
        for kind, weight in ((ANSWER, 1.0), (QUESTION, 0.25)):
            counts += weight * np.bincount(document.token_ids[document.kinds == kind], minlength=vocab_size)
    best = np.argsort(-counts, kind="stable")[:size]
    return torch.from_numpy(np.sort(best))


def coverage(documents: Iterable[Document], ids: Tensor, vocab_size: int) -> float:
    """Share of the answers' tokens that the draft vocabulary holds."""
    inside = np.zeros(vocab_size, bool)
    inside[ids.numpy()] = True
    answers = np.concatenate([d.token_ids[d.kinds == ANSWER] for d in documents])
    return float(inside[answers].mean()) if len(answers) else 0.0


@dataclass(frozen=True, slots=True)
class Batch:
    """Documents of like lengths, padded on the right.

    Args:
        token_ids: int64 `[documents, tokens]`. weights: float32 likewise, what predicting this token counts.
    """

    token_ids: Tensor
    weights: Tensor


def batches(documents: Sequence[Document], tokens: int, generator: np.random.Generator | None) -> Iterator[Batch]:
    """All documents once, about `tokens` tokens in a batch; in a drawn order, or as they are without a generator."""
    lengths = np.array([len(d.token_ids) for d in documents])
    jitter = generator.uniform(0.9, 1.1, len(lengths)) if generator is not None else 1.0
    order = np.argsort(-lengths * jitter, kind="stable")
    groups: list[list[int]] = []
    first = 0
    while first < len(order):
        longest = int(lengths[order[first:]].max()) if generator is not None else int(lengths[order[first]])
        number = max(1, tokens // longest)
        groups.append(order[first : first + number].tolist())
        first += number
    if generator is not None:
        generator.shuffle(groups)
    for group in groups:
        yield _batch([documents[i] for i in group])


def _batch(documents: Sequence[Document]) -> Batch:
    longest = -(-max(len(d.token_ids) for d in documents) // 32) * 32
    token_ids = torch.zeros(len(documents), longest, dtype=torch.int64)
    weights = torch.zeros(len(documents), longest)
    worth = torch.tensor([0.0, 0.25, 1.0])
    for row, document in enumerate(documents):
        length = len(document.token_ids)
        token_ids[row, :length] = torch.from_numpy(document.token_ids.astype(np.int64))
        weights[row, :length] = worth[torch.from_numpy(document.kinds.astype(np.int64))]
    return Batch(token_ids, weights)


def _runs(text: str) -> Iterator[tuple[str, ...]]:
    words = _WORD.findall(text.lower())
    for start in range(len(words) - _SHARED_WORDS + 1):
        yield tuple(words[start : start + _SHARED_WORDS])


def _strings(value: Any) -> list[str]:
    if isinstance(value, str):
        return [value]
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return [text for each in inner for text in _strings(each)]

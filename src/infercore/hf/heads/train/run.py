"""`train_eagle`: from a target to an EAGLE-3 head on disk; goes on where it was cut off."""

import dataclasses
import json
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor

from infercore.hf.heads.checkpoint import int8_rows
from infercore.hf.heads.config import HeadConfig
from infercore.hf.heads.eagle import EagleHead
from infercore.hf.heads.train import corpus
from infercore.hf.heads.train.begin import config_for, new_head
from infercore.hf.heads.train.card import model_card
from infercore.hf.heads.train.corpus import Document, Overlap
from infercore.hf.heads.train.lesson import Teacher, lesson
from infercore.hf.heads.train.writer import Turns, Writer
from infercore.hf.packed_model import PackedModel

Report = Callable[[str], object]
_STATE, _TEXT, _LOG = "training.pt", "text.safetensors", "log.jsonl"


@dataclass(frozen=True, slots=True)
class Plan:
    """How a head is trained.

    Args:
        minutes: of training, text not counted; with `max_steps` whichever comes first.
        text_tokens, text_minutes: how much the target writes, whichever comes first.
        text_batch: rows that write at once. max_tokens: longest document.
        draft_vocab_size: tokens that the head can propose. intermediate_size: None: the target's.
        ttt_steps: depth of the training-time test.
        batch_tokens: of one step. learning_rate: at its height. optimizer: "muon" for matrices, or "adamw" for all.
        seconds_between: validations, each saved.
    """

    minutes: float = 8.0
    max_steps: int = 1_000_000
    text_tokens: int = 8_000_000
    text_minutes: float = 4.0
    text_batch: int = 512
    max_tokens: int = 512
    draft_vocab_size: int = 8192
    intermediate_size: int | None = None
    ttt_steps: int = 5
    batch_tokens: int = 16_384
    learning_rate: float = 2e-3
    optimizer: str = "muon"
    seconds_between: float = 45.0
    seed: int = 0

    def __post_init__(self) -> None:
        if self.optimizer not in ("muon", "adamw"):
            raise ValueError(f"optimizer is {self.optimizer!r}; expected 'muon' or 'adamw'")
        positive = ("minutes", "max_steps", "text_batch", "max_tokens", "draft_vocab_size", "ttt_steps", "batch_tokens")
        if wrong := [name for name in positive if getattr(self, name) <= 0]:
            raise ValueError(f"{wrong[0]} is {getattr(self, wrong[0])}; expected more than 0")


@dataclass(frozen=True, slots=True)
class Checked:
    """How good a head is on text that it is not trained on.

    Args:
        accuracy: share of entries, by step, whose likeliest token is the target's.
        accept_length: tokens a forward that a chain of the head's likeliest tokens would gain there.
    """

    accuracy: list[float]
    accept_length: float


def train_eagle(
    target: Any,
    tokenizer: Any,
    out: Path,
    plan: Plan,
    *,
    name: str = "the target",
    text_files: Sequence[Path] = (),
    avoid: Sequence[Path] = (),
    turns: Turns | None = None,
    report: Report = print,
) -> Checked:
    """Train a head for `target` and write it to `out`: `config.json`, `model.safetensors`, `README.md`, `int8/`.

    What it is trained on is written by the target (`Writer`) and, if given, stands in text files; features are computed
    as they are needed and never stored. `out/work` keeps the text, the state and a log: called again with the same
    folder, it goes on from there; once the training is over it only writes the head again.

    Args:
        target: a transformers causal LM; it is not changed, but switched to the engine's attention.
        tokenizer: for text files, `avoid` and the chat template; may be None with `turns` and without those.
        avoid: JSON lines or text; documents that share eight words in a row with them are left out.
        report: is told what happens, a line each.
    Raises: ValueError for text that is too little, or files that do not fit.
    """
    work = out / "work"
    work.mkdir(parents=True, exist_ok=True)
    target.eval().requires_grad_(False)
    model = PackedModel(target)
    documents = _text(model, tokenizer, work, plan, turns, text_files, avoid, report)
    vocab_size = target.config.get_text_config().vocab_size
    held_out = documents[: max(2, min(len(documents) // 20, 400))]
    lessons = documents[len(held_out) :]
    if len(lessons) < 2:
        raise ValueError(f"{len(documents)} documents are too few to train on; ask for more text, or give a text file")
    config = config_for(
        target,
        draft_vocab_size=min(plan.draft_vocab_size, vocab_size),
        intermediate_size=plan.intermediate_size,
    )
    draft_ids = corpus.draft_vocabulary(lessons, config.draft_vocab_size, vocab_size)
    report(f"the draft vocabulary covers {corpus.coverage(held_out, draft_ids, vocab_size):.2%} of held-out answers")
    run = _Run(target, config, draft_ids, plan, work, report)
    checked = run.learn(lessons, held_out)
    write_head(run.head, config, draft_ids, out)
    card = model_card(name, plan, config, checked, documents, run.log(), avoided=bool(avoid))
    (out / "README.md").write_text(card, encoding="utf-8")
    report(f"written to {out}")
    return checked


def write_head(head: EagleHead, config: HeadConfig, draft_ids: Tensor, out: Path) -> None:
    """EAGLE-3 as its authors write it, in bfloat16, and in `int8/` the same in 8 bits with a scale a row."""
    tensors: dict[str, Tensor] = {
        name.replace("layers.0.", "midlayer."): tensor.detach().to("cpu", torch.bfloat16).contiguous()
        for name, tensor in head.state_dict().items()
    }
    tensors["d2t"] = draft_ids - torch.arange(len(draft_ids))
    tensors["t2d"] = torch.zeros(config.vocab_size, dtype=torch.bool).index_fill(0, draft_ids, True)
    full = {name: tensor.detach().cpu() for name, tensor in head.state_dict().items()}
    small = {name.replace("layers.0.", "midlayer."): tensor for name, tensor in int8_rows(full).items()}
    small = {
        name: t.half() if t.dtype is torch.float32 and not name.endswith("scale") else t for name, t in small.items()
    }
    content = json.dumps(_authors_config(config), indent=2) + "\n"
    for folder, stored in ((out, tensors), (out / "int8", {**small, "d2t": tensors["d2t"], "t2d": tensors["t2d"]})):
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "config.json").write_text(content, encoding="utf-8")
        save_file({name: tensor.contiguous() for name, tensor in stored.items()}, folder / "model.safetensors")


def _authors_config(config: HeadConfig) -> dict[str, Any]:
    content: dict[str, Any] = {
        "architectures": ["LlamaForCausalLMEagle3"],
        "model_type": "llama",
        "hidden_size": config.hidden_size,
        "intermediate_size": config.intermediate_size,
        "num_hidden_layers": config.num_layers,
        "num_attention_heads": config.num_heads,
        "num_key_value_heads": config.num_kv_heads,
        "head_dim": config.head_dim,
        "hidden_act": config.hidden_act,
        "rms_norm_eps": config.rms_norm_eps,
        "max_position_embeddings": config.max_position_embeddings,
        "vocab_size": config.vocab_size,
        "draft_vocab_size": config.draft_vocab_size,
        "tie_word_embeddings": False,
        "torch_dtype": "bfloat16",
        **config.rope,
    }
    if config.feature_layers is not None:
        content["eagle_config"] = {"eagle_aux_hidden_state_layer_ids": [i - 1 for i in config.feature_layers]}
    return content


def _text(
    model: PackedModel,
    tokenizer: Any,
    work: Path,
    plan: Plan,
    turns: Turns | None,
    text_files: Sequence[Path],
    avoid: Sequence[Path],
    report: Report,
) -> list[Document]:
    """The documents of this run, from `work` if they are there."""
    path = work / _TEXT
    if path.exists():
        documents = corpus.load(path)
        report(f"{len(documents)} documents found in {path}")
        return documents
    documents = [d for file in text_files for d in corpus.from_file(file, tokenizer, plan.max_tokens)]
    if plan.text_tokens > 0:
        documents += _written(model, turns or Turns.of(tokenizer, model.model), plan, report)
    if avoid:
        overlap = Overlap.with_files(avoid)
        kept = [d for d in documents if not overlap.shares(tokenizer.decode(d.token_ids.tolist()))]
        report(f"{len(documents) - len(kept)} of {len(documents)} documents share eight words with {len(avoid)} files")
        documents = kept
    np.random.default_rng(plan.seed).shuffle(documents)
    if not documents:
        raise ValueError("no text to train on; ask for more of it, or give a text file")
    corpus.save(documents, path)
    return documents


def _written(model: PackedModel, turns: Turns, plan: Plan, report: Report) -> list[Document]:
    started = last = time.monotonic()
    documents: list[Document] = []
    count = 0
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(plan.seed)
        writer = Writer(model, turns, batch=plan.text_batch, max_tokens=plan.max_tokens)
        for document in writer.documents():
            documents.append(document)
            count += len(document.token_ids)
            now = time.monotonic()
            if now - last > 15:
                report(f"writing: {count} tokens in {len(documents)} documents, {count / (now - started):.0f} a second")
                last = now
            if count >= plan.text_tokens or now - started > 60 * plan.text_minutes:
                break
    report(f"written: {count} tokens in {len(documents)} documents, {time.monotonic() - started:.0f} s")
    return documents


class _Run:
    """The training itself, and what of it is kept on disk."""

    def __init__(
        self, target: Any, config: HeadConfig, draft_ids: Tensor, plan: Plan, work: Path, report: Report
    ) -> None:
        assert config.feature_layers is not None
        self._plan, self._work, self._report = plan, work, report
        self._teacher = Teacher(target, config.feature_layers, draft_ids)
        torch.manual_seed(plan.seed)
        self.head = new_head(target, config, draft_ids)
        self._device = next(self.head.parameters()).device
        self._optimizers = _optimizers(self.head, plan)
        self._step, self._seconds, self._epoch, self._batch = 0, 0.0, 0, 0

    def learn(self, lessons: Sequence[Document], held_out: Sequence[Document]) -> Checked:
        """Train until the time is up; the last validation."""
        self._load()
        loss = torch.zeros((), device=self._device)
        checked_at = self._seconds
        while self._progress() < 1:
            order = np.random.default_rng((self._plan.seed, self._epoch))
            for number, batch in enumerate(corpus.batches(lessons, self._plan.batch_tokens, order)):
                if number < self._batch:
                    continue  # learnt before the run was cut off
                started = time.monotonic()
                loss += 0.05 * (self._learn(batch) - loss) if self._step else self._learn(batch)
                self._batch += 1
                if self._step % 8 == 0 and self._device.type == "cuda":
                    torch.cuda.synchronize()  # the host must not run ahead of what it times
                self._seconds += time.monotonic() - started
                if self._seconds - checked_at > self._plan.seconds_between:
                    checked_at = self._seconds
                    self._check(held_out, float(loss))
                    self._save()
                if self._progress() >= 1:
                    break
            else:
                self._epoch, self._batch = self._epoch + 1, 0
        checked = self._check(held_out, float(loss))
        self._save()
        return checked

    def log(self) -> list[dict[str, Any]]:
        path = self._work / _LOG
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []

    def _progress(self) -> float:
        return max(self._seconds / 60 / self._plan.minutes, self._step / self._plan.max_steps)

    def _learn(self, batch: corpus.Batch) -> Tensor:
        truth = self._teacher.truth(batch)
        with torch.autocast("cuda", torch.bfloat16, enabled=self._device.type == "cuda"):
            loss = lesson(self.head, truth, self._plan.ttt_steps).loss
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(self.head.parameters(), 1.0)
        progress = min(self._progress(), 1.0)
        warm = min(1.0, (self._step + 1) / 50)
        for optimizer in self._optimizers:
            for group in optimizer.param_groups:
                group["lr"] = group["height"] * warm * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * progress)))
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        self._step += 1
        return loss.detach()

    @torch.no_grad()
    def _check(self, held_out: Sequence[Document], loss: float) -> Checked:
        total = torch.zeros(3, self._plan.ttt_steps, device=self._device)
        for batch in corpus.batches(held_out, self._plan.batch_tokens, None):
            truth = self._teacher.truth(batch)
            with torch.autocast("cuda", torch.bfloat16, enabled=self._device.type == "cuda"):
                outcome = lesson(self.head, truth, self._plan.ttt_steps)
            total += torch.stack([outcome.right, outcome.right_in_a_row, outcome.weight])
        right, row, weight = total.cpu()
        weight = weight.clamp_min(1e-6)
        checked = Checked((right / weight).tolist(), 1 + float((row / weight).sum()))
        line = {"minutes": self._seconds / 60, "step": self._step, "loss": loss, **dataclasses.asdict(checked)}
        with (self._work / _LOG).open("a") as file:
            file.write(json.dumps(line) + "\n")
        accuracy = " ".join(f"{share:.3f}" for share in checked.accuracy)
        self._report(
            f"{self._seconds / 60:.1f} min, step {self._step}: loss {loss:.3f}, accuracy by step {accuracy}, "
            f"chain accept length {checked.accept_length:.2f}"
        )
        return checked

    def _save(self) -> None:
        state = {
            "head": self.head.state_dict(),
            "optimizers": [optimizer.state_dict() for optimizer in self._optimizers],
            "counts": (self._step, self._seconds, self._epoch, self._batch),
        }
        scratch = self._work / f"{_STATE}.part"
        torch.save(state, scratch)
        scratch.rename(self._work / _STATE)

    def _load(self) -> None:
        path = self._work / _STATE
        if not path.exists():
            return
        state = torch.load(path, map_location=self._device, weights_only=True)
        try:
            self.head.load_state_dict(state["head"])
            for optimizer, stored in zip(self._optimizers, state["optimizers"], strict=True):
                optimizer.load_state_dict(stored)
        except (RuntimeError, ValueError) as error:
            raise ValueError(
                f"{path} is of a run with other options: give those, or another folder ({error})"
            ) from error
        self._step, self._seconds, self._epoch, self._batch = state["counts"]
        self._report(f"going on at step {self._step}, {self._seconds / 60:.1f} minutes in")


def _optimizers(head: EagleHead, plan: Plan) -> list[torch.optim.Optimizer]:
    fused = next(head.parameters()).device.type == "cuda"
    matrices = [p for name, p in head.named_parameters() if p.ndim == 2 and not name.startswith("lm_head")]
    chosen = {id(p) for p in matrices} if plan.optimizer == "muon" else set()
    rest = [p for p in head.parameters() if id(p) not in chosen]
    height = plan.learning_rate
    adamw_height = height / 2 if plan.optimizer == "muon" else height
    optimizers: list[torch.optim.Optimizer] = [
        torch.optim.AdamW(
            [{"params": rest, "height": adamw_height}],
            lr=adamw_height,
            betas=(0.9, 0.95),
            weight_decay=0.0,
            fused=fused,
        )
    ]
    if chosen:
        groups = [{"params": matrices, "height": height}]
        optimizers.append(torch.optim.Muon(groups, lr=height, weight_decay=0.0, adjust_lr_fn="match_rms_adamw"))
    return optimizers

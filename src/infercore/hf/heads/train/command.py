"""What `infercore train-eagle` does with its options."""

import argparse
from collections.abc import Callable
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from infercore.hf.heads.train.run import Plan, train_eagle


def run(options: argparse.Namespace, report: Callable[[str], object], *, default_model: Path | None = None) -> None:
    """Load the model (bfloat16 on a GPU, float32 elsewhere) and train.

    Args:
        default_model: where no `--model` is given.
    Raises: ValueError, OSError for options and files that do not fit.
    """
    source = options.model or default_model
    if source is None:
        raise ValueError("no --model given, and none at hand: `infercore demo` fetches SmolLM2-135M-Instruct")
    device = torch.device(options.device or ("cuda" if torch.cuda.is_available() else "cpu"))
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    tokenizer = AutoTokenizer.from_pretrained(source)
    model = AutoModelForCausalLM.from_pretrained(source, dtype=dtype).to(device)
    plan = Plan(
        minutes=options.minutes,
        max_steps=options.max_steps,
        text_tokens=options.text_tokens,
        text_minutes=options.text_minutes,
        text_batch=options.text_batch,
        max_tokens=options.max_tokens,
        draft_vocab_size=options.draft_vocab,
        intermediate_size=options.intermediate,
        ttt_steps=options.ttt_steps,
        batch_tokens=options.batch_tokens,
        learning_rate=options.learning_rate,
        optimizer=options.optimizer,
        seed=options.seed,
    )
    name = "SmolLM2-135M-Instruct" if options.model is None else Path(options.model).name
    train_eagle(
        model,
        tokenizer,
        Path(options.out),
        plan,
        name=name,
        text_files=[Path(path) for path in options.text],
        avoid=[Path(path) for path in options.avoid],
        report=report,
    )

"""The `infercore` command."""

import argparse
import importlib.util
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

import infercore
from infercore.errors import InfercoreError

if TYPE_CHECKING:
    from rich.console import Console

_DEMO_PACKAGES = ("transformers", "accelerate", "gguf", "rich", "pydantic")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit status (0: done, 1: could not, 130: Ctrl-C)."""
    options = _parser().parse_args(arguments)
    try:
        return int(options.run(options))
    except (InfercoreError, ValueError, OSError) as error:
        print(f"infercore: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("infercore: interrupted", file=sys.stderr)
        return 130


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="infercore", description="Parts for LLM inference.")
    parser.add_argument("--version", action="version", version=infercore.__version__)
    commands = parser.add_subparsers(required=True, metavar="command")

    demo = commands.add_parser("demo", help="four scenes on a small real model, each beside Hugging Face generate")
    demo.add_argument("--model", help="a Hugging Face name or folder, in place of SmolLM2-135M-Instruct")
    demo.add_argument("--json", action="store_true", help="print one JSON object instead of text")
    demo.add_argument(
        "--rounds", type=int, default=1, help="play everything so often; the best time of each side counts"
    )
    demo.add_argument(
        "--eagle",
        nargs="?",
        const="",
        metavar="HEAD",
        help="let an EAGLE head draft too; default: SmolLM2's",
    )
    demo.set_defaults(run=_demo)

    train = commands.add_parser("train-eagle", help="train an EAGLE-3 head for a model, on text that it writes itself")
    train.add_argument("--model", help="a Hugging Face name or folder; default: SmolLM2-135M-Instruct")
    train.add_argument("--out", required=True, help="folder for the head; a run that was cut off goes on from there")
    train.add_argument("--text", action="append", default=[], help="a text file to train on as well; may be repeated")
    train.add_argument(
        "--avoid", action="append", default=[], help="texts to keep out of the training: JSON lines or text"
    )
    train.add_argument("--device", help="default: the GPU if there is one")
    train.add_argument("--minutes", type=float, default=8.0, help="of training, without the text (default 8)")
    train.add_argument("--max-steps", type=int, default=1_000_000)
    train.add_argument("--text-tokens", type=int, default=8_000_000, help="that the model writes (default 8 million)")
    train.add_argument("--text-minutes", type=float, default=4.0, help="at most (default 4)")
    train.add_argument("--text-batch", type=int, default=512, help="rows that write at once (default 512)")
    train.add_argument("--max-tokens", type=int, default=512, help="longest document (default 512)")
    train.add_argument("--draft-vocab", type=int, default=8192, help="tokens the head can propose (default 8192)")
    train.add_argument("--intermediate", type=int, help="width of its feed-forward part; default: the model's")
    train.add_argument("--ttt-steps", type=int, default=5, help="depth of the training-time test (default 5)")
    train.add_argument("--batch-tokens", type=int, default=16_384, help="tokens a step (default 16384)")
    train.add_argument("--learning-rate", type=float, default=2e-3)
    train.add_argument("--optimizer", choices=["muon", "adamw"], default="muon")
    train.add_argument("--seed", type=int, default=0)
    train.set_defaults(run=_train_eagle)

    warmup = commands.add_parser("warmup", help="compile the CPU loops now rather than at the first request")
    warmup.set_defaults(run=_warmup)
    return parser


def _demo(options: argparse.Namespace) -> int:
    if missing := [name for name in _DEMO_PACKAGES if importlib.util.find_spec(name) is None]:
        print(f"infercore: the demo needs {', '.join(missing)}; pip install 'infercore[demo]'", file=sys.stderr)
        return 1
    from rich.console import Console

    from infercore.demo.play import play
    from infercore.demo.report import as_json, show_performance, show_scene

    screen = Console(stderr=options.json)  # with --json, stdout carries nothing else
    with _progress_bar(screen) as progress:
        performance = play(
            options.model,
            rounds=options.rounds,
            eagle=options.eagle,
            progress=progress,
            on_scene=lambda scene: None if options.json else show_scene(screen, scene),
        )
    if options.json:
        print(as_json(performance))
    else:
        show_performance(screen, performance)
    return 0


def _train_eagle(options: argparse.Namespace) -> int:
    if importlib.util.find_spec("transformers") is None:
        print("infercore: train-eagle needs transformers; pip install 'infercore[hf]'", file=sys.stderr)
        return 1
    from infercore.demo.fetch import smollm2_path
    from infercore.hf.heads.train import command

    command.run(options, lambda line: print(line, flush=True), default_model=smollm2_path())
    return 0


def _warmup(options: argparse.Namespace) -> int:
    from infercore import _jit, warmup

    start = time.perf_counter()
    if importlib.util.find_spec("rich") is None:
        warmup.compile_all(lambda what, fraction: print(what, file=sys.stderr))
    else:
        from rich.console import Console

        with _progress_bar(Console(stderr=True)) as progress:
            warmup.compile_all(progress)
    print(f"ready after {time.perf_counter() - start:.1f} s; CPU loops: {_jit.status()}")
    return 0


@contextmanager
def _progress_bar(screen: "Console") -> Iterator[Callable[[str, float | None], None]]:
    """A bar on `screen` that follows `progress(what, fraction)`; nothing where the screen is no terminal."""
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
    with Progress(*columns, console=screen, transient=True, disable=not screen.is_terminal) as bar:
        task = bar.add_task("starting", total=None)

        def progress(what: str, fraction: float | None) -> None:
            total = None if fraction is None else 1.0
            if what != bar.tasks[0].description:
                bar.reset(task, description=what, total=total)
            bar.update(task, completed=fraction or 0.0, total=total)

        yield progress

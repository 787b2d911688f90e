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
    demo.set_defaults(run=_demo)

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
            progress=progress,
            on_scene=lambda scene: None if options.json else show_scene(screen, scene),
        )
    if options.json:
        print(as_json(performance))
    else:
        show_performance(screen, performance)
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

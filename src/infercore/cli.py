"""The `infercore` command."""

import argparse
import importlib.util
import sys
from collections.abc import Sequence

import infercore
from infercore.errors import InfercoreError

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
    return parser


def _demo(options: argparse.Namespace) -> int:
    if missing := [name for name in _DEMO_PACKAGES if importlib.util.find_spec(name) is None]:
        print(f"infercore: the demo needs {', '.join(missing)}; pip install 'infercore[demo]'", file=sys.stderr)
        return 1
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    from infercore.demo.play import play
    from infercore.demo.report import as_json, show_performance, show_scene

    screen = Console(stderr=options.json)  # with --json, stdout carries nothing else
    columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
    with Progress(*columns, console=screen, transient=True, disable=not screen.is_terminal) as bar:
        task = bar.add_task("starting", total=None)

        def progress(what: str, fraction: float | None) -> None:
            if what != bar.tasks[0].description:
                bar.reset(task, description=what, total=None if fraction is None else 1.0)
            bar.update(task, completed=fraction or 0.0, total=None if fraction is None else 1.0)

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

"""The demo's results: for people with rich, for machines as JSON."""

import dataclasses
import json
from typing import Any

from rich import box
from rich.console import Console, Group
from rich.markup import escape
from rich.padding import Padding
from rich.panel import Panel
from rich.table import Table
from rich.text import Text
from rich.tree import Tree

from infercore.demo.play import Performance
from infercore.demo.recorder import Draft
from infercore.demo.stage import Scene, Side


def show_scene(console: Console, scene: Scene) -> None:
    """What was asked and what our side answered."""
    lines: list[Text] = []
    for prompt, text in zip(scene.prompts, scene.texts, strict=True):
        lines += [Text(prompt, style="dim"), Text(text), Text()]
    lines += [Text(remark, style="green") for remark in scene.remarks]
    console.print(Panel(Group(*lines), title=f"[bold]{scene.name}[/]: {escape(scene.title)}", title_align="left"))


def show_performance(console: Console, performance: Performance) -> None:
    """The table of all scenes, the prefix cache, and one draft tree."""
    console.print(results_table(performance))
    if performance.draft is not None:
        console.print(Panel(draft_tree(performance), title="one draft: accepted path in green", title_align="left"))
    console.print(Panel(Text(performance.radix_tree), title="the prefix cache after all scenes", title_align="left"))
    figures = ", ".join(f"{name} {value}" for name, value in performance.environment.items())
    console.print(Text(f"{performance.model} in {performance.seconds:.0f} s; {figures}", style="dim"))


def results_table(performance: Performance) -> Table:
    """One row a side; speed-ups are over the fastest way of calling `generate`. Fits 80 columns, headers whole."""
    table = Table(
        title=f"both sides greedy, one process, the same weights, best time of {performance.rounds}",
        caption=f"tokens, infercore's beside the fastest generate's: {_agreements(performance.scenes)}",
        box=box.SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
        show_edge=False,
    )
    table.add_column("scene, side")
    for name in ("time", "forwards", "rows", "reused", "forced", "accepted", "speed-up"):
        table.add_column(name, justify="right", min_width=len(name), max_width=8)
    for scene in performance.scenes:
        table.add_row(f"[bold]{escape(scene.name)}[/]")
        for side in scene.peers:
            table.add_row(_side_name(side), *_figures(side), "")
        verdict = f"{scene.speedup:.2f}x" + ("" if scene.speedup >= 1 else ", slower")
        table.add_row(_side_name(scene.ours), *_figures(scene.ours), verdict, style="bold", end_section=True)
    return table


def agreement(scene: Scene) -> str:
    """How the two sides' tokens compare, in words."""
    total = len(scene.ours.outputs)
    return (
        "the same" if scene.num_different_outputs == 0 else f"{scene.num_different_outputs} of {total} outputs differ"
    )


def draft_tree(performance: Performance) -> Tree:
    """The draft's tokens as a tree below the token that it continues."""
    draft = performance.draft
    assert draft is not None
    accepted = set(draft.accepted_nodes)

    def label(token_id: int, kept: bool) -> Text:
        return Text(repr(performance.decode([token_id])), style="bold green" if kept else "dim")

    root = Tree(label(draft.root_token_id, True))
    branches = {-1: root}
    for node, (token_id, parent) in enumerate(zip(draft.tree.token_ids, draft.tree.parents, strict=True)):
        branches[node] = branches[int(parent)].add(label(int(token_id), node in accepted))
    last = branches[draft.accepted_nodes[-1]] if draft.accepted_nodes else root
    last.add(Text(f"{performance.decode([draft.next_token_id])!r}, from the model itself", style="bold"))
    return root


def as_json(performance: Performance) -> str:
    """Everything that `show_performance` and `show_scene` show, as one JSON object."""
    return json.dumps(
        {
            "model": performance.model,
            "environment": performance.environment,
            "rounds": performance.rounds,
            "seconds": round(performance.seconds, 3),
            "scenes": [_scene_json(scene) for scene in performance.scenes],
            "draft": _draft_json(performance.draft, performance.decode) if performance.draft else None,
            "radix_tree": performance.radix_tree.splitlines(),
        },
        indent=2,
        ensure_ascii=False,
    )


def _side_name(side: Side) -> Padding:
    return Padding(escape(side.name), (0, 0, 0, 2))


def _agreements(scenes: list[Scene]) -> str:
    return "; ".join(f"{scene.name} {sum(map(len, scene.ours.outputs))}, {agreement(scene)}" for scene in scenes)


def _figures(side: Side) -> list[str]:
    counts = side.counts
    numbers = (side.num_forwards, side.num_rows, counts.num_reused, counts.num_forced, counts.num_accepted)
    return [f"{side.seconds:.2f} s", *(str(n) if n else "-" for n in numbers)]


def _scene_json(scene: Scene) -> dict[str, Any]:
    return {
        **{name: getattr(scene, name) for name in ("name", "title", "prompts", "texts", "remarks")},
        "speedup": round(scene.speedup, 3),
        "num_different_outputs": scene.num_different_outputs,
        "ours": dataclasses.asdict(scene.ours),
        "peers": [dataclasses.asdict(side) for side in scene.peers],
    }


def _draft_json(draft: Draft, decode: Any) -> dict[str, Any]:
    return {
        "root": decode([draft.root_token_id]),
        "tokens": [decode([token_id]) for token_id in draft.tree.token_ids.tolist()],
        "parents": draft.tree.parents.tolist(),
        "accepted_nodes": draft.accepted_nodes,
        "next": decode([draft.next_token_id]),
    }

"""The tree for people: as indented text, or as Graphviz source."""

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from infercore.radix import _compiled as c
from infercore.radix.layout import Layout

Decode = Callable[[list[int]], str]


@dataclass(slots=True)
class Run:
    """Pages in a row without a branch: what the edge of a radix tree is."""

    page_ids: list[int]
    token_ids: list[int]
    is_held: bool
    last_used: int
    children: list["Run"] = field(default_factory=list)


def runs_below(layout: Layout, root: int) -> list[Run]:
    """The runs that hang below `root`, most recently used first. O(pages of the pool)."""
    layout.settle()
    parents = layout.fields[c.PARENT]
    num_pages, page_size = int(layout.header[c.NUM_PAGES]), int(layout.header[c.PAGE_SIZE])
    children: dict[int, list[int]] = {}
    for page in np.flatnonzero(parents[:num_pages] >= 0).tolist():
        if layout.fields[c.ROOT, page] == root:
            children.setdefault(int(parents[page]), []).append(page)
    tokens = layout.tokens.reshape(num_pages, page_size)
    top: list[Run] = []
    waiting = [(page, top) for page in children.get(root, [])]
    order: list[Run] = []
    while waiting:
        page, siblings = waiting.pop()
        pages = [page]
        while len(children.get(pages[-1], [])) == 1:
            pages += children[pages[-1]]
        run = Run(
            pages,
            tokens[pages].ravel().tolist(),
            bool((layout.references(np.asarray(pages, np.int32)) > 1).any()),
            int(layout.fields[c.STAMP, pages].max()),
        )
        siblings.append(run)
        order.append(run)
        waiting += [(child, run.children) for child in children.get(pages[-1], [])]
    for run in reversed(order):
        run.last_used = max([run.last_used, *(child.last_used for child in run.children)])
        run.children.sort(key=lambda child: -child.last_used)
    return sorted(top, key=lambda run: -run.last_used)


def as_text(title: str, runs: list[Run], decode: Decode | None = None) -> str:
    """One line per run: its tokens (shortened), its pages, * if someone holds it."""
    lines = [title]
    waiting = [(run, "", i == len(runs) - 1) for i, run in enumerate(runs)][::-1]
    while waiting:
        run, indent, is_last = waiting.pop()
        lines.append(f"{indent}{'└─ ' if is_last else '├─ '}{_label(run, decode)}")
        deeper = indent + ("   " if is_last else "│  ")
        waiting += [(child, deeper, i == len(run.children) - 1) for i, child in enumerate(run.children)][::-1]
    return "\n".join(lines)


def as_graphviz(title: str, runs: list[Run], decode: Decode | None = None) -> str:
    """Graphviz source; held runs are drawn with a bold border."""
    lines = [
        "digraph prefix_cache {",
        "  rankdir=LR; node [shape=box, fontname=monospace];",
        f"  n0 [label={_quoted(title)}];",
    ]
    waiting = [(run, 0) for run in runs]
    count = 0
    while waiting:
        run, parent = waiting.pop()
        count += 1
        style = ", style=bold" if run.is_held else ""
        lines.append(f"  n{count} [label={_quoted(_label(run, decode))}{style}];")
        lines.append(f"  n{parent} -> n{count};")
        waiting += [(child, count) for child in run.children]
    return "\n".join([*lines, "}"])


def _label(run: Run, decode: Decode | None) -> str:
    ids = run.token_ids
    if decode is not None:
        text = decode(ids)
        shown = repr(text if len(text) <= 48 else f"{text[:30]} … {text[-14:]}")
    else:
        shown = " ".join(map(str, ids if len(ids) <= 8 else [*ids[:5], "…", *ids[-2:]]))
    return f"{shown}  [{len(ids)} tokens, pages {_ranges(run.page_ids)}]{' *' if run.is_held else ''}"


def _ranges(page_ids: list[int]) -> str:
    """3-5 9 for 3, 4, 5, 9; shortened."""
    pages = np.asarray(page_ids)
    parts: list[npt.NDArray[np.int64]] = np.split(pages, np.flatnonzero(np.diff(pages) != 1) + 1)
    shown = [f"{part[0]}-{part[-1]}" if len(part) > 1 else str(part[0]) for part in parts]
    return " ".join(shown if len(shown) <= 4 else [*shown[:3], f"… ({len(page_ids)} pages)"])


def _quoted(text: str) -> str:
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'

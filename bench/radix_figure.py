"""Which pages does a tree of prompts stand in, and what goes when memory is full? Draws it from a cache at work.

`python bench/radix_figure.py` runs three requests through a pool of 15 pages of 4 tokens, then one more than fits, and
writes docs/design/0003-tree-and-pages.svg.
"""

from html import escape
from pathlib import Path

import numpy as np

from infercore.radix import PrefixCache, block_table
from infercore.radix.render import Run, runs_below

PAGE = 4
SYSTEM = list(range(1, 9))
PROMPTS = {"A": [*SYSTEM, *range(20, 32)], "B": [*SYSTEM, *range(40, 48)], "C": list(range(60, 72))}
LATE = list(range(80, 112))
COLORS = {"S": "#4c78a8", "A": "#59a14f", "B": "#f28e2b", "C": "#b07aa1", "D": "#e15759"}
CELL, GAP = 34, 8


def main() -> None:
    """Run the requests, keep what each step looks like, write the SVG."""
    cache = PrefixCache(16, PAGE)
    for prompt in PROMPTS.values():
        serve(cache, prompt)
    reader = cache.open(PROMPTS["A"])  # A is being read while D arrives, and C was used last of the others
    cache.match(PROMPTS["C"])
    panels = [panel(cache, "after requests A, B and C; A is open", {"A": reader.page_ids}, 0)]
    late = cache.open(LATE)
    late.append(len(LATE))
    late.commit(LATE)
    late.insert()
    tables = block_table([reader, late])
    panels.append(
        panel(cache, "after D took 8 pages: B's own went, then the end of C", dict(zip("AD", tables, strict=True)), 560)
    )
    svg = (
        '<svg xmlns="http://www.w3.org/2000/svg" width="1120" height="330" font-family="sans-serif" font-size="12">'
        f'<rect width="1120" height="330" fill="white"/>{"".join(panels)}</svg>'
    )
    target = Path(__file__).parents[1] / "docs" / "design" / "0003-tree-and-pages.svg"
    target.write_text(svg + "\n", encoding="utf-8")
    print(cache.render())


def serve(cache: PrefixCache, prompt: list[int]) -> None:
    sequence = cache.open(prompt)
    rest = prompt[sequence.num_tokens :]
    sequence.append(len(rest))
    sequence.commit(rest)
    sequence.close()


def owner(token: int) -> str:
    return "SABCD"[[token < 10, token < 40, token < 60, token < 80, True].index(True)]


def panel(cache: PrefixCache, title: str, tables: dict[str, np.ndarray], left: int) -> str:
    """The tree above, the pool below, block tables at the foot."""
    parts = [text(left + 16, 24, title, bold=True)]
    runs = runs_below(cache.allocator.layout, 0)
    where: dict[int, str] = {}
    draw_runs(runs, left + 16, 44, parts, where)
    parts.append(text(left + 16, 214, "pool (page 0 is reserved)"))
    for page in range(16):
        fill = COLORS[where[page]] if page in where else "#eeeeee"
        parts.append(box(left + 16 + page * (CELL - 2), 222, str(page), fill))
    for row, (name, table) in enumerate(tables.items()):
        pages = " ".join(str(page) for page in table.tolist())
        parts.append(text(left + 16, 282 + 20 * row, f"block_table of {name}:  {pages}"))
    return "".join(parts)


def draw_runs(runs: list[Run], x: int, y: int, parts: list[str], where: dict[int, str]) -> int:
    """Boxes for each run, its children to the right; returns the next free line."""
    for run in runs:
        name = owner(run.token_ids[0])
        for i, page in enumerate(run.page_ids):
            where[page] = name
            parts.append(box(x + i * CELL, y, str(page), COLORS[name], bold=run.is_held))
        end = x + len(run.page_ids) * CELL
        if run.children:
            bottom = y
            for child in run.children:
                parts.append(f'<path d="M{end} {y + 14} L{end + GAP * 2} {bottom + 14}" stroke="#555" fill="none"/>')
                bottom = draw_runs([child], end + GAP * 2, bottom, parts, where)
            y = bottom
        else:
            tokens = f"{run.token_ids[0]} … {run.token_ids[-1]}"
            parts.append(text(end + GAP, y + 18, f"{name}: tokens {tokens}{', held' if run.is_held else ''}"))
            y += CELL + GAP
    return y


def box(x: int, y: int, label: str, fill: str, *, bold: bool = False) -> str:
    stroke = 3 if bold else 1
    return (
        f'<rect x="{x}" y="{y}" width="{CELL - 6}" height="28" rx="3" fill="{fill}" stroke="#222" '
        f'stroke-width="{stroke}"/><text x="{x + (CELL - 6) // 2}" y="{y + 19}" text-anchor="middle" '
        f'fill="{"#888" if fill == "#eeeeee" else "white"}">{label}</text>'
    )


def text(x: int, y: int, content: str, *, bold: bool = False) -> str:
    return f'<text x="{x}" y="{y}" font-weight="{"bold" if bold else "normal"}">{escape(content)}</text>'


if __name__ == "__main__":
    main()

"""The automaton of a grammar as a drawing, as far as it goes."""

from collections import deque

from infercore.constrained.grammar import Grammar


def to_dot(grammar: Grammar, *, max_states: int = 100) -> str:
    """Graphviz text of the states reached from the start by bytes, breadth first, with ranges of bytes on the edges.

    Accepting states have a double border; a state whose edges were left out, beyond `max_states`, is dashed.
    """
    machine = grammar.machine
    start = grammar.config(grammar.start)
    numbers = {start: 0}
    lines = [
        "digraph grammar {",
        "  rankdir=LR;",
        '  node [shape=circle, label=""];',
        "  begin [shape=point];",
        "  begin -> s0;",
    ]
    queue = deque([start])
    edges = []
    while queue:
        config = queue.popleft()
        row = machine.row(config).tolist()
        ranges: dict[int, list[str]] = {}
        first = 0
        while first < 256:
            last = first
            while last < 255 and row[last + 1] == row[first]:
                last += 1
            if row[first]:
                ranges.setdefault(row[first], []).append(_shown(first, last))
            first = last + 1
        for target, shown in ranges.items():
            if target not in numbers:
                if len(numbers) >= max_states:
                    continue
                numbers[target] = len(numbers)
                queue.append(target)
            edges.append(f'  s{numbers[config]} -> s{numbers[target]} [label="{" ".join(shown)}"];')
        left_out = any(target not in numbers for target in ranges)
        shape = "doublecircle" if machine.accepts(config) else "circle"
        style = ", style=dashed" if left_out else ""
        lines.append(f'  s{numbers[config]} [shape={shape}, label="{numbers[config]}"{style}];')
    return "\n".join([*lines, *edges, "}"]) + "\n"


def _shown(first: int, last: int) -> str:
    def one(byte: int) -> str:
        character = chr(byte)
        return "\\\\" + character if character in '"\\' else character if "!" <= character <= "~" else f"{byte:02X}"

    return one(first) if first == last else f"{one(first)}-{one(last)}"

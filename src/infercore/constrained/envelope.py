"""Tool calls: free text, and in it calls in an envelope, each a JSON object that its tool's schema allows."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from infercore.constrained.grammar import GrammarSpec
from infercore.constrained.machine import Machine
from infercore.constrained.schema import Separators, Whitespace, check_schema, lower_schema
from infercore.constrained.schema.python_types import schema_of_type
from infercore.errors import UnsupportedSchema


def tool_calls(
    tools: Mapping[str, Any],
    *,
    trigger: str = "<tool_call>",
    end: str = "</tool_call>",
    whitespace: Whitespace = "spaced",
    ignore: Sequence[str] = (),
) -> GrammarSpec:
    """Free text until `trigger`; then `{"name": .., "arguments": ..}` and `end`; then free text again, and so on.

    Args:
        tools: what each tool's arguments must be: a JSON Schema, a Pydantic model or a Python type, by the tool's name.
        trigger: ASCII text that begins a call wherever it comes. White space around the object is one newline at most.
        end: text behind the object.
        whitespace, ignore: as for `json_schema`.
    Raises: ValueError if there is no tool, or `trigger` is empty or not ASCII; UnsupportedSchema as `json_schema` does,
        and for `uniqueItems`, which needs to know where the JSON begins.
    """
    if not tools:
        raise ValueError("tool_calls() got no tools; pass at least one")
    if not trigger or not trigger.isascii():
        raise ValueError(f"trigger is {trigger!r}, expected ASCII text")
    Separators.of(whitespace)
    schemas = {}
    for name, tool in tools.items():
        schema = tool if isinstance(tool, dict | bool) else schema_of_type(tool)
        check_schema(schema, ignore=frozenset(ignore))
        if "uniqueItems" not in ignore and '"uniqueItems": true' in json.dumps(schema):
            raise UnsupportedSchema(
                "uniqueItems in a tool call cannot be enforced; pass ignore=['uniqueItems']", pointer=""
            )
        schemas[str(name)] = schema
    arguments = {"tools": schemas, "trigger": trigger, "end": end, "whitespace": whitespace, "ignore": sorted(ignore)}
    return GrammarSpec("tool_calls", json.dumps(arguments))


def lower_tool_calls(source: dict[str, Any], machine: Machine) -> int:
    """State that reads the whole output and then returns."""
    separators = Separators.of(source["whitespace"])
    trigger = source["trigger"].encode()
    done = machine.ret()
    text = machine.new_states(len(trigger))  # free text: so much of the trigger has been read
    behind = machine.literal(source["end"].encode(), text)
    options = []
    for name, schema in source["tools"].items():
        entry = lower_schema(schema, machine, whitespace=source["whitespace"], ignore=frozenset(source["ignore"]))
        close = machine.literal(b"}", _newline(machine, behind))
        head = b'{"name"' + separators.colon + json.dumps(name).encode() + separators.comma
        head += b'"arguments"' + separators.colon
        options.append(machine.literal(head, machine.call(entry, close)))
    call = _newline(machine, machine.node(free=options))
    lead = _multibyte_edges(machine, text)
    for read in range(len(trigger)):
        edges = []
        for byte in range(128):
            target = _next(trigger, read, byte)
            edges.append((byte, byte, call if target == len(trigger) else text + target))
        machine.define(text + read, [*_joined(edges), *lead], [done])
    return text


def _newline(machine: Machine, then: int) -> int:
    """State before `then` where one line break may stand."""
    return machine.node([(10, 10, then)], [then])


def _next(trigger: bytes, read: int, byte: int) -> int:
    """How much of the trigger the text ends in after one more byte (Knuth, Morris and Pratt)."""
    seen = trigger[:read] + bytes([byte])
    return next(size for size in range(min(len(seen), len(trigger)), -1, -1) if seen.endswith(trigger[:size]))


def _joined(edges: list[tuple[int, int, int]]) -> list[tuple[int, int, int]]:
    result: list[tuple[int, int, int]] = []
    for first, last, target in edges:
        if result and result[-1][2] == target:
            result[-1] = (result[-1][0], last, target)
        else:
            result.append((first, last, target))
    return result


def _multibyte_edges(machine: Machine, then: int) -> list[tuple[int, int, int]]:
    """Edges that read one character of more than one byte of UTF-8."""
    one = machine.node([(0x80, 0xBF, then)])
    two = machine.node([(0x80, 0xBF, one)])
    return [
        (0xC2, 0xDF, one),
        (0xE0, 0xE0, machine.node([(0xA0, 0xBF, one)])),
        (0xE1, 0xEC, two),
        (0xED, 0xED, machine.node([(0x80, 0x9F, one)])),
        (0xEE, 0xEF, two),
        (0xF0, 0xF0, machine.node([(0x90, 0xBF, two)])),
        (0xF1, 0xF3, machine.node([(0x80, 0xBF, two)])),
        (0xF4, 0xF4, machine.node([(0x80, 0x8F, two)])),
    ]

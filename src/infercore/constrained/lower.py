"""From a `GrammarSpec` to the first state of a machine."""

import json

from infercore.constrained.grammar import GrammarSpec
from infercore.constrained.machine import Machine
from infercore.constrained.regex import RegexStates, alphabet, full_conjunction
from infercore.constrained.schema import lower_source
from infercore.constrained.schema.texts import Texts


def lower(spec: GrammarSpec, machine: Machine) -> int:
    """State that reads what `spec` describes and then returns."""
    if spec.kind == "regex":
        machine.is_plain = True
        nodes = full_conjunction(spec.source)
        machine.alphabet = alphabet(nodes[0][0])
        if len(nodes) == 1:
            return RegexStates(machine).state(nodes[0][0], machine.ret())
        texts = Texts(machine)
        return machine.state_of(texts.combine((texts.of_node(node), holds) for node, holds in nodes))
    if spec.kind == "choices":
        machine.is_plain = True
        end = machine.ret()
        return machine.node(free=[machine.literal(text.encode(), end) for text in json.loads(spec.source)])
    if spec.kind == "json_schema":
        return lower_source(spec.source, machine)
    if spec.kind == "tool_calls":
        from infercore.constrained.envelope import lower_tool_calls  # it makes specs, too

        return lower_tool_calls(json.loads(spec.source), machine)
    raise AssertionError(f"no grammar of kind {spec.kind}")

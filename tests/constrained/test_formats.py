"""Formats come from a file that holds what their patterns give; rows copied into a grammar say the same."""

import numpy as np
import pytest
from tests.constrained.vocab import VOCABULARY, accepts

from infercore.constrained import json_schema
from infercore.constrained.limits import Limits
from infercore.constrained.machine import Machine
from infercore.constrained.schema.format_blocks import compute_block, format_block
from infercore.constrained.schema.formats import FORMATS


@pytest.mark.parametrize("name", [n for n in FORMATS if not n.startswith("iri")])
def test_the_file_holds_what_the_patterns_give(name):
    kept, computed = format_block(name), compute_block(name)
    for field in ("span", "cells", "accepts", "loops", "distance"):
        np.testing.assert_array_equal(getattr(kept, field), getattr(computed, field))


def test_distances_are_those_that_a_machine_finds():
    machine = Machine(Limits())
    block = format_block("ipv4")
    start = block.copy_to(machine)
    kept = machine.tables.distance[start : start + len(block.span)].copy()
    machine.tables.distance[start : start + len(block.span)] = np.where(block.accepts, 0, -1)
    assert [machine.distance(start + i) for i in range(len(block.span))] == kept.tolist()


def test_two_formats_share_a_grammar_with_other_text():
    schema = {
        "type": "object",
        "properties": {"ip": {"format": "ipv4"}, "at": {"type": "string", "format": "date", "maxLength": 10}},
        "patternProperties": {"^x": {"type": "string", "format": "uuid"}},
        "propertyNames": {"maxLength": 3},
    }
    grammar = json_schema(schema).bind(VOCABULARY)
    assert accepts(
        grammar, '{"ip": "1.2.3.4", "at": "2024-02-29", "x1": "00000000-0000-0000-0000-00000000000f", "a": 1}'
    )
    assert accepts(grammar, '{"ip": 7}')
    for text in ('{"ip": "1.2.3.256"}', '{"at": "2023-02-29"}', '{"x": "0"}', '{"long": 1}'):
        assert not accepts(grammar, text)


def test_names_of_properties_may_have_a_format():
    grammar = json_schema({"type": "object", "propertyNames": {"format": "date"}}).bind(VOCABULARY)
    assert accepts(grammar, '{"2024-01-01": 1, "2024-01-02": []}')
    assert not accepts(grammar, '{"2024-01-01": 1, "2024-01-01": []}')
    assert not accepts(grammar, '{"2024-13-01": 1}')

"""No invalid instance of the shared data is accepted, and few schemas are refused. Needs INFERCORE_DATA."""

import gzip
import json
import os
from pathlib import Path

import pytest
from tests.constrained.vocab import VOCABULARY, accepts_value

from infercore.constrained import json_schema
from infercore.errors import GrammarError

DATA = Path(os.environ.get("INFERCORE_DATA", Path(__file__).resolve().parents[3] / "shared" / "data"))


def verdicts(schema, tests):
    """(refused, wrongly accepted, wrongly refused, right)."""
    try:
        grammar = json_schema(schema).bind(VOCABULARY)
        results = [(accepts_value(grammar, test["data"]), test["valid"]) for test in tests]
    except GrammarError:
        return len(tests), 0, 0, 0
    return (
        0,
        sum(got and not valid for got, valid in results),
        sum(valid and not got for got, valid in results),
        sum(got == valid for got, valid in results),
    )


def test_json_schema_test_suite():
    folder = DATA / "json_schema_test_suite" / "draft2020-12"
    if not folder.exists():
        pytest.skip("INFERCORE_DATA is not there")
    totals = [0, 0, 0, 0]
    for path in sorted(folder.glob("*.json")):
        for group in json.loads(path.read_text()):
            totals = [a + b for a, b in zip(totals, verdicts(group["schema"], group["tests"]), strict=True)]
    _, under, over, right = totals
    assert under == 0
    assert over <= 16  # 15 formats that the suite has as annotations, one custom vocabulary
    assert right >= 1150


def test_a_sample_of_maskbench():
    path = DATA / "maskbench" / "maskbench.jsonl.gz"
    if not path.exists():
        pytest.skip("INFERCORE_DATA is not there")
    with gzip.open(path, "rt") as lines:
        files = [json.loads(line) for line in lines][::25]
    refused = under = over = 0
    for file in files:
        result = verdicts(file["schema"], file["tests"])
        refused += result[0] > 0
        under += result[1]
        over += result[2]
    assert (under, over) == (0, 0)
    assert refused <= 0.03 * len(files)

"""The report says what happened, losses included, for people and for machines."""

import dataclasses
import io
import json

import pytest
from rich.console import Console

from infercore.demo.play import Performance
from infercore.demo.recorder import Draft
from infercore.demo.report import agreement, as_json, results_table, show_performance, show_scene
from infercore.demo.stage import Counts, Scene, Side
from infercore.speculative import TokenTree

FAST = Side("infercore", [[1, 2], [3]], 1.0, 5, 20, Counts(7, 8, 9))
PEERS = [
    Side("generate", [[1, 2], [3]], 4.0, 11, 21, Counts()),
    Side("generate, batch", [[1, 2], [4]], 2.0, 6, 30, Counts(3)),
]
SCENE = Scene("chat", "a [bold] title", ["asked [1]", "asked 2"], ["answer", "other"], FAST, PEERS, ["validated: yes"])
LOST = Scene(
    "editing",
    "title",
    ["p"],
    ["t"],
    Side("infercore", [[5]], 2.0, 1, 1, Counts()),
    [Side("generate", [[5]], 1.5, 1, 1, Counts())],
)
DRAFT = Draft(1, TokenTree.of([4, 5, 6], [-1, -1, 1]), [1, 2], 9)


@pytest.fixture
def performance() -> Performance:
    words = {1: "<1>", 4: "<4>", 5: "<5>", 6: "<6>", 9: "<9>"}
    return Performance("model", {"torch": "2"}, 1, [SCENE, LOST], 12.0, "tree", DRAFT, lambda ids: words[ids[0]])


def test_speedup_is_over_the_fastest_peer_and_outputs_are_compared_with_it() -> None:
    assert SCENE.best_peer is PEERS[1]
    assert SCENE.speedup == 2.0
    assert SCENE.num_different_outputs == 1
    assert agreement(SCENE) == "1 of 2 outputs differ"
    assert agreement(LOST) == "the same"


def test_people_see_every_side_and_every_loss(performance: Performance) -> None:
    console = Console(width=140, record=True, file=io.StringIO())
    show_scene(console, SCENE)
    show_performance(console, performance)
    text = console.export_text()
    for piece in (
        "a [bold] title",
        "asked [1]",
        "answer",
        "validated: yes",
        "generate, batch",
        "2.00x",
        "0.75x,",
        "slower",
    ):
        assert piece in text
    assert "1 of 2" in text
    order = [text.index(repr(token)) for token in ("<1>", "<4>", "<5>", "<6>")]
    assert order == sorted(order)
    assert "'<9>', from the model itself" in text


def test_the_table_fits_a_terminal_of_80_columns(performance: Performance) -> None:
    slow = dataclasses.replace(
        FAST, seconds=123.45, num_forwards=12345, num_rows=54321, counts=Counts(123456, 123456, 123456)
    )
    long = dataclasses.replace(PEERS[1], name="generate, batch, prefix cache")
    scene = dataclasses.replace(SCENE, name="extraction", ours=slow, peers=[long])
    console = Console(width=80, record=True, file=io.StringIO())
    console.print(results_table(dataclasses.replace(performance, scenes=[scene, LOST])))
    text = console.export_text()
    words = ("forwards", "rows", "reused", "forced", "accepted", "speed-up", "123.45 s", "12345", "123456", "0.02x")
    for word in (*words, "slower", "extraction", "prefix", "1 of 2", "the same"):
        assert word in text, text
    assert "…" not in text
    assert max(map(len, text.splitlines())) <= 80


def test_machines_get_the_same(performance: Performance) -> None:
    content = json.loads(as_json(performance))
    assert [scene["speedup"] for scene in content["scenes"]] == [2.0, 0.75]
    assert content["scenes"][0]["ours"]["counts"] == {"num_reused": 7, "num_forced": 8, "num_accepted": 9}
    assert content["scenes"][0]["peers"][1]["num_rows"] == 30
    assert content["draft"] == {
        "root": "<1>",
        "tokens": ["<4>", "<5>", "<6>"],
        "parents": [-1, -1, 1],
        "accepted_nodes": [1, 2],
        "next": "<9>",
    }


def test_the_better_time_of_each_side_counts() -> None:
    again = dataclasses.replace(
        SCENE,
        ours=dataclasses.replace(FAST, seconds=0.5),
        peers=[dataclasses.replace(side, seconds=3.0) for side in PEERS],
    )
    best = SCENE.best_with(again)
    assert best.ours.seconds == 0.5
    assert [side.seconds for side in best.peers] == [3.0, 2.0]
    assert best.texts == SCENE.texts

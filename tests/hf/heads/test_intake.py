"""By plain calls or padded to the sizes of graphs, long texts leave the same entries, and drafts are the same."""

import numpy as np
import pytest
import torch
from tests.hf.heads.checkpoints import write
from tests.hf.heads.test_eagle import features_of
from tests.hf.tiny import tiny_model

from infercore.hf import EagleDrafter
from infercore.hf.heads import captured as captured_module
from infercore.hf.heads.captured import Captured
from infercore.hf.heads.intake import Intake
from infercore.hf.heads.kv import graph_lengths
from infercore.speculative import DraftRequest


class Replayed(Captured):
    """Stands for a captured graph: its function runs at each start, on numbers of one shape."""

    made: list[tuple[int, ...]] = []

    def __init__(self, run, numbers, device):
        self.run, self.shape = run, numbers.shape
        self.made.append(numbers.shape)

    def start(self, numbers):
        assert numbers.shape == self.shape
        self.out = self.run(torch.from_numpy(numbers.copy()))

    def read(self):
        return self.out.numpy()


@pytest.fixture
def drafter(tmp_path):
    return EagleDrafter.from_pretrained(write("eagle3", tmp_path), tiny_model("llama"))


@pytest.mark.parametrize("lengths", [(1, 2), (70, 130), (600, 3), (512, 1100)])
def test_padded_pieces_write_the_same_entries_and_no_others(lengths, drafter, monkeypatch):
    monkeypatch.setattr(captured_module, "Captured", Replayed)
    kv = drafter._kv
    slots = [kv.open() for _ in range(4)]
    for by_graphs, slot, other in ((False, *slots[:2]), (True, *slots[2:])):
        intake = Intake(drafter.head, kv, cuda_graphs=by_graphs)
        length = 0
        for number, count in enumerate(lengths):
            tokens = np.random.default_rng(number).integers(0, 90, count)
            features = features_of(drafter, count, number)
            with torch.no_grad():
                intake.run(slot, length, 5, tokens, features)
                intake.run(other, 0, 0, tokens[:1], features[:1])
            length += count
    for (k, v), (k_by_graph, v_by_graph) in zip(
        kv.rows(slots[0], 0, kv.length), kv.rows(slots[2], 0, kv.length), strict=True
    ):
        assert k[: sum(lengths)].abs().sum(-1).min() > 0
        assert not k_by_graph[sum(lengths) :].any()
        torch.testing.assert_close(k_by_graph, k, atol=1e-6, rtol=1e-5)
        torch.testing.assert_close(v_by_graph, v, atol=1e-6, rtol=1e-5)


def test_a_warm_up_captures_all_that_texts_of_that_length_need(drafter, monkeypatch):
    monkeypatch.setattr(captured_module, "Captured", Replayed)
    monkeypatch.setattr(Replayed, "made", [])
    drafter._intake = Intake(drafter.head, drafter._kv, cuda_graphs=True)
    drafter._kv.reserve_slots(4)
    drafter._intake.warmup(1500)
    captured = len(Replayed.made)
    assert captured == 4 * len(graph_lengths(1500)) == 12
    for request_id, count in enumerate((40, 90, 1500, 700)):
        features = features_of(drafter, count - 1, request_id)
        text = np.random.default_rng(request_id).integers(0, 90, count)
        drafter.see([request_id], [0], [np.arange(count - 1)], features, [text])
        (tree,) = drafter.propose([DraftRequest(request_id, text, 8)])
        assert tree.num_nodes == 8
    assert len(Replayed.made) == captured


def test_drafts_by_graphs_are_those_of_plain_calls_and_a_warm_up_captures_them(drafter, monkeypatch):
    monkeypatch.setattr(captured_module, "Captured", Replayed)
    trees = {}
    for by_graphs in (False, True):
        drafter._expansion.uses_graphs = by_graphs
        drafter._intake = Intake(drafter.head, drafter._kv, cuda_graphs=by_graphs)
        drafter.warmup(batch=4, num_tokens=600)
        captured = len(drafter._expansion._replays), len(drafter._intake._replays)
        assert (min(captured) > 0) == by_graphs
        trees[by_graphs] = []
        for number, count in enumerate((3, 150, 40, 580)):
            features = features_of(drafter, count - 1, number)
            text = np.random.default_rng(number).integers(0, 90, count)
            drafter.see([number], [0], [np.arange(count - 1)], features, [text])
            trees[by_graphs] += drafter.propose([DraftRequest(number, text, 12)])
            drafter.close(number)
        assert captured == (len(drafter._expansion._replays), len(drafter._intake._replays))
    for by_graph, plain in zip(trees[True], trees[False], strict=True):
        assert by_graph.num_nodes == 12
        assert by_graph.token_ids.tolist() == plain.token_ids.tolist()
        assert by_graph.parents.tolist() == plain.parents.tolist()
        np.testing.assert_allclose(by_graph.scores, plain.scores, atol=1e-5)


def test_graphs_are_void_when_the_memory_moves(drafter, monkeypatch):
    monkeypatch.setattr(captured_module, "Captured", Replayed)
    graphs = captured_module.CapturedByShape(lambda numbers, length: numbers, drafter._kv, torch.device("cpu"))
    first = graphs.of(1, 6, 512)
    assert graphs.of(1, 6, 512) is first
    assert graphs.of(1, 6, 1024) is not first
    drafter._kv.reserve(2 * drafter._kv.length)
    assert graphs.of(1, 6, 512) is not first
    assert len(graphs) == 1


def test_lengths_of_captured_attention():
    assert graph_lengths(1) == [512]
    assert graph_lengths(513) == [512, 1024]
    assert graph_lengths(2048) == [512, 1024, 2048]

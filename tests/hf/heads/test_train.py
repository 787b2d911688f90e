"""Training a head: what the target writes, what a lesson asks, that it helps; runs go on where they were cut off."""

import dataclasses
import json
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from tests.hf.heads import plain
from tests.hf.heads.checkpoints import weights, write
from tests.hf.heads.toy import BETWEEN, END, OPEN, toy_target
from tests.hf.tiny import tiny_model

from infercore.hf import EagleDrafter, Engine
from infercore.hf.heads.train import Plan, Turns, corpus, train_eagle
from infercore.hf.heads.train.corpus import ANSWER, GIVEN, QUESTION, Document, Overlap
from infercore.hf.heads.train.lesson import Truth, lesson
from infercore.hf.heads.train.writer import Writer
from infercore.hf.packed_model import PackedModel

TURNS = Turns([OPEN, 7], END, [BETWEEN, 8], [END])
DEPTH = 5


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """Products of tiny matrices are slower on two threads than on one."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def written(target, count, **options):
    writer = Writer(PackedModel(target), TURNS, batch=8, max_tokens=40, **options)
    return [document for document, _ in zip(writer.documents(), range(count), strict=False)]


def test_the_target_writes_messages_and_answers_between_what_is_given():
    target = toy_target()
    documents = written(target, 60)
    for document in documents:
        ids, kinds = document.token_ids.tolist(), document.kinds.tolist()
        assert ids[:2] == TURNS.opening
        assert len(ids) <= 40
        assert kinds[:2] == [GIVEN, GIVEN]
        message = [token for token, kind in zip(ids, kinds, strict=True) if kind == QUESTION]
        answer = [token for token, kind in zip(ids, kinds, strict=True) if kind == ANSWER]
        assert END not in message[:-1]
        if answer:
            assert message[-1] == END
            assert ids == [*TURNS.opening, *message, *TURNS.between, *answer]
            assert END not in answer[:-1]
            assert answer[-1] == END or len(ids) == 40
    assert sum(d.kinds[-1] == ANSWER for d in documents) > 10


@pytest.mark.parametrize("greedy_share", [0.0, 1.0])
def test_greedy_rows_answer_as_greedy_decoding_does_and_others_draw(greedy_share):
    target = tiny_model("llama")
    turns = Turns([5, 6, 7], 9, [11, 12], [13])
    writer = Writer(PackedModel(target), turns, batch=4, max_tokens=30, greedy_share=greedy_share)
    right = total = 0
    for _, document in zip(range(12), writer.documents(), strict=False):
        with torch.no_grad():
            best = target(torch.from_numpy(document.token_ids.astype(np.int64))[None]).logits[0].argmax(-1)
        answers = np.flatnonzero(document.kinds == ANSWER)
        right += int((best[answers - 1].numpy() == document.token_ids[answers]).sum())
        total += len(answers)
    # messages end rarely in a random model; what is drawn is the likeliest token now and then
    assert total == 0 or (right == total if greedy_share else right < total)
    turns = Turns([5, 6, 7], None, [], [13])  # no messages: all is answer
    writer = Writer(PackedModel(target), turns, batch=4, max_tokens=30, greedy_share=greedy_share)
    document = next(writer.documents())
    with torch.no_grad():
        best = target(torch.from_numpy(document.token_ids.astype(np.int64))[None]).logits[0].argmax(-1).numpy()
    share = (best[2:-1] == document.token_ids[3:]).mean()
    assert share == 1 if greedy_share else share < 0.9


def test_a_lesson_sees_what_a_draft_of_the_same_depth_sees(tmp_path, monkeypatch):
    model = tiny_model("llama")
    w = weights("eagle3")
    head = EagleDrafter.from_pretrained(write("eagle3", tmp_path), model).head
    seen = []
    logits = head.logits
    monkeypatch.setattr(head, "logits", lambda hidden: seen.append(logits(hidden)) or seen[-1])
    tokens = torch.randint(3, 190, (2, 12))
    features = torch.randn(2, 12, head.feature_size)
    probs = torch.softmax(torch.randn(2, 12, 61), -1)
    best = torch.randint(-1, 61, (2, 12))
    outcome = lesson(head, Truth(features, probs, best, torch.ones(2, 12), tokens), DEPTH)
    embedding = model.get_input_embeddings().weight.detach()
    loss = 0.0
    for step in range(DEPTH):
        losses, counted = 0.0, 0
        for row in range(2):
            for entry in range(12 - step - 1):
                path = tokens[row, 1 : entry + 2 + step].tolist()
                outputs = plain.path_outputs("eagle3", w, embedding, features[row, : entry + 1], path)
                expected = plain.logits("eagle3", w, outputs[-1:], embedding)[0]
                torch.testing.assert_close(seen[step][row, entry], expected, atol=1e-4, rtol=1e-4)
                place = entry + 1 + step
                if best[row, place] >= 0:
                    losses -= float((probs[row, place] * expected.log_softmax(-1)).sum())
                    counted += 1
        loss += 0.8**step * losses / counted
    assert float(outcome.loss.detach()) == pytest.approx(loss, rel=1e-4)
    assert (outcome.right_in_a_row <= outcome.right).all()
    assert outcome.weight.tolist() == [2.0 * (11 - step) for step in range(DEPTH)]


def test_a_lesson_in_half_precision_is_close_to_one_in_full_and_teaches(tmp_path):
    """As on a GPU: the target in bfloat16, the head in float32 under autocast."""
    model = tiny_model("llama")
    head = EagleDrafter.from_pretrained(write("eagle3", tmp_path), model).head.train().requires_grad_(True)
    truth = Truth(
        torch.randn(2, 20, head.feature_size),
        torch.softmax(torch.randn(2, 20, 61), -1),
        torch.randint(-1, 61, (2, 20)),
        torch.ones(2, 20),
        torch.randint(3, 190, (2, 20)),
    )
    full = lesson(head, truth, DEPTH)
    half = dataclasses.replace(truth, features=truth.features.bfloat16())
    with torch.autocast("cpu", torch.bfloat16):
        outcome = lesson(head, half, DEPTH)
    assert outcome.loss.dtype is torch.float32
    assert float(outcome.loss.detach()) == pytest.approx(float(full.loss.detach()), rel=0.05)
    outcome.loss.backward()
    assert all(p.grad is not None and bool(p.grad.isfinite().all()) for p in head.parameters())


def plan(max_steps, **options):
    return Plan(
        minutes=60.0, max_steps=max_steps, text_tokens=5000, text_batch=32, max_tokens=48, draft_vocab_size=20,
        batch_tokens=400, learning_rate=3e-2, ttt_steps=DEPTH, **options,
    )  # fmt: skip


def accept_length(target, folder):
    """In the engine: tokens a forward once the prompt is computed."""
    drafter = EagleDrafter.from_pretrained(folder, target, branching=1, max_depth=DEPTH)
    prompts = [[OPEN, 7, 5 + i, 9, 20 - i] for i in range(4)]
    done = Engine(target, num_pages=256).generate(prompts, max_new_tokens=61, drafter=drafter, eos_token_ids=())
    return sum(60 / (c.stats.num_sampling_forwards - 1) for c in done) / len(done)


def test_training_on_a_toy_language_brings_the_accept_length_near_the_best_possible_and_goes_on_where_it_was(tmp_path):
    """The toy's next token depends on its last one alone: a chain of five can always be right, six tokens a forward."""
    target = toy_target()
    said: list[str] = []
    first = train_eagle(target, None, tmp_path, plan(2), turns=TURNS, report=said.append)
    assert first.accept_length < 1.3
    assert accept_length(target, tmp_path) < 1.5
    text = (tmp_path / "work" / "text.safetensors").stat().st_mtime_ns
    last = train_eagle(target, None, tmp_path, plan(200), turns=TURNS, report=said.append)
    assert any("going on at step 2" in line for line in said)
    assert (tmp_path / "work" / "text.safetensors").stat().st_mtime_ns == text
    assert last.accept_length > 4.3
    for folder in (tmp_path, tmp_path / "int8"):
        assert accept_length(target, folder) > 4.5
    card = (tmp_path / "README.md").read_text()
    assert "training-time test of 5 steps" in card
    assert f"| 200 | {last.accept_length:.2f} |" in card
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["draft_vocab_size"] == 20
    with pytest.raises(ValueError, match="of a run with other options"):
        train_eagle(target, None, tmp_path, plan(210, optimizer="adamw"), turns=TURNS, report=said.append)


def test_a_run_that_is_cut_off_learns_the_same_as_one_that_is_not(tmp_path):
    target = toy_target()
    whole = train_eagle(target, None, tmp_path / "a", plan(12), turns=TURNS, report=lambda line: None)

    class Cut(Exception):
        pass

    def cut(line):
        if "step 7" in line:
            raise Cut

    options = {"seconds_between": 0.0}
    with pytest.raises(Cut):
        train_eagle(target, None, tmp_path / "b", plan(12, **options), turns=TURNS, report=cut)
    again = train_eagle(target, None, tmp_path / "b", plan(12), turns=TURNS, report=lambda line: None)
    assert again.accept_length == pytest.approx(whole.accept_length, abs=0.02)
    assert again.accuracy == pytest.approx(whole.accuracy, abs=0.02)


def documents():
    generator = np.random.default_rng(1)
    lengths = generator.integers(3, 60, 40)
    ids = [generator.integers(0, 50, n).astype(np.int32) for n in lengths]
    return [Document(some, np.where(np.arange(len(some)) < 2, GIVEN, ANSWER).astype(np.int8)) for some in ids]


def test_every_document_is_in_one_batch_of_about_the_size_asked_for(tmp_path):
    given = documents()
    for order in (None, np.random.default_rng(3)):
        found = []
        for batch in corpus.batches(given, 200, order):
            assert batch.token_ids.numel() <= 400
            for ids, weights_of in zip(batch.token_ids, batch.weights, strict=True):
                length = int(weights_of.nonzero().max()) + 1
                found.append(tuple(ids[:length].tolist()))
                assert weights_of[:length].tolist() == [0, 0, *[1] * (length - 2)]
        assert sorted(found) == sorted(tuple(d.token_ids.tolist()) for d in given)
    corpus.save(given, tmp_path / "text.safetensors")
    again = corpus.load(tmp_path / "text.safetensors")
    for one, other in zip(given, again, strict=True):
        assert one.token_ids.tolist() == other.token_ids.tolist()
        assert one.kinds.tolist() == other.kinds.tolist()


def test_the_draft_vocabulary_is_what_is_written_most():
    given = documents()
    ids = corpus.draft_vocabulary(given, 10, 52)
    counts = np.bincount(np.concatenate([d.token_ids[2:] for d in given]), minlength=52)
    assert ids.tolist() == sorted(ids.tolist())
    assert min(counts[ids.numpy()]) >= np.sort(counts)[-10]
    assert corpus.coverage(given, ids, 52) == pytest.approx(counts[ids.numpy()].sum() / counts.sum())


def test_text_that_shares_eight_words_with_a_test_is_found(tmp_path):
    questions = tmp_path / "question.jsonl"
    questions.write_text(
        json.dumps({"question_id": 1, "turns": ["Compose a blog post about a recent trip to Hawaii, please."]}) + "\n"
    )
    overlap = Overlap.with_files([questions])
    assert overlap.shares("He said: compose a BLOG post; about a recent trip, to Hawaii!")
    assert not overlap.shares("compose a blog post about a recent")
    assert not overlap.shares(
        "a text about something else, although a blog post about a recent trip is long enough too"
    )


def test_plans_that_cannot_be_are_refused():
    with pytest.raises(ValueError, match="optimizer is 'sgd'; expected 'muon' or 'adamw'"):
        Plan(optimizer="sgd")
    with pytest.raises(ValueError, match="ttt_steps is 0; expected more than 0"):
        Plan(ttt_steps=0)
    with pytest.raises(ValueError, match="max_tokens is 4, but what is given takes 4 tokens"):
        Writer(PackedModel(toy_target()), TURNS, batch=2, max_tokens=4)

"""Sequences that begin with the same pages: who belongs together, and that it changes nothing of the output."""

import itertools
import random

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tests.hf.drafters import OracleDrafter
from tests.hf.test_step_graphs import Recorder
from tests.hf.tiny import VOCAB, hf_greedy, tiny_model

from infercore.hf import Engine, attention
from infercore.hf.graphs import StepGraphs
from infercore.hf.plan import MAX_INTERVALS, PrefixGroups, Rows
from infercore.hf.prefix_groups import MIN_MEMBERS, MIN_SHARE, STEP, PrefixGrouping, grouping_for
from infercore.hf.scheduler import Share
from infercore.hf.state import RequestState
from infercore.hf.step_buffers import Bucket
from infercore.kernels import tree_attention
from infercore.radix import Sequence
from infercore.speculative import TokenTree

PAGE = 16
PER_STEP = STEP // PAGE  # pages


class FakeSequence(Sequence):
    """A sequence of certain pages; nothing else of it is looked at."""

    def __init__(self, pages, num_tokens=None):
        self._pages = np.array(pages, np.int32)
        self._num_pages = len(pages)
        self._num_tokens = len(pages) * PAGE if num_tokens is None else num_tokens


def work_of(*sequences, rows=None):
    """Shares whose `num_causal` says which they are."""
    state = RequestState.__new__(RequestState)
    return [
        (Share(state, i, True), Rows(s, np.zeros(n, np.int32), TokenTree.empty(), np.zeros(n, np.int64), 0))
        for i, (s, n) in enumerate(zip(sequences, rows or [1] * len(sequences), strict=True))
    ]


def places(work):
    return [share.num_causal for share, _ in work]


def pages(*blocks, own=()):
    """Each block is one step's worth of pages that are named after it."""
    return [100 * b + i for b in blocks for i in range(PER_STEP)] + list(own)


def grouping(**options):
    return PrefixGrouping(
        PAGE,
        **({"min_shared_tokens": 1, "min_saved_tokens": 1, "min_share": 0.0, "min_members": 2} | options),
    )


def test_two_groups_and_loners_stand_together_in_the_new_order():
    work = work_of(
        FakeSequence(pages(1, own=[7001])),
        FakeSequence(pages(2, 3, own=[7002])),
        FakeSequence(pages(4)),
        FakeSequence(pages(2, 3)),
        FakeSequence(pages(1)),
        FakeSequence([9001], 5),
        FakeSequence(pages(2, 3, own=[7003]), 2 * STEP + 3),
        rows=[1, 1, 1, 5, 1, 1, 1],
    )
    ordered, groups = grouping().of(work)
    assert set(places(ordered)[:3]) == {1, 3, 6}  # saves most
    assert set(places(ordered)[3:5]) == {0, 4}
    assert places(ordered)[5:] == [2, 5]
    assert groups == PrefixGroups((0, 3, 5, 7), (2 * STEP, STEP, 0))


def test_a_stem_is_shared_by_all_or_its_branches_by_their_own():
    """Four behind one block, two of them behind two more: together they save 3, apart 3 + 1."""
    a, b = pages(1, 2, 3, 4), pages(1, 5)
    sequences = [FakeSequence(a), FakeSequence(b), FakeSequence([*a, 1]), FakeSequence([*b, 2])]
    ordered, groups = grouping().of(work_of(*sequences))
    assert groups.shared_lens == (4 * STEP, 2 * STEP)
    assert set(places(ordered)[:2]) == {0, 2}
    short = [FakeSequence(pages(1, 2, own=[i])) for i in range(2)] + [FakeSequence(pages(1, own=[i])) for i in (8, 9)]
    _, groups = grouping().of(work_of(*short))
    assert groups == PrefixGroups((0, 4), (STEP,))


def test_groups_that_do_not_pay_are_not_formed():
    work = work_of(*[FakeSequence(pages(1, own=[i])) for i in range(3)], FakeSequence(pages(*range(2, 12))))
    assert grouping(min_saved_tokens=2 * STEP).of(work)[1] is not None
    assert grouping(min_saved_tokens=2 * STEP + 1).of(work) == (work, None)
    assert grouping(min_share=0.14).of(work)[1] is not None
    assert grouping(min_share=0.15).of(work) == (work, None)
    assert grouping().of(work[:1]) == (work[:1], None)


def test_a_group_must_be_large_enough_by_itself():
    """Four behind two blocks, three behind one and two behind three: who is in no group stands at the end."""
    families = [pages(1, 2)] * 4 + [pages(3)] * 3 + [pages(4, 5, 6)] * 2
    work = work_of(*[FakeSequence([*family, 9000 + i]) for i, family in enumerate(families)])
    for options, expected in (
        ({}, PrefixGroups((0, 4, 6, 9), (2 * STEP, 3 * STEP, STEP))),
        ({"min_members": 3}, PrefixGroups((0, 4, 7, 9), (2 * STEP, STEP, 0))),
        ({"min_members": 4}, PrefixGroups((0, 4, 9), (2 * STEP, 0))),
        ({"min_members": 5}, None),
        ({"min_shared_tokens": STEP + 1}, PrefixGroups((0, 4, 6, 9), (2 * STEP, 3 * STEP, 0))),
        ({"min_shared_tokens": 2 * STEP, "min_members": 3}, PrefixGroups((0, 4, 9), (2 * STEP, 0))),
        ({"min_members": 4, "min_saved_tokens": 6 * STEP + 1}, None),  # what small groups would save does not count
    ):
        ordered, groups = grouping(**options).of(work)
        assert groups == expected, options
        assert sorted(places(ordered)) == list(range(9))


def test_branches_too_small_for_groups_are_one_behind_their_stem():
    """Six behind one block, in pairs behind four more: the pairs save more, but only where pairs may be groups."""
    work = work_of(*[FakeSequence(pages(1, *[10 * b + i for i in range(4)])) for b in (1, 2, 3) for _ in range(2)])
    assert grouping().of(work)[1].shared_lens == (5 * STEP,) * 3
    assert grouping(min_members=3).of(work)[1] == PrefixGroups((0, 6), (STEP,))
    assert grouping(min_members=3, min_shared_tokens=2 * STEP).of(work) == (work, None)


# Families, sequences of each; by shared tokens, the speed in groups over that without. Source:
# bench/results/shared_prefix.md (H100, 8B shape: 4096 bytes of K/V a token and layer; 64 own tokens each, and up to 184
# generated ones).
MEASURED = {
    (1, 32): {512: 0.96, 1024: 0.99, 2048: 1.07, 4096: 1.21, 8192: 1.47},
    (4, 8): {512: 0.95, 1024: 0.98, 2048: 1.03, 4096: 1.11, 8192: 1.28},
    (8, 4): {512: 0.94, 1024: 0.94, 2048: 0.95, 4096: 0.97, 8192: 1.00},
    (16, 2): {512: 0.92, 1024: 0.90, 2048: 0.87, 4096: 0.83, 8192: 0.78},
}


@pytest.mark.parametrize("own", [64, 248])
@pytest.mark.parametrize("limits", ["all", "of a group", "of a step"])
def test_an_engines_groups_are_those_that_gained_when_measured(own, limits):
    """Families of that table are alike, so the limits of a group and those of a step must each tell by themselves."""
    it = grouping_for(32 * 4096, 32, PAGE)
    if limits == "of a group":
        it = grouping(min_members=MIN_MEMBERS, min_shared_tokens=it._min_shared_tokens)
    if limits == "of a step":
        it = grouping(min_share=MIN_SHARE, min_saved_tokens=it._min_saved_tokens)
    for (num_families, size), ratios in MEASURED.items():
        for shared, ratio in ratios.items():
            stems = [10_000 * f + np.arange(shared // PAGE) for f in range(num_families)]
            sequences = [
                FakeSequence([*stem, *range(10**6 + 100 * i, 10**6 + 100 * i + -(-own // PAGE))], shared + own)
                for i, stem in enumerate(stem for stem in stems for _ in range(size))
            ]
            forms = it.of(work_of(*sequences))[1] is not None
            assert forms or ratio <= 1.05, (num_families, size, shared)
            assert not forms or ratio >= 1.02, (num_families, size, shared)


def test_limits_are_bytes_of_a_layer():
    for bytes_per_token, num_layers, shared, saved in ((4096 * 32, 32, 1536, 49_152), (8192 * 9, 9, 768, 24_576)):
        it = grouping_for(bytes_per_token, num_layers, PAGE)
        assert (it._min_shared_tokens, it._min_saved_tokens) == (shared, saved)


def test_groups_are_formed_anew_when_sequences_come_go_or_lose_tokens():
    formed = []
    it = grouping()
    form = it._form
    it._form = lambda packed: formed.append(len(packed)) or form(packed)
    sequences = [FakeSequence(pages(1, 2, own=[i])) for i in range(4)]
    work = work_of(*sequences)
    first = it.of(work)
    sequences[0]._num_tokens += 5
    assert it.of(work_of(*sequences)) is not None
    assert formed == [4]
    assert it.of(work[:3])[1].starts == (0, 3)
    assert it.of(work) == first
    assert formed == [4, 3, 4]
    sequences[2]._num_tokens = 2 * STEP - 1
    ordered, groups = it.of(work)
    assert groups == PrefixGroups((0, 3, 4), (2 * STEP, 0))
    assert places(ordered)[3] == 2
    it.of(work_of(*sequences, rows=[1, 1, 1, 3]))  # a prompt is read: more may be shared when it has been
    assert formed == [4, 3, 4, 4, 4]


def brute_force(paths, first, last):
    """The best way to cut sorted paths into spans whose members share whole blocks; by trying all."""
    best = 0
    for cut in range(first, last):
        best = max(best, brute_force(paths, first, cut) + brute_force(paths, cut + 1, last))
    common = 0
    while all(len(p) > common and p[common] == paths[first][common] for p in paths[first : last + 1]):
        common += 1
    return max(best, (last - first) * common)


@given(st.lists(st.lists(st.integers(1, 2), min_size=1, max_size=4), min_size=2, max_size=6))
def test_every_group_shares_what_it_says_and_much_is_saved(paths):
    it = grouping()
    work = work_of(
        *[
            FakeSequence(pages(*[sum(b << 2 * k for k, b in enumerate(p[: j + 1])) for j in range(len(p))]))
            for p in paths
        ]
    )
    ordered, groups = it.of(work)
    assert sorted(places(ordered)) == list(range(len(work)))
    if groups is None:
        assert all(p[0] != q[0] for i, p in enumerate(paths) for q in paths[:i])
        return
    assert len(groups.shared_lens) <= MAX_INTERVALS
    saved = 0
    for (start, stop), tokens in zip(itertools.pairwise(groups.starts), groups.shared_lens, strict=True):
        members = [rows.sequence for _, rows in ordered[start:stop]]
        count = tokens // PAGE
        assert all((s.page_ids[:count] == members[0].page_ids[:count]).all() for s in members)
        assert all(s.num_tokens >= tokens for s in members)
        saved += (len(members) - 1) * tokens // STEP
    assert 2 * saved >= brute_force(sorted(paths), 0, len(paths) - 1)


def test_intervals_cover_the_padding():
    for groups, expected in (
        (PrefixGroups((0, 8), (0,)), [0, *[8] * 8]),
        (PrefixGroups((0, 3, 5), (256, 128)), [0, 3, 5, *[8] * 6]),
        (PrefixGroups((0, 3, 6), (256, 0)), [0, 3, *[8] * 7]),
        (PrefixGroups(tuple(range(8)), (1,) * 7), [0, 1, 2, 3, 4, 5, 6, 7, 8]),
        (PrefixGroups(tuple(range(9)), (*(1,) * 7, 0)), [0, 1, 2, 3, 4, 5, 6, 7, 8]),
    ):
        starts, shared = np.full(MAX_INTERVALS + 1, -1, np.int32), np.full(MAX_INTERVALS, -1, np.int32)
        groups.fill(starts, shared, 8)
        assert starts.tolist() == expected
        assert shared.tolist() == [*groups.shared_lens, *[0] * (MAX_INTERVALS - len(groups.shared_lens))]


# --- in the engine ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def model():
    return tiny_model("llama")


def families(seed=0):
    """Two stems of 130 and 260 tokens with three and two tails, and two prompts of their own."""
    draw = random.Random(seed)

    def ids(n):
        return [draw.randrange(3, VOCAB) for _ in range(n)]

    a, b = ids(134), ids(260)
    return [a + ids(5), b + ids(9), a + ids(17), ids(20), b + ids(2), a + ids(1), ids(150)]


@pytest.fixture(scope="module")
def truth(model):
    return {tuple(p): hf_greedy(model, p, 12)[0] for p in families()}


def engine_of(model, **options):
    """An engine that forms groups on a CPU."""
    engine = Engine(model, page_size=PAGE, **({"num_pages": 120, "poison": True} | options))
    engine._stepper.grouping = grouping()
    return engine


def check(engine, prompts, truth, **options):
    done = engine.generate(prompts, **({"max_new_tokens": 12} | options))
    assert [c.token_ids for c in done] == [
        truth[tuple(p)][: len(c.token_ids)] for p, c in zip(prompts, done, strict=True)
    ]


@pytest.mark.parametrize("overlap", [False, True])
@pytest.mark.parametrize("drafts", [False, True])
def test_the_order_of_a_batch_changes_nothing(model, truth, overlap, drafts):
    engine = engine_of(model, overlap=overlap)
    drafter = OracleDrafter(truth, "half", VOCAB) if drafts else None
    for _ in range(2):
        check(engine, families(), truth, drafter=drafter)
    assert engine._stepper.grouping.num_grouped_steps > 4


def come_and_go(engine, prompts, *, num, most_new):
    """`num` of `prompts` submitted between steps, some of them cancelled: the others' prompts and handles, all done."""
    draw = random.Random(3)
    handles = []
    for prompt in draw.sample(prompts, num):
        handles.append((prompt, *engine.submit(engine.request(prompt, max_new_tokens=draw.randrange(2, most_new)))))
        for _ in range(draw.randrange(3)):
            engine.step()
        if draw.random() < 0.2:
            handles.pop(draw.randrange(len(handles)))[1].cancel()
    while engine.num_unfinished:
        engine.step()
    return handles


def test_requests_that_come_and_go_and_pages_that_are_short(model, truth):
    engine = engine_of(model, num_pages=40, overlap=True, host_cache_bytes=1 << 24)
    handles = come_and_go(engine, families() * 2, num=12, most_new=12)
    for prompt, handle in handles:
        assert handle.token_ids == truth[tuple(prompt)][: len(handle.token_ids)]
        assert handle.completion.finish_reason == "length"
    assert engine._stepper.grouping.num_grouped_steps > 4


def test_copies_of_a_prompt_are_one_group(model, truth):
    prompt = families()[2]
    engine = engine_of(model)
    done = engine.generate(prompt, n=5, max_new_tokens=12)
    assert all(c.token_ids == truth[tuple(prompt)] for c in done)
    assert engine._stepper.grouping._groups == [(5, STEP)]


@pytest.mark.parametrize("graphs", [False, True])
def test_the_gpus_attention_reads_shared_keys_once_and_gives_the_same(model, truth, graphs, monkeypatch):
    """Triton's interpreter in the place of a GPU: eager steps, and the persistent buffers of a graph."""
    plans = []

    def attend(query, *args, **options):
        few = len(query) <= 16  # of the rest the interpreter would make minutes
        if few:
            plans.append(options["prepared"])
        return tree_attention(query, *args, **options, impl="triton" if few else "cpu")

    prompts = [families()[i] for i in (0, 1, 3, 4, 2)]
    engine = engine_of(model, overlap=True)
    check(engine, prompts, truth, max_new_tokens=2)  # from now on all prompts are cached
    monkeypatch.setattr(attention, "tree_attention", attend)
    if graphs:
        stepper = engine._stepper
        made = StepGraphs(stepper.model, stepper.pool, max_seqs=8, max_tokens=512, capture=Recorder(), with_groups=True)
        stepper.use_graphs(made)
    check(engine, prompts, truth, max_new_tokens=2)
    grouped = [p for p in plans if p.shared_lens is not None and p.shared_lens.max() > 0]
    assert any(sorted(p.shared_lens.tolist())[-2:] == [STEP, 2 * STEP] for p in grouped)
    if graphs:
        assert any(bucket.has_groups for bucket in made._replays)


def test_batch_invariant_attention_takes_no_notice(model, monkeypatch):
    def attend(query, *args, **options):
        return tree_attention(query, *args, **options, batch_invariant=True, impl="triton" if len(query) < 9 else "cpu")

    prompts = [families()[i] for i in (0, 5)]
    outs = []
    for groups in (True, False):
        engine = engine_of(model)
        engine.generate(prompts, max_new_tokens=1)
        if not groups:
            engine._stepper.grouping = None
        with monkeypatch.context() as patch:
            patch.setattr(attention, "tree_attention", attend)
            done = engine.generate(prompts, max_new_tokens=2, return_logits=True)
        assert not groups or engine._stepper.grouping.num_grouped_steps
        outs.append(torch.cat([c.logits for c in done]))
    assert torch.equal(*outs)


def test_warmup_captures_buckets_with_groups(model):
    engine = engine_of(model)
    stepper = engine._stepper
    made = StepGraphs(stepper.model, stepper.pool, max_seqs=8, max_tokens=256, capture=Recorder(), with_groups=True)
    stepper.use_graphs(made)
    engine.warmup(batch=8, rows=64, progress=False)
    assert sorted(b for b in made._replays if b.has_groups) == sorted(
        Bucket(rows, 8, tree, True) for rows in (8, 16, 24, 32) for tree in (False, True)
    )

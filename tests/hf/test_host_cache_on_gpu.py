"""The engine with its second cache tier on a real GPU: equal to Hugging Face while pages go to the host and come back.

TRITON_INTERPRET=0 pytest -m gpu tests/hf        # on a machine with a GPU; skips elsewhere
"""

import copy
import random

import pytest
from tests.hf.tiny import VOCAB, hf_greedy, tiny_model

from infercore.hf import Engine
from infercore.radix.host import PinnedMemory
from infercore.speculative import NGramDrafter

pytestmark = pytest.mark.gpu
NEW = 24


def families(seed, num=6):
    draw = random.Random(seed)
    made = []
    for _ in range(num):
        stem = [draw.randrange(3, VOCAB) for _ in range(200)]
        made += [stem + [draw.randrange(3, VOCAB) for _ in range(draw.randrange(20, 90))] for _ in range(2)]
    return made


@pytest.fixture(scope="module")
def model():
    return copy.deepcopy(tiny_model("llama")).cuda()


@pytest.fixture(scope="module")
def truth(model):
    return {tuple(p): hf_greedy(model, p, NEW)[0] for p in families(7)}


@pytest.mark.parametrize("cuda_graphs", [True, False])
@pytest.mark.parametrize("overlap", [True, False])
@pytest.mark.parametrize("max_running", [1, 3])
def test_float32_equals_hugging_face_while_pages_come_and_go(model, truth, cuda_graphs, overlap, max_running):
    engine = Engine(
        model,
        num_pages=75,  # three or four of the twelve prompts
        host_cache_bytes=1 << 26,
        cuda_graphs=cuda_graphs,
        overlap=overlap,
        max_running=max_running,
        poison=True,
    )
    assert isinstance(engine.cache.host.store, PinnedMemory)
    draw = random.Random(2)
    prompts = [list(p) for p in truth]
    for round_ in range(4):
        some = draw.sample(prompts, 8)
        drafter = NGramDrafter() if round_ % 2 else None
        done = engine.generate(some, max_new_tokens=NEW, drafter=drafter)
        assert [c.token_ids for c in done] == [truth[tuple(p)] for p in some]
    stats = engine.cache.host.stats
    assert engine.stats.num_host_tokens > 400, engine.report()
    assert stats.bytes_back > 0
    assert stats.bytes_out > 0
    if cuda_graphs:
        assert engine._stepper.graphs.reason is None
        assert engine._stepper.graphs.num_replays > 0


def test_after_warmup_copies_compile_nothing(model, truth):
    from infercore.kernels.pack_pages.triton import _copy_pages_kernel

    def num_compiled():
        return sum(len(caches[0]) for caches in _copy_pages_kernel.device_caches.values())

    prompts = [list(p) for p in truth]
    engine = Engine(model, num_pages=75, host_cache_bytes=1 << 26, max_running=2)
    engine.warmup(batch=2, rows=16, progress=False)
    before = num_compiled()
    assert before >= 2
    for _ in range(2):
        engine.generate(prompts[::2], max_new_tokens=4)
    assert engine.stats.num_host_tokens > 0
    assert num_compiled() == before


def test_sampled_tokens_do_not_depend_on_where_the_prefix_stood(model, truth):
    """Same seed, same tokens: cold, from the device and from the host."""
    prompts = [list(p) for p in truth]
    engine = Engine(model, num_pages=75, host_cache_bytes=1 << 26)
    options = {"max_new_tokens": NEW, "temperature": 0.8, "seed": 3}
    cold = engine.generate(prompts[0], **options)[0]
    warm = engine.generate(prompts[0], **options)[0]
    engine.generate(prompts[2:10:2], max_new_tokens=NEW)
    back = engine.generate(prompts[0], **options)[0]
    assert back.stats.num_host_tokens >= 128
    assert cold.token_ids == warm.token_ids == back.token_ids

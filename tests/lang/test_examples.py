"""Every example runs on the real model, and its program gives the same traced and op by op."""

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch

from infercore.demo import smollm2_path
from infercore.errors import TraceError

pytestmark = [pytest.mark.smollm2, pytest.mark.slow]
FOLDER = Path(__file__).parents[2] / "examples" / "lang"
NAMES = sorted(path.stem for path in FOLDER.glob("*.py") if path.stem != "smollm2")
ARGUMENTS = {
    "chat": ("chat", {"questions": ("What is the capital of France?",)}),
    "extraction": ("extract", {"text": "Ann Lee, 34, is an engineer in Oslo."}),
    "few_shot": ("classify", {"review": "What a wonderful film!"}),
    "react": ("react", {"question": "What is 12 * 7?", "max_steps": 1}),
    "tips": ("tips", {"topic": "sleep"}),
    "tree_of_thought": ("tree_of_thought", {"question": "What is 2 + 2?", "branches": 1}),
}


@pytest.fixture(scope="module")
def backend():
    path = smollm2_path()
    if path is None:
        pytest.skip("SmolLM2 is not in the user's cache; `infercore demo` fetches it")
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from infercore.hf import Engine
    from infercore.lang.backends import EngineBackend

    model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval()
    return EngineBackend(Engine(model, AutoTokenizer.from_pretrained(path)))


def load(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"example_{name}", FOLDER / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # pydantic looks annotations up there
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def examples(backend, monkeypatch):
    stand_in = ModuleType("smollm2")
    stand_in.smollm2_backend = lambda: backend
    monkeypatch.setitem(sys.modules, "smollm2", stand_in)
    return load


def test_every_example_is_covered():
    assert set(NAMES) == set(ARGUMENTS)


@pytest.mark.parametrize("name", NAMES)
def test_an_example_prints_its_answer(examples, name, capsys):
    examples(name).main()
    assert len(capsys.readouterr().out) > 40


@pytest.mark.parametrize("name", NAMES)
def test_an_example_gives_the_same_traced_and_op_by_op(examples, backend, name):
    program_name, arguments = ARGUMENTS[name]
    program = getattr(examples(name), program_name)
    eager = program.run(backend, seed=3, mode="eager", **arguments)
    try:
        assert program.run(backend, seed=3, mode="traced", **arguments) == eager
    except TraceError:
        assert name == "react"
    counts = backend.engine.cache.counts()
    assert counts.in_use == 0

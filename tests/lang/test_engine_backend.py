"""Programs on the engine: chats as the template writes them, exact scores, one forward for a select, nothing leaked."""

import dataclasses
import re

import pytest
import torch
from pydantic import BaseModel, ConfigDict, Field
from tiny_chat import DEFAULT_SYSTEM, TEMPLATE, tiny_model, tiny_tokenizer

from infercore.errors import ProgramError
from infercore.hf import Engine
from infercore.lang import GenJob, GenOptions, SelectJob, Transcript, assistant, function, gen, select, system, user
from infercore.lang.backends import EngineBackend
from infercore.lang.backends.token_scores import TreeScorer
from infercore.lang.chat import ChatFormat
from infercore.lang.interpreter import parsed
from infercore.lang.ir import GenOp, Location
from infercore.lang.types import GenResult


class Pet(BaseModel):
    model_config = ConfigDict(extra="forbid")

    name: str = Field(max_length=4)
    age: int = Field(ge=0, le=9)


@pytest.fixture(scope="module")
def engine():
    return Engine(tiny_model(), tiny_tokenizer(), num_pages=200, poison=True)


@pytest.fixture
def backend(engine):
    yield EngineBackend(engine)
    counts = engine.cache.counts()
    assert engine.num_unfinished == 0
    assert counts.in_use == 0
    assert counts.free + counts.cached + counts.in_use == counts.total


def wait(backend, job):
    ticket = backend.submit(job)
    while True:
        done = backend.step()
        if ticket in done:
            return done[ticket]


@pytest.mark.parametrize("template", [TEMPLATE, DEFAULT_SYSTEM])
def test_a_chat_reads_as_the_template_writes_it(template):
    tokenizer = tiny_tokenizer(template)
    turns = [("system", "Be brief."), ("user", "Hi"), ("assistant", "Hello."), ("user", "Who?"), ("assistant", "Me.")]
    for first in (0, 1):
        transcript = Transcript()
        for role, text in turns[first:]:
            transcript = transcript.mark(role, begins=True).add(text).mark(role, begins=False)
        messages = [{"role": role, "content": text} for role, text in turns[first:]]
        assert transcript.messages() == messages
        assert ChatFormat(tokenizer).render(transcript) == tokenizer.apply_chat_template(messages, tokenize=False)
        asking = transcript.mark("user", begins=True).add("So?").mark("user", begins=False)
        asking = asking.mark("assistant", begins=True)
        expected = tokenizer.apply_chat_template(
            [*messages, {"role": "user", "content": "So?"}], tokenize=False, add_generation_prompt=True
        )
        assert ChatFormat(tokenizer).render(asking) == expected
        assert asking.open_role == "assistant"


def test_without_a_chat_template_turns_are_refused(engine):
    with pytest.raises(ValueError, match="no chat template"):
        ChatFormat(tiny_tokenizer(None)).render(Transcript().mark("user", begins=True))


def test_scores_equal_those_of_one_completion_at_a_time(engine):
    prompt = EngineBackend(engine).encode("the quick brown fox says", add_special_tokens=True)
    continuations = [[5, 9, 12], [5, 9, 13], [5, 40], [7], [41, 42, 43, 44]]
    scorer = TreeScorer(engine, prompt, continuations)
    before = engine.stats.num_forwards
    rows = None
    while rows is None:
        engine.step()
        rows = scorer.poll()
    assert engine.stats.num_forwards == before + 1
    alone = engine.score([prompt] * len(continuations), continuations)
    for row, score in zip(rows, alone, strict=True):
        torch.testing.assert_close(row, score.logprobs, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("method", ["token_length", "greedy", "unconditional"])
def test_select_picks_what_scores_say(engine, backend, method):
    text, choices = "the quick brown fox", (" jumps", " over the dog", " no", " maybe yes")
    result = wait(backend, SelectJob(Transcript().add(text), choices, method))
    prompt = backend.encode(text, add_special_tokens=True)
    tokens = [backend.encode(text + c, add_special_tokens=True)[len(prompt) :] for c in choices]
    rows = [s.logprobs for s in engine.score([prompt] * 4, tokens)]
    if method == "greedy":
        assert sum(result.scores) == 1
        best = max(range(4), key=lambda i: rows[i][0])
        assert tokens[result.index][0] == tokens[best][0]
        return
    expected = [sum(row) / len(row) for row in rows]
    if method == "unconditional":
        bare = [s.logprobs for s in engine.score([[0]] * 4, tokens)]
        expected = [e - sum(row) / len(row) for e, row in zip(expected, bare, strict=True)]
    torch.testing.assert_close(list(result.scores), expected, atol=1e-4, rtol=1e-4)
    assert result.index == max(range(4), key=expected.__getitem__)


def test_choices_that_merge_with_the_end_of_the_prompt_are_scored_as_the_tokenizer_writes_them(engine, backend):
    """ "qui" + "ck" is one token where the tokenizer sees both at once: the prompt is cut before it for all choices."""
    for text in ("the qui", "fox " * 300 + "the qui"):
        result = wait(backend, SelectJob(Transcript().add(text), ("ck", "et"), "token_length"))
        ids = [backend.encode(text + c, add_special_tokens=True) for c in ("ck", "et")]
        kept = next(i for i, (a, b) in enumerate(zip(*ids, strict=False)) if a != b)
        kept = min(kept, len(backend.encode(text, add_special_tokens=True)) - 1)
        rows = [s.logprobs for s in engine.score([i[:kept] for i in ids], [i[kept:] for i in ids])]
        torch.testing.assert_close(list(result.scores), [sum(r) / len(r) for r in rows], atol=1e-4, rtol=1e-4)


def test_a_select_with_nothing_before_it_starts_from_the_first_token(backend):
    assert wait(backend, SelectJob(Transcript(), ("yes", "no"))).index in (0, 1)


def test_generation_equals_the_engine_alone(engine, backend):
    result = wait(backend, GenJob(Transcript().add("the lazy dog"), GenOptions(max_tokens=9)))
    assert result.text == engine.generate("the lazy dog", max_new_tokens=9)[0].text
    drawn = wait(backend, GenJob(Transcript().add("the lazy dog"), GenOptions(max_tokens=9, temperature=1.0), seed=4))
    assert drawn.text == engine.generate("the lazy dog", max_new_tokens=9, temperature=1.0, seed=4)[0].text


CONSTRAINTS = {
    "regex": (gen("x", regex=r"[a-c]{2,3}-[0-9]", max_tokens=12), lambda v: re.fullmatch(r"[a-c]{2,3}-[0-9]", v)),
    "schema": (
        gen("x", schema={"type": "object", "properties": {"ok": {"type": "boolean"}}, "required": ["ok"],
                         "additionalProperties": False}, max_tokens=40),
        lambda v: set(v) == {"ok"} and type(v["ok"]) is bool,
    ),
    "choices": (gen("x", choices=["red", "green"], max_tokens=9), lambda v: v in ("red", "green")),
    "int": (gen("x", dtype=int, max_tokens=20), lambda v: type(v) is int),
    "float": (gen("x", dtype=float, max_tokens=33), lambda v: type(v) is float),
    "bool": (gen("x", dtype=bool, max_tokens=9), lambda v: type(v) is bool),
    "str": (gen("x", dtype=str, max_tokens=3), lambda v: type(v) is str),
    "model": (gen("x", dtype=Pet, max_tokens=60), lambda v: type(v) is Pet and 0 <= v.age <= 9),
}  # fmt: skip


@pytest.mark.parametrize(("node", "holds"), CONSTRAINTS.values(), ids=CONSTRAINTS.keys())
@pytest.mark.parametrize("temperature", [0.0, 1.5])
def test_a_constrained_generation_has_a_value_of_its_kind(backend, node, holds, temperature):
    @function
    def constrained(s, topic):
        s += f"the {topic} is "
        s += dataclasses.replace(node, options=dataclasses.replace(node.options, temperature=temperature))
        s += "."
        return s["x"]

    batch = [{"topic": topic} for topic in ("quick fox", "lazy dog")]
    runs = constrained.run_batch(backend, batch, seed=3, mode="traced")
    assert all(holds(run.value) for run in runs)
    assert runs == constrained.run_batch(backend, batch, seed=3, mode="eager")


def test_a_generation_ends_before_its_stop_string_and_at_its_limit(backend):
    @function
    def stopped(s, stop, limit):
        s += "the lazy dog"
        s += gen("x", max_tokens=limit, stop=stop)
        s += "|"
        return s["x"]

    whole = stopped.run(backend, stop=(), limit=12).value
    stop = whole[4:6]
    assert stopped.run(backend, stop=stop, limit=12).value == whole[: whole.index(stop)]
    assert stopped.run(backend, stop=["nowhere", stop], limit=12).text == f"the lazy dog{whole[: whole.index(stop)]}|"
    short = stopped.run(backend, stop=(), limit=3).value
    assert whole.startswith(short)
    assert len(short) < len(whole)


@function
def story(s, animal):
    s += system("Tell stories.")
    s += user(f"Tell of a {animal}, then of its {animal} friend.")
    with s.role("assistant"):
        s += "Once a "
        s += gen("opening", max_tokens=6)
        s += select("mood", [" yes", " no", " maybe"])
        s += gen("age", dtype=int, max_tokens=3)
    forks = s.fork(2)
    for fork, what in zip(forks, ("end", "moral"), strict=True):
        fork += user(what)
        fork += assistant(gen("closing", max_tokens=5, temperature=0.8))
    s.join(forks)
    return s["closing"]


def test_traced_equals_eager_on_the_engine(backend):
    batch = [{"animal": a} for a in ("fox", "dog", "quick fox")]
    eager = [story.run(backend, seed=7 + i, mode="eager", **entry) for i, entry in enumerate(batch)]
    forwards = backend.engine.stats.num_forwards
    assert story.run_batch(backend, batch, seed=7, mode="traced") == eager
    traced_forwards = backend.engine.stats.num_forwards - forwards
    assert story.run_batch(backend, batch, seed=7, mode="eager") == eager
    assert traced_forwards < 3 * 22  # op by op: one run after the other
    assert isinstance(eager[0]["age"], int)


def test_an_error_names_the_line_of_the_program_and_leaves_nothing_behind(backend):
    @function
    def too_long(s, text):
        s += text
        s += gen("x", max_tokens=4000)  # the line that goes wrong

    line = too_long.body.__code__.co_firstlineno + 3
    for mode in ("traced", "eager"):
        for batch in ([{"text": "a"}], [{"text": "a"}, {"text": "b"}]):
            with pytest.raises(ProgramError, match=rf"test_engine_backend\.py:{line}: RequestError: .*KV pool"):
                too_long.run_batch(backend, batch, mode=mode)


def test_a_generation_cut_short_of_its_type_says_so():
    op = GenOp(0, 0, "age", GenOptions(), "int", int, Location("mine.py", 3))
    with pytest.raises(ProgramError, match=r"mine\.py:3: gen\('age'\) gave '-', which is no int; .* give it more"):
        parsed(op, GenResult("-", "length"))


def test_a_program_may_begin_with_a_generation(backend):
    @function
    def bare(s):
        s += gen("x", max_tokens=3)

    assert bare.run(backend) == bare.run(backend, mode="eager")


def test_leaving_a_stream_gives_pages_back(backend):
    stream = story.stream(backend, animal="fox")
    next(stream)
    stream.close()


def test_a_program_that_raises_in_a_batch_ends_the_others(backend):
    @function
    def bad(s, n):
        s += f"{n}: "
        s += gen("x", max_tokens=3 + n)
        if n == 1:
            raise KeyError("mine")
        if s["x"]:  # looked at: runs eagerly
            s += gen("y", max_tokens=30)

    with pytest.raises(KeyError, match="mine"):
        bad.run_batch(backend, [{"n": n} for n in range(3)])

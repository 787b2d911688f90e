"""Traced, optimised and eager runs of a program give the same, alone and in a batch."""

import pytest
from fake import INSTRUCTIONS, FakeBackend, RoundBackend, program_of
from hypothesis import assume, given, reject, settings
from hypothesis import strategies as st

from infercore.errors import TraceError
from infercore.lang import (
    DoneEvent,
    GenJob,
    GenOptions,
    TextEvent,
    Transcript,
    function,
    gen,
    passes,
    select,
    user,
)
from infercore.lang.beginnings import common_beginning
from infercore.lang.interpreter import Process, by_shared_beginning, run_programs
from infercore.lang.ir import Block, GenOp, Program, Return, SelectOp
from infercore.lang.trace import trace, trace_with_parameters

ARGUMENTS = {"p": "first", "q": "second"}


@settings(max_examples=200)
@given(instructions=INSTRUCTIONS, seed=st.none() | st.integers(0, 5))
def test_traced_equals_eager_on_random_programs(instructions, seed):
    program = program_of(instructions)
    eager = program.run(FakeBackend(), seed=seed, mode="eager", **ARGUMENTS)
    for optimised in (False, True):
        try:
            traced = program.run(FakeBackend(seed=1), seed=seed, mode="traced", optimised=optimised, **ARGUMENTS)
        except TraceError as error:
            if "more than 16 paths" not in str(error):
                raise
            continue
        assert traced == eager


def traced(instructions):
    """The program of some instructions, with its arguments known; discards those that take too many paths."""
    try:
        return trace(program_of(instructions).body, "p", ARGUMENTS)
    except TraceError as error:
        if "more than 16 paths" not in str(error):
            raise
        reject()


@settings(max_examples=100)
@given(instructions=INSTRUCTIONS, which=st.sampled_from(["fold_constants", "fold_forced", "drop_dead", "hoist_forks"]))
def test_no_pass_changes_a_result(instructions, which):
    program = traced(instructions)
    changed = getattr(passes, which)(program)
    plain, after = run_programs(FakeBackend(), [program, changed], seeds=[3, 3])
    assert after == plain
    assert getattr(passes, which)(changed) == changed  # doing it again changes nothing


@settings(max_examples=50)
@given(instructions=INSTRUCTIONS)
def test_parameters_bound_to_other_texts_give_what_tracing_with_those_gives(instructions):
    function = program_of(instructions)
    traced(instructions)
    program, dynamic = trace_with_parameters(function.body, "p", ARGUMENTS)
    assert set(dynamic) == set(program.parameters)
    other = {"p": "third", "q": ""}
    bound = passes.bind(program, {name: other[name] for name in dynamic})
    plain, after = run_programs(FakeBackend(), [trace(function.body, "p", other), bound], seeds=[None, None])
    assert after == plain


@settings(max_examples=50)
@given(instructions=INSTRUCTIONS, outputs=st.sets(st.sampled_from(["a", "b", "named"])))
def test_wanted_outputs_survive_the_removal_of_dead_variables(instructions, outputs):
    program = traced(instructions)
    backend, lean_backend = FakeBackend(), FakeBackend()
    (plain,) = run_programs(backend, [program], seeds=[1])
    (after,) = run_programs(lean_backend, [passes.drop_dead(program, outputs=outputs)], seeds=[1])
    assert after.variables == {name: v for name, v in plain.variables.items() if name in outputs}
    assert after.value == plain.value
    assert len(lean_backend.jobs) <= len(backend.jobs)


@settings(max_examples=50)
@given(instructions=INSTRUCTIONS)
def test_a_schedule_keeps_every_operation_and_its_order_in_a_state(instructions):
    program = traced(instructions)
    flat = [op for level in passes.schedule(program) for op in level]
    for state in {op.state for op in flat}:
        assert [op for op in flat if op.state == state] == [op for op in program.body.ops if op.state == state]


@settings(max_examples=50)
@given(instructions=INSTRUCTIONS)
def test_the_interpreter_takes_as_many_rounds_as_the_longest_chain_of_generations(instructions):
    program = traced(instructions)
    assume(isinstance(program.body.end, Return))
    backend = RoundBackend()
    run_programs(backend, [program], seeds=[None])
    levels = [sum(isinstance(op, GenOp | SelectOp) for op in level) for level in passes.schedule(program)]
    assert backend.rounds == [n for n in levels if n]


@given(texts=st.lists(st.text(alphabet="ab", max_size=6), max_size=6))
def test_jobs_that_share_most_come_first(texts):
    op = GenOp(0, 0, None, GenOptions())
    process = Process(Program("p", (), Block((), Return())))
    ready = [(process, op, GenJob(Transcript().add(text), op.options)) for text in texts]
    ordered = [job.transcript.text for _, _, job in by_shared_beginning(ready)]
    assert sorted(ordered) == sorted(texts)
    pairs = [(i, j) for i in range(len(texts)) for j in range(i)]
    if pairs:
        assert len(common_beginning(ordered[:2])) == max(len(common_beginning([texts[i], texts[j]])) for i, j in pairs)


def test_batches_give_what_single_runs_give_in_both_modes():
    @function
    def looped(s, topic, n):
        for i in range(n):
            s += f"{topic} {i}: "
            s += gen("x")
        s += select("end", ["stop", "go"])
        return s["x"]

    batch = [{"topic": t, "n": n} for t in ("sea", "air", "sun") for n in (1, 3)]
    single = [looped.run(FakeBackend(), mode="eager", **entry) for entry in batch]
    for mode in ("traced", "eager"):
        backend = FakeBackend(seed=2)
        assert looped.run_batch(backend, batch, mode=mode) == single
        assert backend.most_at_once > 1
        assert not backend.running
    assert looped.run_batch(FakeBackend(), []) == []


def test_run_i_of_a_batch_draws_with_the_seed_plus_i():
    @function
    def drawn(s, _unused="x"):
        s += gen("x", temperature=1.0)

    together = drawn.run_batch(FakeBackend(), [{}, {}, {}], seed=5)
    alone = [drawn.run(FakeBackend(), seed=5 + i, mode="eager") for i in range(3)]
    assert together == alone
    assert len({run["x"] for run in together}) == 3


def test_independent_generations_of_one_program_run_side_by_side():
    @function
    def tips(s):
        s += "Tips\n"
        forks = s.fork(4)
        for i, f in enumerate(forks):
            f += f"{i}: "
            f += gen("tip")
        s.join(forks)
        s += f"Best of {s['tip'][0]} and {s['tip'][3]}: "
        s += gen("best")

    backend = FakeBackend()
    run = tips.run(backend, mode="traced")
    assert backend.most_at_once == 4
    assert len(run["tip"]) == 4
    assert len(backend.jobs) == 5


def test_programs_call_programs():
    @function
    def ask(s, question):
        s += f"Q: {question}\nA: "
        s += gen("answer", stop="\n")
        return s["answer"]

    @function
    def twice(s, question):
        first = ask(s, question)
        s += "\n"
        return first, ask(s, f"why {first}")

    for mode in ("traced", "eager"):
        run = twice.run(FakeBackend(), question="who", mode=mode)
        assert run.value[1] == run["answer"]
        assert run.text.startswith(f"Q: who\nA: {run.value[0]}\nQ: why {run.value[0]}\nA: ")
    with pytest.raises(TypeError, match=r"use ask\.run"):
        ask("who")


def test_a_stream_brings_the_text_of_every_variable_and_then_the_run():
    @function
    def two(s):
        s += gen("x")
        s += " and "
        s += gen("y")

    events = list(two.stream(FakeBackend()))
    assert isinstance(events[-1], DoneEvent)
    run = events[-1].run
    for name in ("x", "y"):
        assert "".join(e.text for e in events if isinstance(e, TextEvent) and e.name == name) == run[name]
    backend = FakeBackend()
    stream = two.stream(backend)
    next(stream)
    stream.close()
    assert not backend.running


@pytest.mark.parametrize("mode", ["traced", "eager"])
@pytest.mark.parametrize("num_programs", [1, 3])
def test_an_interrupt_cancels_whatever_runs(mode, num_programs):
    class Interrupted(FakeBackend):
        def step(self):
            raise KeyboardInterrupt

    @function
    def two(s, i):
        forks = s.fork(2)
        for fork in forks:
            fork += f"{i} "
            fork += gen("x")
        s.join(forks)

    backend = Interrupted()
    with pytest.raises(KeyboardInterrupt):
        two.run_batch(backend, [{"i": i} for i in range(num_programs)], mode=mode)
    assert backend.jobs
    assert not backend.running


def test_a_loop_over_generated_values_runs_eagerly_by_itself():
    @function
    def react(s, limit):
        for _ in range(limit):
            s += "step: "
            s += gen("word")
            if "a" in s["word"]:
                break
            s += "\n"
        return s["word"]

    with pytest.raises(TraceError, match=r"test_modes\.py:\d+: .* mode=\"eager\""):
        react.run(FakeBackend(), limit=5, mode="traced")
    assert react.run(FakeBackend(), limit=5) == react.run(FakeBackend(), limit=5, mode="eager")


def test_forks_of_one_text_draw_differently_and_alike_in_both_modes():
    @function
    def drawn(s):
        forks = s.fork(4)
        for f in forks:
            f += gen("x", temperature=1.0)
        s.join(forks)

    traced = drawn.run(FakeBackend(), seed=1)
    assert len(set(traced["x"])) == 4
    assert drawn.run(FakeBackend(), seed=1, mode="eager") == traced


def test_what_all_forks_begin_with_is_appended_once_and_the_parent_goes_on_without_it():
    @function
    def forked(s):
        s += "A"
        forks = s.fork(3)
        for i, f in enumerate(forks):
            f += user("Tell me ", f"tip {i}")
            f += gen("tip")
        s.join(forks)
        s += "B"
        s += gen("end")

    plain_program = trace(forked.body, "forked", {})
    hoisted = passes.hoist_forks(passes.fold_constants(plain_program))
    assert [str(line) for line in str(hoisted).splitlines()[2:6]] == [
        "  s4 = fork s0",
        "  s4 begin user",
        "  s4 += 'Tell me tip '",
        "  s1, s2, s3 = fork s4",
    ]
    backend = FakeBackend()
    plain, after = run_programs(backend, [plain_program, hoisted], seeds=[None, None])
    assert after == plain
    prompts = sorted(job.transcript.text for job in backend.jobs)
    assert prompts[::2] == prompts[1::2]  # each job stands in both programs
    assert prompts[0] == "AB"
